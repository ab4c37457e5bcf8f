"""The old stack: gym.make('hopper-medium-v2') over a Gymnasium environment and a local file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ttengine.data import normalized_score
from ttengine.environments import adapt, control_period_s
from ttengine.errors import DataError, DatasetNotFoundError

gym = pytest.importorskip("gym", reason="the old gym package is not installed")
h5py = pytest.importorskip("h5py")
pytest.importorskip("mujoco")

import ttengine.d4rl_gym  # noqa: E402


def make(name: str) -> Any:
    return gym.make(name)


def write(path: Path, observations: int, actions: int, rows: int = 20) -> None:
    with h5py.File(path, "w") as file:
        file["observations"] = np.zeros((rows, observations), np.float32)
        file["actions"] = np.zeros((rows, actions), np.float32)
        file["rewards"] = np.ones((rows, 1))
        file["terminals"] = np.zeros(rows, np.bool_)
        file["infos/qpos"] = np.zeros((rows, 6))
        file["metadata/algorithm"] = "SAC"


@pytest.mark.parametrize(
    ("name", "dims"),
    [
        ("hopper-medium-v2", (11, 3)),
        ("halfcheetah-medium-replay-v0", (17, 6)),
        ("walker2d-full-replay-v1", (17, 6)),
        ("ant-expert-v2", (111, 8)),
    ],
)
def test_gym_make_gives_old_gyms_interface(name: str, dims: tuple[int, int]) -> None:
    env = make(name)
    assert (env.observation_space.shape[0], env.action_space.shape[0]) == dims
    observation = env.reset()
    assert observation.shape == (dims[0],)
    step = env.step(env.action_space.sample())
    assert len(step) == 4
    assert step[0].shape == (dims[0],)
    assert isinstance(step[1], float) and isinstance(step[2], bool)
    env.close()


def test_seeded_episodes_repeat_and_actions_are_clipped() -> None:
    env = make("hopper-medium-v2")
    rolls = []
    for action in (np.ones(3), np.full(3, 7.0), -np.ones(3)):
        env.seed(4)
        rolls.append(np.concatenate([env.reset(), env.step(action)[0]]))
    np.testing.assert_array_equal(rolls[0], rolls[1])
    assert not np.array_equal(rolls[0], rolls[2])


def test_the_time_limit_ends_an_episode_as_truncated_and_a_fall_does_not() -> None:
    lengths = {}
    for name in ("halfcheetah-medium-v2", "hopper-medium-v2"):
        env, done, steps = make(name), False, 0
        env.reset()
        while not done:
            _, _, done, info = env.step(np.ones(env.action_space.shape))
            steps += 1
        lengths[name] = (steps, info["TimeLimit.truncated"])
    assert lengths["halfcheetah-medium-v2"] == (1000, True)
    assert lengths["hopper-medium-v2"][0] < 1000 and not lengths["hopper-medium-v2"][1]


def test_get_dataset_reads_the_local_file_under_d4rls_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    write(tmp_path / "hopper_medium-v2.hdf5", 11, 3)
    dataset = make("hopper-medium-v2").get_dataset()
    assert dataset["observations"].shape == (20, 11)
    assert dataset["rewards"].shape == (20,)
    assert {"terminals", "infos/qpos", "metadata/algorithm"} <= set(dataset)


def test_get_dataset_refuses_what_d4rl_would_choke_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "cheetah.hdf5", 17, 6)
    (tmp_path / "broken.hdf5").write_bytes(b"no")
    with h5py.File(tmp_path / "bare.hdf5", "w") as file:
        file["observations"] = np.zeros((2, 11))
    env = make("hopper-medium-v2")
    for name, says in (
        ("cheetah", "rows of"),
        ("broken", "not a readable"),
        ("bare", "no actions, rewards, terminals"),
    ):
        with pytest.raises(DataError, match=says):
            env.get_dataset(tmp_path / f"{name}.hdf5")
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    monkeypatch.setattr("ttengine.data.download.TIMEOUT_S", 0.001)
    with pytest.raises(DatasetNotFoundError, match=r"put it at .*hopper_medium-v2\.hdf5"):
        env.get_dataset()


def test_normalized_score_is_d4rls_hundredth_of_ours() -> None:
    env = make("walker2d-medium-v2")
    assert env.get_normalized_score(4592.3) == pytest.approx(1.0)
    returns = np.array([0.0, 100.0])
    np.testing.assert_allclose(100 * env.get_normalized_score(returns), normalized_score("walker2d-medium-v2", returns))


def test_the_old_environment_can_be_adapted_to_gymnasium() -> None:
    env = adapt(make("hopper-medium-v2"))
    observation, _ = env.reset(seed=1)
    assert observation.shape == (11,)
    assert len(env.step(np.zeros(3))) == 5
    assert control_period_s(env.unwrapped.env) == pytest.approx(0.008)


def test_registering_twice_replaces_quietly(recwarn: pytest.WarningsRecorder) -> None:
    assert len(ttengine.d4rl_gym.register()) == len(set(ttengine.d4rl_gym.register())) == 69
    assert not recwarn.list
