"""Policies: what they compute, what they refuse, and behaviour files there and back."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ttengine.data.policies import TIERS, Behaviour, MLPPolicy, RandomPolicy, ScriptedPolicy
from ttengine.data.policy_spec import BODIES, load_behaviour
from ttengine.errors import CheckpointError, ConfigError, NonFiniteError, ShapeError


def make_policy(seed: int = 0, n: int = 5, width: int = 7, m: int = 3, **changes: object) -> MLPPolicy:
    rng = np.random.default_rng(seed)
    sizes = (n, width, width, m)

    def normal(*shape: int) -> np.ndarray:
        return (0.4 * rng.standard_normal(shape)).astype(np.float32)

    values: dict[str, object] = {
        "weights": tuple(normal(a, b) for a, b in pairwise(sizes)),
        "biases": tuple(normal(b) for b in sizes[1:]),
        "log_std": normal(m) - 3,
        "observation_mean": normal(n),
        "observation_std": 1 + normal(n) ** 2,
    }
    return MLPPolicy(**(values | changes))  # type: ignore[arg-type]


def naive_mean(policy: MLPPolicy, observation: np.ndarray, activation: object) -> np.ndarray:
    """The definition, one line a step, in float64."""
    x = (observation.astype(float) - policy.observation_mean) / policy.observation_std
    x = np.clip(x, -policy.observation_clip, policy.observation_clip)
    for weight, bias in list(zip(policy.weights, policy.biases, strict=True))[:-1]:
        x = activation(x @ weight.astype(float) + bias)  # type: ignore[operator]
    return x @ policy.weights[-1].astype(float) + policy.biases[-1]


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("tanh", np.tanh),
        ("relu", lambda x: np.maximum(x, 0)),
        ("elu", lambda x: np.where(x > 0, x, np.exp(x) - 1)),
        ("leaky_relu", lambda x: np.where(x > 0, x, 0.01 * x)),
    ],
)
def test_the_mean_action_is_the_definition(name: str, activation: object) -> None:
    policy = make_policy(activation=name, low=-10.0, high=10.0)
    for observation in np.random.default_rng(1).normal(0, 3, (50, 5)).astype(np.float32):
        np.testing.assert_allclose(policy(observation), naive_mean(policy, observation, activation), atol=1e-5)


def test_observations_are_clipped_after_normalising() -> None:
    policy = make_policy(observation_clip=0.5)
    far, farther = np.full(5, 1e3, np.float32), np.full(5, 1e6, np.float32)
    np.testing.assert_array_equal(policy(far), policy(farther))
    free = make_policy(observation_clip=np.inf)
    assert not np.array_equal(free(np.full(5, 1.0, np.float32)), free(np.full(5, 9.0, np.float32)))


def test_squashing_stretches_tanh_to_the_bounds_and_clipping_cuts() -> None:
    low, high = np.array([-2, -1, 0], np.float32), np.array([2, 3, 0.5], np.float32)
    squashed, clipped = make_policy(squash=True, low=low, high=high), make_policy(low=low, high=high)
    for observation in np.random.default_rng(1).normal(0, 3, (20, 5)).astype(np.float32):
        mean = naive_mean(squashed, observation, np.tanh)
        np.testing.assert_allclose(squashed(observation), low + (np.tanh(mean) + 1) / 2 * (high - low), atol=1e-5)
        np.testing.assert_allclose(clipped(observation), np.clip(mean, low, high), atol=1e-5)


def test_samples_have_the_mean_and_the_spread_that_the_policy_says() -> None:
    policy = make_policy(low=-10.0, high=10.0)
    observation, rng = np.ones(5, np.float32), np.random.default_rng(0)
    actions = np.stack([policy(observation, rng) for _ in range(4000)])
    assert policy.log_std is not None
    std = np.exp(policy.log_std)
    np.testing.assert_allclose(actions.std(axis=0), std, rtol=0.06)
    assert (np.abs(actions.mean(axis=0) - policy(observation)) < 4 * std / np.sqrt(4000)).all()


def test_a_state_dependent_spread_depends_on_the_state() -> None:
    weight = np.full((7, 3), 0.3, np.float32)
    policy = make_policy(log_std_weight=weight, low=-10.0, high=10.0)
    rng = np.random.default_rng(0)
    for observation in (np.full(5, -2, np.float32), np.full(5, 2, np.float32)):
        hidden = (observation - policy.observation_mean) / policy.observation_std
        for w, b in list(zip(policy.weights, policy.biases, strict=True))[:-1]:
            hidden = np.tanh(hidden @ w + b)
        actions = np.stack([policy(observation, rng) for _ in range(4000)])
        np.testing.assert_allclose(actions.std(axis=0), np.exp(hidden @ weight + policy.log_std), rtol=0.06)


def test_without_noise_of_its_own_a_sample_is_the_mean() -> None:
    policy = make_policy(log_std=None)
    observation = np.ones(5, np.float32)
    np.testing.assert_array_equal(policy(observation, np.random.default_rng(0)), policy(observation))


def test_actions_are_float32_even_from_a_generator() -> None:
    assert make_policy()(np.ones(5, np.float32), np.random.default_rng(0)).dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"activation": "gelu"}, ConfigError),
        ({"log_std": np.zeros(2, np.float32)}, ShapeError),
        ({"log_std_weight": np.zeros((6, 3), np.float32)}, ShapeError),
        ({"observation_mean": np.zeros(4, np.float32)}, ShapeError),
        ({"observation_std": np.full(5, np.nan, np.float32)}, NonFiniteError),
        ({"biases": make_policy(width=8).biases}, ShapeError),
        ({"weights": make_policy().weights[:2]}, ShapeError),
    ],
)
def test_parameters_that_do_not_fit_are_refused(changes: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        make_policy(**changes)


def test_the_random_policy_fills_the_bounds_and_needs_a_generator() -> None:
    low, high = np.array([-2, 0], np.float32), np.array([2, 0.1], np.float32)
    policy, rng = RandomPolicy(low, high), np.random.default_rng(0)
    actions = np.stack([policy(np.zeros(1, np.float32), rng) for _ in range(2000)])
    assert (actions >= low).all() and (actions <= high).all()
    np.testing.assert_allclose(actions.mean(axis=0), (low + high) / 2, atol=0.1)
    with pytest.raises(ConfigError, match="deterministic"):
        policy(np.zeros(1, np.float32))


def test_a_script_gets_a_copy_and_its_answer_becomes_float32() -> None:
    def act(observation: np.ndarray) -> list[float]:
        observation[:] = 7  # must not reach the log
        return [0.5, -0.5]

    observation = np.zeros(3, np.float32)
    action = ScriptedPolicy(act, "act", 2)(observation)
    assert action.dtype == np.float32 and action.tolist() == [0.5, -0.5]
    assert not observation.any()


@pytest.mark.parametrize("answer", [[1.0], 0.5, [[1.0, 2.0]], "left", None, [1.0, [2.0]]])
def test_a_script_of_the_wrong_shape_is_refused_by_name(answer: object) -> None:
    with pytest.raises(ShapeError, match=r"policy mine .*\(2,\)"):
        ScriptedPolicy(lambda _: answer, "mine", 2)(np.zeros(3, np.float32))


def make_behaviour() -> Behaviour:
    returns = {0: -50.0, 100: 200.0, 200: 380.0, 300: 900.0, 400: 700.0}
    curve = [{"steps": steps, "return_mean": value} for steps, value in returns.items()]
    return Behaviour({steps: make_policy(steps) for steps in returns}, {"curve": curve, "env_id": "Test-v0"})


def test_a_behaviour_file_comes_back_bit_for_bit(tmp_path: Path) -> None:
    behaviour = make_behaviour()
    behaviour.save(tmp_path / "b.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["b.safetensors"]
    again = Behaviour.load(tmp_path / "b.safetensors")
    assert again.metadata == behaviour.metadata and list(again.snapshots) == list(behaviour.snapshots)
    for steps, policy in behaviour.snapshots.items():
        for name, array in policy.tensors().items():
            np.testing.assert_array_equal(again.snapshots[steps].tensors()[name], array)


def test_tiers_follow_the_curve() -> None:
    tiers = {tier: make_behaviour().tier(tier) for tier in TIERS}
    # the expert's 900: a sixth is 150, a third is 300 (200 -> 380 is nearer than 100 -> 200), two thirds 600
    assert tiers == {"early": 100, "medium": 200, "good": 200, "expert": 300}


def test_only_the_kind_of_policy_that_a_behaviour_file_can_hold_is_saved() -> None:
    for changes in ({"activation": "relu"}, {"squash": True}, {"log_std": None}, {"high": 2.0}):
        with pytest.raises(ConfigError, match="behaviour file"):
            make_policy(**changes).tensors()  # type: ignore[arg-type]


def test_a_truncated_or_foreign_behaviour_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    make_behaviour().save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="no behaviour file"):
        Behaviour.load(path)
    path.write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="no behaviour file"):
        Behaviour.load(path)


@pytest.mark.parametrize("body", BODIES)
def test_shipped_behaviours_are_small_and_learned_something(body: str) -> None:
    floor = {"hopper": 2000, "halfcheetah": 2500, "walker2d": 2000, "ant": 1500}[body]
    behaviour = load_behaviour(body)
    parameters = sum(array.nbytes for policy in behaviour.snapshots.values() for array in policy.tensors().values())
    assert parameters < 300_000
    assert behaviour.curve[behaviour.tier("expert")] > floor
    assert behaviour.curve[0] < behaviour.curve[behaviour.tier("medium")] < behaviour.curve[behaviour.tier("expert")]
    for key in ("command", "versions", "algorithm", "settings"):
        assert behaviour.metadata[key]
