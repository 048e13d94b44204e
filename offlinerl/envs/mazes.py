"""D4RL's mazes, without the simulator, which takes long to load."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

CELL = 4.0
"""Width of a cell, in m."""


@dataclass(frozen=True)
class Maze:
    """A maze of square cells; x grows with the column and y with the row, and the start is at the origin.

    Attributes:
        rows: one string per row: ``#`` is a wall, ``r`` the start and ``g`` the goal of an evaluation.
    """

    rows: tuple[str, ...]

    def cells(self, kinds: str) -> list[tuple[int, int]]:
        """Row and column of the cells of these kinds, row by row."""
        return [(i, j) for i, row in enumerate(self.rows) for j, kind in enumerate(row) if kind in kinds]

    @cached_property
    def start(self) -> tuple[int, int]:
        """Row and column of ``r``."""
        return self.cells("r")[0]

    @cached_property
    def free(self) -> list[tuple[int, int]]:
        """Row and column of the cells without a wall."""
        return self.cells(".rg")

    def centre(self, cell: tuple[int, int]) -> np.ndarray:
        """x and y in m of the centre of a cell, given by row and column."""
        return CELL * np.array([cell[1] - self.start[1], cell[0] - self.start[0]], float)


MAZES = {
    "umaze": Maze(
        (
            "#####",
            "#r..#",
            "###.#",
            "#g..#",
            "#####",
        )
    ),
    "medium": Maze(
        (
            "########",
            "#r.##..#",
            "#..#...#",
            "##...###",
            "#..#...#",
            "#.#..#.#",
            "#...#.g#",
            "########",
        )
    ),
    "large": Maze(
        (
            "############",
            "#r...#.....#",
            "#.##.#.#.#.#",
            "#......#...#",
            "#.####.###.#",
            "#..#.#.....#",
            "##.#.#.#.###",
            "#..#...#.g.#",
            "############",
        )
    ),
}


def walls_of(env: Any) -> tuple[np.ndarray, float] | None:
    """The centres of the wall cells, ``[n, 2]``, x and y in m, and the width of a cell, in our mazes or those of
    Gymnasium-Robotics; None for other environments."""
    if hasattr(env.unwrapped, "maze_walls"):
        return env.unwrapped.maze_walls
    maze = getattr(env.unwrapped, "maze", None)
    if hasattr(maze, "maze_map"):
        cells = [(i, j) for i, row in enumerate(maze.maze_map) for j, kind in enumerate(row) if kind == 1]
        return np.array([maze.cell_rowcol_to_xy(np.array(cell)) for cell in cells]), float(maze.maze_size_scaling)
    return None
