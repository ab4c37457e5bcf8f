"""The likelihood search's one segment: continue a beam with a token, on pages of its own."""

from __future__ import annotations

import triton
import triton.language as tl

from .records import FIELDS, TRANSITIONS
from .segments import check_logits, compute, copy
from .transformer import embed, forward, logits_after

COPY = tl.constexpr(1024)
"""Numbers of a page copied at a time."""


@triton.jit(do_not_specialize=["token", "count", "first_page"])
def branch(
    model, pages, source, target, problems, kept, tokens, token, count, first_page, longest, SHAPE: tl.constexpr,
    SEARCH: tl.constexpr,
):  # fmt: skip
    """Continue one beam with one token. Grid [B * count].

    The page that still grows is copied, since others may continue the same beam otherwise. With `SEARCH.window` the
    window is cropped and computed anew where a value is fed.

    Args:
        source, target: the beams so far, and where the new ones go.
        kept, tokens: [B, count] int64, which beam each continues, and with what.
        token: planned tokens so far.
        first_page: the page of row 0 of the target; the others' follow.
        longest: numbers in a row of `problems.prefix`.
    """
    program = tl.program_id(0).to(tl.int64)
    b = program // count
    row = program + b * (SEARCH.beam_width - count)
    parent = b * SEARCH.beam_width + tl.load(kept + program)
    lane = tl.arange(0, SHAPE.rows)
    alone = lane == 0
    zero = lane * 0
    most: tl.constexpr = SEARCH.horizon * SHAPE.transition_dim
    ENTRIES: tl.constexpr = SEARCH.entries
    round, column = token // SHAPE.transition_dim, token % SHAPE.transition_dim
    planned = target.tokens + row * most
    copy(source.tokens + parent * most + zero, planned + zero, token, alone)
    tl.store(planned + token, tl.load(tokens + program))
    table = target.table + row * (ENTRIES + 1)
    inherited = source.table + parent * (ENTRIES + 1)
    opens = (column == 0).to(tl.int32)
    copy(inherited + opens + zero, table + zero, ENTRIES - 1, alone)
    tl.store(table + ENTRIES - 1, (first_page + row).to(tl.int32))
    if SHAPE.goal:
        tl.store(table + ENTRIES, tl.load(inherited + ENTRIES))
    if column > 0:
        grown = pages + tl.load(inherited + ENTRIES - 1).to(tl.int64) * SHAPE.page_size
        start = 0
        while start < SHAPE.page_size:
            at = start + tl.arange(0, COPY)
            content = tl.load(grown + at, mask=at < SHAPE.page_size, other=0.0)
            tl.store(pages + (first_page + row) * SHAPE.page_size + at, content, mask=at < SHAPE.page_size)
            start += COPY
    state = problems.state + b * FIELDS
    before = tl.load(state + TRANSITIONS).to(tl.int32)
    ends = (column > SHAPE.action_dim).to(tl.int32)  # the transition is whole: its value, then the next observation
    transitions = before + round + ends
    if SEARCH.window:
        transitions = tl.minimum(transitions, ENTRIES - 2)
    oldest = tl.maximum(ENTRIES - 2 + ends - transitions, 0)
    tl.debug_barrier()
    if SEARCH.window:  # noqa: SIM102 - one is known when compiling, one is not
        if column == SHAPE.action_dim + 1:
            entry = 0
            while entry < ENTRIES:
                e = entry + lane
                tl.store(table + e, (row * ENTRIES).to(tl.int32) + e, mask=e < ENTRIES)
                entry += SHAPE.rows
            tl.debug_barrier()
            begin = oldest * SHAPE.slots + SHAPE.action_dim + 1
            end = (ENTRIES - 1) * SHAPE.slots + SHAPE.action_dim + 1
            window = (before + round + 1 - transitions) * SHAPE.transition_dim
            prefix = problems.prefix + b * longest
            length = before * SHAPE.transition_dim + SHAPE.observation_dim
            compute(
                begin, end, oldest, table, ENTRIES, window, prefix, length, planned, model, pages,
                problems.progress, row, round, SHAPE, SEARCH, False, False,
            )  # fmt: skip
            tl.atomic_add(problems.slots + b, (end - begin).to(tl.int64))
    slot = tl.where(column > SHAPE.action_dim + 1, column - 1, column)
    slot = tl.where(column == SHAPE.action_dim + 1, SHAPE.slots, slot) + zero
    fed = tl.load(planned + token + zero).to(tl.int32)
    x = embed(fed, ENTRIES - 1, slot, oldest, alone, model, SHAPE)
    ordinal = ENTRIES - ends if SEARCH.window else SEARCH.context_pages + round
    hidden = forward(
        x, slot, alone, oldest + zero, ENTRIES - 1, ordinal, table, 0, table, ENTRIES, model, pages, SHAPE, 1, False,
        False, True,
    )  # fmt: skip
    logits = logits_after(hidden, (SHAPE.observation_dim + column) % SHAPE.transition_dim, model, SHAPE)
    check_logits(logits, alone, token + 1 + zero, problems, SHAPE)
    at = row * SHAPE.padded + tl.arange(0, SHAPE.padded)[None, :] + zero[:, None]
    tl.store(target.logits + at, logits, mask=alone[:, None])
