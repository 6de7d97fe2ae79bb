"""The course's own tools: checks, hints, figures, the grader and the command line.

The first cell of every notebook imports `check`, `figures`, `hint` and `setup` from here; `question` and
`show_progress` are there too. Each is loaded on first use.
"""

from importlib import import_module
from typing import Any

__all__ = ["check", "figures", "hint", "question", "setup", "show_progress"]


def __getattr__(name: str) -> Any:
    if name == "figures":
        return import_module("memcourse.course.figures")
    if name in __all__:
        return getattr(import_module("memcourse.course.notebook"), name)
    raise AttributeError(f"module 'memcourse.course' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
