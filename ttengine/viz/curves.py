"""Pictures of forecasts: curves over the steps ahead, and bodies side by side as a strip and as a film."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ttengine.data.trajectories import FloatArray
from ttengine.environments import control_period_s, make_environment
from ttengine.errors import ShapeError, require
from ttengine.viz.plots import INK, MUTED, PLANNER, open_figure
from ttengine.viz.videos import Video, choose_renderer, follow

COLOURS = (PLANNER, "#3b6ea8", INK, "#4c9a64", "#8a5aa3")
SIDE = 240
"""Pixels of a picture's side."""


@dataclass(frozen=True)
class Curve:
    """Numbers over steps 1, 2, ...: their mean, and how far off it may be."""

    mean: npt.NDArray[np.floating[Any]]
    error: npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Panel:
    """Curves with one vertical axis; lines are numbers, or curves without an error, to compare with."""

    title: str
    unit: str
    curves: Mapping[str, Curve]
    lines: Mapping[str, npt.ArrayLike] = field(default_factory=dict)
    low: float | None = None
    """where the axis ends, for curves that fall without end"""


def plot_curves(path: Path, panels: Sequence[Panel], *, axis: str) -> None:
    """Draw panels side by side.

    Args:
        path: file to write, .png or .svg.
        panels: what is drawn; a curve of the same name has the same colour in all.
        axis: name of the horizontal axis.
    """
    with open_figure(path, (5.2 * len(panels), 3.6)) as figure:
        for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
            for (name, curve), colour in zip(panel.curves.items(), COLOURS, strict=False):
                step = np.arange(1, len(curve.mean) + 1)
                axes.plot(step, curve.mean, color=colour, linewidth=1.6, label=name)
                axes.fill_between(
                    step, curve.mean - curve.error, curve.mean + curve.error, color=colour, alpha=0.2, linewidth=0
                )
            for (name, number), dash in zip(panel.lines.items(), (":", "--", "-."), strict=False):
                heights = np.broadcast_to(np.asarray(number, np.float64), step.shape)
                axes.plot(step, heights, color=MUTED, linewidth=1.0, linestyle=dash, label=name)
            if panel.low is not None:
                axes.set_ylim(bottom=panel.low)
            axes.set(title=panel.title, xlabel=axis, ylabel=panel.unit)
            axes.legend(fontsize=8)


def bodies(env_id: str, tracks: Mapping[str, FloatArray]) -> Iterator[dict[str, npt.NDArray[np.uint8]]]:
    """Render a body as it stands in each observation of each track, step by step.

    Observations do not hold where the body is on the ground; that is integrated from its velocity, from 0 on.

    Args:
        env_id: of a MuJoCo body whose observations are positions but the first one or two, then velocities.
        tracks: label -> observations [T+1, N].
    Yields:
        Label -> picture [SIDE, SIDE, 3] uint8.
    Raises:
        RenderError: nothing can be rendered here.
        ShapeError: the observations are none of that kind.
    """
    choose_renderer()
    env = make_environment(env_id, render_mode="rgb_array", width=SIDE, height=SIDE)
    try:
        env.reset(seed=0)
        follow(env)
        inner: Any = env.unwrapped
        period = control_period_s(env) or 0.0
        states = {label: _states(track, inner.model.nq, inner.model.nv, period) for label, track in tracks.items()}
        for t in range(min(len(positions) for positions, _ in states.values())):
            pictures = {}
            for label, (positions, velocities) in states.items():
                inner.set_state(positions[t], velocities[t])
                pictures[label] = np.asarray(env.render(), np.uint8)
            yield pictures
    finally:
        env.close()


def _states(track: FloatArray, nq: int, nv: int, period: float) -> tuple[npt.NDArray[np.float64], ...]:
    """Positions [T+1, nq] and velocities [T+1, nv] of observations [T+1, N]."""
    hidden = nq + nv - track.shape[1]
    if hidden not in (1, 2):
        raise ShapeError(
            f"observations have {track.shape[1]} dims; a body of {nq} positions and {nv} velocities that hides one or "
            f"two of them has {nq + nv - 1} or {nq + nv - 2}"
        )
    observed = track.astype(np.float64)
    velocities = observed[:, nq - hidden :]
    ground = np.zeros((len(track), hidden))
    ground[1:] = np.cumsum(velocities[:-1, :hidden], axis=0) * period
    return np.concatenate([ground, observed[:, : nq - hidden]], axis=1), velocities


def draw_side_by_side(env_id: str, tracks: Mapping[str, FloatArray], film: Path, strip: Path, shown: int = 6) -> None:
    """Write a film of all tracks side by side, and a strip of some of its pictures, a row a track.

    Args:
        env_id: see `bodies`.
        tracks: label -> observations [T+1, N].
        film: .mp4 or .gif.
        strip: .png or .svg.
        shown: pictures in a row of the strip.
    Raises:
        What `bodies` raises.
    """
    env = make_environment(env_id)
    period = control_period_s(env)
    env.close()
    steps = min(len(track) for track in tracks.values())
    kept: dict[int, dict[str, npt.NDArray[np.uint8]]] = {}
    chosen = {int(t) for t in np.linspace(0, steps - 1, shown).round()}
    with Video(film, period) as video:
        for t, pictures in enumerate(bodies(env_id, tracks)):
            if t in chosen:
                kept[t] = pictures
            if t % video.stride == 0:
                video.add(np.concatenate([_labelled(picture, label) for label, picture in pictures.items()], axis=1))
    with open_figure(strip, (1.5 * len(kept) + 0.6, 1.5 * len(tracks) + 0.4)) as figure:
        grid = figure.subplots(len(tracks), len(kept), squeeze=False)
        for row, label in enumerate(tracks):
            for column, (t, pictures) in enumerate(kept.items()):
                axes = grid[row, column]
                axes.imshow(pictures[label])
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                if row == 0:
                    axes.set_title(f"step {t}", fontsize=8.5)
                if column == 0:
                    axes.set_ylabel(label, fontsize=8.5)


def _labelled(picture: npt.NDArray[np.uint8], label: str) -> npt.NDArray[np.uint8]:
    """Write a label into a picture's corner."""
    image = require("PIL.Image", "viz").fromarray(picture)
    require("PIL.ImageDraw", "viz").Draw(image).text((8, 6), label, fill=(255, 255, 255))
    return np.asarray(image, np.uint8)
