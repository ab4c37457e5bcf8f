"""Environments: made by id, adapted from old Gym, timed."""

from __future__ import annotations

import sys
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ttengine.data.catalogue import BUILT_IN
from ttengine.environments import adapt, control_period_s, environment_for_dataset, make_environment
from ttengine.errors import ConfigError, DatasetNotFoundError, EnvironmentNotFoundError, MissingExtraError

gymnasium = pytest.importorskip("gymnasium")


# --- making ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env_id", "dims", "period_s"),
    [("Hopper-v4", 11, 0.008), ("Walker2d-v4", 17, 0.008), ("HalfCheetah-v4", 17, 0.05), ("Ant-v4", 27, 0.05)],
)
def test_the_four_bodies_are_made_without_a_word_and_know_their_period(env_id: str, dims: int, period_s: float) -> None:
    pytest.importorskip("mujoco")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make_environment(env_id)
    assert env.observation_space.shape == (dims,)
    assert control_period_s(env) == pytest.approx(period_s)
    env.close()


def test_a_clock_without_mujoco_is_read_and_none_is_none() -> None:
    assert control_period_s(make_environment("CartPole-v1")) == pytest.approx(0.02)
    assert control_period_s(make_environment("Taxi-v4" if "Taxi-v4" in gymnasium.registry else "Taxi-v3")) is None


@pytest.mark.parametrize(
    ("env_id", "says"),
    [
        ("Hoper-v4", "near it: .*Hopper-v4"),
        ("Hopper-v99", "near it: .*Hopper-v5"),
        ("Hopper-v2", "near it: Hopper-v[45]"),
        ("not an id!", "there is no environment 'not an id!'"),
        ("NoSuchNamespace/Thing-v0", "NoSuchNamespace"),
        ("no_such_module:Thing-v0", "no_such_module"),
    ],
)
def test_an_unknown_id_lists_near_ones(env_id: str, says: str) -> None:
    with pytest.raises(EnvironmentNotFoundError, match=says):
        make_environment(env_id)


def test_an_id_that_gymnasium_robotics_registers_for_mujoco_py_lists_near_ones() -> None:
    pytest.importorskip("gymnasium_robotics")  # importing it registers -v2 and -v3 bodies
    with pytest.raises(EnvironmentNotFoundError, match=r"mujoco_py.*near it: .*Hopper-v[45]"):
        make_environment("Hopper-v2")


@pytest.mark.parametrize("env_id", ["AntMaze_UMaze-v4", "MiniGrid-Empty-5x5-v0"])
def test_an_id_of_a_package_that_is_not_here_names_it(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = "gymnasium-robotics" if env_id.startswith("Ant") else "minigrid"
    if env_id in gymnasium.registry or package.replace("-", "_") in sys.modules:
        pytest.skip(f"{package} is here")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(EnvironmentNotFoundError, match=f"pip install {package}"):
        make_environment(env_id)


def test_a_wrong_option_is_not_called_an_unknown_id() -> None:
    with pytest.raises(TypeError, match="no_such_option"):
        make_environment("CartPole-v1", no_such_option=1)


def test_a_missing_gymnasium_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(MissingExtraError, match=r"ttengine\[mujoco\]"):
        make_environment("Hopper-v4")


@pytest.mark.parametrize(("version", "factor"), [("3.4.0", 1.0), ("3.5.0", 0.5), ("3.17.2", 0.5), ("4.0.1", 0.5)])
def test_margins_are_halved_once_where_mujoco_adds_them(
    version: str, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    mujoco = pytest.importorskip("mujoco")
    shipped = gymnasium.make("Hopper-v5").unwrapped.model.geom_margin.copy()
    assert shipped.max() > 0
    monkeypatch.setattr(mujoco, "__version__", version)
    env = make_environment("Hopper-v5")
    for seed in range(2):
        env.reset(seed=seed)
    np.testing.assert_array_equal(env.unwrapped.model.geom_margin, shipped * factor)


def test_margins_of_other_environments_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    mujoco = pytest.importorskip("mujoco")
    shipped = gymnasium.make("Swimmer-v5").unwrapped.model.geom_margin.copy()
    monkeypatch.setattr(mujoco, "__version__", "3.9.0")
    np.testing.assert_array_equal(make_environment("Swimmer-v5").unwrapped.model.geom_margin, shipped)


# --- by dataset ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "env_id"),
    [
        ("hopper-medium-v2", "Hopper-v4"),
        ("halfcheetah-medium-replay-v0", "HalfCheetah-v4"),
        ("walker2d-expert-v1", "Walker2d-v4"),
        ("ant-random-v2", "Ant-v4"),
        ("antmaze-large-play-v2", "AntMaze_Large-v4"),
        ("maze2d-umaze-dense-v1", "PointMaze_UMazeDense-v3"),
        ("pen-human-v1", "AdroitHandPen-v1"),
        ("kitchen-partial-v0", "FrankaKitchen-v1"),
        ("mujoco/hopper/medium-v0", "Hopper-v5"),
    ],
)
def test_a_dataset_names_its_environment(name: str, env_id: str) -> None:
    assert environment_for_dataset(name) == env_id


def test_every_built_in_dataset_has_an_environment() -> None:
    assert all(environment_for_dataset(name) for name in BUILT_IN)


@pytest.mark.parametrize("name", ["hoper-medium-v2", "mujoco/snake/medium-v0", "my-arm"])
def test_a_dataset_without_an_environment_is_a_typed_error(name: str) -> None:
    with pytest.raises(DatasetNotFoundError, match=name):
        environment_for_dataset(name)


# --- old Gym ---------------------------------------------------------------------------------------------------------


class OldEnv:
    """What an environment looked like before Gym 0.26."""

    observation_space = SimpleNamespace(low=np.full(2, -np.inf), high=np.full(2, np.inf), dtype=np.dtype(np.float32))
    action_space = SimpleNamespace(low=-np.ones(1), high=np.ones(1), dtype=np.dtype(np.float32))

    def __init__(self, end: int = 3, limit: int = 99) -> None:
        self.end, self.limit, self.time, self.seeds, self.closed = end, limit, 0, list[int](), False

    def seed(self, seed: int) -> None:
        self.seeds.append(seed)

    def reset(self) -> Any:
        self.time = 0
        return np.zeros(2)

    def step(self, action: Any) -> Any:
        self.time += 1
        late = self.time >= self.limit
        info = {"TimeLimit.truncated": self.time < self.end} if late else {}
        return np.full(2, self.time), np.float64(action[0]), self.time >= self.end or late, info

    def render(self, mode: str = "human") -> str:
        return mode

    def close(self) -> None:
        self.closed = True


def test_a_gymnasium_environment_is_returned_as_it_is() -> None:
    env = make_environment("CartPole-v1")
    assert adapt(env) is env


def test_an_old_environment_gets_gymnasiums_interface() -> None:
    old = OldEnv()
    env = adapt(old)
    assert isinstance(env, gymnasium.Env)
    assert env.action_space.contains(np.zeros(1, np.float32))
    observation, info = env.reset(seed=5)
    assert (observation.tolist(), info, old.seeds) == ([0, 0], {}, [5])
    env.reset()
    assert old.seeds == [5]
    steps = [env.step([0.5]) for _ in range(3)]
    assert [step[1:4] for step in steps] == [(0.5, False, False), (0.5, False, False), (0.5, True, False)]
    assert env.render() == "rgb_array"
    env.close()
    assert old.closed


def test_an_old_time_limit_is_a_truncation_and_a_fall_on_it_a_termination() -> None:
    for end, expected in ((9, (False, True)), (2, (True, False))):
        env = adapt(OldEnv(end=end, limit=2))
        env.reset()
        env.step([0.0])
        assert env.step([0.0])[2:4] == expected


def test_an_environment_that_already_speaks_five_values_passes_through() -> None:
    class New(OldEnv):
        def reset(self, *, seed: int | None = None) -> Any:
            return np.zeros(2), {"seed": seed}

        def step(self, action: Any) -> Any:
            return np.ones(2), 1, False, True, {"a": 1}

    env = adapt(New())
    assert env.reset(seed=3)[1] == {"seed": 3}
    assert env.step([0.0])[1:] == (1.0, False, True, {"a": 1})


def test_gymnasium_wrappers_accept_the_adapter() -> None:
    env = gymnasium.wrappers.TimeLimit(adapt(OldEnv(end=99)), 2)
    env.reset()
    assert [env.step([0.0])[3] for _ in range(2)] == [False, True]


def test_what_is_not_an_environment_is_refused() -> None:
    with pytest.raises(ConfigError, match="without reset, step"):
        adapt(object())
    with pytest.raises(ConfigError, match="class"):
        adapt(OldEnv)
    discrete = OldEnv()
    discrete.action_space = SimpleNamespace(n=3)
    with pytest.raises(ConfigError, match="boxes"):
        adapt(discrete)


def test_an_environment_that_cannot_be_seeded_says_so() -> None:
    class Seedless(OldEnv):
        seed = property()  # type: ignore[assignment]

    with pytest.raises(ConfigError, match="seed is 1"):
        adapt(Seedless()).reset(seed=1)
