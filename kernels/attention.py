"""Attention over pages: each row reads the keys and values of its own list of pages."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .products import add_product, factor, load_factor, product, transposed, whole

ROWS = 16
"""Rows that one program of `paged_attention` attends for."""

GROUP = 4
"""Lists read at a time, where every row has its own."""

KEYS = 64
"""Keys of a list that `paged_attention` reads at a time."""

LOG2_E = tl.constexpr(math.log2(math.e))
"""Scores are in halvings: weights are powers of two."""

NEVER = tl.constexpr(-1e38)
"""Score of what is not seen: finite, so that no difference of two is NaN."""

STAGES = 3
"""Blocks of keys that `paged_attention` has in flight at a time."""

LEAST = tl.constexpr(-1e30)
"""Least score of what is seen: so much above `NEVER` that what is not seen weighs nothing, whatever else is seen."""

NOWHERE = tl.constexpr(1 << 30)
"""First slot of a row that sees nothing: further than any slot."""


@triton.jit
def turn_pairs(a, b, cos, sin):
    """Turn pairs of numbers (a, b) by angles."""
    return tl.fma(a, cos, -b * sin), tl.fma(b, cos, a * sin)


@triton.jit
def turn(x, turns, distance, HEAD: tl.constexpr, BACK: tl.constexpr):
    """Turn the pairs of neighbours in each row by its distance, onwards or BACK. x [..., HEAD], distance [...].

    turns: pointer to [distances, 2, HEAD / 2] float32, cosines and sines of pairs.
    """
    at = turns + tl.expand_dims(distance, -1) * HEAD + tl.arange(0, HEAD // 2)
    a, b = tl.split(tl.reshape(x, x.shape[:-1] + (HEAD // 2, 2)))  # noqa: RUF005 - Triton knows no stars
    cos, sin = tl.load(at), tl.load(at + HEAD // 2)
    if BACK:
        sin = -sin
    a, b = turn_pairs(a, b, cos, sin)
    return tl.reshape(tl.join(a, b), x.shape)


@triton.jit
def share_lists(steps, lists, stride, begin, live, anchor, tail, SLOTS: tl.constexpr, LISTS: tl.constexpr,
                GROUP: tl.constexpr, SPLIT: tl.constexpr, KEYS: tl.constexpr, TAIL: tl.constexpr):  # fmt: skip
    """Find which lists of a tile are the same from some slot on: `attend` reads what precedes it once for several.

    Two lists that have a page in common at one entry have to have all earlier ones in common, as those of relatives do.
    So a piece, what a strand reads of a block, is the same for two lists if its newest page is. Looked at are the lists
    of each part by themselves. The arguments are those of `attend`, which says what is written to `steps`; at most the
    first row of a list is `live`, and sees as far back as any of its rows.
    """
    ROWS: tl.constexpr = begin.shape[0]
    PER: tl.constexpr = LISTS // GROUP
    BLOCK: tl.constexpr = SPLIT * KEYS
    row = tl.arange(0, ROWS)
    of_list = row % LISTS
    start = anchor - BLOCK
    if TAIL > 0:
        start += (TAIL + BLOCK - 1) // BLOCK * BLOCK
    lowest = tl.min(tl.where(live, begin, anchor), 0)
    found = anchor * 0
    while start + BLOCK > lowest:
        most = anchor * 0
        for strand in tl.static_range(SPLIT):
            end = start + (strand + 1) * KEYS
            newest = (end - 1) // SLOTS
            sees = live & (end > begin)
            if TAIL > 0:
                newest = tl.where(end > anchor, tail, newest)
                sees = sees & (end - KEYS + row * 0 < anchor + TAIL)
            page = tl.load(lists + of_list * stride + newest, mask=sees, other=-1)
            beside = (of_list[:, None] // PER == of_list[None, :] // PER) & sees[None, :]
            leader = tl.min(tl.where((page[:, None] == page[None, :]) & beside, row[None, :], ROWS), 1)
            leads = sees & (leader == row)
            number = tl.sum((beside & leads[None, :] & (row[None, :] < leader[:, None])).to(tl.int32), 1)
            most = tl.maximum(most, tl.max(tl.where(leads, number + 1, 0), 0))
            for i in tl.range(0, PER):
                record = steps + 1 + (found + i) * (1 + SPLIT * (LISTS + GROUP))
                tl.store(record, start)
                record += 1 + strand * (LISTS + GROUP)
                tl.store(record + of_list, (sees & (number == i)).to(tl.int32), mask=row < LISTS)
                tl.store(record + LISTS + of_list // PER, of_list, mask=leads & (number == i))
        found += most
        start -= BLOCK
        tl.debug_barrier()  # records of the next block are written over those that were too many
    tl.store(steps, found)
    tl.debug_barrier()


@triton.jit
def _add_up(peak, total, other_peak, other_total):
    """Add sums of weights that are counted from a peak each; in either order to the same bits, as threads do both."""
    first = peak >= other_peak
    more, less = tl.where(first, total, other_total), tl.where(first, other_total, total)
    return tl.where(first, peak, other_peak), tl.fma(less, tl.math.exp2(-tl.abs(peak - other_peak)), more)


@triton.jit
def attend(query, keys, values, page_size, lists, stride, steps, begin, end, live, anchor, entry, tail, turns,
           SLOTS: tl.constexpr, LISTS: tl.constexpr, GROUP: tl.constexpr, SPLIT: tl.constexpr, KEYS: tl.constexpr,
           REST: tl.constexpr, TURN: tl.constexpr, TAIL: tl.constexpr, SHARED: tl.constexpr,
           STAGES: tl.constexpr, FEW: tl.constexpr = False):  # fmt: skip
    """Attend for a tile of rows to what is on their lists of pages, several heads at once.

    Slots are counted along a list: slot s of its page j is number j * SLOTS + s. Blocks of SPLIT * KEYS slots follow
    each other backwards from the anchor. A *strand* is the attention of one head and one of GROUP parts of the rows to
    KEYS slots of every block, of one list at a time. Strands run beside each other, each in one warp as far as there
    are as many. A strand multiplies every row with all that it reads, and weighs what a row does not see by nothing; at
    last the strands of a head are added up. So a row's bits depend neither on the rows beside it, nor on who reads its
    list, nor on how far that reaches back, as long as the anchor stands where its own page ends.

    Args:
        query: [A, R, HEAD] float32, scaled by log2(e) / sqrt(HEAD); turned by its position, as the keys are, if
            positions turn.
        keys, values: pointers to slot 0 of page 0 of the first head, of the numbers' type; a page is `page_size`
            further, a head SLOTS * HEAD, a slot HEAD.
        lists: pointer to the first of LISTS lists, each `stride` after the one before; row r reads list r % LISTS.
        steps: of lists that are SHARED, what `share_lists` found: how many steps are to be taken, then of each its
            block's first slot, and for each of a head's strands LISTS + GROUP int32: for each list whether the
            strand's piece is its own too, and for each part the list that it is read of. Others are read one after the
            other.
        begin, end: [R], the first and the last slot that a row sees.
        live: [R] bool; the other rows are zeros.
        anchor: one past the last slot that any row sees.
        entry: which page of its list is each row's own: keys of earlier ones are turned back by TURN a page.
        REST: of keys and values kept in two parts (`products`), how far behind its nearest each rest is; else 0.
        TURN: tokens in a page, if keys are turned by their place in their page; else 0.
        tail: which page of a list holds TAIL more keys, from its first slot on, that all rows see.
        STAGES: blocks in flight at a time: pages are looked up for one while another is read and a third computed.
        FEW: of the rows only the first 8 may be live.
    Returns:
        [A, R, HEAD] float32.
    """
    HEADS: tl.constexpr = query.shape[0]
    ROWS: tl.constexpr = query.shape[1]
    HEAD: tl.constexpr = query.shape[2]
    STRANDS: tl.constexpr = GROUP * HEADS * SPLIT
    PER: tl.constexpr = LISTS // GROUP
    BLOCK: tl.constexpr = SPLIT * KEYS
    kind: tl.constexpr = tl.float32 if REST > 0 else keys.dtype.element_ty
    strand = tl.arange(0, STRANDS)
    of_block = strand[:, None] % SPLIT * KEYS + tl.arange(0, KEYS)[None, :]
    of_head = (strand // SPLIT % HEADS * (SLOTS * HEAD))[:, None]
    part = strand // (HEADS * SPLIT)
    of_list = tl.arange(0, ROWS) % LISTS
    of_part = (of_list // PER)[None, :] == part[:, None]
    # the compiler sees which of a thread's rows are not among FEW, or in a full tile of the other part, and drops what
    # yields nothing
    APART: tl.constexpr = FEW or (SHARED and LISTS == ROWS)
    counts = (tl.arange(0, ROWS) < 8)[None, :] if FEW else of_part
    d = tl.arange(0, HEAD)[None, None, :]
    query = tl.broadcast_to(query.to(kind)[None, :, None], (GROUP, HEADS, SPLIT, ROWS, HEAD))
    query = factor(tl.reshape(query, (STRANDS, ROWS, HEAD)), kind)
    peak = tl.full((STRANDS, ROWS), LEAST, tl.float32)
    total = tl.full((STRANDS, ROWS), 0.0, tl.float32)
    mixed = tl.full((STRANDS, ROWS, HEAD), 0.0, tl.float32)
    lowest = tl.min(tl.where(live, begin, anchor), 0)
    highest = tl.max(tl.where(live, end, -1), 0)
    newest = anchor - BLOCK
    if TAIL > 0:
        newest += (TAIL + BLOCK - 1) // BLOCK * BLOCK
    count = (newest + 2 * BLOCK - 1 - lowest) // BLOCK * PER
    if SHARED:
        count = tl.load(steps)
    for step in tl.range(0, count, disable_licm=True, num_stages=STAGES):
        reads = live[None, :]
        if SHARED:
            record = steps + 1 + step * (1 + SPLIT * (LISTS + GROUP))
            start = tl.load(record)
            record += 1 + strand % SPLIT * (LISTS + GROUP)
            own = tl.load(record[:, None] + of_list[None, :]) > 0
            owner = tl.load(record + LISTS + part)[:, None]
        else:
            start = newest - step // PER * BLOCK
            own = (of_list % PER == step % PER)[None, :]
            owner = (part * PER + step % PER)[:, None]
        lowest_here, highest_here = lowest, highest
        if LISTS > 1:
            reads = reads & own & of_part
            lowest_here = tl.min(tl.where(reads, begin[None, :], NOWHERE), 1)[:, None]
            highest_here = tl.max(tl.where(reads, end[None, :], -1), 1)[:, None]
        at = start + of_block
        first = tl.where(reads, begin[None, :], NOWHERE)
        span = tl.where(reads, (end - begin)[None, :], 0).to(tl.uint32)
        seen = (at[:, None, :] - first[:, :, None]).to(tl.uint32) <= span[:, :, None]  # what lies before wraps around
        needed = (at >= lowest_here) & (at <= highest_here)
        j = at // SLOTS
        if TAIL > 0:
            in_tail = (at >= anchor) & (at < anchor + TAIL)
            seen = seen | (in_tail[:, None, :] & reads[:, :, None])
            needed = needed | (in_tail & (at * 0 <= highest_here))
            j = tl.where(at >= anchor, tail, j)
        page = tl.load(lists + owner * stride + j, mask=needed, other=0).to(tl.int64)
        place = (page * page_size + (of_head + at % SLOTS * HEAD))[:, :, None] + d
        key = load_factor(keys + place, needed[:, :, None], kind, REST)
        value = load_factor(values + place, needed[:, :, None], kind, REST)
        if TURN > 0:
            back = tl.where(needed, tl.maximum(entry - at // SLOTS, 0) * TURN, 0)
            key = factor(turn(whole(key), turns, back, HEAD, True), kind)
        score = product(query, transposed(key))
        if APART:
            seen = seen & counts[:, :, None]
        score = tl.where(seen, score, NEVER)
        higher = tl.maximum(peak, tl.max(score, 2))
        fade = tl.math.exp2(peak - higher)
        weight = tl.math.exp2(score - higher[:, :, None])
        if APART:
            fade = tl.where(counts, fade, 1.0)
            weight = tl.where(counts[:, :, None], weight, 0.0)
        mixed = add_product(mixed, fade[:, :, None], factor(weight, kind), value)
        total = tl.fma(total, fade, tl.sum(weight, 2))
        peak = higher
    if GROUP > 1:  # only in its own part a row found anything
        peak = tl.max(tl.reshape(peak, (GROUP, HEADS * SPLIT, ROWS)), 0)
        total = tl.sum(tl.reshape(total, (GROUP, HEADS * SPLIT, ROWS)), 0)
        mixed = tl.sum(tl.reshape(mixed, (GROUP, HEADS * SPLIT, ROWS, HEAD)), 0)
    if SPLIT > 1:
        peak = tl.reshape(peak, (HEADS, SPLIT, ROWS))
        total = tl.reshape(total, (HEADS, SPLIT, ROWS))
        top, total = tl.reduce((peak, total), 1, _add_up)
        mixed = tl.reshape(mixed, (HEADS, SPLIT, ROWS, HEAD))
        mixed = tl.sum(mixed * tl.math.exp2(peak - top[:, None])[:, :, :, None], 1)
    return mixed / tl.where(live[None, :], total, 1.0)[:, :, None]


@triton.jit
def _paged_attention(query, keys, values, table, lengths, out, rows, entries, scale, SLOTS: tl.constexpr,
                     HEADS: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr,
                     KEYS: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = first + tl.arange(0, ROWS)
    head = tl.program_id(1)
    length = tl.load(lengths + row, mask=row < rows, other=0)
    live = (row < rows) & (length > 0)
    at = (row[:, None] * HEADS + head) * HEAD + tl.arange(0, HEAD)[None, :]
    q = tl.load(query + at, mask=live[:, None], other=0.0).to(tl.float32) * scale
    anchor = (tl.max(length, 0) + KEYS - 1) // KEYS * KEYS  # so that blocks begin where they do for any neighbours
    result = attend(
        q[None], keys + head * SLOTS * HEAD, values + head * SLOTS * HEAD, HEADS * SLOTS * HEAD,
        table + first * entries, entries, table, length * 0, length - 1, live, anchor, 0, 0, out, SLOTS, ROWS, GROUP,
        1, KEYS, 0, 0, 0, False, STAGES,
    )  # fmt: skip
    result = tl.reshape(result, (ROWS, HEAD)).to(out.dtype.element_ty)
    tl.store(out + at, result, mask=(row < rows)[:, None])


def paged_attention(query: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor) -> Tensor:
    """Attend from one query a row to the keys and values on the pages that the row's table names, in order.

    Args:
        query: [R, A, D/A] float32, bfloat16 or float16, contiguous.
        keys, values: [P, A, S, D/A], P pages of S slots, same dtype, contiguous.
        table: [R, entries] int32, contiguous: the pages of each row; entries past its length are not read.
        lengths: [R] int32: how many slots each row sees, over its pages from the first on; zero gives zeros.
    Returns:
        [R, A, D/A] of the query's dtype; sums are float32, products of that dtype, of float32 in two parts
        (`products`): numbers beyond 65,504 become infinite.
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
            query, keys, values, table, lengths, out, rows, table.shape[1], LOG2_E.value / math.sqrt(head),
            keys.shape[2], heads, head, ROWS, GROUP, min(KEYS, 2048 // head), STAGES, enable_fp_fusion=False,
        )  # fmt: skip
    return out
