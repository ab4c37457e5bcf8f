"""Plots: returns of behaviour and planner, predictions against reality, training curves."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ttengine.closed_loop import Foresight
from ttengine.data.download import atomic_file
from ttengine.errors import ConfigError, DataError, require

INK, MUTED, BEHAVIOUR, PLANNER = "#22262b", "#7c858f", "#9aa7b4", "#d9591c"
SEGMENT_COLOURS = {"observation": "#3b6ea8", "action": PLANNER, "reward": "#4c9a64", "value": "#8a5aa3"}
SUFFIXES = (".png", ".pdf", ".svg")

STYLE: dict[str, Any] = {
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}

GAP = 2
"""Control steps from the last prediction of a drawn plan to the next drawn plan, at least."""

SHOWN: dict[str, dict[int, str]] = {
    "Hopper": {0: "height (m)", 1: "torso angle (rad)", 4: "foot angle (rad)", 5: "forward speed (m/s)"},
    "HalfCheetah": {0: "height (m)", 1: "torso angle (rad)", 2: "back thigh (rad)", 8: "forward speed (m/s)"},
    "Walker2d": {0: "height (m)", 1: "torso angle (rad)", 2: "right thigh (rad)", 8: "forward speed (m/s)"},
}
"""Body -> the observation dims that are drawn, and their names; of other environments the first four that move."""


def plot_returns(
    path: Path, behaviour: npt.ArrayLike, planner: npt.ArrayLike, *, title: str, behaviour_label: str = "behaviour"
) -> None:
    """Draw the distribution of the data's returns, and each return of the planner.

    Args:
        path: .png, .pdf or .svg.
        behaviour: [episodes] undiscounted returns of the data.
        planner: [episodes] undiscounted returns of the planner.
        title: above the plot.
        behaviour_label: what made the data.
    Raises:
        ConfigError: another suffix.
        DataError: no return, or one that is not finite.
        MissingExtraError: matplotlib is not installed.
    """
    data, planned = _finite(behaviour, "behaviour"), _finite(planner, "planner")
    with open_figure(path, (7.0, 3.4)) as figure:
        top, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 3.2))
        edges = np.linspace(min(data.min(), planned.min(), 0.0), max(data.max(), planned.max()), 41)
        below.hist(data, edges, color=BEHAVIOUR, label=f"{behaviour_label}, {len(data)} episodes")
        below.set(xlabel="return of an episode", ylabel="episodes of the data")
        jitter = np.linspace(-0.25, 0.25, len(planned)) if len(planned) > 1 else np.zeros(1)
        top.scatter(planned, jitter, s=34, color=PLANNER, alpha=0.85, linewidth=0, clip_on=False, zorder=3)
        top.set(ylim=(-0.6, 0.6), yticks=[], title=title)
        top.spines[["left", "bottom"]].set_visible(False)
        top.tick_params(bottom=False)
        for mean, colour in ((data.mean(), INK), (planned.mean(), PLANNER)):
            for axes in (top, below):
                axes.axvline(mean, color=colour, linewidth=1.2, linestyle=(0, (4, 2)), zorder=1)
        below.plot([], [], color=INK, linewidth=1.2, linestyle=(0, (4, 2)), label=f"its mean, {data.mean():,.0f}")
        below.plot([], [], "o", color=PLANNER, label=f"planner, {len(planned)} episodes")
        below.plot([], [], color=PLANNER, linestyle=(0, (4, 2)), label=f"its mean, {planned.mean():,.0f}")
        below.legend(loc="upper right")


def plot_foresight(
    path: Path,
    foresight: Foresight,
    *,
    title: str,
    environment: str = "",
    control_period_s: float | None = None,
    steps: int = 150,
) -> None:
    """Draw what plans predicted over what then happened, and how the error grows with the distance.

    Args:
        path: .png, .pdf or .svg.
        foresight: of one episode.
        title: above the plot.
        environment: id, for the names of the dims.
        control_period_s: makes the time axis seconds; None: control steps.
        steps: of the episode that are drawn.
    Raises:
        ConfigError: another suffix.
        MissingExtraError: matplotlib is not installed.
    """
    shown = min(steps, len(foresight.observations) - 1)
    scale = control_period_s or 1.0
    dims = _shown_dims(foresight, environment)
    with open_figure(path, (9.0, 1.15 + 1.15 * len(dims))) as figure:
        grid = figure.add_gridspec(len(dims), 2, width_ratios=(3.4, 1))
        first: Any = None
        for row, (dim, name) in enumerate(dims):
            axes = figure.add_subplot(grid[row, 0], sharex=first)
            first = first or axes
            _draw_dimension(axes, foresight, dim, shown, scale)
            axes.set_ylabel(name, fontsize=8.5)
            axes.tick_params(labelbottom=row == len(dims) - 1)
        first.set_title(title)
        figure.legend(*first.get_legend_handles_labels(), loc="outside upper right", ncols=2)
        axes.set_xlabel("time (s)" if control_period_s else "control step")
        axes.set_xlim(0, shown * scale)
        figure.align_ylabels()
        _draw_error(figure.add_subplot(grid[:, 1]), foresight)


def _draw_dimension(axes: Any, foresight: Foresight, dim: int, shown: int, scale: float) -> None:
    axes.plot(
        np.arange(shown + 1) * scale, foresight.observations[: shown + 1, dim], color=INK, linewidth=1.1, label="real"
    )
    reach = foresight.horizon - 1
    free = -1  # plans are drawn apart, so that what happened is seen between them
    label: str | None = "predicted"
    for time, predicted in zip(foresight.planned_at, foresight.predicted, strict=True):
        if time <= free or time + reach > shown:
            continue
        axes.plot(
            (time + np.arange(reach + 1)) * scale, predicted[:, dim], color=PLANNER, linewidth=1.3, marker="o",
            markersize=2.2, alpha=0.9, label=label,
        )  # fmt: skip
        free, label = int(time) + reach + GAP, None


def _draw_error(axes: Any, foresight: Foresight) -> None:
    ahead = range(1, foresight.horizon)
    axes.plot(ahead, [foresight.standstill_error(h) for h in ahead], "o-", color=BEHAVIOUR, label="nothing moves")
    axes.plot(ahead, [foresight.error(h) for h in ahead], "o-", color=PLANNER, label="predicted")
    axes.set(xlabel="steps ahead", title="RMS error", ylabel="standard deviations, all dims", xticks=ahead)
    axes.set_ylim(bottom=0)
    axes.set_xlim(0.5, max(1.5, foresight.horizon - 0.5))
    axes.legend(loc="best", fontsize=8)


def plot_training(path: Path, metrics: Path, *, title: str) -> None:
    """Draw the losses of a training run: one curve a segment, validation as dots.

    Args:
        path: .png, .pdf or .svg.
        metrics: metrics.csv of the run.
        title: above the plot.
    Raises:
        ConfigError: another suffix.
        DataError: the file is missing or holds no row.
        MissingExtraError: matplotlib is not installed.
    """
    rows = _read_metrics(metrics)
    with open_figure(path, (7.0, 3.4)) as figure:
        axes = figure.subplots()
        for segment, colour in SEGMENT_COLOURS.items():
            points = [(float(row["step"]), float(row[segment])) for row in rows if row.get(segment)]
            axes.plot(*np.array(points).T, color=colour, linewidth=1.6, label=segment)
            held_out = [
                (float(row["step"]), float(row[f"validation_{segment}"]))
                for row in rows
                if row.get(f"validation_{segment}")
            ]
            if held_out:
                axes.plot(*np.array(held_out).T, "o", color=colour, markersize=4)
        axes.plot([], [], "o", color=MUTED, markersize=4, label="held out")
        axes.set(xlabel="optimiser step", ylabel="cross-entropy (nats a token)", title=title)
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper right", ncols=2)


def check_plot_path(path: Path) -> None:
    """Refuse a plot that could not be drawn in the end.

    Raises:
        ConfigError: the file's suffix is none of SUFFIXES.
        MissingExtraError: matplotlib is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path} ends in {path.suffix or 'nothing'}, allowed are {', '.join(SUFFIXES)}")
    require("matplotlib", "viz")


def _read_metrics(metrics: Path) -> list[dict[str, str]]:
    if not metrics.is_file():
        raise DataError(f"there is no file {metrics}; a training run writes it as metrics.csv")
    with open(metrics, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    missing = [name for name in ("step", *SEGMENT_COLOURS) if not rows or name not in rows[0]]
    if missing:
        raise DataError(f"{metrics} has no {', '.join(missing)}, or no row at all; is it a run's metrics.csv?")
    return rows


@contextmanager
def open_figure(path: Path, size: tuple[float, float]) -> Iterator[Any]:
    """Yield an empty figure and write it: whole, or not at all."""
    check_plot_path(path)
    matplotlib = require("matplotlib", "viz")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size)  # not pyplot's, which would keep it and might ask for a display
        FigureCanvasAgg(figure)
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as part:
            figure.savefig(part)


def _finite(returns: npt.ArrayLike, name: str) -> npt.NDArray[np.float64]:
    array = np.asarray(returns, np.float64).ravel()
    if not len(array) or not np.isfinite(array).all():
        raise DataError(f"the {name} returns are {array}; at least one, and all finite, are needed")
    return array


def _shown_dims(foresight: Foresight, environment: str) -> Sequence[tuple[int, str]]:
    named = SHOWN.get(environment.partition("-")[0])
    if named is not None:
        return list(named.items())
    moving = np.flatnonzero(foresight.observations.std(axis=0) > 0)[:4]
    return [(int(dim), f"observation {dim}") for dim in (moving if len(moving) else [0])]
