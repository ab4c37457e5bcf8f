"""Dropout that does not dominate a training step on a CPU.

PyTorch draws one random number an element, serially, and its fused attention falls back to unfused operations as soon
as attention weights are dropped; together that is half of a training step of this model on two cores. Here four
elements share one 64-bit draw, and attention with dropout is computed a few sequences at a time, in the cache. On other
devices and in other precisions PyTorch's own operations serve.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 65_536
"""A rate is rounded to a multiple of 1 / LEVELS; what is kept is scaled by the rounded rate, so means stay."""
SEQUENCES_AT_A_TIME = 4
REMEMBERED_WEIGHTS = 2**26
"""A layer with more attention weights than this computes them again on the way back rather than holding them."""


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Zero each element with probability `rate` and scale the others by 1 / (1 - rate), in training only.

    Draws from PyTorch's default generator. x [...] -> [...].
    """
    if not training or rate == 0.0:
        return x
    if not _here(x):
        return F.dropout(x, rate)
    kept, scale = _draw(x.shape, rate)
    return x * (kept * scale)


def attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, rate: float) -> Tensor:
    """Scaled dot-product attention whose weights are dropped with probability `rate`.

    Args:
        query: [B, A, T, d].
        key, value: [B, A, columns, d].
        visible: [T, columns] bool; every row sees at least one column.
        rate: 0 outside training.
    Returns:
        [B, A, T, d].
    """
    if rate == 0.0 or not _here(query):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=rate)
    mixed: Tensor = _DroppedAttention.apply(query, key, value, visible, rate)  # type: ignore[no-untyped-call]
    return mixed


def _here(x: Tensor) -> bool:
    if torch.is_autocast_enabled("cpu"):  # it mixes dtypes on the way forward, which the way back would have to undo
        return False
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _draw(shape: Sequence[int], rate: float, generator: torch.Generator | None = None) -> tuple[Tensor, float]:
    """Which elements stay [shape] bool, and what they are multiplied by."""
    count = math.prod(shape)
    dropped = round(rate * LEVELS)
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return draws.view(torch.int16)[:count].view(shape) >= dropped - LEVELS // 2, LEVELS / (LEVELS - dropped)


class _DroppedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, visible: Tensor, rate: float) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.hidden = query.new_zeros(visible.shape).masked_fill(~visible, -math.inf)
        ctx.rate = rate
        ctx.seed = int(torch.empty((), dtype=torch.int64).random_())
        output = torch.empty_like(query)
        ctx.remembered = [] if len(query) * query.shape[1] * visible.numel() <= REMEMBERED_WEIGHTS else None
        for part, weight, keep, scale in _weights(ctx, query, key):
            dropped = torch.bmm(weight * keep, value[part].flatten(0, 1)).mul_(scale)
            output[part] = dropped.unflatten(0, (-1, query.shape[1]))
            if ctx.remembered is not None:
                ctx.remembered.append((part, weight, keep, scale))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value = ctx.saved_tensors
        A, softmax_scale = query.shape[1], query.shape[-1] ** -0.5
        to_query, to_key, to_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        for part, weight, keep, scale in ctx.remembered or _weights(ctx, query, key):
            q, k, v, g = (x[part].flatten(0, 1) for x in (query, key, value, gradient * scale))
            to_value[part] = torch.bmm((weight * keep).transpose(1, 2), g).unflatten(0, (-1, A))
            to_weight = torch.bmm(g, v.transpose(1, 2)).mul_(keep)
            # the softmax's derivative: a weight gains what it is asked for beyond the average over its row
            average = (to_weight * weight).sum(dim=-1, keepdim=True)
            to_score = to_weight.sub_(average).mul_(weight).mul_(softmax_scale)
            to_query[part] = torch.bmm(to_score, k).unflatten(0, (-1, A))
            to_key[part] = torch.bmm(to_score.transpose(1, 2), q).unflatten(0, (-1, A))
        return to_query, to_key, to_value, None, None


def _weights(ctx: Any, query: Tensor, key: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, float]]:
    """Attention weights before dropout and which of them stay, some sequences at a time; the same on every call."""
    generator = torch.Generator().manual_seed(ctx.seed)
    for start in range(0, len(query), SEQUENCES_AT_A_TIME):
        part = slice(start, start + SEQUENCES_AT_A_TIME)
        q, k = query[part].flatten(0, 1), key[part].flatten(0, 1)
        weight = torch.baddbmm(ctx.hidden, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5).softmax(dim=-1)
        yield part, weight, *_draw(weight.shape, ctx.rate, generator)
