"""What pictures share."""

from __future__ import annotations


def literal(text: str) -> str:
    """A text for matplotlib to draw as it is: with its dollars, which would begin a formula, with a question mark for
    what is no character, and not hidden because it begins with an underscore."""
    text = text.encode("utf-8", "replace").decode().replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
