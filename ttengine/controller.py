"""Observation in, action out, before the deadline: a planner in a control loop.

controller = Controller(Planner("model.safetensors"), deadline_s=0.05)
controller.reset(seed=0)
while running:
    action = controller.act(observation)
    observation, reward = robot.step(action)
    controller.observe(reward)
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ttengine.config import check_choice, check_range
from ttengine.data.preprocessing import crop_observation
from ttengine.errors import CallOrderError, DeadlineExceeded, NonFiniteError, ShapeError
from ttengine.planner import Plan, Planner

FloatArray = npt.NDArray[np.float32]

PERCENTILES = (50, 90, 99)
"""Which latencies a summary names."""


def latency_summary(latencies_s: Sequence[float]) -> dict[str, float]:
    """Return `p50_s`, `p90_s`, `p99_s` and `max_s` of some latencies in seconds; empty for none."""
    if not latencies_s:
        return {}
    summary = {f"p{p}_s": float(np.percentile(latencies_s, p)) for p in PERCENTILES}
    return summary | {"max_s": float(max(latencies_s))}


class Controller:
    """Plans with one planner in one control loop, and keeps the context.

    The order of calls is `reset`, then `act` and `observe` in turn. With a deadline the search is anytime: the plan is
    the best of the rounds that fitted, at least one. `plan_every` greater than 1 executes further actions of the last
    plan; where a deadline made that plan shorter, the next one comes sooner.

    Args:
        planner: searches; several controllers may share it.
        deadline_s: time for one `act`, such as the control period; None: as long as the search takes.
        on_deadline: what a plan that came too late does: count, or raise as well.
        plan_every: control steps between plans; None takes the planner's setting.
        bounds: (low, high), each a number or [M]; actions are clipped to them before they are returned and remembered.
        goal: [N] float32, the observation to reach, for goal models.
        seed: of the first episode.
    Raises:
        ConfigError: a setting is out of range.
        ShapeError: the bounds do not fit the model's actions.
    Attributes:
        plan: the last plan, None before the first.
        context: what was executed in this episode.
        latencies_s: of every plan since the controller was made: from the call of `act` to the NumPy action.
        missed_deadlines: how many of them exceeded the deadline.
    """

    def __init__(
        self,
        planner: Planner,
        *,
        deadline_s: float | None = None,
        on_deadline: Literal["count", "raise"] = "count",
        plan_every: int | None = None,
        bounds: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
        goal: npt.ArrayLike | None = None,
        seed: int = 0,
    ) -> None:
        self.planner = planner
        self.deadline_s = deadline_s
        self.on_deadline = on_deadline
        self.plan_every = planner.config.plan_every if plan_every is None else plan_every
        check_choice(self, "on_deadline", ("count", "raise"))
        check_range(self, "plan_every", 1, planner.config.horizon)
        if deadline_s is not None:
            check_range(self, "deadline_s", 1e-6, 1e9)
        self.goal = goal
        self.latencies_s: list[float] = []
        self.missed_deadlines = 0
        self._bounds = None if bounds is None else self._check_bounds(bounds)
        self._columns = planner.checkpoint.provenance.get("dataset", {}).get("observation_columns")
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode: forget the context and the last plan; latencies and missed deadlines are kept.

        Args:
            seed: of the planner's noise in this episode; None keeps the last one.
        """
        if seed is not None:
            self._seed = int(seed)
        self.context = self.planner.empty_context()
        self.plan: Plan | None = None
        self.steps = 0
        self._taken = 0
        self._pending: tuple[FloatArray, FloatArray] | None = None

    def act(self, observation: npt.ArrayLike) -> FloatArray:
        """Return the action [M] float32, environment units, for an observation [N].

        Raises:
            CallOrderError: the last action's reward has not been observed.
            DeadlineExceeded: only with `on_deadline="raise"`; the late plan is in `plan`, and its action counts as
                executed.
            ShapeError, NonFiniteError: the observation does not fit the model.
        """
        return act_together([self], [observation])[0]

    def executed(self, action: npt.ArrayLike) -> None:
        """Say that another action [M] than the returned one was executed: clipped, limited, or a human's.

        Raises:
            CallOrderError: no action is pending.
            ShapeError, NonFiniteError: it is not M finite numbers.
        """
        observation, planned = self._require_pending("executed")
        given = np.asarray(action, np.float32)
        if given.shape != planned.shape:
            raise ShapeError(f"the executed action has shape {given.shape}, the model's have {planned.shape}")
        if not np.isfinite(given).all():
            raise NonFiniteError(f"the executed action is {given}; only finite numbers can condition a plan")
        self._pending = observation, given

    def observe(self, reward: float) -> None:
        """Take in the reward that the last action brought; the transition joins the context.

        Raises:
            CallOrderError: no action is pending.
            NonFiniteError: the reward is NaN or infinite.
        """
        observation, action = self._require_pending("observe")
        self.context = self.context.append(observation, action, float(reward))
        self._pending = None
        self.steps += 1

    def latency(self) -> dict[str, float]:
        """Return percentiles of the plans' latencies, in seconds."""
        return latency_summary(self.latencies_s)

    @property
    def _needs_plan(self) -> bool:
        return self.plan is None or self._taken >= min(self.plan_every, self.plan.rounds)

    def _check_observation(self, observation: npt.ArrayLike) -> FloatArray:
        if self._pending is not None:
            raise CallOrderError("act() was called twice in a row; call observe(reward) after each executed action")
        row = np.asarray(observation, np.float32)
        expected = self.planner.model.config.observation_dim
        if row.ndim != 1:
            raise ShapeError(f"observation has shape {row.shape}, expected [{expected}]")
        cropped: FloatArray = crop_observation(row, self._columns)
        if len(cropped) != expected:
            raise ShapeError(f"observation has {len(cropped)} dims, the model was trained on {expected}")
        return cropped

    def _take_plan(self, plan: Plan, latency_s: float) -> None:
        self.plan, self._taken = plan, 0
        self.latencies_s.append(latency_s)

    def _next_action(self, observation: FloatArray) -> FloatArray:
        assert self.plan is not None
        action: FloatArray = self.plan.actions[self._taken].copy()
        if self._bounds is not None:
            np.clip(action, *self._bounds, out=action)
        self._taken += 1
        self._pending = observation, action
        return action.copy()

    def _is_late(self) -> bool:
        late = self.deadline_s is not None and self.latencies_s[-1] > self.deadline_s
        self.missed_deadlines += late
        return late

    def _require_pending(self, caller: str) -> tuple[FloatArray, FloatArray]:
        if self._pending is None:
            raise CallOrderError(f"{caller}() was called with no action pending; call act(observation) first")
        return self._pending

    def _check_bounds(self, bounds: tuple[npt.ArrayLike, npt.ArrayLike]) -> tuple[FloatArray, FloatArray]:
        M = self.planner.model.config.action_dim
        low, high = (np.asarray(bound, np.float32) for bound in bounds)
        for bound in (low, high):
            if bound.shape not in ((), (M,)):
                raise ShapeError(f"an action bound has shape {bound.shape}, expected a number or [{M}]")
        if not (low <= high).all():  # false for NaN as well
            raise ShapeError(f"the lower action bound {low} is not below the upper one {high}")
        return low, high


def act_together(controllers: Sequence[Controller], observations: Sequence[npt.ArrayLike]) -> list[FloatArray]:
    """Return an action [M] for each controller; one `Planner.plan` call serves all that need a plan.

    Each action is the one that `controllers[i].act(observations[i])` would return, except that with deadlines the
    shortest rules the whole call. The latency of every controller is that of the whole call.

    Args:
        controllers: of one planner; each keeps its own episode.
        observations: [N] each.
    Raises:
        ShapeError: the numbers differ, or the controllers have different planners.
        DeadlineExceeded: the plan came too late and a controller is to raise; every action counts as executed.
        What `Controller.act` raises.
    """
    began = time.perf_counter()
    if len(controllers) != len(observations) or not controllers:
        raise ShapeError(
            f"{len(observations)} observations came for {len(controllers)} controllers; one each is needed"
        )
    planner = controllers[0].planner
    if any(controller.planner is not planner for controller in controllers):
        raise ShapeError("the controllers have different planners; only those of one planner act together")
    rows = [controller._check_observation(each) for controller, each in zip(controllers, observations, strict=True)]
    planning = [(c, row) for c, row in zip(controllers, rows, strict=True) if c._needs_plan]
    if planning:
        _plan_together(planner, planning, began)
    actions = [controller._next_action(row) for controller, row in zip(controllers, rows, strict=True)]
    late = [controller for controller, _ in planning if controller._is_late()]
    for controller in late:
        if controller.on_deadline == "raise":
            raise DeadlineExceeded(
                f"the plan took {controller.latencies_s[-1] * 1e3:.1f} ms, the deadline is "
                f"{(controller.deadline_s or 0.0) * 1e3:.1f} ms; plan with a smaller beam, a shorter horizon, or a "
                "faster engine"
            )
    return actions


def _plan_together(planner: Planner, planning: Sequence[tuple[Controller, FloatArray]], began: float) -> None:
    """Plan for some controllers at once; time from `began` counts towards the latency and the deadline."""
    group = [controller for controller, _ in planning]
    goals: Any = [controller.goal for controller in group]
    if any(goal is None for goal in goals) and any(goal is not None for goal in goals):
        raise ShapeError("some of the controllers have a goal and some have none; they cannot plan together")
    deadlines = [controller.deadline_s for controller in group if controller.deadline_s is not None]
    spent = time.perf_counter() - began
    batch = planner.plan(
        np.stack([row for _, row in planning]),
        [controller.context for controller in group],
        goal=None if goals[0] is None else np.stack([np.asarray(goal, np.float32) for goal in goals]),
        seed=[controller._seed for controller in group],
        step=[controller.steps for controller in group],
        deadline_s=max(0.0, min(deadlines) - spent) if deadlines else None,
    )
    plans = [_of_problem(batch, b) for b in range(len(group))]
    latency_s = time.perf_counter() - began
    for controller, plan in zip(group, plans, strict=True):
        controller._take_plan(plan, latency_s)


def _of_problem(plan: Plan, b: int) -> Plan:
    """Return problem b's part of a batched plan; counters and latency stay those of the whole call."""
    arrays = {name: getattr(plan, name)[b] for name in ("actions", "observations", "rewards", "value", "score")}
    return dataclasses.replace(plan, **arrays)
