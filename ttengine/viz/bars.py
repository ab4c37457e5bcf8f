"""Bars with their spread, for tables of methods."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ttengine.viz.plots import INK, PLANNER, open_figure


def plot_bars(
    path: Path, bars: Mapping[str, tuple[float, float]], *, title: str, unit: str, line: float | None = None
) -> None:
    """Draw a horizontal bar a name, with its spread.

    Args:
        path: file to write, .png or .svg.
        bars: name -> mean and standard deviation, in `unit`; of none, the axes stay empty.
        title: of the plot.
        unit: of the numbers.
        line: a number to compare with.
    """
    with open_figure(path, (7.0, 1.0 + 0.38 * max(1, len(bars)))) as drawn:
        axes = drawn.subplots()
        names = list(bars)[::-1]
        means, spreads = [bars[name][0] for name in names], [bars[name][1] for name in names]  # may be empty
        axes.barh(range(len(names)), means, xerr=spreads, color=PLANNER, ecolor=INK, height=0.6, capsize=2)
        axes.set_yticks(range(len(names)), names)
        if line is not None:
            axes.axvline(line, color=INK, linewidth=0.8, linestyle=":")
        axes.set_xlabel(unit)
        axes.set_title(title, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
