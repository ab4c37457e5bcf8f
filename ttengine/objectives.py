"""How candidates are scored: the return, or a function of yours."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ttengine.engines.protocol import Candidates
from ttengine.errors import ShapeError

Objective = Callable[[Candidates], Tensor]
"""Candidates of one round -> [B, C] scores, higher is better. Called once a round, after the rewards and values."""


def discounted_return(discount: float) -> Objective:
    """Score candidates by the sum of discount**i * r_i over the planned rewards, plus discount**(t+1) * V_t.

    Source: Janner et al. 2021, beam search planning.
    """
    return lambda candidates: candidates.discounted_return(discount)


def check_score(score: Tensor, candidates: Candidates) -> Tensor:
    """Raise unless an objective gave one finite score a candidate."""
    expected = tuple(candidates.values.shape)
    if not isinstance(score, Tensor) or tuple(score.shape) != expected:
        came = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
        raise ShapeError(f"the objective returned {came}, expected a tensor of shape {expected}: one score a candidate")
    candidates.check_finite(score)
    return score
