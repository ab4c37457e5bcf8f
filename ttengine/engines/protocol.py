"""What a search asks of an engine: the verbs, and what passes between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ttengine.config import check_range
from ttengine.discretizer import Discretizer
from ttengine.errors import NonFiniteError
from ttengine.kernels import reference as ops


@dataclass(frozen=True)
class NoiseKey:
    """Which noise a problem's plan draws: the same key, row and token always give the same draw.

    Attributes:
        seed: any int64.
        plan: the plan's number under this seed, in [0, 2**32); a controller counts its control steps here.
    Raises:
        ConfigError: out of range.
    """

    seed: int = 0
    plan: int = 0

    def __post_init__(self) -> None:
        check_range(self, "seed", -(2**63), 2**63 - 1)
        check_range(self, "plan", 0, 2**32 - 1)


@dataclass
class Counters:
    """Work done by a plan, over all its problems; exact, so that tests can hold it."""

    token_steps: int = 0
    """sequential steps: how often all rows moved on by one token"""
    logical_rows: int = 0
    """tokens of all rows, as if no two rows shared anything; the prefix counts once, even where its pages were kept"""
    physical_rows: int = 0
    """tokens that were passed through the model, re-prefills included; goals aside"""
    prefills: int = 0
    """how often a context was computed anew, in whole or in part"""
    flops: int = 0
    """multiplications and additions of the physical rows' matrix products and attention (cpp; else 0)"""
    pages: int = 0
    """most pages of the key/value cache in use at once (cpp; else 0)"""
    observe_tiles: int = 0
    """passes in which each beam's next observations were decoded, of at most 16 tokens each (triton; else 0); without
    guesses that came true it would be one pass a token: N+1 for each beam and round but the last"""


@dataclass(frozen=True, eq=False)
class Candidates:
    """All beams after expansion, C = W*E for each of B problems, at round t (counted from 0).

    Attributes:
        tokens: [B, C, t*K + M + 2] int64, everything after the current observation, this round's value token last.
        rewards: [B, C, t+1] float, expected reward of each planned transition, reward units.
        values: [B, C] float, expected value after this round's reward, reward units.
        observation: [B, N] float32, what the plan starts from, as its tokens read, environment units.
        discretizer: decodes tokens.
        action_dim: M.
    """

    tokens: Tensor
    rewards: Tensor
    values: Tensor
    observation: Tensor
    discretizer: Discretizer
    action_dim: int

    @classmethod
    def from_tokens(cls, tokens: Tensor, observation: Tensor, discretizer: Discretizer, action_dim: int) -> Candidates:
        """Read rewards and values off the tokens themselves, as mid-points of bins; arguments as the attributes."""
        K = discretizer.n_columns
        rewards = discretizer.decode(tokens[..., action_dim::K, None], first_column=K - 2)[..., 0]
        values = discretizer.decode(tokens[..., -1:], first_column=K - 1)[..., 0]
        return cls(tokens, rewards, values, observation, discretizer, action_dim)

    @property
    def rounds(self) -> int:
        """t+1, transitions planned so far."""
        return self.rewards.shape[-1]

    @cached_property
    def _numbers(self) -> tuple[Tensor, Tensor]:
        """Observations [B, C, t+1, N] and actions [B, C, t+1, M] of the planned transitions."""
        N, M = self.observation.shape[-1], self.action_dim
        start = torch.zeros(*self.tokens.shape[:2], N, dtype=torch.int64, device=self.tokens.device)
        whole = torch.cat([start, self.tokens], dim=-1).unflatten(-1, (self.rounds, -1))
        observations, actions = self.discretizer.decode(whole[..., : N + M]).split([N, M], dim=-1)
        observations[:, :, 0] = self.observation[:, None]
        return observations, actions

    @property
    def observations(self) -> Tensor:
        """[B, C, t+1, N] float32: the given observation, then the predicted ones, environment units."""
        return self._numbers[0]

    @property
    def actions(self) -> Tensor:
        """[B, C, t+1, M] float32, environment units."""
        return self._numbers[1]

    def discounted_return(self, discount: float) -> Tensor:
        """[B, C]: sum of discount**i * r_i over the planned rewards, plus discount**(t+1) * V_t."""
        weight = discount ** torch.arange(self.rounds + 1, dtype=self.rewards.dtype, device=self.rewards.device)
        return (self.rewards * weight[: self.rounds]).sum(dim=-1) + weight[self.rounds] * self.values

    def check_finite(self, score: Tensor) -> None:
        """Raise NonFiniteError if a score is NaN or infinite."""
        if not bool(torch.isfinite(score).all()):
            raise NonFiniteError(f"the objective returned NaN or infinity in round {self.rounds - 1}")

    def cpu(self) -> Candidates:
        """Return the same on the CPU."""
        return Candidates(
            self.tokens.cpu(),
            self.rewards.cpu(),
            self.values.cpu(),
            self.observation.cpu(),
            self.discretizer.to("cpu"),
            self.action_dim,
        )

    def take(self, index: Tensor) -> Candidates:
        """Keep some candidates. index [B, W] int64 -> the same, C = W."""
        problem = torch.arange(len(index), device=index.device)[:, None]
        return Candidates(
            self.tokens[problem, index],
            self.rewards[problem, index],
            self.values[problem, index],
            self.observation,
            self.discretizer,
            self.action_dim,
        )


class Engine(Protocol):
    """Runs a batch of B searches: expand, select, observe a round, or `branch` at every token."""

    counters: Counters

    def cores(self) -> AbstractContextManager[None]:
        """Return a context in which the cores are the engine's; a plan runs in it, its objective included."""
        ...

    def prefill(self, prefixes: Sequence[Tensor], goals: Sequence[Tensor] | None, keys: Sequence[NoiseKey]) -> None:
        """Begin B searches.

        Args:
            prefixes: B token rows [T_b] int64: past transitions, then the current observation's N tokens.
            goals: B goal token rows [N] int64, for goal models.
            keys: B noise keys.
        """
        ...

    def run(self, search: Callable[[], tuple[Candidates, Tensor]], *, anytime: bool) -> tuple[Candidates, Tensor]:
        """Return what a search, begun by `prefill`, finds: beams and their scores [B, W], on the CPU.

        An engine may record the search's verbs once and replay them for later plans, unless it is `anytime`: one that
        looks at the clock between its rounds.
        """
        ...

    def expand(self, copies: int) -> Candidates:
        """Copy each beam `copies` times and decode an action, a reward and a value for each; candidate w*copies + e."""
        ...

    def select_beams(self, score: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Return the `width` highest scores and who has them: `kernels.reference.select_beams`. score [B, C]."""
        ...

    def select(self, kept: Tensor) -> None:
        """Keep some candidates as beams. kept [B, W] int64, ascending."""
        ...

    def observe(self) -> None:
        """Decode the next observation of each beam."""
        ...

    def next_log_probabilities(self) -> Tensor:
        """Return [B, W, V+1], the log-probability of each beam's next token; -inf where the filter drops it."""
        ...

    def planned(self) -> Tensor:
        """Return the beams' tokens after the current observation, [B, W, ...] int64."""
        ...

    def branch(self, beams: Tensor, tokens: Tensor) -> None:
        """Replace the beams: beams [B, W'] int64 says whom each continues, tokens [B, W'] int64 with what."""
        ...


class EagerEngine:
    """What engines share that compute when they are called."""

    def cores(self) -> AbstractContextManager[None]:
        """PyTorch's threads stay as they are."""
        return nullcontext()

    def run(self, search: Callable[[], tuple[Candidates, Tensor]], *, anytime: bool) -> tuple[Candidates, Tensor]:
        """Search; return what was found, on the CPU."""
        beams, score = search()
        return beams.cpu(), score.cpu()

    def select_beams(self, score: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Keep the `width` highest scores."""
        return ops.select_beams(score, width)
