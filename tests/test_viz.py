"""Plots and videos: what is drawn, what is refused, nothing half-written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ttengine.closed_loop import Foresight
from ttengine.environments import make_environment
from ttengine.errors import ConfigError, DataError, RenderError
from ttengine.viz import plots, videos
from ttengine.viz.videos import Video, choose_renderer

matplotlib = pytest.importorskip("matplotlib")

METRICS = """step,tokens,learning_rate,loss,observation,action,reward,value,grad_norm,tokens_per_s,validation_loss,\
validation_observation,validation_action,validation_reward,validation_value
10,1,1,3,4,3,2,1,1,1,,,,,
20,2,1,2,3,2,1,0.5,1,1,2,3.1,2.1,1.1,0.6
"""


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect the figures as they are saved."""
    from matplotlib.figure import Figure

    figures: list[Any] = []
    save = Figure.savefig

    def keep(self: Any, *args: Any, **kwargs: Any) -> None:
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def picture(path: Path) -> np.ndarray:
    image: np.ndarray = matplotlib.image.imread(path)
    return image


def foresight() -> Foresight:
    rng = np.random.default_rng(0)
    observations = np.cumsum(rng.normal(size=(31, 11)), axis=0).astype(np.float32)
    at = np.arange(28)
    predicted = np.stack([observations[at + h] + 0.1 * h for h in range(3)], axis=1)
    return Foresight(observations, np.zeros(30, np.float32), at, predicted)


def test_the_returns_plot_holds_every_episode_and_both_means(tmp_path: Path, drawn: list[Any]) -> None:
    path = tmp_path / "new" / "returns.png"
    plots.plot_returns(path, [0.0, 10.0, 20.0, 20.0], [30.0, 50.0], title="a title")
    assert picture(path).shape[:2] == (510, 1050)
    top, below = drawn[0].axes
    assert top.get_title(loc="left") == "a title"
    assert sum(patch.get_height() for patch in below.patches) == 4
    np.testing.assert_array_equal(np.sort(top.collections[0].get_offsets()[:, 0]), [30.0, 50.0])
    labels = [text.get_text() for text in below.get_legend().get_texts()]
    assert labels == ["behaviour, 4 episodes", "its mean, 12", "planner, 2 episodes", "its mean, 40"]
    assert [file.name for file in path.parent.iterdir()] == ["returns.png"]


def test_the_predictions_plot_draws_reality_and_plans_over_it(tmp_path: Path, drawn: list[Any]) -> None:
    path = tmp_path / "predictions.png"
    plots.plot_foresight(path, foresight(), title="t", environment="Hopper-v4", control_period_s=0.5, steps=20)
    assert picture(path).ndim == 3
    *dims, error = drawn[0].axes
    assert [axes.get_ylabel() for axes in dims] == list(plots.SHOWN["Hopper"].values())
    real, *segments = dims[3].lines
    np.testing.assert_array_equal(real.get_ydata(), foresight().observations[:21, 5])
    np.testing.assert_array_equal(real.get_xdata(), np.arange(21) * 0.5)
    np.testing.assert_allclose(segments[1].get_ydata(), foresight().predicted[5, :, 5])
    np.testing.assert_allclose(segments[1].get_xdata(), [2.5, 3.0, 3.5])
    assert len(segments) == 4
    np.testing.assert_allclose(error.lines[1].get_ydata(), [foresight().error(1), foresight().error(2)])


def test_other_environments_show_the_dims_that_move(tmp_path: Path, drawn: list[Any]) -> None:
    still = foresight()
    still.observations[:, 0] = 1.0
    plots.plot_foresight(tmp_path / "a.png", still, title="t", environment="Mine-v0")
    assert [axes.get_ylabel() for axes in drawn[0].axes[:4]] == [f"observation {i}" for i in (1, 2, 3, 4)]


def test_training_curves_show_segments_and_validation(tmp_path: Path, drawn: list[Any]) -> None:
    (tmp_path / "metrics.csv").write_text(METRICS)
    plots.plot_training(tmp_path / "training.png", tmp_path / "metrics.csv", title="t")
    curves = {line.get_label(): line for line in drawn[0].axes[0].lines}
    np.testing.assert_array_equal(curves["action"].get_ydata(), [3.0, 2.0])
    np.testing.assert_array_equal(drawn[0].axes[0].lines[3].get_xydata(), [[20.0, 2.1]])


def test_plots_that_cannot_be_drawn_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"allowed are \.png"):
        plots.plot_returns(tmp_path / "a.bmp", [1.0], [1.0], title="t")
    with pytest.raises(DataError, match="planner returns"):
        plots.plot_returns(tmp_path / "a.png", [1.0], [], title="t")
    with pytest.raises(DataError, match="behaviour returns"):
        plots.plot_returns(tmp_path / "a.png", [np.nan], [1.0], title="t")
    with pytest.raises(DataError, match="there is no file"):
        plots.plot_training(tmp_path / "a.png", tmp_path / "metrics.csv", title="t")
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="has no step, observation"):
        plots.plot_training(tmp_path / "a.png", tmp_path / "metrics.csv", title="t")
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize(
    ("period_s", "stride", "fps"),
    [(0.008, 3, 125 / 3), (0.05, 1, 20.0), (0.02, 1, 50.0), (None, 1, videos.DEFAULT_FPS)],
)
def test_a_video_runs_at_real_speed(tmp_path: Path, period_s: float | None, stride: int, fps: float) -> None:
    pytest.importorskip("imageio_ffmpeg")
    with Video(tmp_path / "a.mp4", period_s) as video:
        assert (video.stride, video.fps) == (stride, pytest.approx(fps))


def test_a_video_that_was_interrupted_is_not_left_behind(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    with pytest.raises(KeyboardInterrupt), Video(tmp_path / "a.mp4", 0.05) as video:
        video.add(np.zeros((16, 16, 3), np.uint8))
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="MUJOCO_GL has other values elsewhere")
def test_the_first_backend_that_works_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(videos, "_why_not", {"egl": "no driver", "osmesa": None}.get)
    assert choose_renderer() == "osmesa"
    assert os.environ["MUJOCO_GL"] == "osmesa"


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="MUJOCO_GL has other values elsewhere")
def test_when_no_backend_works_the_error_says_why_and_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(videos, "PROBE", "raise ImportError('no libEGL')")
    with pytest.raises(RenderError, match=r"MUJOCO_GL chose it.*egl: ImportError: no libEGL.*apt-get install libegl1"):
        choose_renderer()


def test_the_camera_follows_what_walks() -> None:
    mujoco = pytest.importorskip("mujoco")
    env = make_environment("Hopper-v4", render_mode="rgb_array")
    videos.follow(env)
    chosen = env.unwrapped.mujoco_renderer.camera_id  # type: ignore[attr-defined]
    assert env.unwrapped.model.camera(chosen).name == "track"  # type: ignore[attr-defined]
    assert env.unwrapped.model.cam_mode[chosen] == mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM  # type: ignore[attr-defined]
    env.close()
