"""Keeping the best candidates: top-k by rank, in one kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64
"""Candidates compared at a time with as many others."""

MOST = 4096
"""Candidates of one problem that can be ranked: every one is compared with every other."""


@triton.jit(do_not_specialize=["fault_code", "count", "width"])  # a deadline may end any round: none may compile
def _select_beams(score, kept_score, kept, fault, fault_code, count, width, BLOCK: tl.constexpr):
    problem = tl.program_id(0).to(tl.int64)
    base = 0
    lane = tl.arange(0, BLOCK)
    block = 0
    while block * BLOCK < count:
        i = block * BLOCK + lane
        mine = tl.load(score + problem * count + i, mask=i < count, other=float("-inf"))
        finite = tl.abs(mine) < float("inf")  # false for NaN too
        tl.atomic_min(fault + i * 0, (i * 0 + fault_code).to(tl.int64), mask=(i < count) & (finite == 0))
        mine = tl.where(mine == mine, mine, float("-inf"))
        rank = tl.zeros((BLOCK,), tl.int32)
        other = 0
        while other < count:
            j = other + lane
            theirs = tl.load(score + problem * count + j, mask=j < count, other=float("-inf"))
            theirs = tl.where(theirs == theirs, theirs, float("-inf"))
            better = (theirs[None, :] > mine[:, None]) | (
                (theirs[None, :] == mine[:, None]) & (j[None, :] < i[:, None])
            )
            rank += tl.sum((better & (j < count)[None, :]).to(tl.int32), 1)
            other += BLOCK
        stays = (rank < width) & (i < count)
        place = base + tl.cumsum(stays.to(tl.int32), 0) - 1
        tl.store(kept_score + problem * width + place, mine, mask=stays)
        tl.store(kept + problem * width + place, i.to(tl.int64), mask=stays)
        base += tl.sum(stays.to(tl.int32), 0)
        block += 1


def select_beams(score: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Keep the `width` highest scores; equal scores keep the lower index; survivors stay in index order.

    Args:
        score: [B, C] float32, contiguous; NaN ranks as minus infinity.
        width: W; with fewer candidates all are kept.
    Returns:
        [B, min(W, C)] scores and [B, min(W, C)] int64 indices, ascending.
    Raises:
        ValueError: more candidates than `MOST`, or not float32.
    Source: `reference.select_beams`; a candidate's rank is how many beat it, so nothing is sorted.
    """
    fault = torch.empty(1, dtype=torch.int64, device=score.device)
    return select_beams_into(score, width, fault, 0)


def select_beams_into(score: Tensor, width: int, fault: Tensor, code: int) -> tuple[Tensor, Tensor]:
    """Like `select_beams`; if a score is NaN or infinite, fault[0] (int64) is lowered to `code`."""
    problems, count = score.shape
    if score.dtype != torch.float32 or count > MOST:
        raise ValueError(
            f"score is {score.dtype} [{problems}, {count}]; this kernel ranks float32, at most {MOST} a row"
        )
    width = min(width, count)
    kept_score = torch.empty(problems, width, dtype=torch.float32, device=score.device)
    kept = torch.empty(problems, width, dtype=torch.int64, device=score.device)
    _select_beams[(problems,)](
        score.contiguous(), kept_score, kept, fault, code, count, width, BLOCK, enable_fp_fusion=False
    )
    return kept_score, kept
