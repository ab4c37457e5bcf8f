"""Drawing tokens in Triton: counter-based noise, the cdf and top-k filters, inversion, and the number of a token.

What each means is said by its namesake in `reference.py`. A row is one program's business alone, so that nothing
depends on how rows are batched.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16
"""Rows of logits that one program draws for in `sample_topk`."""


@dataclass(frozen=True)
class Rule:
    """How the tokens of one segment are drawn, as `ttengine.config.Sampling` says; a kernel is compiled for it."""

    k: int | None = None
    cdf: float | None = None
    temperature: float = 1.0

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.k == 1


@triton.jit
def uniform(seed, plan, row, token):
    """float32 noise in [0, 1), of the arguments' shape. seed int64, the others int32 or int64."""
    word, _, _, _ = tl.philox(
        seed, token.to(tl.uint32), row.to(tl.uint32), plan.to(tl.uint32), (token * 0).to(tl.uint32)
    )
    return (word >> 8).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def probabilities(logits, VOCAB: tl.constexpr, RULE: tl.constexpr):
    """Softmax over the first VOCAB columns; zero in the others. logits [R, padded] float32 -> the same shape."""
    valid = (tl.arange(0, logits.shape[1]) < VOCAB)[None, :]
    scaled = tl.where(valid, logits / RULE.temperature, float("-inf"))
    weights = tl.where(valid, tl.exp(scaled - tl.max(scaled, 1)[:, None]), 0.0)
    return weights / tl.sum(weights, 1)[:, None]


@triton.jit
def _reached(p, bits, CDF: tl.constexpr):
    """Whether a number in [0, 1], given by its bits, and all that is less probable reach CDF. [R]"""
    edge = bits.to(tl.float32, bitcast=True)
    return edge + tl.sum(tl.where(p < edge[:, None], p, 0.0), 1) >= CDF


@triton.jit
def cdf_filter(p, VOCAB: tl.constexpr, CDF: tl.constexpr):
    """Drop the tail that holds less than CDF: keep i exactly when p_i plus all that is less probable reaches CDF.

    That sum grows with p_i, so the least kept probability is found by bisecting the bits of a float in [0, 1]. Two bits
    at a time, with three sums: threads would only wait for a single one.
    """
    valid = (tl.arange(0, p.shape[1]) < VOCAB)[None, :]
    low = tl.zeros((p.shape[0],), tl.int32)
    high = low + 0x3F800001  # one, and the last place more: its sum reaches any CDF
    for _ in range(15):
        middle = (low + high) // 2
        below, above = (low + middle) // 2, (middle + 1 + high) // 2
        first, in_low, in_high = _reached(p, middle, CDF), _reached(p, below, CDF), _reached(p, above, CDF)
        low, high = tl.where(first, low, middle + 1), tl.where(first, middle, high)
        middle, second = tl.where(first, below, above), tl.where(first, in_low, in_high)
        low, high = tl.where(second, low, middle + 1), tl.where(second, middle, high)
    least = tl.min(tl.where(valid, p, 2.0), 1)  # the least probable goes, whatever the sums are
    kept = valid & (p >= high.to(tl.float32, bitcast=True)[:, None]) & (p > least[:, None])
    none = tl.sum(kept.to(tl.int32), 1) == 0
    return tl.where(none[:, None], valid.to(tl.float32), tl.where(kept, p, 0.0))


@triton.jit
def top_k_filter(weights, VOCAB: tl.constexpr, COUNT: tl.constexpr):
    """Drop what weighs less than the COUNT-th heaviest; ties at the edge stay. Bisects like the cdf filter."""
    valid = (tl.arange(0, weights.shape[1]) < VOCAB)[None, :]
    low = tl.zeros((weights.shape[0],), tl.int32)
    high = low + 0x3F800000
    for _ in range(30):
        middle = (low + high + 1) // 2
        edge = middle.to(tl.float32, bitcast=True)
        enough = tl.sum((valid & (weights >= edge[:, None])).to(tl.int32), 1) >= COUNT
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    return tl.where(valid & (weights >= low.to(tl.float32, bitcast=True)[:, None]), weights, 0.0)


@triton.jit
def draw(p, noise, VOCAB: tl.constexpr, RULE: tl.constexpr):
    """Return a token a row, always below VOCAB, whatever p holds. p [R, padded], noise [R] -> [R] int32."""
    column = tl.arange(0, p.shape[1])[None, :]
    if RULE.greedy:
        best = p == tl.max(p, 1)[:, None]
        token = tl.min(tl.where(best, column, VOCAB - 1), 1)
    else:
        weights = p
        if RULE.cdf is not None:
            weights = cdf_filter(weights, VOCAB, RULE.cdf)
        if RULE.k is not None:  # noqa: SIM102 - not one condition: both sides of `and` would be compiled
            if RULE.k < VOCAB:
                weights = top_k_filter(weights, VOCAB, RULE.k)
        cumulative = tl.cumsum(weights, 1)
        total = tl.sum(tl.where(column == p.shape[1] - 1, cumulative, 0.0), 1)
        passed = tl.sum((cumulative <= (noise * total)[:, None]).to(tl.int32), 1)
        last = tl.max(tl.where(weights > 0.0, column, 0), 1)
        token = tl.minimum(passed, last)  # noise * total may round up to total
    return tl.minimum(token, VOCAB - 1)


@triton.jit
def expectation(p, edges, VOCAB: tl.constexpr):
    """Expected number of a token; edges points at VOCAB float32 bin edges. p [R, padded] -> [R]."""
    column = tl.arange(0, p.shape[1])
    is_bin = column < VOCAB - 1
    left = tl.sum(p * tl.load(edges + column, mask=is_bin, other=0.0)[None, :], 1)
    right = tl.sum(p * tl.load(edges + column + 1, mask=is_bin, other=0.0)[None, :], 1)
    return (left + right) / 2


@triton.jit
def percentile(p, edges, VOCAB: tl.constexpr, SHARE: tl.constexpr, AS_RELEASED: tl.constexpr):
    """Mid-point of the first bin at which the cumulative probability reaches SHARE. p [R, padded] -> [R]."""
    column = tl.arange(0, p.shape[1])[None, :]
    is_bin = column < VOCAB - 1
    cumulative = tl.cumsum(tl.where(is_bin, p, 0.0), 1)
    if AS_RELEASED:
        index = tl.sum((is_bin & (cumulative < SHARE)).to(tl.int32), 1) - 1
        index = tl.where(index < 0, VOCAB - 2, index)
    else:
        total = tl.sum(tl.where(column == p.shape[1] - 1, cumulative, 0.0), 1)
        index = tl.minimum(tl.sum((is_bin & (cumulative < SHARE * total[:, None])).to(tl.int32), 1), VOCAB - 2)
    return (tl.load(edges + index) + tl.load(edges + index + 1)) / 2


@triton.jit
def _sample_topk(logits, noise, tokens, rows, stride, VOCAB: tl.constexpr, PADDED: tl.constexpr, RULE: tl.constexpr,
                 ROWS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    column = tl.arange(0, PADDED)
    mask = live[:, None] & (column < VOCAB)[None, :]
    values = tl.load(logits + row[:, None].to(tl.int64) * stride + column[None, :], mask=mask, other=0.0)
    p = probabilities(values.to(tl.float32), VOCAB, RULE)
    token = draw(p, tl.load(noise + row, mask=live, other=0.0), VOCAB, RULE)
    tl.store(tokens + row, token.to(tl.int64), mask=live)


def sample_topk(
    logits: Tensor, noise: Tensor, *, k: int | None = None, cdf: float | None = None, temperature: float = 1.0
) -> Tensor:
    """Draw a token a row in one kernel: softmax, cdf filter, top-k filter, inversion of the cumulative weights.

    Args:
        logits: [R, V], float32, bfloat16 or float16, rows contiguous.
        noise: [R] float32 in [0, 1); `reference.philox_uniform` makes some that depends on nothing but its counters.
        k: keep the k most probable tokens, ties at the k-th too; 1 is greedy, lower index on ties; None keeps all.
        cdf: drop the tail that holds less than this share; None keeps all.
        temperature: divides the logits.
    Returns:
        [R] int64.
    Raises:
        ValueError: shapes, or a setting out of range.
    Source: `reference.sample_topk`.
    """
    if logits.ndim != 2 or logits.shape[1] < 2 or logits.stride(1) != 1:
        raise ValueError(f"logits have shape {tuple(logits.shape)}, expected [rows, at least 2] with contiguous rows")
    if noise.shape != logits.shape[:1]:
        raise ValueError(f"noise has shape {tuple(noise.shape)}, expected {tuple(logits.shape[:1])}: one number a row")
    if (k is not None and k < 1) or (cdf is not None and not 0.0 <= cdf <= 1.0) or not temperature > 0.0:
        raise ValueError(f"k={k}, cdf={cdf}, temperature={temperature}; allowed are k >= 1, cdf in [0, 1], above 0")
    rows, vocabulary = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows:
        _sample_topk[(triton.cdiv(rows, ROWS),)](
            logits, noise, tokens, rows, logits.stride(0), vocabulary, triton.next_power_of_2(vocabulary),
            Rule(k, cdf, temperature), ROWS, enable_fp_fusion=False,
        )  # fmt: skip
    return tokens
