"""Closed-loop evaluation: seeds, batches, processes, refusals, what is recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import FAST, tiny_checkpoint

from ttengine.checkpoint import Checkpoint
from ttengine.closed_loop import Foresight, run_episodes
from ttengine.errors import (
    ConfigError,
    DatasetNotFoundError,
    EnvironmentNotFoundError,
    NonFiniteError,
    RenderError,
    ShapeError,
)
from ttengine.evaluation import EvaluateConfig, Evaluation, environment_of, evaluate
from ttengine.planner import Planner

gymnasium = pytest.importorskip("gymnasium")
ENV = "Pendulum-v1"
SHORT = EvaluateConfig(episodes=3, seed=5, max_steps=6)


class Drift(gymnasium.Env[Any, Any]):
    """An environment of three dims whose state drifts with the action; its episodes last 2 + seed % 3 steps."""

    def __init__(self, reward: float = 1.0, render_mode: str | None = None, picture: bool = True) -> None:
        self.observation_space = gymnasium.spaces.Box(-8.0, 8.0, (3,), np.float32)
        self.action_space = gymnasium.spaces.Box(-0.5, 0.5, (1,), np.float32)
        self.render_mode = render_mode
        self.reward, self.picture = reward, picture
        self.executed: list[np.ndarray] = []
        self.closed = False

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        self.left = 2 + (seed or 0) % 3
        return self.state, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.executed.append(action)
        self.state = self.state + np.float32(0.1) * action
        self.left -= 1
        return self.state, self.reward + float(action[0]), self.left == 0, False, {}

    def render(self) -> Any:
        return np.full((16, 16, 3), 10 * self.left, np.uint8) if self.picture else None

    def close(self) -> None:
        self.closed = True


class OldDrift:
    """The same behind old Gym's interface."""

    def __init__(self) -> None:
        self.env = Drift()
        self.observation_space, self.action_space = self.env.observation_space, self.env.action_space

    def seed(self, seed: int | None = None) -> list[int | None]:
        self.wanted = seed
        return [seed]

    def reset(self) -> np.ndarray:
        return self.env.reset(seed=self.wanted)[0]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
        observation, reward, terminated, _, info = self.env.step(action)
        return observation, reward, terminated, info

    def close(self) -> None:
        self.env.close()


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return tiny_checkpoint()


def run(checkpoint: Checkpoint, config: EvaluateConfig = SHORT, environment: Any = ENV, **kwargs: Any) -> Evaluation:
    return evaluate(checkpoint, environment, FAST, config, progress=False, **kwargs)


def results(evaluation: Evaluation) -> list[tuple[Any, ...]]:
    return [(e.seed, e.total_reward, e.length, e.terminated) for e in evaluation.episodes]


def test_episode_e_has_its_own_seed_whatever_stands_beside_it(checkpoint: Checkpoint) -> None:
    whole = run(checkpoint)
    assert [e.seed for e in whole.episodes] == [5, 6, 7]
    alone = run(checkpoint, EvaluateConfig(episodes=1, seed=7, max_steps=6))
    assert results(alone) == results(whole)[2:]
    assert len(set(whole.returns.tolist())) == 3


def test_results_do_not_depend_on_the_batch(checkpoint: Checkpoint) -> None:
    batched = run(checkpoint, EvaluateConfig(episodes=3, seed=5, max_steps=6, batch=2))
    assert results(batched) == results(run(checkpoint))
    np.testing.assert_array_equal(batched.foresight.predicted, run(checkpoint).foresight.predicted)


def test_results_do_not_depend_on_the_number_of_processes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.save(path)
    spread = evaluate(path, ENV, FAST, EvaluateConfig(episodes=3, seed=5, max_steps=6, workers=2), progress=False)
    assert results(spread) == results(run(checkpoint))


def report_threads() -> Drift:
    """An environment that pays 100 a step for each thread that PyTorch computes with; importable by workers."""
    return Drift(reward=100.0 * torch.get_num_threads())


@pytest.mark.parametrize(("workers", "threads"), [(1, 2), (2, 1)])
def test_a_single_worker_computes_with_every_thread_and_each_of_several_with_one(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, workers: int, threads: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # what a worker would take for itself
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = run(checkpoint, EvaluateConfig(episodes=2, workers=workers, max_steps=4), report_threads)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(found.returns / found.lengths, 100.0 * threads, atol=1.0)  # an action brings up to 0.5


def test_a_batch_goes_on_with_those_that_are_not_over(checkpoint: Checkpoint) -> None:
    sizes: list[int] = []
    planner = Planner(checkpoint, FAST)
    episodes = run_episodes(planner, Drift, [0, 1, 2], max_steps=9, on_step=sizes.append)
    assert [e.length for e in episodes] == [2, 3, 4]
    assert sizes == [3, 3, 2, 1]
    assert all(e.terminated for e in episodes)


def test_returns_lengths_and_latencies_are_recorded(checkpoint: Checkpoint) -> None:
    envs: list[Drift] = []

    def make() -> Drift:
        envs.append(Drift())
        return envs[-1]

    (episode,) = run_episodes(Planner(checkpoint, FAST), make, [2], max_steps=50, foresight=True)
    env = envs[0]
    assert env.closed
    assert episode.length == len(env.executed) == 4
    assert episode.total_reward == pytest.approx(4 + float(np.sum(env.executed)))
    assert len(episode.latencies_s) == 4
    assert episode.rounds == FAST.horizon
    assert episode.foresight is not None
    assert episode.foresight.observations.shape == (5, 3)
    np.testing.assert_array_equal(episode.foresight.observations[-1], env.state)
    np.testing.assert_array_equal(episode.foresight.ahead(0)[1], episode.foresight.observations[:4])


def test_max_steps_ends_an_episode_without_a_terminal(checkpoint: Checkpoint) -> None:
    evaluation = run(checkpoint, EvaluateConfig(episodes=1, max_steps=4))
    assert evaluation.lengths.tolist() == [4]
    assert not evaluation.episodes[0].terminated


def test_old_gym_environments_give_the_same_episodes(checkpoint: Checkpoint) -> None:
    config = EvaluateConfig(episodes=2, max_steps=9)
    assert results(run(checkpoint, config, OldDrift)) == results(run(checkpoint, config, Drift))


def test_deadlines_are_counted_and_shorten_plans(checkpoint: Checkpoint) -> None:
    late = run(checkpoint, EvaluateConfig(episodes=1, max_steps=3, deadline_s=1e-6))
    assert late.missed_deadlines == 3
    assert late.episodes[0].rounds == 1.0
    assert np.isnan(late.foresight.predicted[:, 1]).all()
    assert run(checkpoint, EvaluateConfig(episodes=1, max_steps=3, deadline_s=1e3)).missed_deadlines == 0


def test_to_dict_is_json_and_says_everything(checkpoint: Checkpoint) -> None:
    evaluation = run(checkpoint)
    about = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert about["return"]["mean"] == pytest.approx(evaluation.returns.mean())
    assert about["seeds"] == [5, 6, 7]
    assert about["plans"] == 18
    assert set(about["latency"]) == {"p50_s", "p90_s", "p99_s", "max_s"}
    assert about["control_period_s"] == pytest.approx(0.05)
    assert about["normalized_score"] is None
    assert about["plan"]["beam_width"] == FAST.beam_width
    assert len(about["prediction_error"]) == FAST.horizon - 1


def test_locomotion_returns_are_normalised() -> None:
    evaluation = run(tiny_checkpoint(11, 3), EvaluateConfig(episodes=1, max_steps=2), "Hopper-v4")
    assert evaluation.normalized is not None
    low, high = -20.272305, 3234.3
    assert evaluation.normalized[0] == pytest.approx(100 * (evaluation.returns[0] - low) / (high - low))


def test_the_environment_comes_from_the_data() -> None:
    assert environment_of(tiny_checkpoint(dataset="hopper-medium-v2")) == "Hopper-v4"
    collected = tiny_checkpoint(dataset_metadata={"config": {"env_id": ENV}})
    assert environment_of(collected) == ENV
    evaluation = evaluate(collected, None, FAST, EvaluateConfig(episodes=1, max_steps=1), progress=False)
    assert evaluation.environment == ENV
    with pytest.raises(DatasetNotFoundError, match="name the environment yourself"):
        environment_of(tiny_checkpoint(dataset="my-robot"))


def foresight() -> Foresight:
    observations = np.arange(10, dtype=np.float32).reshape(5, 2) * [1, 0]
    predicted = np.stack([observations[:3], np.full((3, 2), np.nan, np.float32), observations[2:] + np.array([0.5, 0])])
    predicted[1, 0] = observations[1]
    return Foresight(observations.astype(np.float32), np.zeros(4, np.float32), np.array([0, 1, 2]), predicted)


def test_foresight_aligns_predictions_with_what_came() -> None:
    times, predicted = foresight().ahead(2)
    assert times.tolist() == [2, 4]
    np.testing.assert_array_equal(predicted, [[4.0, 0.0], [8.5, 0.0]])


def test_foresight_error_is_in_standard_deviations_and_ignores_what_never_moves() -> None:
    assert foresight().error(2) == pytest.approx(np.sqrt(0.5**2 / 2) / np.std([0, 2, 4, 6, 8]))
    assert foresight().error(0) == pytest.approx(np.sqrt(0.5**2 / 3) / np.std([0, 2, 4, 6, 8]))
    with pytest.raises(ConfigError, match="allowed is 0 to 2"):
        foresight().error(3)


@pytest.mark.parametrize(
    ("environment", "error", "message"),
    [
        ("Hopper-v4", ShapeError, "has 11 observation and 3 action dims, the model was trained on 3 and 1"),
        ("CartPole-v1", ConfigError, "action_space is Discrete"),
        ("Pendulumm-v1", EnvironmentNotFoundError, "Pendulum-v1"),
        (Drift, ConfigError, "no time limit"),
    ],
)
def test_environments_that_do_not_fit_are_refused(
    checkpoint: Checkpoint, environment: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(checkpoint, EvaluateConfig(episodes=1), environment)


def test_an_infinite_reward_is_refused_and_the_environment_closed(checkpoint: Checkpoint) -> None:
    env = Drift(reward=float("inf"))
    with pytest.raises(NonFiniteError, match="reward is inf at step 0, seed 3"):
        run_episodes(Planner(checkpoint, FAST), lambda: env, [3], max_steps=5)
    assert env.closed


@pytest.mark.parametrize("settings", [{"episodes": 0}, {"batch": 0}, {"workers": 0}, {"seed": -1}, {"deadline_s": 0.0}])
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        EvaluateConfig(**settings)


def test_a_function_that_no_other_process_can_import_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="must be importable"):
        run(checkpoint, EvaluateConfig(episodes=2, workers=2, max_steps=2), lambda: Drift())


def fails_on_seed_0() -> Drift:
    """An environment whose episode with seed 0 breaks at once and whose others never end; importable by workers."""

    class Endless(Drift):
        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
            self.reward = float("nan") if seed == 0 else 1.0
            observation, info = super().reset(seed=seed)
            self.left = 10**9
            return observation, info

    return Endless()


def test_a_failure_in_one_process_stops_the_others_and_is_raised(checkpoint: Checkpoint) -> None:
    config = EvaluateConfig(episodes=2, workers=2, max_steps=10**9)
    with pytest.raises(NonFiniteError, match="reward is nan at step 0, seed 0"):
        run(checkpoint, config, fails_on_seed_0)


@pytest.fixture
def rendering() -> Iterator[None]:
    pytest.importorskip("imageio_ffmpeg")
    yield


@pytest.mark.usefixtures("rendering")
@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_video_shows_the_first_episode(checkpoint: Checkpoint, tmp_path: Path, suffix: str) -> None:
    import imageio.v3

    path = tmp_path / f"episode{suffix}"
    evaluation = run(checkpoint, EvaluateConfig(episodes=2, seed=2, max_steps=9), Drift, video=path)
    frames = imageio.v3.imread(path, index=None)
    assert evaluation.video == path
    assert len(frames) == evaluation.lengths[0] + 1 == 5
    brightness = [int(frame.mean()) for frame in frames]
    assert brightness == sorted(brightness, reverse=True)
    assert brightness[0] - brightness[-1] >= 20
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("rendering")
def test_a_video_that_cannot_be_made_is_refused_before_any_episode(checkpoint: Checkpoint, tmp_path: Path) -> None:
    made: list[Drift] = []

    def blind() -> Drift:
        made.append(Drift(picture=False))
        return made[-1]

    with pytest.raises(RenderError, match="gives no picture"):
        run(checkpoint, EvaluateConfig(episodes=1, max_steps=2), blind, video=tmp_path / "a.mp4")
    with pytest.raises(ConfigError, match=r"allowed are \.mp4, \.gif"):
        run(checkpoint, EvaluateConfig(episodes=1, max_steps=2), Drift, video=tmp_path / "a.avi")
    assert not any(env.executed for env in made)
    assert not list(tmp_path.iterdir())
