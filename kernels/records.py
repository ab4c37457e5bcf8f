"""What the segments' kernels are given: the search they are compiled for, and what lies on the device for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import triton.language as tl

from .sampling import Rule


@dataclass(frozen=True)
class Search:
    """What a kernel is compiled for besides the model: one kind of search."""

    horizon: int
    beam_width: int
    expand: int
    window: bool
    """the context is cropped, and computed anew, in every round"""
    entries: int
    """pages in the list of a beam or a candidate, its own the last; behind it stands the goal's"""
    context_pages: int
    """pages of the longest prefix; those of the plan follow"""
    action_rule: Rule
    reward_rule: Rule
    value_rule: Rule
    observation_rule: Rule
    percentile: float | None = None
    """how probabilities become a number; None: the expectation"""
    percentile_as_released: bool = False
    draft: bool = True
    """check several guessed observation tokens at once"""
    share: bool = False
    """compute what the beams' windows have in common once (`sharing`)"""
    pieces: int = 0
    """most pieces that strands read of a list in `expand` and `observe` (`Shape.pieces`)"""

    @property
    def steps(self) -> int:
        """Numbers with which a tile of up to 16 rows says what their lists have in common, a row."""
        return 2 + 10 * self.pieces


class Rows(NamedTuple):
    """State of beams [B, W, ...] or of candidates [B, C, ...], on the device."""

    tokens: Any
    """[..., H*K] int64, planned so far"""
    rewards: Any
    """[..., H] float32"""
    returns: Any
    """[...] float32, discounted sum of the rewards"""
    table: Any
    """[..., entries + 1] int32, pages, the newest last, then the goal's"""
    logits: Any
    """beams: [..., padded] float32, of the token to come; candidates: unused"""
    value: Any
    """candidates: [...] float32; beams: unused"""
    score: Any
    """candidates: [...] float32, returns plus discounted value; beams: unused"""
    steps: Any
    """[whole tiles, `Search.steps`] int32, what the lists of each have in common (`share_lists`)"""


class Problems(NamedTuple):
    """What the host says of each problem, and what went wrong, on the device."""

    state: Any
    """[B, FIELDS] int64"""
    prefix: Any
    """[B, longest] int64 tokens: whole transitions, then the current observation"""
    goals: Any
    """[B, N] int64 tokens"""
    table: Any
    """[B, most entries + 1] int64, pages of the prefix, the oldest first, then the goal's"""
    plan_table: Any
    """with a rolling context: [B, most entries + 1] int64, pages of the prefix as the plan reads them, keys turned by
    their distance from the first page; those in `table` are kept for the next plan"""
    goal_pages: Any
    """[B] int64"""
    discounts: Any
    """[H + 1] float32, powers of the discount"""
    reward_edges: Any
    """[V + 1] float32"""
    value_edges: Any
    """[V + 1] float32"""
    fault: Any
    """[1] int64: least code of what went wrong (`fault_code`), at least `NO_FAULT` if nothing did"""
    tiles: Any
    """[B] int64: passes of beams through the model in `observe`"""
    slots: Any
    """[B] int64: slots of windows computed anew in `observe`"""
    progress: Any
    """[1 + B*W] int64: tickets drawn, and how far each beam's window is (`sharing`)"""


NO_FAULT = tl.constexpr(1 << 30)

FIELDS = tl.constexpr(5)
TRANSITIONS, SEED, NUMBER, ENTRIES, BEGIN = (tl.constexpr(i) for i in range(5))
"""Of a problem's state: transitions in the prefix, noise seed, the plan's number under it, pages of the prefix, and
where to begin computing: an entry of the prefix's list of pages times slots, plus a slot."""
