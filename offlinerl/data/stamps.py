"""What the column ``step`` of a table says about its rows: whether they are in order, and whether some are missing."""

from __future__ import annotations

from typing import Any

import numpy as np

WIDE = 1.5
"""Number of median advances of ``step`` beyond which rows may be missing."""


def unordered(step: np.ndarray, ended: np.ndarray) -> np.ndarray:
    """The rows where ``step`` ``[rows]`` does not increase, although it does not start again: it repeats, or falls by
    less. It starts again at or before about the first value of the episode. An episode of one row does so if its value
    repeats, provided that longer ones do so too.

    Args:
        step: numbers or times.
        ended: ``[rows]`` bool, where an end is marked, after which ``step`` may be anything.
    """
    step = _since_first(step)
    advance = np.diff(step)
    about = np.median(advance[advance > 0]) / 2 if (advance > 0).any() else np.inf
    first, found, repeated, restarts = step[0], [], [], False
    for row in (np.flatnonzero((advance <= 0) | ended[:-1]) + 1).tolist():
        if not ended[row - 1]:
            long = step[row - 1] > first
            if step[row] - first >= about or (not long and first - step[row] >= about):
                found.append(row)
                continue
            restarts |= bool(long)
            repeated += [] if long else [row]
        first = step[row]
    return np.array(sorted(found if restarts else found + repeated), int)


def _since_first(step: np.ndarray) -> np.ndarray:
    """Values relative to the first one, float64, which holds whole numbers of nanoseconds since 1970 only so; in
    seconds if they are dates or durations."""
    whole = step.astype(np.int64) if step.dtype.kind in "biu" else step
    since = whole - whole[:1]
    return since / np.timedelta64(1, "s") if step.dtype.kind in "Mm" else since.astype(np.float64)


class Stamps:
    """Collects the values of ``step`` episode by episode."""

    def __init__(self) -> None:
        self.unordered: list[int] = []
        self.advances: list[np.ndarray] = []
        self.rows: list[np.ndarray] = []

    def see(self, step: np.ndarray | None, rows: np.ndarray, is_unordered: bool) -> None:
        """Takes an episode: its values of ``step``, ``[T]``, its row numbers in the source, and whether its first row
        is among the ``unordered`` ones."""
        if step is not None:
            self.unordered += [int(rows[0])] if is_unordered else []
            self.advances.append(np.diff(_since_first(step)))
            self.rows.append(rows[1:])

    def facts(self) -> dict[str, list[dict[str, Any]]]:
        """The ``provenance`` entries for rows out of order or else for missing rows, if there are any."""
        if self.unordered:  # nothing is known of the advances of other rows then
            return dict(unordered_steps=[dict(row=self.unordered[0], rows=len(self.unordered))])
        advance = np.concatenate([*self.advances, np.empty(0)])
        usual = float(np.median(advance)) if len(advance) else np.inf
        wide = np.flatnonzero(advance > WIDE * usual)
        if not len(wide):
            return {}
        row, longest = int(np.concatenate(self.rows)[wide[0]]), float(advance[wide].max())
        return dict(missing_steps=[dict(row=row, steps=len(wide), usual=usual, longest=longest)])
