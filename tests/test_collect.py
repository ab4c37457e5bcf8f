"""Collecting: reproducible for any number of processes, exact budgets, honest ends, and errors before work is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ttengine.data.collect import CollectConfig, collect, collect_to
from ttengine.data.policies import RandomPolicy
from ttengine.data.policy_spec import PolicySpec, load_policy
from ttengine.data.rollout import Noise, roll_out
from ttengine.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EnvironmentNotFoundError,
    NonFiniteError,
    ShapeError,
)

gymnasium = pytest.importorskip("gymnasium", reason="needs the mujoco extra")
pytest.importorskip("mujoco", reason="needs the mujoco extra")

pytestmark = pytest.mark.filterwarnings("ignore")

FIELDS = ("observations", "actions", "rewards", "terminals", "timeouts")


def run(env_id: str = "Pendulum-v1", **settings: Any) -> Any:
    settings.setdefault("transitions", 500)
    return collect(CollectConfig(env_id, **settings), progress=False)


def assert_same(a: Any, b: Any) -> None:
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
    assert a.metadata == b.metadata


# --- what is collected ---------------------------------------------------------------------------------------------


def test_a_budget_of_transitions_is_met_exactly_and_the_cut_is_a_timeout() -> None:
    data = run(transitions=450)  # Pendulum's episodes last 200
    assert len(data) == 450 and data.episode_lengths.tolist() == [200, 200, 50]
    assert not data.terminals.any() and data.timeouts.sum() == 3


def test_falls_are_terminals_and_time_limits_are_timeouts() -> None:
    data = run("Hopper-v4", episodes=6, transitions=None, max_episode_steps=20, seed=1)
    lengths, ends = data.episode_lengths, data.episode_ends - 1
    assert (lengths == 20).any() and (lengths < 20).any()  # both kinds must occur for the test to mean anything
    np.testing.assert_array_equal(data.terminals[ends][lengths < 20], True)
    np.testing.assert_array_equal(data.timeouts[ends][lengths < 20], False)
    np.testing.assert_array_equal(data.timeouts[ends], ~data.terminals[ends])


def test_what_is_logged_is_what_happened() -> None:
    """Replay the logged actions from the logged seeds: observations and rewards must come out again."""
    data = run("HalfCheetah-v4", transitions=60, policies=("random",), action_noise=0.5, max_episode_steps=40)
    env = gymnasium.make("HalfCheetah-v4")
    for rows, seed in zip(data.episodes(), data.metadata["episodes"]["seed"], strict=True):
        observation, _ = env.reset(seed=seed)
        for row in range(rows.start, rows.stop):
            np.testing.assert_array_equal(data.observations[row], observation.astype(np.float32))
            observation, reward, *_ = env.step(data.actions[row])
            assert data.rewards[row] == np.float32(reward)


def test_the_metadata_says_what_made_each_episode() -> None:
    data = run("Hopper-v4", policies=("random,share=0.4", "hopper/medium,share=0.6"), transitions=1000, seed=5)
    assert json.loads(json.dumps(dict(data.metadata))) == data.metadata
    episodes, policies = data.metadata["episodes"], data.metadata["policies"]
    np.testing.assert_allclose(episodes["return"], data.episode_returns, atol=1e-3)
    assert episodes["length"] == data.episode_lengths.tolist()
    assert len(set(episodes["seed"])) == data.n_episodes
    made = np.repeat(episodes["policy"], episodes["length"])
    assert (made == 0).sum() == 400 and (made == 1).sum() == 600  # shares count transitions
    assert policies[0]["policy"] == "random,share=0.4" and policies[1]["snapshot_steps"] > 0
    assert data.metadata["env_id"] == "Hopper-v4" and data.metadata["config"]["seed"] == 5


def test_shares_of_episodes_count_episodes() -> None:
    data = run(policies=("random,share=0.75", "random,share=0.25"), transitions=None, episodes=4, max_episode_steps=5)
    assert data.metadata["episodes"]["policy"] == [0, 0, 0, 1]


def test_odd_shares_fill_the_budget_to_the_last_transition() -> None:
    data = run(policies=("random",) * 3, transitions=100, max_episode_steps=7)
    made = np.repeat(data.metadata["episodes"]["policy"], data.metadata["episodes"]["length"])
    assert len(data) == 100 and sorted(np.bincount(made).tolist()) == [33, 33, 34]


# --- seeds and processes -------------------------------------------------------------------------------------------


def test_the_data_do_not_depend_on_the_number_of_processes() -> None:
    settings: dict[str, Any] = {
        "policies": ("random,share=0.3", "hopper/medium,share=0.5", "hopper/expert,share=0.2"),
        "transitions": 2500,
        "action_noise": 0.1,
        "epsilon": 0.05,
        "seed": 7,
    }
    one = run("Hopper-v4", **settings)
    assert one.n_episodes > 20
    assert_same(one, run("Hopper-v4", processes=3, **settings))


def test_equal_seeds_give_equal_data_and_others_do_not() -> None:
    assert_same(run(seed=3), run(seed=3))
    assert not np.array_equal(run(seed=3).observations, run(seed=4).observations)


def test_policy_noise_is_not_the_environments_own_stream() -> None:
    """With one stream for both, the first random action would repeat the numbers of the initial state."""
    env = gymnasium.make("Pendulum-v1")
    policy = RandomPolicy(np.zeros(1, np.float32), np.ones(1, np.float32))
    env.reset(seed=11)
    own = [np.float32(env.np_random.random()) for _ in range(4)]
    episode = roll_out(env, policy, Noise(), seed=11, limit=4)
    assert not np.allclose(episode.actions[:, 0], own)


# --- noise ---------------------------------------------------------------------------------------------------------


def test_action_noise_has_its_size_in_shares_of_half_the_range(tmp_path: Path) -> None:
    script = write_script(tmp_path, "return [0.0]")
    data = run(policies=(f"{script}:act",), action_noise=0.25, transitions=4000)
    np.testing.assert_allclose(data.actions.std(), 0.25 * 2, rtol=0.06)  # Pendulum's actions are in [-2, 2]


def test_epsilon_is_the_share_of_uniform_actions(tmp_path: Path) -> None:
    script = write_script(tmp_path, "return [1.0]")
    data = run(policies=(f"{script}:act",), epsilon=0.3, transitions=4000)
    replaced = data.actions[data.actions != 1.0]
    np.testing.assert_allclose(len(replaced) / 4000, 0.3, atol=0.03)
    np.testing.assert_allclose([replaced.min(), replaced.max()], [-2, 2], atol=0.05)


def test_actions_are_clipped_to_the_action_space_before_they_are_logged(tmp_path: Path) -> None:
    script = write_script(tmp_path, "return [99.0]")
    np.testing.assert_array_equal(run(policies=(f"{script}:act",), transitions=10).actions, 2.0)


def test_a_deterministic_policy_acts_without_noise() -> None:
    data = run("Hopper-v4", policies=("hopper/medium,deterministic=true",), transitions=20)
    policy, _ = load_policy(PolicySpec("hopper/medium"), 11, -np.ones(3, np.float32), np.ones(3, np.float32))
    np.testing.assert_array_equal(data.actions, [policy(observation) for observation in data.observations])


# --- scripts -------------------------------------------------------------------------------------------------------


def write_script(folder: Path, body: str) -> Path:
    path = folder / "controller.py"
    path.write_text(f"def act(observation):\n    {body}\n")
    return path


def test_a_script_is_called_by_path_or_by_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = write_script(tmp_path, "return [0.1 * observation[0]]")
    by_path = run(policies=(f"{script}:act",), transitions=10)
    np.testing.assert_allclose(by_path.actions[:, 0], 0.1 * by_path.observations[:, 0], rtol=1e-6)
    monkeypatch.syspath_prepend(str(tmp_path))
    by_module = run(policies=("controller:act",), transitions=10)
    np.testing.assert_array_equal(by_path.actions, by_module.actions)


def test_a_missing_script_or_function_is_named(tmp_path: Path) -> None:
    script = write_script(tmp_path, "return [0.0]")
    with pytest.raises(ConfigError, match=r"no callable 'drive'; it has act"):
        run(policies=(f"{script}:drive",))
    with pytest.raises(ConfigError, match="there is no file"):
        run(policies=(f"{tmp_path}/absent.py:act",))
    with pytest.raises(ConfigError, match="No module named 'no_such_module'"):
        run(policies=("no_such_module:act",))


def test_nan_from_a_script_names_the_step(tmp_path: Path) -> None:
    script = tmp_path / "late.py"
    script.write_text(
        "calls = [0]\ndef act(o):\n    calls[0] += 1\n    return [float('nan') if calls[0] > 8 else 0.0]\n"
    )
    with pytest.raises(NonFiniteError, match=r"action is \[nan\] at step 7"):  # the check's own step was the first call
        run(policies=(f"{script}:act",))


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_in_the_middle_keeps_its_type_across_processes(processes: int, tmp_path: Path) -> None:
    script = write_script(tmp_path, "return [0.0] if observation[0] < 0.999 else [0.0, 0.0]")
    with pytest.raises(ShapeError, match=r"shape \(2,\)"):
        run(policies=(f"{script}:act",), transitions=5000, processes=processes)


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one"),
        ({"transitions": 10, "episodes": 1}, "exactly one"),
        ({"transitions": 1}, "transitions is 1"),
        ({"episodes": 0}, "episodes is 0"),
        ({"transitions": 10, "policies": ()}, "policies is empty"),
        ({"transitions": 10, "policies": ("random,share=0.5", "hopper/medium,share=0.4")}, "sum to 0.9"),
        ({"transitions": 10, "policies": ("random,share=-1",)}, "share is -1"),
        ({"transitions": 10, "policies": ("random,share=nan",)}, "share is nan"),
        ({"transitions": 10, "policies": ("random,part=0.5",)}, "not one `name=value` of share"),
        ({"transitions": 10, "policies": ("random,share=half",)}, "share is a number"),
        ({"transitions": 10, "policies": ("random,deterministic=true",)}, "cannot be deterministic"),
        ({"transitions": 10, "policies": ("hopper/medium,activation=relu",)}, "belong to Stable-Baselines3"),
        ({"transitions": 10, "policies": ("m.zip,activation=gelu",)}, "allowed are tanh"),
        ({"transitions": 10, "epsilon": 1.5}, "epsilon is 1.5"),
        ({"transitions": 10, "action_noise": -0.1}, "action_noise is -0.1"),
        ({"transitions": 10, "processes": 0}, "processes is 0"),
        ({"transitions": 10, "seed": -1}, "seed is -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CollectConfig("Pendulum-v1", **settings)


@pytest.mark.parametrize(
    ("env_id", "policy", "error", "message"),
    [
        ("NoSuchEnvironment-v0", "random", EnvironmentNotFoundError, "NoSuchEnvironment"),
        ("CartPole-v1", "random", ConfigError, "action space is Discrete"),
        ("HalfCheetah-v4", "hopper/medium", ShapeError, "11 observation dims to 3 action dims"),
        ("Hopper-v4", "hopper/great", ConfigError, "tiers early, medium, good, expert"),
        ("Hopper-v4", "hopper/12", ConfigError, "the steps 0, "),
        ("Hopper-v4", "humanoid/medium", ConfigError, "no policy 'humanoid/medium'; forms are"),
        ("Hopper-v4", "absent.zip", CheckpointError, "no such file"),
        ("Hopper-v4", "absent.npz", ConfigError, "no such file"),
    ],
)
def test_an_environment_or_policy_that_does_not_work_is_refused(
    env_id: str, policy: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(env_id, policies=(policy,))


def test_episodes_without_any_time_limit_are_refused() -> None:
    if "Endless-v0" not in gymnasium.registry:
        pendulum = gymnasium.spec("Pendulum-v1").entry_point
        gymnasium.register("Endless-v0", entry_point=pendulum, max_episode_steps=None)
    with pytest.raises(ConfigError, match="no time limit"):
        run("Endless-v0", transitions=None, episodes=1)
    assert run("Endless-v0", transitions=30).episode_lengths.tolist() == [30]  # the budget is the limit


# --- files ---------------------------------------------------------------------------------------------------------


def test_hdf5_and_minari_hold_what_was_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("h5py", reason="needs the data extra")
    pytest.importorskip("minari", reason="needs the data extra")
    from ttengine.data.load import load_dataset

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    path, config = tmp_path / "pendulum.hdf5", CollectConfig("Pendulum-v1", transitions=450, name="pendulum-random-tt")
    data = collect_to(config, path, "pendulum/random-v0", progress=False)
    again = load_dataset(path)
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(data, field), getattr(again, field))
    assert again.name == "pendulum-random-tt"
    assert {key: again.metadata[key] for key in data.metadata} == data.metadata

    import minari

    episodes = list(minari.load_dataset("pendulum/random-v0").iterate_episodes())
    np.testing.assert_array_equal(np.concatenate([e.observations[:-1] for e in episodes]), data.observations)
    last = episodes[-1].observations  # cut at 50: what followed the last action was seen, and is not a repetition
    longer = run(transitions=600, name="pendulum-random-tt")
    np.testing.assert_array_equal(last[-1], longer.observations[450])


def test_targets_are_checked_before_anything_is_rolled_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttengine.data.collect._collect", lambda *_: pytest.fail("work was done"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    config = CollectConfig("Pendulum-v1", transitions=10)
    there = tmp_path / "there.hdf5"
    there.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="nowhere to write"):
        collect_to(config)
    with pytest.raises(ConfigError, match="exists"):
        collect_to(config, there)
    with pytest.raises(ConfigError, match=r"ends in \.csv"):
        collect_to(config, tmp_path / "data.csv")
    with pytest.raises(DataError, match="not a Minari id"):
        collect_to(config, minari_id="no id")
    assert there.read_bytes() == b"precious"
