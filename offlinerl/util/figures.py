"""What pictures share."""

from __future__ import annotations

from pathlib import Path

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Of Okabe & Ito, Color universal design, 2008, which people who confuse red and green tell apart too; without their
yellow, of which a line on white is hard to see."""

DASHES = ("solid", "dashed", "dotted")
"""With the colours used up, their lines differ."""


def line_of(number: int) -> dict[str, str]:
    """How matplotlib draws the line of a number among others."""
    return dict(color=COLOURS[number % len(COLOURS)], linestyle=DASHES[number // len(COLOURS) % len(DASHES)])


def literal(text: str) -> str:
    """A text for matplotlib to draw as it is: with its dollars, which would begin a formula, with a question mark for
    what is no character, and not hidden because it begins with an underscore."""
    text = text.encode("utf-8", "replace").decode().replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def format_of(path: Path) -> str:
    """The format of a picture by its file's name: "pdf", "svg" or, whatever else it ends in, "png"."""
    suffix = path.suffix.lower().removeprefix(".")
    return suffix if suffix in ("pdf", "svg") else "png"
