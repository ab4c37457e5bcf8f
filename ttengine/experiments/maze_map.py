"""The medium maze of D4RL and Gymnasium-Robotics: its cells, the ways between them, and where they lie."""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

Cell = tuple[int, int]
"""Row, column; rows go up (+y), columns go right (+x)."""
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
"""# wall, S start, G goal; the first row is the lowest, so that positions are D4RL's."""

CELL_M = {"point": 1.0, "ant": 4.0}
"""Body -> width of a cell."""
REACHED_M = 0.45
"""So near the goal it is reached; Gymnasium-Robotics' own."""


def cells(marks: str) -> list[Cell]:
    """Return the cells with one of some marks."""
    return [(r, c) for r, row in enumerate(MEDIUM) for c, mark in enumerate(row) if mark in marks]


FREE = cells("SG.")
START, GOAL = cells("S")[0], cells("G")[0]


def middle(cell: Cell, width: float) -> Point:
    """Return the middle of a cell, for cells of some width in metres."""
    return np.array([cell[1] + 0.5 - len(MEDIUM[0]) / 2, cell[0] + 0.5 - len(MEDIUM) / 2]) * width


def cell_of(position: npt.ArrayLike, width: float) -> Cell:
    """Return the cell that a position (x, y) lies in."""
    x, y = np.asarray(position, np.float64) / width
    return int(np.floor(y + len(MEDIUM) / 2)), int(np.floor(x + len(MEDIUM[0]) / 2))


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


def walls(width: float) -> npt.NDArray[np.float64]:
    """Return all walls as boxes: [walls, 4], their middle (x, y) and half their size (x, y), metres."""
    return np.array([[*middle(cell, width), width / 2, width / 2] for cell in cells("#")])
