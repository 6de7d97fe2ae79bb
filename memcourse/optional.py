"""Packages that only some of the library needs."""

from importlib import import_module
from types import ModuleType


def needs(module: str, package: str) -> ModuleType:
    """Import a module.  Raises ModuleNotFoundError with the command that installs its package."""
    try:
        return import_module(module)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"{package} is not installed; run: pip install {package}") from None
