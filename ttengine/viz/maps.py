"""Paths over a map, a panel for each who walked them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ttengine.viz.plots import BEHAVIOUR, INK, PLANNER, open_figure

PANEL_IN = 3.2
"""Width of a panel, inches."""
COLUMNS = 3
"""Panels side by side, at most."""


@dataclass(frozen=True, eq=False)
class Paths:
    """What one panel shows.

    Attributes:
        positions: [T, 2] of each path, metres.
        reached: of each path, whether it ended at its goal; None: it had none.
        goals: [paths, 2] where they were to end; None: nowhere.
    """

    positions: list[npt.NDArray[np.float32]]
    reached: list[bool] | None = None
    goals: npt.NDArray[np.float64] | None = None


def plot_paths(path: Path, panels: Mapping[str, Paths], walls: npt.NDArray[np.float64], *, title: str) -> None:
    """Draw paths over a map.

    Args:
        path: file to write, .png, .pdf or .svg.
        panels: name -> its paths; those that reached their goal are coloured, others are dark.
        walls: [walls, 4] boxes: middle (x, y) and half the size (x, y), metres.
        title: of the plot.
    Raises:
        ConfigError: another suffix.
        MissingExtraError: matplotlib is not installed.
    """
    rows, columns = -(-len(panels) // COLUMNS), min(COLUMNS, len(panels))
    with open_figure(path, (PANEL_IN * columns, (PANEL_IN + 0.3) * rows + 0.3)) as drawn:
        from matplotlib.patches import Rectangle

        drawn.suptitle(title, x=0.01, ha="left", weight="bold")
        grid = drawn.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        for axes, (name, shown) in zip(grid, panels.items(), strict=False):
            for x, y, width, depth in walls:
                axes.add_patch(Rectangle((x - width, y - depth), 2 * width, 2 * depth, color=BEHAVIOUR, linewidth=0))
            for i, positions in enumerate(shown.positions):
                colour = PLANNER if shown.reached is None or shown.reached[i] else INK
                axes.plot(*positions.T, color=colour, linewidth=0.8, alpha=0.7)
                axes.plot(*positions[0], ".", color=colour, markersize=4)
                if shown.goals is not None:
                    axes.plot(*shown.goals[i], "x", color=colour, markersize=4, markeredgewidth=1.0)
            axes.set_title(name, weight="normal")
            axes.set(xticks=[], yticks=[], aspect="equal")
            axes.spines[:].set_visible(False)
