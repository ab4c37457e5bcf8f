"""Videos of episodes, rendered without a display."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ttengine.errors import ConfigError, RenderError, require

SUFFIXES = (".mp4", ".gif")
DEFAULT_FPS = 30.0
"""For environments without a clock."""
MOST_FPS = 50.0
"""Control loops run faster than a film needs; steps are left out until no more pictures a second remain."""

OFFSCREEN = ("egl", "osmesa")
"""Backends of MuJoCo's MUJOCO_GL that need no display, in the order in which they are tried."""
PROBE = "import mujoco\ncontext = mujoco.GLContext(64, 64)\ncontext.make_current()\ncontext.free()"
PROBE_TIMEOUT_S = 60.0
HOW_TO_INSTALL = (
    "on Debian or Ubuntu: apt-get install libegl1 libgl1 libgl1-mesa-dri (for egl), or libosmesa6 (for osmesa)"
)


def choose_renderer() -> str:
    """Set MUJOCO_GL to a backend that works here, and return it; one that is set already is kept, if it works.

    Each backend is tried in a process of its own, since a failed one cannot be exchanged within a process.

    Raises:
        RenderError: none works; the message says why and what to install.
        MissingExtraError: MuJoCo is not installed.
    """
    require("mujoco", "mujoco")
    named = os.environ.get("MUJOCO_GL", "").lower()
    if sys.platform != "linux":
        return named or "default"  # elsewhere MuJoCo's own choice needs no display
    candidates = (named,) if named else (("glfw",) if os.environ.get("DISPLAY") else ()) + OFFSCREEN
    reasons = []
    for backend in candidates:
        reason = _why_not(backend)
        if reason is None:
            os.environ["MUJOCO_GL"] = backend
            return backend
        reasons.append(f"{backend}: {reason}")
    chosen = " (MUJOCO_GL chose it; unset it to try others)" if named else ""
    raise RenderError(f"nothing can be rendered here{chosen}: {'; '.join(reasons)}. {HOW_TO_INSTALL}")


def _why_not(backend: str) -> str | None:
    """Return why a backend does not work, None if it does."""
    try:
        probe = subprocess.run(
            [sys.executable, "-c", PROBE],
            env=os.environ | {"MUJOCO_GL": backend},
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {PROBE_TIMEOUT_S:.0f} s"
    if probe.returncode == 0:
        return None
    lines = [line for line in probe.stderr.splitlines() if line.strip() and not line.startswith((" ", "Exception ig"))]
    return next((line for line in lines if "Error" in line), f"exit code {probe.returncode}")


def follow(env: Any) -> None:
    """Point a MuJoCo environment's pictures through the model's own tracking camera, if it has one.

    Gymnasium's default camera stands still, and what walks leaves the picture.
    """
    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    if renderer is None:
        return
    mujoco = require("mujoco", "mujoco")
    camera = mujoco.mj_name2id(env.unwrapped.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
    if camera >= 0:
        renderer.camera_id = camera


class Video:
    """A video file, written picture by picture; it appears whole when closed, or not at all.

    Args:
        path: ends in .mp4 or .gif.
        control_period_s: seconds between two control steps, which makes the video run at real speed.
    Raises:
        ConfigError: another suffix.
        MissingExtraError: imageio is not installed.
    Attributes:
        stride: control steps from one picture to the next.
        fps: pictures a second.
        frames: pictures taken.
    """

    def __init__(self, path: Path, control_period_s: float | None) -> None:
        check_video_path(path)
        step_rate = 1.0 / control_period_s if control_period_s else DEFAULT_FPS
        self.path = path
        self.stride = max(1, int(np.ceil(step_rate / MOST_FPS)))
        self.fps = step_rate / self.stride
        self.frames = 0
        self._part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")  # the suffix chooses the format
        imageio = require("imageio.v2", "mujoco")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".mp4":
            require("imageio_ffmpeg", "mujoco")
            # yuv420p is what browsers play; a picture's sides must then be even, which a macro block of 2 sees to
            self._writer: Any = imageio.get_writer(
                self._part, fps=self.fps, codec="libx264", pixelformat="yuv420p", macro_block_size=2, quality=7
            )
        else:
            self._writer = imageio.get_writer(self._part, duration=1000.0 / self.fps, loop=0)

    def add(self, frame: npt.NDArray[np.uint8]) -> None:
        """Append one picture. frame [height, width, 3] uint8."""
        self._writer.append_data(frame)
        self.frames += 1

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._writer.close()
            if kind is None and self.frames:
                os.replace(self._part, self.path)
        finally:
            self._part.unlink(missing_ok=True)


def check_video_path(path: Path) -> None:
    """Raise ConfigError unless a video can have this name."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path} ends in {path.suffix or 'nothing'}, allowed are {', '.join(SUFFIXES)}")


def check_rendering(make: Callable[[], Any]) -> None:
    """Render one picture of an environment, so that a video that cannot be made is known before any episode is run.

    Args:
        make: returns a Gymnasium environment that renders arrays.
    Raises:
        RenderError: it cannot be rendered here.
    """
    env = make()
    try:
        if hasattr(env.unwrapped, "mujoco_renderer"):
            choose_renderer()
        env.reset(seed=0)
        frame = env.render()
    except RenderError:
        raise
    except Exception as error:  # graphics stacks raise anything
        raise RenderError(f"the environment cannot be rendered here: {type(error).__name__}: {error}") from error
    finally:
        env.close()
    if frame is None or np.asarray(frame).ndim != 3:
        raise RenderError("the environment's render() gives no picture; make it with render_mode='rgb_array'")
