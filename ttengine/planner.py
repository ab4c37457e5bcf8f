"""The search: beam search planning with a Trajectory Transformer.

Source: Janner et al. 2021 (arXiv 2106.02039), section 3.2, and the released planner. docs/ARCHITECTURE.md says what the
two kinds of context mean.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ttengine.checkpoint import Checkpoint, load
from ttengine.config import WINDOW_CONTEXT, PlanConfig, plan_preset
from ttengine.context import Context
from ttengine.engines import Candidates, Counters, Engine, NoiseKey, default_device, make_engine, why_no_gpu
from ttengine.errors import ConfigError, EngineError, NonFiniteError, ShapeError
from ttengine.kernels.reference import select_beams
from ttengine.model import TrajectoryTransformer
from ttengine.objectives import Objective, check_score, discounted_return

FloatArray = npt.NDArray[np.float32]


def search_return(
    engine: Engine, objective: Objective, config: PlanConfig, clock: Clock, best: int
) -> tuple[Candidates, Tensor]:
    """Keep the beams that the objective likes best, round by round; any round's best is a valid plan.

    Returns:
        The last round's `best` candidates, and their scores [B, best].
    """
    while True:
        candidates = engine.expand(config.expand)
        score = check_score(objective(candidates), candidates)
        if candidates.rounds == config.horizon or clock.has_no_time_for_another_round():
            score, kept = engine.select_beams(score, best)
            return candidates.take(kept), score
        engine.select(engine.select_beams(score, config.beam_width)[1])
        engine.observe()


def search_likelihood(engine: Engine, config: PlanConfig, tokens: int) -> tuple[Tensor, Tensor]:
    """Keep the likeliest beams, token by token.

    Returns:
        The beams' tokens [B, W, tokens] int64, and their log-likelihoods [B, W].
    """
    total: Tensor | float = 0.0
    for _ in range(tokens):
        longer = total + engine.next_log_probabilities()
        score, kept = engine.select_beams(longer.flatten(1), config.beam_width)
        engine.branch(kept // longer.shape[2], kept % longer.shape[2])
        total = score[:, :, None]
    return engine.planned(), score


@dataclass(frozen=True, eq=False)
class Plan:
    """What a search found. For a single observation the leading axis B is absent.

    Attributes:
        actions: [B, H, M] float32, environment units; the first is to be executed now.
        observations: [B, H, N] float32, environment units: the given one, then the predicted ones.
        rewards: [B, H] float32, predicted, reward units.
        value: [B] float32, predicted discounted return after the last planned reward, reward units.
        score: [B] float32, what the objective gave (a log-likelihood for likelihood search).
        latency_s: wall time of the whole call.
        counters: work done.
        engine: who computed it.
        context_kind: window or rolling.
    """

    actions: FloatArray
    observations: FloatArray
    rewards: FloatArray
    value: FloatArray
    score: FloatArray
    latency_s: float
    counters: Counters
    engine: str
    context_kind: str

    @property
    def action(self) -> FloatArray:
        """[B, M] float32, the action to execute now."""
        return self.actions[..., 0, :]

    @property
    def rounds(self) -> int:
        """Transitions planned: the horizon, or fewer where a deadline came first."""
        return int(self.actions.shape[-2])


class Clock:
    """Times one plan against its deadline, by the longest round so far.

    Args:
        deadline_s: for the whole plan, None for none.
        finish_s: what has to be left after the last round, to read the plan off the beams.
    """

    ROUND_MARGIN = 1.15
    """the next round may take so much longer than the longest so far"""

    def __init__(self, deadline_s: float | None, finish_s: float = 0.0) -> None:
        self.started = self._round_began = time.perf_counter()
        self._deadline_s = deadline_s
        self._finish_s = finish_s
        self._longest_round_s = 0.0

    def has_no_time_for_another_round(self) -> bool:
        """Whether one more round like the longest so far would end after the deadline."""
        if self._deadline_s is None:
            return False
        now = time.perf_counter()
        self._longest_round_s = max(self._longest_round_s, now - self._round_began)
        self._round_began = now
        ahead_s = self.ROUND_MARGIN * self._longest_round_s + self._finish_s
        return now - self.started + ahead_s > self._deadline_s


class Planner:
    """Plans with one model, again and again.

    Args:
        model: a checkpoint, the path of one, or the name of a shipped model.
        config: the search; None takes the paper's settings for the dataset that the model was trained on.
        objective: scores candidates in place of the discounted return.
        device: where the model goes; None: a GPU for the triton engine, else the CPU.
    Raises:
        EngineError: the native core was to compute, and is not built; triton was, and there is no GPU that it can use.
        NonFiniteError: a weight is NaN or infinite (cpp, triton).
        CheckpointError: the file is not a model.
        ConfigError: the config does not fit the model.
    """

    def __init__(
        self,
        model: Checkpoint | str | Path,
        config: PlanConfig | None = None,
        *,
        objective: Objective | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self.checkpoint = model if isinstance(model, Checkpoint) else load(model)
        self.discretizer = self.checkpoint.discretizer
        self.config = _fit_to_model(config or plan_preset(self.checkpoint.dataset), self.checkpoint)
        if objective is not None and self.config.objective != "return":
            raise ConfigError("an objective scores rounds; it goes with objective='return', not 'likelihood'")
        self.objective = objective or discounted_return(self.config.discount)
        self.model = _on_device(self.checkpoint.model, torch.device(device or default_device(self.config)))
        self.engine: Engine
        self.engine_name, self.engine = make_engine(self.model, self.discretizer, self.config)
        self._finish_s = 0.0  # how long reading a plan off the beams took, at most, lately

    @property
    def context_capacity(self) -> int:
        """Executed transitions that can influence a plan."""
        if self.config.context_kind == "rolling":  # one layer sees `context` transitions back, the next as far again
            return self.model.config.layers * self.model.config.context
        return WINDOW_CONTEXT if self.config.context is None else self.config.context

    def empty_context(self) -> Context:
        """Return the context at the start of an episode; `append` to it what was executed."""
        return Context.empty(self.model.config.observation_dim, self.model.config.action_dim, self.context_capacity)

    def warm_up(self) -> None:
        """Plan once and forget it: a first plan maps memory and wakes threads, which a loop has no time for."""
        model = self.model.config
        zeros = np.zeros(model.observation_dim, np.float32)
        self.plan(zeros, goal=zeros if model.goal else None)

    def plan(
        self,
        observation: npt.ArrayLike,
        context: Context | Sequence[Context] | None = None,
        *,
        goal: npt.ArrayLike | None = None,
        seed: int | Sequence[int] = 0,
        step: int | Sequence[int] = 0,
        deadline_s: float | None = None,
    ) -> Plan:
        """Search `horizon` transitions ahead and return the best sequence found.

        Args:
            observation: [N], or [B, N] for B problems at once; environment units (not normalised).
            context: what was executed before, one for each problem; None at the start of an episode.
            goal: [N] or [B, N], the observation to reach, for goal models.
            seed: of the noise. Problem b of a batch draws as if planned alone with seed + b; or give one a problem.
            step: number of the plan under this seed, such as the control step, so that every plan draws anew.
            deadline_s: return the best plan of the rounds that fit; at least one round is always searched.
        Returns:
            The plan; NumPy arrays, without the leading axis B for a single observation.
        Raises:
            ShapeError: dimensions differ from the model's, or lengths differ between the problems.
            ConfigError: a seed is not an int64, or a step not in [0, 2**32).
            NonFiniteError: NaN or infinity in what was given, in the model's logits, or in a score.
        """
        clock = Clock(deadline_s, self._finish_s)
        observations = self._check_rows(observation, "observation")
        problems = len(observations)
        contexts = _per_problem(context, problems, "context")
        goals = None if goal is None else self._check_rows(goal, "goal")
        if (goals is not None) != self.model.config.goal:
            raise ShapeError(
                f"the model was trained {'with' if self.model.config.goal else 'without'} goals, "
                f"and {'one' if goals is not None else 'none'} was given"
            )
        if goals is not None and len(goals) != problems:
            raise ShapeError(f"{len(goals)} goals came for {problems} observations")
        seeds = [seed + b for b in range(problems)] if isinstance(seed, int) else seed
        steps = _per_problem(step, problems, "step")
        keys = [NoiseKey(int(s), int(p)) for s, p in zip(_per_problem(seeds, problems, "seed"), steps, strict=True)]
        with torch.inference_mode(), self.engine.cores():
            prefixes = self._prefixes(observations, contexts)
            encoded = None if goals is None else [self.discretizer.encode(_tensor(g)) for g in goals]
            self.engine.prefill(prefixes, encoded, keys)
            beams, scores = self.engine.run(lambda: self._search(clock, prefixes), anytime=deadline_s is not None)
            searched = time.perf_counter()
            seen = beams.observations[:, 0]
            seen[:, 0] = _tensor(observations)  # as given, rather than as its bins read
            found = beams.actions[:, 0], seen, beams.rewards[:, 0], beams.values[:, 0], scores[:, 0]
        single = np.ndim(observation) == 1
        arrays = [array.to(torch.float32).numpy() for array in found]
        actions, predicted, rewards, value, score = (array[0] if single else array for array in arrays)
        self._finish_s = max(0.9 * self._finish_s, time.perf_counter() - searched)
        return Plan(
            actions,
            predicted,
            rewards,
            value,
            score,
            latency_s=time.perf_counter() - clock.started,
            counters=self.engine.counters,
            engine=self.engine_name,
            context_kind=self.config.context_kind,
        )

    def _search(self, clock: Clock, prefixes: Sequence[Tensor]) -> tuple[Candidates, Tensor]:
        """Return each problem's best beam and its score [B, 1]."""
        if self.config.objective == "return":
            return search_return(self.engine, self.objective, self.config, clock, best=1)
        model = self.model.config
        tokens, score = search_likelihood(
            self.engine, self.config, self.config.horizon * model.transition_dim - model.observation_dim
        )
        start = torch.stack([self.discretizer.decode(prefix[-model.observation_dim :]) for prefix in prefixes])
        beams = Candidates.from_tokens(tokens.cpu(), start, self.discretizer, model.action_dim)
        score, best = select_beams(score.cpu(), 1)
        return beams.take(best), score

    def _prefixes(self, observations: FloatArray, contexts: Sequence[Context | None]) -> list[Tensor]:
        """Tokens of each problem's executed transitions, then of its observation. B of [T_b] int64."""
        N, K = self.model.config.observation_dim, self.model.config.transition_dim
        lengths = [self._visible(context) for context in contexts]
        ends = list(itertools.accumulate(length + 1 for length in lengths))
        rows = np.zeros((ends[-1], K), np.float32)  # of values only placeholders: no token attends to one
        for observation, context, length, end in zip(observations, contexts, lengths, ends, strict=True):
            if context is not None and length > 0:
                past = rows[end - 1 - length : end - 1]
                past[:, :N] = context.observations[-length:]
                past[:, N:-2] = context.actions[-length:]
                past[:, -2] = context.rewards[-length:]
            rows[end - 1, :N] = observation
        tokens = self.discretizer.encode(_tensor(rows)).flatten()  # all at once: a call costs as much as a row
        return [tokens[(end - 1 - length) * K : (end - 1) * K + N] for length, end in zip(lengths, ends, strict=True)]

    def _visible(self, context: Context | None) -> int:
        """Executed transitions that can influence the plan."""
        model = self.model.config
        if context is None or len(context) == 0:
            return 0
        dims = (context.observations.shape[1], context.actions.shape[1])
        if dims != (model.observation_dim, model.action_dim):
            raise ShapeError(
                f"the context holds observations of {dims[0]} and actions of {dims[1]} dims, the model was trained on "
                f"{model.observation_dim} and {model.action_dim}"
            )
        return min(len(context), self.context_capacity)

    def _check_rows(self, rows: npt.ArrayLike, name: str) -> FloatArray:
        array = np.asarray(rows, np.float32)
        N = self.model.config.observation_dim
        if array.ndim not in (1, 2) or array.size == 0:
            raise ShapeError(f"{name} has shape {array.shape}, expected [{N}] or [problems, {N}]")
        if array.shape[-1] != N:
            raise ShapeError(f"{name} has {array.shape[-1]} dims, the model was trained on {N}")
        if not np.isfinite(array).all():
            where = [int(i) for i in np.argwhere(~np.isfinite(array))[0]]
            raise NonFiniteError(f"{name}{where} is {array[tuple(where)]}; only finite numbers can be planned from")
        return array.reshape(-1, N)


def plan(
    model: Checkpoint | str | Path,
    observation: npt.ArrayLike,
    context: Context | Sequence[Context] | None = None,
    *,
    config: PlanConfig | None = None,
    objective: Objective | None = None,
    goal: npt.ArrayLike | None = None,
    seed: int | Sequence[int] = 0,
    step: int | Sequence[int] = 0,
    deadline_s: float | None = None,
) -> Plan:
    """Plan once: `Planner(model, config, objective=objective).plan(observation, context, ...)`.

    For one call; in a loop keep a `Planner`, which reads the model once. Arguments, result and errors are those of
    `Planner` and `Planner.plan`.
    """
    planner = Planner(model, config, objective=objective)
    return planner.plan(observation, context, goal=goal, seed=seed, step=step, deadline_s=deadline_s)


def _fit_to_model(config: PlanConfig, checkpoint: Checkpoint) -> PlanConfig:
    """Resolve `auto` and refuse what the model cannot do."""
    model = checkpoint.model.config
    kind = config.context_kind
    if kind == "auto":
        kind = "rolling" if model.positions == "rotary" else "window"
    if kind == "rolling" and model.positions != "rotary":
        raise ConfigError(
            "context_kind='rolling' needs a model trained with positions='rotary'; this one has absolute positions, "
            "whose cached keys are wrong once the context slides: use 'window'"
        )
    if kind == "rolling" and config.context not in (None, model.context):
        raise ConfigError(
            f"context is {config.context}, but this model's mask was trained with {model.context} transitions; "
            "leave context out, or use context_kind='window'"
        )
    return dataclasses.replace(config, context_kind=kind)


def _on_device(model: TrajectoryTransformer, device: torch.device) -> TrajectoryTransformer:
    """The model, or a copy of it: the checkpoint's own stays where other planners have it."""
    if device.type == "cuda" and (why := why_no_gpu()):
        raise EngineError(f"no planner for {device} here: {why}; use engine='cpp' on the CPU")
    there = next(model.parameters()).device
    same = there.type == device.type and device.index in (None, there.index)
    return (model if same else copy.deepcopy(model).to(device)).eval()


def _per_problem(given: Any, problems: int, name: str) -> list[Any]:
    """One entry a problem: None or a number stands for all; so does a single context for a single problem."""
    if given is None or isinstance(given, int | np.integer):
        return [given] * problems
    entries = [given] if isinstance(given, Context) else list(given)
    if len(entries) != problems:
        raise ShapeError(f"{len(entries)} entries of {name} came for {problems} observations")
    return entries


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))
