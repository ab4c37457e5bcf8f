"""The naive reference of the benches: beam search with no cache, as the paper's released planner computes it.

For every token of every row it passes the whole visible window through the model, in PyTorch, and computes logits at
every position. There is a row for each candidate from the first token on, and nothing is shared. Sampling, noise and
the search loop are the package's own, so that its tokens can be compared with the reference engine's.

Source: Janner et al. 2021 (arXiv 2106.02039), released planner.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from plan_inputs import Moment, random_checkpoint
from torch import Tensor

from ttengine.checkpoint import Checkpoint
from ttengine.config import WINDOW_CONTEXT, ModelConfig, PlanConfig, Sampling
from ttengine.discretizer import Discretizer
from ttengine.engines import Candidates, Counters, EagerEngine, Engine, NoiseKey, ReferenceEngine
from ttengine.errors import ConfigError
from ttengine.kernels import reference as ops
from ttengine.model import TrajectoryTransformer
from ttengine.objectives import discounted_return
from ttengine.planner import Clock, Planner, search_return


class NaiveEngine(EagerEngine):
    """Plans one problem in a `window` context for `objective="return"`, with no cache.

    `counters.physical_rows` are token-forwards: rows times the length of the window, summed over all forward passes.
    """

    def __init__(self, model: TrajectoryTransformer, discretizer: Discretizer, config: PlanConfig) -> None:
        if config.context_kind != "window" or config.objective != "return" or config.percentile != "mean":
            raise ConfigError("the naive planner is the paper's: context_kind='window', objective='return', the mean")
        self.model, self.config = model, config
        self.device = next(model.parameters()).device
        self.discretizer = discretizer.to(self.device)
        self.edges = self.discretizer.edges.to(next(model.parameters()).dtype)
        self.limit = window_limit(model.config, config)
        self.counters = Counters()

    def prefill(self, prefixes: Sequence[Tensor], goals: Sequence[Tensor] | None, keys: Sequence[NoiseKey]) -> None:
        """Begin a search: one row a beam, all of them equal. Arguments as the protocol's, for one problem."""
        if len(prefixes) != 1 or goals is not None:
            raise ConfigError("the naive planner plans one problem at a time, without goals")
        self.counters = Counters()
        self.key, self.prefix_length = keys[0], len(prefixes[0])
        prefix = prefixes[0].to(self.device)
        self.observation = self.discretizer.decode(prefix[-self.model.config.observation_dim :])
        self.tokens = prefix.expand(self.config.beam_width, -1)
        self.rewards = self.edges.new_zeros(self.config.beam_width, 0)

    def expand(self, copies: int) -> Candidates:
        """Copy each beam `copies` times; decode an action, a reward and a value for each candidate."""
        self.tokens = self.tokens.repeat_interleave(copies, dim=0)
        self.rewards = self.rewards.repeat_interleave(copies, dim=0)
        for _ in range(self.model.config.action_dim):
            self._decode(self.config.action)
        reward = ops.expectation(self._decode(self.config.reward), self.edges[-2])
        self.rewards = torch.cat([self.rewards, reward[:, None]], dim=1)
        value = ops.expectation(self._decode(self.config.value), self.edges[-1])
        planned = self.tokens[None, :, self.prefix_length :]
        return Candidates(
            planned,
            self.rewards[None],
            value[None],
            self.observation[None],
            self.discretizer,
            self.model.config.action_dim,
        )

    def select(self, kept: Tensor) -> None:
        """Keep some candidates as beams. kept [1, W] int64."""
        self.tokens, self.rewards = self.tokens[kept[0]], self.rewards[kept[0]]

    def observe(self) -> None:
        """Decode the next observation of each beam."""
        for _ in range(self.model.config.observation_dim):
            self._decode(self.config.observation)

    def next_log_probabilities(self) -> Tensor:
        """Refuse: likelihood search is not measured."""
        raise NotImplementedError("the naive planner searches for returns only: objective='return'")

    planned = next_log_probabilities

    def branch(self, beams: Tensor, tokens: Tensor) -> None:
        """Refuse: likelihood search is not measured."""
        raise NotImplementedError("the naive planner searches for returns only: objective='return'")

    def _decode(self, sampling: Sampling) -> Tensor:
        """Draw the next token of every row; return the probabilities before any filter. [R, V+1]."""
        window = self.tokens[:, self.tokens.shape[1] - self._visible() :]
        logits = self.model(window)  # at every position, as the released planner does; only the last is used
        self.counters.token_steps += 1
        self.counters.logical_rows += window.numel()
        self.counters.physical_rows += window.numel()
        probabilities: Tensor = (logits[:, -1] / sampling.temperature).softmax(dim=-1)
        if sampling.greedy:
            drawn = ops.greedy_tokens(probabilities)
        else:
            drawn = ops.sample_tokens(ops.filter_tokens(probabilities, sampling.cdf, sampling.k), self._noise())
        self.tokens = torch.cat([self.tokens, drawn[:, None]], dim=1)
        return probabilities

    def _noise(self) -> Tensor:
        token = torch.tensor(self.tokens.shape[1] - self.prefix_length)
        seed, plan = torch.tensor(self.key.seed), torch.tensor(self.key.plan)
        return ops.philox_uniform(seed, plan, torch.arange(len(self.tokens)), token).to(self.device)

    def _visible(self) -> int:
        return visible_tokens(self.tokens.shape[1], self.limit, self.model.config.transition_dim)


def window_limit(model: ModelConfig, config: PlanConfig) -> int:
    """Return the most tokens that a `window` search shows the model: one less than its transitions hold."""
    transitions = WINDOW_CONTEXT if config.context is None else config.context
    return min(max(2, transitions) * model.transition_dim - 1, model.max_tokens)


def visible_tokens(length: int, limit: int, transition_dim: int) -> int:
    """Return how many of `length` tokens are left when whole transitions are cropped until at most `limit` are."""
    while length > limit:
        length -= transition_dim
    return length


def token_forwards(model: ModelConfig, config: PlanConfig, prefix: int, rounds: int) -> int:
    """Return the token-forwards of a plan's first rounds: rows times window length, summed over its token steps.

    Args:
        model: the model's dims.
        config: the search; its horizon is not read.
        prefix: tokens that the plan starts from.
        rounds: how many rounds; the last has no observation segment.
    """
    limit, K = window_limit(model, config), model.transition_dim
    total, length = 0, prefix
    for index in range(rounds):
        segments = [(config.beam_width * config.expand, model.action_dim + 2)]
        if index + 1 < rounds:
            segments.append((config.beam_width, model.observation_dim))
        for rows, count in segments:
            for _ in range(count):
                total += rows * visible_tokens(length, limit, K)
                length += 1
    return total


@dataclass(frozen=True)
class NaiveTime:
    """How long a plan of the naive reference takes.

    Attributes:
        seconds: of one plan over the whole horizon.
        basis: what was timed, in words.
    """

    seconds: float
    basis: str


def time_naive(
    checkpoint: Checkpoint, config: PlanConfig, moments: Sequence[Moment], rounds: int, device: str = "cpu"
) -> NaiveTime:
    """Time the first rounds of a plan at each moment, and extrapolate the median to the horizon by token-forwards.

    Args:
        checkpoint: the model.
        config: the search; it is planned in a `window` context whatever its own is.
        moments: what to plan from, all with contexts of the same length; each is planned once.
        rounds: at most so many rounds are computed; at the horizon or above the whole plan is timed.
        device: where PyTorch computes.
    """
    rounds = min(rounds, config.horizon)
    seconds = []
    planner = naive_planner(checkpoint, dataclasses.replace(config, horizon=rounds), device)
    first = naive_planner(checkpoint, dataclasses.replace(config, horizon=1, beam_width=1), device)
    first.plan(*moments[0])  # starts threads
    for step, moment in enumerate(moments):
        started = time.perf_counter()
        planner.plan(*moment, step=step)
        seconds.append(time.perf_counter() - started)
    prefix = len(planner._prefixes(moments[0].observation[None], [moments[0].context])[0])
    model = checkpoint.model.config
    whole, part = (token_forwards(model, config, prefix, count) for count in (config.horizon, rounds))
    timed = f"{len(seconds)} plan{'s' if len(seconds) > 1 else ''} timed"
    basis = f"window, whole plans, {timed}"
    if rounds < config.horizon:
        basis = (
            f"window, extrapolated from {rounds} of {config.horizon} rounds by token-forwards "
            f"({part:,} of {whole:,}), {timed}"
        )
    return NaiveTime(statistics.median(seconds) * whole / part, basis)


def naive_planner(checkpoint: Checkpoint, config: PlanConfig, device: str = "cpu") -> Planner:
    """Return a planner that computes naively; its plans call themselves the reference engine's."""
    config = dataclasses.replace(config, engine="reference", context_kind="window")
    planner = Planner(checkpoint, config, device=device)
    planner.engine = NaiveEngine(planner.model, planner.discretizer, planner.config)
    return planner


def rounded_return(candidates: Candidates) -> Tensor:
    """Score by the return to nine places: equal sequences then tie however float64 rounded their sums."""
    return discounted_return(0.99)(candidates).round(decimals=9)


def naive_equals_reference() -> bool:
    """Whether the naive planner finds the reference engine's beams, all of them, on tiny float64 models."""
    for case in range(8):
        checkpoint = random_checkpoint(1 + case % 3, 1 + case % 2, layers=2, heads=2, width=16, bins=9, seed=case)
        checkpoint.model.double()
        config = PlanConfig(horizon=4, beam_width=5, context_kind="window", engine="reference")
        K, N = checkpoint.model.config.transition_dim, checkpoint.model.config.observation_dim
        tokens = torch.randint(0, 9, (case * K + N,), generator=torch.Generator().manual_seed(case))
        prefix = tokens[-(WINDOW_CONTEXT * K + N) :]
        found = []
        for kind in (NaiveEngine, ReferenceEngine):
            engine: Engine = kind(checkpoint.model, checkpoint.discretizer, config)
            with torch.inference_mode():
                engine.prefill([prefix], None, [NoiseKey(case, 1)])
                found.append(search_return(engine, rounded_return, config, Clock(None), config.beam_width))
        (naive, naive_score), (reference, score) = found
        if not torch.equal(naive.tokens, reference.tokens) or not torch.allclose(naive_score, score, atol=1e-8):
            return False
    return True
