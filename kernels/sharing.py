"""Pages that beams share while they compute their windows anew: each distinct start of a window is computed once.

The windows of one problem's beams form a trie: they begin alike, then part. A beam takes over the pages up to where it
parts from all beams before it, as those compute them, and computes the rest. Programs draw tickets, and a beam waits
only for beams with lower tickets, so there is always one that need not wait.
"""

from __future__ import annotations

import triton
import triton.language as tl

OTHERS = tl.constexpr(16)
"""Beams that one compares itself with at a time."""

COMPARED = tl.constexpr(32)
"""Tokens compared at a time."""


@triton.jit
def start_sharing(progress, problem, BEAMS: tl.constexpr):
    """Begin a plan: no ticket drawn, nothing done. progress [1 + B*W] int64."""
    if problem == 0:
        tl.store(progress, tl.zeros((), tl.int64))
    lane = tl.arange(0, OTHERS)
    start = 0
    while start < BEAMS:
        mine = start + lane
        tl.store(progress + 1 + problem * BEAMS + mine, mine.to(tl.int64) * 0, mask=mine < BEAMS)
        start += OTHERS


@triton.jit
def take_ticket(progress, round):
    """Return which beam this program works on: they start in the order of their tickets. int64."""
    return tl.atomic_add(progress, tl.full((), 1, tl.int64)) - round * tl.num_programs(0)


@triton.jit
def report_progress(progress, row, round, slot, SHAPE: tl.constexpr, SEARCH: tl.constexpr):
    """Say that all before a slot of a beam's list is computed in this round, and visible to other programs."""
    tl.debug_barrier()
    every: tl.constexpr = (SEARCH.entries + 1) * SHAPE.slots
    tl.atomic_xchg(progress + 1 + row, ((round + 1) * every + slot).to(tl.int64))


@triton.jit
def share_pages(row, b, tokens, kept, table, round, transitions, progress, SHAPE: tl.constexpr, SEARCH: tl.constexpr):
    """Take over the pages that one beam's window has in common with an earlier beam's, once they are computed.

    Args:
        row, b: the beam of all, and its problem.
        tokens: [B, C, H*K] int64 pointer, the candidates'.
        kept: [B, W] int64 pointer, which candidates the beams are.
        table: the beam's own list of pages, which is written.
        round, transitions: planned so far without this one; in the window.
    Returns:
        How many pages of the list need not be computed.
    """
    K: tl.constexpr = SHAPE.transition_dim
    ENTRIES: tl.constexpr = SEARCH.entries
    CANDIDATES: tl.constexpr = SEARCH.beam_width * SEARCH.expand
    every: tl.constexpr = (ENTRIES + 1) * SHAPE.slots
    begin = tl.maximum((round + 1 - transitions) * K - SHAPE.observation_dim, 0)  # planned tokens in the window:
    end = round * K  # those of the last transition's action are each beam's own
    lane, column = tl.arange(0, OTHERS), tl.arange(0, COMPARED)
    mine = tokens + (b * CANDIDATES + tl.load(kept + row)) * (SEARCH.horizon * K)
    most = round * 0 - 1
    leader = row
    start = b * SEARCH.beam_width
    while start < row:
        other = start + lane
        live = other < row
        theirs = tokens + (b * CANDIDATES + tl.load(kept + other, mask=live, other=0)) * (SEARCH.horizon * K)
        agreed = tl.where(live, end, -K)
        at = begin
        while at < end:
            index = at + column
            compared = (index < end) & (index % K != SHAPE.action_dim + 1)  # no token sees a value
            ours = tl.load(mine + index, mask=compared, other=0)
            both = live[:, None] & compared[None, :]
            differs = both & (ours[None, :] != tl.load(theirs[:, None] + index[None, :], mask=both, other=0))
            agreed = tl.minimum(agreed, tl.min(tl.where(differs, index[None, :], 1 << 30), 1))
            at += COMPARED
        here = tl.max(agreed // K, 0)
        if here > most:
            most = here
            leader = start + tl.min(tl.where(agreed // K == here, lane, OTHERS), 0)
        start += OTHERS
    shared = tl.maximum(ENTRIES - 1 - round + most, 0)
    shared = tl.where(leader == row, 0, shared)
    if leader < row:
        done = (round + 1) * every + shared * SHAPE.slots
        while tl.atomic_add(progress + 1 + leader, tl.zeros((), tl.int64)) < done:
            pass
    tl.debug_barrier()
    entry = 0
    while entry < ENTRIES:
        e = entry + lane
        theirs = tl.load(table + (leader - row) * (ENTRIES + 1) + e, mask=e < shared, other=0)
        page = tl.where(e < shared, theirs, (row * ENTRIES).to(tl.int32) + e)
        tl.store(table + e, page, mask=e < ENTRIES)
        entry += OTHERS
    return shared
