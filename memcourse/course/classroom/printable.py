"""Text from a submission, fit to be written anywhere."""

from __future__ import annotations


def printable(text: str) -> str:
    """Without what moves a cursor, turns the direction of writing, or is no character: each becomes its escape."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
