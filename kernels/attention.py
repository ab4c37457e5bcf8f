"""Attention over pages: each row reads the keys and values of its own list of pages."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16
"""Rows that one program of `paged_attention` attends for."""

GROUP = 4
"""Lists read at a time, where every row has its own."""

KEYS = 64
"""Keys of a list that `paged_attention` reads at a time."""

NEVER = tl.constexpr(-1e38)
"""Score of what is not seen: finite, so that no difference of two is NaN."""


@triton.jit
def turn(x, swapped, turns, distance, HEAD: tl.constexpr):
    """Turn each row by its distance. x, swapped [R, HEAD], distance [R]; turns holds cosines and sines by distance."""
    d = tl.arange(0, HEAD)[None, :]
    at = turns + distance[:, None] * (2 * HEAD) + d
    return x * tl.load(at) + swapped * tl.load(at + HEAD)


@triton.jit
def share_lists(distinct, lists, step, begin, live, anchor, tail, SLOTS: tl.constexpr, LISTS: tl.constexpr,
                KEYS: tl.constexpr, TAIL: tl.constexpr):  # fmt: skip
    """Find which of a tile's lists are the same from some block on: `attend` reads such a block once for all rows.

    Two lists that have a page in common at one entry have to have all earlier ones in common, as those of relatives do.
    So a block is the same for two rows if its newest page is. The arguments are those of `attend`, which says what is
    written to `distinct`.
    """
    ROWS: tl.constexpr = begin.shape[0]
    row = tl.arange(0, ROWS)
    start = anchor - KEYS
    if TAIL > 0:
        start += (TAIL + KEYS - 1) // KEYS * KEYS
    lowest = tl.min(tl.where(live, begin, anchor), 0)
    while start + KEYS > lowest:
        newest = (start + KEYS - 1) // SLOTS
        if TAIL > 0:
            newest = tl.where(start >= anchor, tail, newest)
        sees = live & (start + KEYS > begin)
        page = tl.load(lists + row * step + newest, mask=sees, other=-1)
        alike = (page[:, None] == page[None, :]) & sees[None, :]
        leader = tl.min(tl.where(alike, row[None, :], ROWS), 1)
        leads = sees & (leader == row)
        number = tl.sum((leads[None, :] & (row[None, :] < leader[:, None])).to(tl.int32), 1)
        tl.store(distinct + row, number, mask=row < LISTS)
        tl.store(distinct + LISTS + number, row, mask=leads)
        tl.store(distinct + 2 * LISTS, tl.sum(leads.to(tl.int32), 0))
        distinct += 2 * LISTS + 1
        start -= KEYS
    tl.debug_barrier()


@triton.jit
def attend(query, keys, values, stride, lists, step, distinct, begin, end, live, anchor, entry, tail, turns,
           SLOTS: tl.constexpr, HEAD: tl.constexpr, LISTS: tl.constexpr, GROUP: tl.constexpr, KEYS: tl.constexpr,
           TURN: tl.constexpr, TAIL: tl.constexpr, SHARED: tl.constexpr):  # fmt: skip
    """Attend for a tile of rows to what is on their lists of pages, one head.

    Slots are counted along a list: slot s of its page j is number j * SLOTS + s. A block is KEYS slots of GROUP lists;
    blocks follow each other backwards from the anchor. Every row is multiplied with all of a block, and weighs what it
    does not see by nothing. So its bits depend neither on the rows beside it, nor on who reads its list, nor on how far
    that reaches back, as long as the anchor stands where its own page ends.

    Args:
        query: [R, HEAD] float32, scaled; turned by its position, as the keys are, if positions turn.
        keys, values: pointers to slot 0 of page 0, of the numbers' type; a page is `stride` further, a slot HEAD.
        lists: pointer to the list of row 0; that of row r is r * `step` further, or LISTS is 1 and all rows read one.
        distinct: of lists that are SHARED, what `share_lists` found. 2 * LISTS + 1 int32 for each KEYS slots: for each
            row which of the distinct lists is its own, the rows whose lists those are, and how many there are.
        begin, end: [R], the first and the last slot that a row sees.
        live: [R] bool; the other rows are zeros.
        anchor: one past the last slot that any row sees.
        entry: which page of its list is each row's own: keys of earlier ones are turned back by TURN a page.
        TURN: tokens in a page, if keys are turned by their place in their page; else 0.
        tail: which page of a list holds TAIL more keys, from its first slot on, that all rows see.
    Returns:
        [R, HEAD] float32.
    """
    ROWS: tl.constexpr = query.shape[0]
    kind = keys.dtype.element_ty
    lane = tl.arange(0, GROUP * KEYS)
    d = tl.arange(0, HEAD)[:, None]
    row = tl.arange(0, ROWS)[:, None]
    peak = tl.full((ROWS,), NEVER, tl.float32)
    total = tl.full((ROWS,), 0.0, tl.float32)
    mixed = tl.full((ROWS, HEAD), 0.0, tl.float32)
    lowest = tl.min(tl.where(live, begin, anchor), 0)
    highest = tl.max(tl.where(live, end, -1), 0)
    first = tl.where(live, begin, 1 << 30)[:, None]
    span = tl.where(live, end - begin, 0)[:, None].to(tl.uint32)
    query = query.to(kind)
    start = anchor - KEYS
    if TAIL > 0:
        start += (TAIL + KEYS - 1) // KEYS * KEYS
    while start + KEYS > lowest:
        count = LISTS
        if SHARED:
            count = tl.load(distinct + 2 * LISTS)
        group = 0
        while group < count:
            own = row
            if SHARED:
                own = tl.load(distinct + row, mask=row < LISTS, other=-1)
            at = start + lane % KEYS
            owner = group + lane // KEYS
            seen = (at[None, :] - first).to(tl.uint32) <= span  # what lies before wraps around
            in_tail = (at >= anchor) & (at < anchor + TAIL)
            if TAIL > 0:
                seen = seen | (in_tail[None, :] & live[:, None])
            if LISTS > 1:
                seen = seen & (owner[None, :] == own)
                needed = tl.max(seen.to(tl.int32), 0) > 0
            else:  # neighbours: what lies between the first and the last is seen
                needed = ((at >= lowest) & (at <= highest)) | in_tail
            j = at // SLOTS
            if TAIL > 0:
                j = tl.where(at >= anchor, tail, j)
            if SHARED:
                owner = tl.load(distinct + LISTS + owner, mask=owner < count, other=0)
            page = tl.load(lists + owner * step + j, mask=needed, other=0).to(tl.int64)
            place = (page * stride + at % SLOTS * HEAD)[None, :]
            key = tl.load(keys + place + d, mask=needed[None, :], other=0.0)
            if TURN > 0:
                back = tl.where(needed, tl.maximum(entry - at // SLOTS, 0) * TURN, 0)[None, :] * (2 * HEAD) + d
                neighbour = tl.load(keys + place + (d ^ 1), mask=needed[None, :], other=0.0).to(tl.float32)
                swapped = tl.where(d % 2 == 0, neighbour, -neighbour)
                turned = key.to(tl.float32) * tl.load(turns + back) + swapped * tl.load(turns + back + HEAD)
                key = turned.to(kind)
            score = tl.dot(query, key, input_precision="ieee", out_dtype=tl.float32)
            score = tl.where(seen, score, NEVER)
            higher = tl.maximum(peak, tl.max(score, 1))
            fade = tl.exp(peak - higher)
            weight = tl.where(seen, tl.exp(score - higher[:, None]), 0.0)
            place = (page * stride + at % SLOTS * HEAD)[:, None] + tl.arange(0, HEAD)[None, :]
            value = tl.load(values + place, mask=needed[:, None], other=0.0)
            mixed = mixed * fade[:, None]
            mixed += tl.dot(weight.to(kind), value, input_precision="ieee", out_dtype=tl.float32)
            total = total * fade + tl.sum(weight, 1)
            peak = higher
            group += GROUP
        if SHARED:
            distinct += 2 * LISTS + 1
        start -= KEYS
    return mixed / tl.where(live, total, 1.0)[:, None]


@triton.jit
def _paged_attention(query, keys, values, table, lengths, out, rows, entries, scale, SLOTS: tl.constexpr,
                     HEADS: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr,
                     KEYS: tl.constexpr):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = first + tl.arange(0, ROWS)
    head = tl.program_id(1)
    length = tl.load(lengths + row, mask=row < rows, other=0)
    live = (row < rows) & (length > 0)
    at = (row[:, None] * HEADS + head) * HEAD + tl.arange(0, HEAD)[None, :]
    q = tl.load(query + at, mask=live[:, None], other=0.0).to(tl.float32) * scale
    anchor = (tl.max(length, 0) + KEYS - 1) // KEYS * KEYS  # so that blocks begin where they do for any neighbours
    result = attend(
        q, keys + head * SLOTS * HEAD, values + head * SLOTS * HEAD, HEADS * SLOTS * HEAD, table + first * entries,
        entries, table, length * 0, length - 1, live, anchor, 0, 0, out, SLOTS, HEAD, ROWS, GROUP, KEYS, 0, 0, False,
    )  # fmt: skip
    tl.store(out + at, result.to(out.dtype.element_ty), mask=(row < rows)[:, None])


def paged_attention(query: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor) -> Tensor:
    """Attend from one query a row to the keys and values on the pages that the row's table names, in order.

    Args:
        query: [R, A, D/A] float32, bfloat16 or float16, contiguous.
        keys, values: [P, A, S, D/A], P pages of S slots, same dtype, contiguous.
        table: [R, entries] int32, contiguous: the pages of each row; entries past its length are not read.
        lengths: [R] int32: how many slots each row sees, over its pages from the first on; zero gives zeros.
    Returns:
        [R, A, D/A] of the query's dtype; sums are float32, products of that dtype.
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
            heads, head, ROWS, GROUP, min(KEYS, 2048 // head), enable_fp_fusion=True,
        )  # fmt: skip
    return out
