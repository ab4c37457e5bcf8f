"""Episodes under a controller: several environments stepped side by side, planned for in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ttengine.controller import Controller, act_together
from ttengine.errors import ConfigError, NonFiniteError, RenderError, ShapeError
from ttengine.planner import Plan, Planner

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


class FrameSink(Protocol):
    """Takes the pictures of an episode."""

    stride: int
    """control steps from one picture to the next"""

    def add(self, frame: npt.NDArray[np.uint8]) -> None:
        """Take one picture. frame [height, width, 3] uint8."""
        ...


@dataclass(frozen=True, eq=False)
class Foresight:
    """What the plans of one episode predicted, and what then happened.

    Attributes:
        observations: [T+1, N] float32, as they were.
        rewards: [T] float32, as they were.
        planned_at: [P] int64, the control step of each plan.
        predicted: [P, H, N] float32; [p, h] is meant for step planned_at[p] + h, h = 0 being what the plan started
            from; NaN where a deadline cut the plan short.
    """

    observations: FloatArray
    rewards: FloatArray
    planned_at: IntArray
    predicted: FloatArray

    @property
    def horizon(self) -> int:
        """H: predictions reach up to H - 1 steps ahead."""
        return int(self.predicted.shape[1])

    def ahead(self, steps: int) -> tuple[IntArray, FloatArray]:
        """Return what was predicted `steps` control steps before: times [n] int64, ascending, and [n, N] float32.

        Raises:
            ConfigError: no plan looks that far.
        """
        if not 0 <= steps < self.horizon:
            raise ConfigError(f"steps ahead is {steps}, allowed is 0 to {self.horizon - 1}: that far the plans look")
        times, predicted = self.planned_at + steps, self.predicted[:, steps]
        known = (times < len(self.observations)) & np.isfinite(predicted).all(axis=1)
        return times[known], predicted[known]

    def error(self, steps: int) -> float:
        """Return the root mean square error `steps` ahead, in each dimension's standard deviations; NaN for no plan."""
        times, predicted = self.ahead(steps)
        return self._error(times, predicted)

    def standstill_error(self, steps: int) -> float:
        """Return the error of predicting that nothing moves for `steps` steps, measured like `error`."""
        times, _ = self.ahead(steps)
        return self._error(times, self.observations[times - steps])

    def _error(self, times: IntArray, predicted: FloatArray) -> float:
        if not len(times):
            return float("nan")
        spread = self.observations.std(axis=0)
        moving = spread > 0
        off = (predicted - self.observations[times])[:, moving] / spread[moving]
        return float(np.sqrt(np.mean(off**2))) if moving.any() else 0.0


@dataclass(frozen=True, eq=False)
class EpisodeResult:
    """One episode.

    Attributes:
        seed: of the environment and of the planner's noise.
        total_reward: undiscounted return, reward units.
        length: control steps.
        terminated: whether the environment ended it; otherwise a time limit did.
        latencies_s: of each plan, from observation to NumPy action.
        missed_deadlines: plans that were too late.
        rounds: transitions planned, mean over the plans.
        foresight: predictions against reality, where they were to be kept.
    """

    seed: int
    total_reward: float
    length: int
    terminated: bool
    latencies_s: list[float]
    missed_deadlines: int
    rounds: float
    foresight: Foresight | None = None


def run_episodes(
    planner: Planner,
    make: Callable[[], Any],
    seeds: Sequence[int],
    *,
    max_steps: int | None = None,
    deadline_s: float | None = None,
    foresight: bool = False,
    frames: FrameSink | None = None,
    on_step: Callable[[int], None] | None = None,
) -> list[EpisodeResult]:
    """Run one episode for each seed, all at once; one planner call a step serves those that are not over.

    Args:
        planner: shared by all episodes.
        make: returns a Gymnasium environment with flat boxes; called once a seed.
        seeds: of the episodes.
        max_steps: longest episode, beside the environment's own limit.
        deadline_s: for each plan.
        foresight: keep what the plans of the first episode predicted.
        frames: takes pictures of the first episode.
        on_step: called after every round of steps with the environment steps that were taken.
    Raises:
        ShapeError: the environment does not fit the model.
        ConfigError: its spaces are not flat boxes, or nothing ends an episode.
        NonFiniteError: the environment gave NaN or infinity.
        RenderError: no picture came.
    """
    loops: list[_Loop] = []
    if deadline_s is not None:
        planner.warm_up()
    try:
        for seed in seeds:
            first = not loops
            loops.append(
                _Loop(planner, make(), seed, deadline_s, foresight and first, frames if first else None, max_steps)
            )
        while running := [loop for loop in loops if not loop.over]:
            actions = act_together([loop.controller for loop in running], [loop.observation for loop in running])
            for loop, action in zip(running, actions, strict=True):
                loop.step(action)
            if on_step is not None:
                on_step(len(running))
    finally:
        for loop in loops:
            loop.env.close()
    return [loop.result() for loop in loops]


@dataclass
class _Record:
    """What a Foresight is made from."""

    observations: list[FloatArray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    plans: list[tuple[int, FloatArray]] = field(default_factory=list)

    def foresight(self, horizon: int) -> Foresight:
        N = len(self.observations[0])
        predicted = np.full((len(self.plans), horizon, N), np.nan, np.float32)
        for row, (_, plan) in enumerate(self.plans):
            predicted[row, : len(plan)] = plan
        return Foresight(
            np.stack(self.observations),
            np.array(self.rewards, np.float32),
            np.array([step for step, _ in self.plans], np.int64),
            predicted,
        )


class _Loop:
    """One environment, its controller and its episode."""

    def __init__(
        self,
        planner: Planner,
        env: Any,
        seed: int,
        deadline_s: float | None,
        foresight: bool,
        frames: FrameSink | None,
        max_steps: int | None,
    ) -> None:
        self.env, self.seed, self.frames = env, seed, frames
        bounds = check_environment(env, planner, max_steps)
        self.controller = Controller(planner, deadline_s=deadline_s, bounds=bounds, seed=seed)
        self.max_steps = max_steps
        self.total_reward, self.over, self.terminated, self.rounds = 0.0, False, False, 0
        self.record = _Record() if foresight else None
        self.observation = self._observed(env.reset(seed=seed)[0])
        self._seen_plan: Plan | None = None
        self._picture()

    def step(self, action: FloatArray) -> None:
        controller = self.controller
        assert controller.plan is not None
        if controller.plan is not self._seen_plan:
            self._seen_plan = controller.plan
            self.rounds += controller.plan.rounds
            if self.record is not None:
                self.record.plans.append((controller.steps, controller.plan.observations))
        observation, reward, terminated, truncated, _ = self.env.step(action)
        if not np.isfinite(reward):
            raise NonFiniteError(f"the environment's reward is {reward} at step {controller.steps}, seed {self.seed}")
        controller.observe(float(reward))
        self.total_reward += float(reward)
        self.terminated = bool(terminated)
        self.over = bool(terminated or truncated) or controller.steps == self.max_steps
        if self.record is not None:
            self.record.rewards.append(float(reward))
        self.observation = self._observed(observation)
        self._picture()

    def result(self) -> EpisodeResult:
        controller = self.controller
        return EpisodeResult(
            self.seed,
            self.total_reward,
            controller.steps,
            self.terminated,
            controller.latencies_s,
            controller.missed_deadlines,
            self.rounds / max(1, len(controller.latencies_s)),
            None if self.record is None else self.record.foresight(controller.planner.config.horizon),
        )

    def _observed(self, observation: Any) -> FloatArray:
        row = np.asarray(observation, np.float32)
        if not np.isfinite(row).all():
            raise NonFiniteError(
                f"the environment's observation is {row} at step {self.controller.steps}, seed {self.seed}"
            )
        if self.record is not None:
            self.record.observations.append(row[: self.controller.planner.model.config.observation_dim])
        return row

    def _picture(self) -> None:
        if self.frames is None or self.controller.steps % self.frames.stride:
            return
        frame = self.env.render()
        if frame is None:
            raise RenderError(
                "the environment's render() returned nothing; make it with render_mode='rgb_array', or leave the video "
                "out"
            )
        self.frames.add(np.asarray(frame, np.uint8))


def check_environment(env: Any, planner: Planner, max_steps: int | None) -> tuple[FloatArray, FloatArray]:
    """Return the action bounds of an environment that fits the planner's model.

    Raises:
        ConfigError: its spaces are not flat boxes, or nothing ends an episode.
        ShapeError: its dims are not the model's.
    """
    for name in ("observation_space", "action_space"):
        shape = getattr(getattr(env, name), "shape", None)
        if not hasattr(getattr(env, name), "low") or shape is None or len(shape) != 1:
            raise ConfigError(
                f"the environment's {name} is {getattr(env, name)}; only a flat box of numbers can be used"
            )
    spec = getattr(env, "spec", None)
    if max_steps is None and getattr(spec, "max_episode_steps", None) is None:
        raise ConfigError("the environment has no time limit, so an episode might never end; give max_steps")
    model, columns = planner.model.config, planner.checkpoint.provenance.get("dataset", {}).get("observation_columns")
    N, M = env.observation_space.shape[0], env.action_space.shape[0]
    if (min(N, columns or N), M) != (model.observation_dim, model.action_dim):
        raise ShapeError(
            f"the environment has {N} observation and {M} action dims, the model was trained on "
            f"{model.observation_dim} and {model.action_dim}; is this the environment that the data came from?"
        )
    return np.asarray(env.action_space.low, np.float32), np.asarray(env.action_space.high, np.float32)
