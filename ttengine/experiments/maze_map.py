"""The medium maze of D4RL and Gymnasium-Robotics: its cells, the ways between them, and where they lie."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Cell = tuple[int, int]
"""Row, column of MEDIUM."""
Point = npt.NDArray[np.float64]
"""[2] float64, metres from the maze's middle."""

MEDIUM = (
    "########",
    "#S.##..#",
    "#..#...#",
    "##...###",
    "#..#...#",
    "#.#..#.#",
    "#...#.G#",
    "########",
)
"""# wall, S start, G goal."""

REACHED_M = 0.45
"""So near the goal it is reached; Gymnasium-Robotics' own."""


def cells(marks: str) -> list[Cell]:
    """Return the cells with one of some marks."""
    return [(r, c) for r, row in enumerate(MEDIUM) for c, mark in enumerate(row) if mark in marks]


FREE = cells("SG.")
START, GOAL = cells("S")[0], cells("G")[0]


def next_cells(goal: Cell) -> dict[Cell, Cell]:
    """Return for each free cell the next one on a shortest way to a goal; the goal's is itself."""
    free, ways = set(FREE), {goal: goal}
    edge = deque([goal])
    while edge:
        r, c = here = edge.popleft()
        for cell in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
            if cell in free and cell not in ways:
                ways[cell] = here
                edge.append(cell)
    return ways


@dataclass(frozen=True)
class Frame:
    """Where the cells lie: (x, y) in metres from the maze's middle; columns go right (+x)."""

    cell_m: float
    """width of a cell"""
    up: Literal[1, -1] = 1
    """1: rows go up (+y), as in D4RL; -1: down, as in Gymnasium-Robotics' own maps"""
    zero_cell: Cell | None = None
    """in whose middle observed positions are zero; None: in the maze's"""

    @property
    def zero(self) -> Point:
        """Return the position that is observed as zero."""
        return np.zeros(2) if self.zero_cell is None else self.middle(self.zero_cell)

    def middle(self, cell: Cell) -> Point:
        """Return the middle of a cell."""
        row, column = cell
        return np.array([column + 0.5 - len(MEDIUM[0]) / 2, self.up * (row + 0.5 - len(MEDIUM) / 2)]) * self.cell_m

    def cell_of(self, position: npt.ArrayLike) -> Cell:
        """Return the cell that a position lies in."""
        x, y = np.asarray(position, np.float64) / self.cell_m
        return int(np.floor(self.up * y + len(MEDIUM) / 2)), int(np.floor(x + len(MEDIUM[0]) / 2))

    def walls(self) -> npt.NDArray[np.float64]:
        """Return all walls as boxes: [walls, 4], their middle (x, y) and half their size (x, y)."""
        half = self.cell_m / 2
        return np.array([[*self.middle(cell), half, half] for cell in cells("#")])


FRAMES = {"point": Frame(1.0), "ant": Frame(4.0, zero_cell=START)}
"""Body -> where its cells lie; the ant's are D4RL's."""
MINARI = Frame(4.0, up=-1)
"""Of Minari's ants."""
