"""Sources of data: any name comes in the same way, and what is wrong is said before anything is collected."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ttengine.data.collect import CollectConfig
from ttengine.data.files import save_dataset
from ttengine.data.trajectories import Trajectories
from ttengine.errors import ConfigError, DatasetNotFoundError
from ttengine.experiments import sources as module
from ttengine.experiments.ingredients import policy_episodes
from ttengine.experiments.run import Run
from ttengine.experiments.sources import body_and_tier, check_environment, dataset_name, expert_episodes, sources


@dataclasses.dataclass(frozen=True)
class Settings:
    episodes: int = 2


def made_up(dims: int = 3, actions: int = 1, **metadata: Any) -> Trajectories:
    rng = np.random.default_rng(0)
    ends = np.zeros(60, bool)
    ends[[19, 39, 49, 59]] = True
    return Trajectories(
        np.cumsum(rng.normal(size=(60, dims)), axis=0).astype(np.float32),
        rng.uniform(-1, 1, (60, actions)).astype(np.float32),
        np.arange(60, dtype=np.float32),
        np.zeros(60, bool),
        ends,
        name="made-up",
        metadata=metadata,
    )


@pytest.fixture
def nothing_collected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []

    def collected(run: Run, name: str, config: CollectConfig) -> Trajectories:
        asked.append(f"{name} {config.transitions} {config.action_noise:g} {config.policies[0]}")
        return made_up()

    monkeypatch.setattr(module, "collected", collected)
    return asked


def test_recipes_and_files_come_in_the_same_way(tmp_path: Path, nothing_collected: list[str]) -> None:
    pytest.importorskip("gymnasium")
    save_dataset(made_up(env_id="Pendulum-v1"), tmp_path / "known.npz")
    save_dataset(made_up(), tmp_path / "unknown.npz")
    names = (str(tmp_path / "known.npz"), "hopper-medium-tt", str(tmp_path / "unknown.npz"))
    found = sources(Run(tmp_path / "r", "made-up", Settings()), names, 70, "Pendulum-v1")
    assert [(s.name, s.env_id) for s in found] == [
        ("known", "Pendulum-v1"), ("hopper-medium", "Hopper-v4"), ("unknown", "Pendulum-v1"),
    ]  # fmt: skip
    sources(Run(tmp_path / "r", "made-up", Settings()), names[1:2], 70, action_noise=0.2)
    policy = nothing_collected[0].removeprefix("hopper-medium 70 0 ")
    assert policy.startswith("hopper/")
    assert nothing_collected[1] == f"hopper-medium 70 0.2 {policy},deterministic=true"


def test_what_is_wrong_is_said_before_anything_is_collected(tmp_path: Path, nothing_collected: list[str]) -> None:
    pytest.importorskip("gymnasium")
    run, unknown = Run(tmp_path / "r", "made-up", Settings()), str(tmp_path / "unknown.npz")
    save_dataset(made_up(), tmp_path / "unknown.npz")
    with pytest.raises(DatasetNotFoundError, match="there is no file"):
        sources(run, ("hopper-medium", str(tmp_path / "none.hdf5")), 70)
    with pytest.raises(ConfigError, match=r"unknown\.npz is not known; give it with --environment"):
        sources(run, ("hopper-medium", unknown), 70)
    with pytest.raises(ConfigError, match="observations have 3 columns, those of MountainCarContinuous-v0 have 2"):
        sources(run, ("hopper-medium", unknown), 70, "MountainCarContinuous-v0")
    with pytest.raises(ConfigError, match="every dataset says its own"):
        sources(run, ("hopper-medium",), 70, "Hopper-v4")
    with pytest.raises(ConfigError, match="hopper-medium is there twice"):
        sources(run, ("hopper-medium", "hopper-medium-tt"), 70)
    with pytest.raises(ConfigError, match="datasets is empty"):
        sources(run, (), 70)
    assert not nothing_collected
    (found,) = sources(run, (unknown,), 70, needs_environment=False)
    assert found.environment is None


def test_columns_that_were_cut_fit_a_longer_observation() -> None:
    pytest.importorskip("gymnasium")
    cut = module.Source("cut", made_up(2, observation_columns=2), "Pendulum-v1")
    check_environment(cut)
    with pytest.raises(ConfigError, match="observations have 2 columns"):
        check_environment(dataclasses.replace(cut, trajectories=made_up(2)))
    with pytest.raises(ConfigError, match="actions have 2 columns"):
        check_environment(dataclasses.replace(cut, trajectories=made_up(3, 2)))

    class Seen:
        learner = None

        def __init__(self) -> None:
            self.widths: set[int] = set()

        def reset(self) -> None: ...

        def act(self, observation: Any, reward: float) -> Any:
            self.widths.add(len(observation))
            return np.zeros(1, np.float32)

    policy = Seen()
    assert len(policy_episodes(policy, "Pendulum-v1", 1, 0, cut.observation_columns)) == 1 and policy.widths == {2}


@pytest.mark.parametrize(
    ("dataset", "name", "tier"),
    [
        ("hopper-medium-expert", "hopper-medium-expert", ("hopper", "medium-expert")),
        ("halfcheetah-medium-replay-v2", "halfcheetah-medium-replay-v2", ("halfcheetah", "medium-replay")),
        ("mujoco/walker2d/medium-v0", "mujoco-walker2d-medium-v0", ("walker2d", "medium")),
        ("ant_medium_expert-v2.hdf5", "ant_medium_expert-v2", ("ant", "medium-expert")),
        ("logs/of mine.npz", "of-mine", None),
        ("antmaze-medium-play-v2", "antmaze-medium-play-v2", None),
    ],
)
def test_names_tell_body_and_tier(dataset: str, name: str, tier: tuple[str, str] | None) -> None:
    assert dataset_name(dataset) == name and body_and_tier(name) == tier


def test_the_expert_is_the_mixtures_best_policy_without_its_cut_episode() -> None:
    data = made_up(episodes={"policy": [1, 1, 0, 0]})  # returns 190, 590, 445, 545
    rows = expert_episodes(data)
    assert rows == [{"return": 445.0, "length": 10}]
    assert expert_episodes(made_up()) is None
    assert expert_episodes(made_up(episodes={"policy": [0]})) is None
