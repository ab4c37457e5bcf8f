"""The controller: context, plan reuse, deadlines, batches."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pytest
from tiny import FAST, tiny_checkpoint

from ttengine.context import Context
from ttengine.controller import Controller, act_together, latency_summary
from ttengine.errors import CallOrderError, ConfigError, DeadlineExceeded, NonFiniteError, ShapeError
from ttengine.planner import Planner

RNG = np.random.default_rng(0)
OBSERVATIONS = RNG.uniform(-4, 4, (12, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def planner() -> Planner:
    return Planner(tiny_checkpoint(), FAST)


def test_actions_are_those_of_plans_made_by_hand_with_the_same_context(planner: Planner) -> None:
    controller = Controller(planner, seed=7)
    context = planner.empty_context()
    for step, observation in enumerate(OBSERVATIONS[:6]):
        action = controller.act(observation)
        np.testing.assert_array_equal(action, planner.plan(observation, context, seed=7, step=step).action)
        controller.observe(0.5 * step)
        context = context.append(observation, action, 0.5 * step)
        assert_same_context(controller.context, context)
    assert controller.steps == 6
    assert len(controller.latencies_s) == 6


def assert_same_context(a: Context, b: Context) -> None:
    for name in ("observations", "actions", "rewards"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_reset_forgets_the_episode_and_repeats_it_with_the_same_seed(planner: Planner) -> None:
    controller = Controller(planner, seed=3)

    def run() -> list[np.ndarray]:
        taken = []
        for observation in OBSERVATIONS[:4]:
            taken.append(controller.act(observation))
            controller.observe(1.0)
        return taken

    first = run()
    controller.reset(3)
    np.testing.assert_array_equal(run(), first)
    controller.reset(4)
    assert not np.array_equal(run(), first)
    assert len(controller.latencies_s) == 12


def test_plan_every_executes_further_actions_of_the_last_plan(planner: Planner) -> None:
    controller = Controller(planner, plan_every=2)
    for step, observation in enumerate(OBSERVATIONS[:5]):
        action = controller.act(observation)
        assert controller.plan is not None
        np.testing.assert_array_equal(action, controller.plan.actions[step % 2])
        controller.observe(0.0)
    assert len(controller.latencies_s) == 3


def test_a_plan_that_a_deadline_made_short_is_followed_by_a_new_one_sooner(planner: Planner) -> None:
    controller = Controller(planner, plan_every=2, deadline_s=1e-6)
    for observation in OBSERVATIONS[:3]:
        controller.act(observation)
        assert controller.plan is not None
        assert controller.plan.rounds == 1
        controller.observe(0.0)
    assert len(controller.latencies_s) == 3


def test_missed_deadlines_are_counted(planner: Planner) -> None:
    controller = Controller(planner, deadline_s=1e-6)
    for observation in OBSERVATIONS[:3]:
        controller.act(observation)
        controller.observe(0.0)
    assert controller.missed_deadlines == 3
    patient = Controller(planner, deadline_s=1e3)
    patient.act(OBSERVATIONS[0])
    assert patient.missed_deadlines == 0
    assert patient.plan is not None
    assert patient.plan.rounds == FAST.horizon


def test_a_missed_deadline_raises_on_request_and_its_action_counts_as_executed(planner: Planner) -> None:
    controller = Controller(planner, deadline_s=1e-6, on_deadline="raise")
    with pytest.raises(DeadlineExceeded, match=r"the deadline is 0\.0 ms"):
        controller.act(OBSERVATIONS[0])
    assert controller.missed_deadlines == 1
    controller.observe(1.0)
    assert controller.plan is not None
    np.testing.assert_array_equal(controller.context.actions, controller.plan.actions[:1])


def test_the_deadline_includes_time_spent_before_the_search(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    original = planner.plan

    def spy(*args: Any, deadline_s: float, **kwargs: Any) -> Any:
        given.append(deadline_s)
        return original(*args, deadline_s=deadline_s, **kwargs)

    def slow(self: Controller, observation: Any) -> Any:
        time.sleep(0.02)
        return np.asarray(observation, np.float32)

    monkeypatch.setattr(planner, "plan", spy)
    monkeypatch.setattr(Controller, "_check_observation", slow)
    controller = Controller(planner, deadline_s=1.0)
    controller.act(OBSERVATIONS[0])
    assert given[0] <= 0.98
    assert controller.latencies_s[0] >= 0.02


def test_actions_are_clipped_to_the_bounds_and_the_clipped_ones_are_remembered(planner: Planner) -> None:
    free, bound = Controller(planner), Controller(planner, bounds=(-0.25, np.array([0.5])))
    clipped = 0
    for observation in OBSERVATIONS:
        action = bound.act(observation)
        free.context = bound.context
        free_action = free.act(observation)
        np.testing.assert_array_equal(action, np.clip(free_action, -0.25, 0.5))
        clipped += not np.array_equal(action, free_action)
        free.observe(0.0)
        bound.observe(0.0)
        np.testing.assert_array_equal(bound.context.actions[-1], action)
    assert clipped >= 3


def test_another_executed_action_goes_into_the_context(planner: Planner) -> None:
    controller = Controller(planner)
    controller.act(OBSERVATIONS[0])
    controller.executed([0.125])
    controller.observe(2.0)
    np.testing.assert_array_equal(controller.context.actions, [[0.125]])
    np.testing.assert_array_equal(controller.context.rewards, [2.0])


def test_changing_a_returned_action_does_not_change_what_is_remembered(planner: Planner) -> None:
    controller = Controller(planner)
    action = controller.act(OBSERVATIONS[0])
    kept = action.copy()
    action[:] = 99.0
    controller.observe(0.0)
    np.testing.assert_array_equal(controller.context.actions[0], kept)


def test_controllers_that_act_together_do_as_they_would_alone(planner: Planner) -> None:
    def run(together: bool) -> list[list[np.ndarray]]:
        controllers = [Controller(planner, seed=s, plan_every=1 + s % 2) for s in range(3)]
        taken = []
        for step in range(4):
            rows = [OBSERVATIONS[(3 * step + i) % 12] for i in range(3)]
            actions = (
                act_together(controllers, rows)
                if together
                else [controller.act(row) for controller, row in zip(controllers, rows, strict=True)]
            )
            for controller in controllers:
                controller.observe(float(step))
            taken.append(actions)
        return taken

    np.testing.assert_array_equal(run(True), run(False))


def test_one_planner_call_serves_all_controllers(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = planner.plan

    def spy(observation: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(observation))
        return original(observation, *args, **kwargs)

    monkeypatch.setattr(planner, "plan", spy)
    act_together([Controller(planner) for _ in range(3)], list(OBSERVATIONS[:3]))
    assert calls == [3]


def test_a_goal_reaches_the_planner() -> None:
    plain = tiny_checkpoint()
    planner = Planner(plain, FAST)
    with pytest.raises(ShapeError, match="without goals, and one was given"):
        Controller(planner, goal=[0.0, 0.0, 0.0]).act(OBSERVATIONS[0])
    with pytest.raises(ShapeError, match="some of the controllers have a goal"):
        act_together([Controller(planner), Controller(planner, goal=[0.0] * 3)], list(OBSERVATIONS[:2]))


def test_observations_are_cropped_as_the_training_data_was() -> None:
    planner = Planner(tiny_checkpoint(dataset_metadata={"observation_columns": 3}), FAST)
    whole = np.concatenate([OBSERVATIONS[0], [5.0, 5.0]])
    np.testing.assert_array_equal(Controller(planner).act(whole), Controller(planner).act(OBSERVATIONS[0]))


def test_calls_out_of_order_are_refused(planner: Planner) -> None:
    controller = Controller(planner)
    with pytest.raises(CallOrderError, match="observe\\(\\) was called with no action pending"):
        controller.observe(0.0)
    with pytest.raises(CallOrderError, match="executed\\(\\) was called with no action pending"):
        controller.executed([0.0])
    controller.act(OBSERVATIONS[0])
    with pytest.raises(CallOrderError, match="twice in a row"):
        controller.act(OBSERVATIONS[1])


def test_a_refused_observation_leaves_the_controller_as_it_was(planner: Planner) -> None:
    controller = Controller(planner)
    with pytest.raises(NonFiniteError):
        controller.act([0.0, np.nan, 0.0])
    with pytest.raises(ShapeError, match="observation has 4 dims, the model was trained on 3"):
        controller.act([0.0] * 4)
    np.testing.assert_array_equal(controller.act(OBSERVATIONS[0]), Controller(planner).act(OBSERVATIONS[0]))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"deadline_s": 0.0}, ConfigError, "deadline_s is 0.0"),
        ({"deadline_s": float("nan")}, ConfigError, "deadline_s is nan"),
        ({"on_deadline": "ignore"}, ConfigError, "on_deadline is 'ignore'"),
        ({"plan_every": 3}, ConfigError, "plan_every is 3, allowed is 1 to 2"),
        ({"bounds": (np.zeros(2), np.ones(2))}, ShapeError, r"expected a number or \[1\]"),
        ({"bounds": (1.0, -1.0)}, ShapeError, "not below"),
    ],
)
def test_settings_are_checked(planner: Planner, settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Controller(planner, **settings)


@pytest.mark.parametrize(
    ("action", "reward", "error"),
    [([0.0, 0.0], 0.0, ShapeError), ([np.inf], 0.0, NonFiniteError), ([0.0], np.nan, NonFiniteError)],
)
def test_what_was_executed_is_checked(
    planner: Planner, action: list[float], reward: float, error: type[Exception]
) -> None:
    controller = Controller(planner)
    controller.act(OBSERVATIONS[0])
    with pytest.raises(error):
        controller.executed(action)
        controller.observe(reward)


def test_controllers_of_different_planners_cannot_act_together(planner: Planner) -> None:
    other = Planner(tiny_checkpoint(), dataclasses.replace(FAST, horizon=1))
    with pytest.raises(ShapeError, match="different planners"):
        act_together([Controller(planner), Controller(other)], list(OBSERVATIONS[:2]))
    with pytest.raises(ShapeError, match="1 observations came for 2 controllers"):
        act_together([Controller(planner), Controller(planner)], [OBSERVATIONS[0]])


def test_latency_summary_names_percentiles() -> None:
    assert latency_summary([]) == {}
    summary = latency_summary([float(i) for i in range(101)])
    assert summary == {"p50_s": 50.0, "p90_s": 90.0, "p99_s": 99.0, "max_s": 100.0}
