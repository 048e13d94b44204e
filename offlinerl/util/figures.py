"""Colours, line styles and text for plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The palette of Okabe & Ito, Color universal design, 2008, which is safe for colour-blind readers; without its yellow,
which is hard to see on white."""

DASHES = ((), (4, 2), (1, 1.5), (6, 1.5, 1, 1.5), (9, 1.5, 1, 1.5, 1, 1.5))
"""Dashes and gaps of lines in turn, in multiples of the line's width, used in turn when the colours are used up."""


def line_of(number: int) -> dict[str, Any]:
    """Matplotlib's colour and line style for the line with this index."""
    return dict(color=COLOURS[number % len(COLOURS)], linestyle=(0, DASHES[number // len(COLOURS) % len(DASHES)]))


def literal(text: str) -> str:
    """Escape a text so that matplotlib draws it literally: dollar signs do not begin a formula, invalid characters are
    question marks, and a leading underscore does not hide it from legends."""
    text = text.encode("utf-8", "replace").decode().replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def format_of(path: Path) -> str:
    """The format of a picture by its file name: "pdf", "svg", or "png" for all other suffixes."""
    suffix = path.suffix.lower().removeprefix(".")
    return suffix if suffix in ("pdf", "svg") else "png"
