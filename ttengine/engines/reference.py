"""The reference engine: the search in plain PyTorch, on any device, written to be obviously right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ttengine.config import WINDOW_CONTEXT, ModelConfig, PlanConfig, Sampling
from ttengine.discretizer import Discretizer
from ttengine.engines.protocol import Candidates, Counters, EagerEngine, NoiseKey
from ttengine.errors import NonFiniteError
from ttengine.kernels import reference as ops
from ttengine.model import KeyValueCache, TrajectoryTransformer


class ReferenceEngine(EagerEngine):
    """Plans its problems one after the other, so that a batch cannot change what one of them would do alone."""

    def __init__(self, model: TrajectoryTransformer, discretizer: Discretizer, config: PlanConfig) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.discretizer = discretizer.to(self.device)
        self.config = config
        self.counters = Counters()
        self._problems: list[_Problem] = []

    def prefill(self, prefixes: Sequence[Tensor], goals: Sequence[Tensor] | None, keys: Sequence[NoiseKey]) -> None:
        """Begin B searches."""
        self.counters = Counters()
        self._problems = [
            _Problem(self, prefix.to(self.device), None if goals is None else goals[b].to(self.device), keys[b])
            for b, prefix in enumerate(prefixes)
        ]

    def expand(self, copies: int) -> Candidates:
        """Copy each beam, decode an action, a reward and a value."""
        for problem in self._problems:
            problem.expand(copies)
        return Candidates(
            torch.stack([problem.planned for problem in self._problems]),
            torch.stack([problem.rewards for problem in self._problems]),
            torch.stack([problem.values for problem in self._problems]),
            torch.stack([problem.observation for problem in self._problems]),
            self.discretizer,
            self.model.config.action_dim,
        )

    def select(self, kept: Tensor) -> None:
        """Keep some candidates as beams."""
        for problem, rows in zip(self._problems, kept, strict=True):
            problem.select(rows)

    def observe(self) -> None:
        """Decode the next observation of each beam."""
        for problem in self._problems:
            problem.decode(self.model.config.observation_dim, self.config.observation)

    def next_log_probabilities(self) -> Tensor:
        """Return [B, W, V+1] log-probabilities, filtered as the token's segment says."""
        return torch.stack([problem.log_probabilities() for problem in self._problems])

    def planned(self) -> Tensor:
        """Return the beams' tokens after the current observation, [B, W, ...] int64."""
        return torch.stack([problem.planned for problem in self._problems])

    def branch(self, beams: Tensor, tokens: Tensor) -> None:
        """Replace the beams."""
        for problem, rows, row_tokens in zip(self._problems, beams, tokens, strict=True):
            problem.select(rows)
            problem.append(row_tokens)


class _Problem:
    """One search: R rows of tokens, their cache, and what has been predicted of them."""

    def __init__(self, engine: ReferenceEngine, prefix: Tensor, goal: Tensor | None, key: NoiseKey) -> None:
        self.model, self.config, self.counters = engine.model, engine.config, engine.counters
        self.edges = engine.discretizer.edges.to(next(engine.model.parameters()).dtype)
        self.observation = engine.discretizer.decode(prefix[-self.model.config.observation_dim :])
        self.goal = goal
        self.key = key
        self.prefix_length = len(prefix)
        self.tokens = prefix[None]
        self.rewards = self.edges.new_zeros(1, 0)
        self.values = self.edges.new_zeros(1)
        self.cache: KeyValueCache | None = None
        self.logits: Tensor | None = None

    @property
    def planned(self) -> Tensor:
        """[R, ...] tokens after the current observation."""
        return self.tokens[:, self.prefix_length :]

    def expand(self, copies: int) -> None:
        """Decode one action, reward and value for each of `copies` copies of each row."""
        if self.planned.shape[1] == 0:  # the first round starts from one row, which stands for all W beams
            copies *= self.config.beam_width
        self.next_logits()  # before copying: what the copies share is computed once
        self.select(torch.arange(len(self.tokens) * copies, device=self.tokens.device) // copies)
        self.decode(self.model.config.action_dim, self.config.action)
        reward = self.decode_number(self.edges[-2], self.config.reward)
        self.values = self.decode_number(self.edges[-1], self.config.value)
        self.rewards = torch.cat([self.rewards, reward[:, None]], dim=1)

    def select(self, rows: Tensor) -> None:
        """Keep the given rows, in the given order, repeats allowed."""
        assert self.cache is not None
        if self.config.context_kind == "rolling":
            self.cache.forget(self.out_of_sight() - self.cache.start)
        self.cache.select(rows)
        self.tokens, self.rewards, self.values = self.tokens[rows], self.rewards[rows], self.values[rows]
        self.logits = None if self.logits is None else self.logits[rows]

    def decode(self, count: int, sampling: Sampling) -> None:
        """Draw the next `count` tokens of every row."""
        noise = self.noise(count)
        for i in range(count):
            self.append(draw(self.next_probabilities(sampling), sampling, noise[:, i]))

    def decode_number(self, edges: Tensor, sampling: Sampling) -> Tensor:
        """Draw the next token of every row; return the number that its probabilities, unfiltered, stand for. [R]."""
        probabilities = self.next_probabilities(sampling)
        self.append(draw(probabilities, sampling, self.noise(1)[:, 0]))
        if self.config.percentile == "mean":
            return ops.expectation(probabilities, edges)
        return ops.percentile(probabilities, edges, self.config.percentile, self.config.percentile_as_released)

    def noise(self, count: int) -> Tensor:
        """[R, count] noise of the next `count` tokens of every row."""
        seed, plan = torch.tensor(self.key.seed), torch.tensor(self.key.plan)
        row, token = torch.arange(len(self.tokens))[:, None], self.planned.shape[1] + torch.arange(count)
        return ops.philox_uniform(seed, plan, row, token).to(self.tokens.device)

    def append(self, tokens: Tensor) -> None:
        """Put one token behind each row. tokens [R] int64."""
        self.tokens = torch.cat([self.tokens, tokens[:, None]], dim=1)
        self.logits = None

    def log_probabilities(self) -> Tensor:
        """[R, V+1] log-probabilities of the next token, -inf where its segment's filter drops it."""
        return log_probabilities(self.next_logits(), self.segment())

    def segment(self) -> Sampling:
        """How the next token is drawn."""
        return sampling_of(self.tokens.shape[1], self.model.config, self.config)

    def next_probabilities(self, sampling: Sampling) -> Tensor:
        """[R, V+1] probabilities of the next token, before any filter."""
        return (self.next_logits() / sampling.temperature).softmax(dim=-1)

    def next_logits(self) -> Tensor:
        """[R, V+1] logits of the next token: whatever the cache has not seen yet is passed through the model."""
        if self.logits is None:
            start = self.out_of_sight() if self.config.context_kind == "window" else 0
            if self.cache is None or start > self.cache.start:
                self.cache = KeyValueCache(self.model.config, len(self.tokens), start, self.edges)
                self.counters.prefills += 1
            unseen = self.tokens[:, self.cache.start + self.cache.tokens :]
            goal = None if self.goal is None else self.goal.expand(len(unseen), -1)
            hidden = self.model.hidden(unseen, goal, self.cache)
            logits = self.model.head(hidden[:, -1:], self.tokens.shape[1] - 1)[:, 0]
            # a matrix product may round equal rows differently, by their place in the batch: but a tie has to be a tie
            self.logits = logits[first_equal_row(self.tokens[:, self.cache.origin :])]
            self.counters.token_steps += 1
            self.counters.physical_rows += unseen.numel()
            self.counters.logical_rows += unseen.numel()
            if not bool(torch.isfinite(self.logits).all()):
                raise NonFiniteError(
                    f"the model's logits hold NaN or infinity at token {self.planned.shape[1]} of the plan; "
                    "check the weights with `ttengine info`"
                )
        return self.logits

    def out_of_sight(self) -> int:
        """How many tokens on the left, always whole transitions, no longer count for the tokens to come."""
        K = self.model.config.transition_dim
        if self.config.context_kind == "rolling":
            assert self.cache is not None
            upcoming = self.cache.start + self.cache.tokens  # the first token that has not passed through the model
            return max(0, upcoming // K - self.model.config.context) * K
        excess = self.tokens.shape[1] - window_tokens(self.model.config, self.config)
        return max(0, -(-excess // K)) * K


def sampling_of(token: int, model: ModelConfig, config: PlanConfig) -> Sampling:
    """How a token of a sequence is drawn, by its place in the transition."""
    N, M = model.observation_dim, model.action_dim
    column = token % model.transition_dim
    if column < N:
        return config.observation
    return config.action if column < N + M else config.reward if column == N + M else config.value


def log_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return log-probabilities, -inf where the filter drops a token. logits [..., V+1] -> the same shape."""
    if sampling.cdf is None and sampling.k is None:
        return (logits / sampling.temperature).log_softmax(dim=-1)
    probabilities = (logits / sampling.temperature).softmax(dim=-1)
    weights = ops.filter_tokens(probabilities, sampling.cdf, sampling.k)
    return (weights / weights.sum(dim=-1, keepdim=True)).log()


def draw(probabilities: Tensor, sampling: Sampling, noise: Tensor) -> Tensor:
    """Return a token of each row. probabilities [R, V+1], noise [R] -> [R] int64."""
    if sampling.greedy:
        return ops.greedy_tokens(probabilities)
    return ops.sample_tokens(ops.filter_tokens(probabilities, sampling.cdf, sampling.k), noise)


def first_equal_row(rows: Tensor) -> Tensor:
    """Return for each row the first that equals it. rows [R, T] -> [R] int64."""
    distinct, group = torch.unique(rows, dim=0, return_inverse=True)
    index = torch.arange(len(rows), device=rows.device)
    return index.new_full((len(distinct),), len(rows)).scatter_reduce(0, group, index, "amin")[group]


def window_tokens(model: ModelConfig, config: PlanConfig) -> int:
    """The most tokens that a `window` search shows the model: `context` transitions less one token.

    With fewer than two transitions nothing would be left after a crop, so two is the least.
    Source: Janner et al. 2021, released code, `max_block`.
    """
    transitions = max(2, config.context if config.context is not None else WINDOW_CONTEXT)
    return min(transitions * model.transition_dim - 1, model.max_tokens)
