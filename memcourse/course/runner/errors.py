"""An error on its way to another process."""

from __future__ import annotations

import builtins
from typing import Any

from .traces import error_text, own_line

LONGEST_TEXT = 4000


def shown(error: BaseException) -> dict[str, Any]:
    """What the other side learns of it: its kind and the nearest of Python's own, its message, the learner's line."""
    own = own_line(error, frozenset())
    bases = [kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind]
    text = str(error)
    return {
        "name": type(error).__name__,
        "base": bases[0],
        "message": text[:LONGEST_TEXT],
        "text": error_text(error),
        "own": list(own) if own else None,
    }


def again(shown: dict[str, Any]) -> Exception:
    """The error, as near to the original as can be: of its type where that is one of Python's own.

    Raises KeyError or TypeError for what `shown` did not make.
    """
    name, text, base = (str(shown[key])[:LONGEST_TEXT] for key in ("name", "message", "base"))
    name = name if name.isidentifier() else "Exception"
    kind = _exception(name)
    if kind is None or kind is KeyError:
        fields = {"__str__": lambda self: text, "__module__": "builtins"}
        kind = type(name, (_exception(base) or Exception,), fields)
    try:
        return kind(text)
    except TypeError:  # UnicodeDecodeError takes five arguments
        return RuntimeError(text)


def _exception(name: str) -> type[Exception] | None:
    """Python's own exception of that name, where it may be raised on the other side: KeyboardInterrupt is no Ctrl-C."""
    kind = getattr(builtins, name, None)
    fits = isinstance(kind, type) and issubclass(kind, Exception) and kind is not StopIteration
    return kind if fits else None
