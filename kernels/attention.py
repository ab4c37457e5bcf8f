"""Attention over pages: each row reads the keys and values of its own list of pages."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16
"""Rows that one program of `paged_attention` attends for."""

CHUNK = 8
"""Slots read at a time."""

NEVER = tl.constexpr(-1e38)
"""Score of what is not seen: finite, so that no difference of two is NaN."""


@triton.jit
def turn(x, swapped, turns, distance, HEAD: tl.constexpr):
    """Turn each row by its distance. x, swapped [R, HEAD], distance [R]; turns holds cosines and sines by distance."""
    d = tl.arange(0, HEAD)[None, :]
    at = turns + distance[:, None] * (2 * HEAD) + d
    return x * tl.load(at) + swapped * tl.load(at + HEAD)


@triton.jit
def attend(query, swapped, peak, total, mixed, keys, values, stride, table, live, first, low, entry, limit, offset,
           turns, SLOTS: tl.constexpr, HEAD: tl.constexpr, CHUNK: tl.constexpr, TURN: tl.constexpr):  # fmt: skip
    """Go on with a softmax over the pages of each row, one head.

    A row sees its pages `first` to `entry`: the first from slot `low` on, the last up to slot `limit`. What a row does
    not see is read as zero and weighs nothing, so that its bits do not depend on the rows beside it.

    Args:
        query: [R, HEAD] float32, scaled; swapped: the same with the pairs that turn exchanged (TURN > 0).
        peak, total, mixed: [R], [R], [R, HEAD] float32, the running maximum, sum and weighted values.
        keys, values: pointers to slot 0 of page 0; a page is `stride` further, a slot HEAD further.
        table: [R] pointers to each row's list of pages.
        live, first, low, entry, limit: [R], see above.
        offset: [R], each query's place in its own page, in tokens.
        TURN: tokens in a page, if keys are turned by their place in their page; else 0.
    """
    d = tl.arange(0, HEAD)
    j = tl.min(tl.where(live, first, 1 << 30), 0)
    last = tl.max(tl.where(live, entry, -1), 0)
    while j <= last:
        sees = live & (first <= j) & (entry >= j)
        page = tl.load(table + j, mask=sees, other=0).to(tl.int64) * stride
        begin = tl.where(first == j, low, 0)
        end = tl.where(entry == j, limit, SLOTS - 1)
        turned = query
        if TURN > 0:
            turned = turn(query, swapped, turns, tl.where(sees, (entry - j) * TURN + offset, 0), HEAD)
        for start in tl.range(0, SLOTS, CHUNK, disable_licm=True):
            slot = start + tl.arange(0, CHUNK)[None, :]
            seen = sees[:, None] & (slot >= begin[:, None]) & (slot <= end[:, None])
            at = (page[:, None] + slot * HEAD)[:, :, None] + d[None, None, :]
            key = tl.load(keys + at, mask=seen[:, :, None], other=0.0).to(tl.float32)
            score = tl.where(seen, tl.sum(turned[:, None, :] * key, 2), NEVER)
            higher = tl.maximum(peak, tl.max(score, 1))
            fade = tl.exp(peak - higher)
            weight = tl.where(seen, tl.exp(score - higher[:, None]), 0.0)
            value = tl.load(values + at, mask=seen[:, :, None], other=0.0).to(tl.float32)
            mixed = mixed * fade[:, None] + tl.sum(weight[:, :, None] * value, 1)
            total = total * fade + tl.sum(weight, 1)
            peak = higher
        j += 1
    return peak, total, mixed


@triton.jit
def _paged_attention(query, keys, values, table, lengths, out, rows, entries, scale, SLOTS: tl.constexpr,
                     HEADS: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    length = tl.load(lengths + row, mask=row < rows, other=0)
    live = (row < rows) & (length > 0)
    at = (row[:, None].to(tl.int64) * HEADS + head) * HEAD + tl.arange(0, HEAD)[None, :]
    q = tl.load(query + at, mask=live[:, None], other=0.0).to(tl.float32) * scale
    none = tl.zeros((ROWS,), tl.float32)
    last = tl.maximum(length - 1, 0)
    _, total, mixed = attend(
        q, q, none + NEVER, none, tl.zeros((ROWS, HEAD), tl.float32), keys + head * SLOTS * HEAD,
        values + head * SLOTS * HEAD, HEADS * SLOTS * HEAD, table + row.to(tl.int64) * entries, live, row * 0, row * 0,
        last // SLOTS, last % SLOTS, row * 0, out, SLOTS, HEAD, CHUNK, 0,
    )  # fmt: skip
    result = tl.where(live[:, None], mixed / tl.where(live, total, 1.0)[:, None], 0.0)
    tl.store(out + at, result.to(out.dtype.element_ty), mask=(row < rows)[:, None])


def paged_attention(query: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor) -> Tensor:
    """Attend from one query a row to the keys and values on the pages that the row's table names, in order.

    Args:
        query: [R, A, D/A] float32, bfloat16 or float16, contiguous.
        keys, values: [P, A, S, D/A], P pages of S slots, same dtype, contiguous.
        table: [R, entries] int32, contiguous: the pages of each row; entries past its length are not read.
        lengths: [R] int32: how many slots each row sees, over its pages from the first on; zero gives zeros.
    Returns:
        [R, A, D/A] of the query's dtype; computed in float32.
    Raises:
        ValueError: shapes, dtypes or strides; D/A is not a power of two of at least 16.
    Source: `reference.paged_attention`.
    """
    rows, heads, head = query.shape
    if keys.shape != values.shape or keys.ndim != 4 or keys.shape[1] != heads or keys.shape[3] != head:
        raise ValueError(
            f"keys {tuple(keys.shape)} and values {tuple(values.shape)}, expected [pages, {heads}, slots, {head}]"
        )
    if head < 16 or head & (head - 1):
        raise ValueError(f"a head is {head} wide; this kernel takes powers of two from 16 on")
    if table.shape[:1] != (rows,) or table.ndim != 2 or lengths.shape != (rows,):
        raise ValueError(f"table {tuple(table.shape)} and lengths {tuple(lengths.shape)} do not fit {rows} rows")
    if table.dtype != torch.int32 or lengths.dtype != torch.int32:
        raise ValueError(f"table and lengths are {table.dtype} and {lengths.dtype}, expected int32")
    if not all(each.is_contiguous() for each in (query, keys, values, table, lengths)):
        raise ValueError("paged_attention takes contiguous tensors")
    out = torch.empty_like(query)
    if rows:
        _paged_attention[(triton.cdiv(rows, ROWS), heads)](
            query, keys, values, table, lengths, out, rows, table.shape[1], 1.0 / math.sqrt(head), keys.shape[2],
            heads, head, ROWS, CHUNK,
        )  # fmt: skip
    return out
