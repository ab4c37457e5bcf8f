"""Dropout that does not dominate a training step on a CPU.

PyTorch draws one random number an element, serially, and its fused attention falls back to unfused operations as soon as
attention weights are dropped; together that is half of a training step of this model on two cores. Here four elements
share one 64-bit draw, and attention with dropout is computed a few sequences at a time, in the cache. On other devices
and in other precisions PyTorch's own operations serve.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 65_536
"""A rate is rounded to a multiple of 1 / LEVELS; what is kept is scaled by the rounded rate, so means stay."""
SEQUENCES_AT_A_TIME = 4


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
    return _DroppedAttention.apply(query, key, value, visible, rate)  # type: ignore[no-any-return]


def _here(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _draw(shape: torch.Size, rate: float) -> tuple[Tensor, float]:
    """Which elements stay [shape] bool, and what they are multiplied by."""
    count = math.prod(shape)
    dropped = round(rate * LEVELS)
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return draws[:count].view(shape) >= dropped - LEVELS // 2, LEVELS / (LEVELS - dropped)


class _DroppedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, visible: Tensor, rate: float) -> Tensor:
        B, A, T, _ = query.shape
        columns = key.shape[2]
        kept, ctx.keep_scale = _draw(torch.Size((B, A, T, columns)), rate)
        ctx.softmax_scale = query.shape[-1] ** -0.5
        hidden = query.new_zeros(visible.shape).masked_fill(~visible, -math.inf)
        weights, output = query.new_empty(B, A, T, columns), torch.empty_like(query)
        for part in _parts(B):
            q, k, v, keep = (x[part].flatten(0, 1) for x in (query, key, value, kept))
            score = torch.baddbmm(hidden, q, k.transpose(1, 2), alpha=ctx.softmax_scale)
            weight = torch.softmax(score, dim=-1)
            weights[part] = weight.unflatten(0, (-1, A))
            output[part] = torch.bmm(weight.mul_(keep), v).mul_(ctx.keep_scale).unflatten(0, (-1, A))
        ctx.save_for_backward(query, key, value, weights, kept)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:  # type: ignore[override]
        query, key, value, weights, kept = ctx.saved_tensors
        A = query.shape[1]
        to_query, to_key, to_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        for part in _parts(len(query)):
            q, k, v, weight, keep, g = (x[part].flatten(0, 1) for x in (query, key, value, weights, kept, gradient))
            g = g * ctx.keep_scale
            to_value[part] = torch.bmm((weight * keep).transpose(1, 2), g).unflatten(0, (-1, A))
            to_weight = torch.bmm(g, v.transpose(1, 2)).mul_(keep)
            # the softmax's derivative: a weight gains what it is asked for beyond the average over its row
            average = (to_weight * weight).sum(dim=-1, keepdim=True)
            to_score = to_weight.sub_(average).mul_(weight).mul_(ctx.softmax_scale)
            to_query[part] = torch.bmm(to_score, k).unflatten(0, (-1, A))
            to_key[part] = torch.bmm(to_score.transpose(1, 2), q).unflatten(0, (-1, A))
        return to_query, to_key, to_value, None, None


def _parts(count: int) -> list[slice]:
    return [slice(i, i + SEQUENCES_AT_A_TIME) for i in range(0, count, SEQUENCES_AT_A_TIME)]
