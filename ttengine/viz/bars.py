"""Bars with their spread, for tables of methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ttengine.viz.plots import INK, PLANNER, open_figure


@dataclass(frozen=True)
class Bars:
    """One panel: a horizontal bar a name, with its spread.

    Attributes:
        means: name -> mean and standard deviation, in `unit`; of none, the axes stay empty.
        title: of the panel.
        unit: of the numbers.
        line: a number to compare with.
    """

    means: Mapping[str, tuple[float, float]]
    title: str
    unit: str = ""
    line: float | None = None


def plot_bars(path: Path, *panels: Bars) -> None:
    """Draw panels side by side, names on the left; a name that a panel lacks has no bar there.

    Args:
        path: file to write, .png or .svg.
        panels: what to draw, at least one.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.means))[::-1]
    with open_figure(path, (4.0 + 3.0 * len(panels), 1.0 + 0.38 * max(1, len(names)))) as drawn:
        for axes, panel in zip(drawn.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
            places = [place for place, name in enumerate(names) if name in panel.means]
            numbers = [panel.means[names[place]] for place in places]
            means, spreads = [mean for mean, _ in numbers], [spread for _, spread in numbers]  # may be empty
            axes.barh(places, means, xerr=spreads, color=PLANNER, ecolor=INK, height=0.6, capsize=2)
            axes.set_yticks(range(len(names)), names)
            if panel.line is not None:
                axes.axvline(panel.line, color=INK, linewidth=0.8, linestyle=":")
            axes.set_xlabel(panel.unit)
            axes.set_title(panel.title, loc="left")
            axes.spines[["top", "right"]].set_visible(False)
