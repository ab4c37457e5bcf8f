"""The segments of a search, one Triton kernel each: prefill, expand, observe; and taking candidates off the device.

Between two selections rows do not need each other, so a program carries its rows through a whole segment: all tokens,
all layers, draws included. `expand` has a tile of candidates in a program, one token of each at a time; `prefill` one
sequence, a tile of its tokens at a time; `observe` a tile of beams, as many tokens of each as there are rows for.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .records import BEGIN, ENTRIES, FIELDS, NO_FAULT, NUMBER, SEED, TRANSITIONS
from .sampling import draw, expectation, percentile, probabilities, uniform
from .sharing import report_progress, share_pages, start_sharing, take_ticket
from .transformer import embed, embed_goal, forward, logits_after, position_of, share_tile, turn_page

COPY = tl.constexpr(64)
"""Numbers copied at a time."""


@triton.jit
def fault_code(token):
    """Code of logits that are not finite, at a token of the plan; scores of the round after it have the next code."""
    return token * 2


@triton.jit
def check_logits(logits, live, token, problems, SHAPE: tl.constexpr):
    """Note it if a logit is NaN or infinite."""
    valid = (tl.arange(0, SHAPE.padded) < SHAPE.vocabulary)[None, :] & live[:, None]
    wrong = tl.sum((valid & ((tl.abs(logits) < float("inf")) == 0)).to(tl.int32), 1) > 0
    tl.atomic_min(problems.fault + token * 0, fault_code(token).to(tl.int64), mask=wrong & live)


@triton.jit
def _number(p, edges, SHAPE: tl.constexpr, SEARCH: tl.constexpr):
    """The number that a token's probabilities stand for."""
    if SEARCH.percentile is None:
        number = expectation(p, edges, SHAPE.vocabulary)
    else:
        number = percentile(p, edges, SHAPE.vocabulary, SEARCH.percentile, SEARCH.percentile_as_released)
    return number


@triton.jit
def copy(source, target, count, live):
    """Copy `count` numbers of each row. source, target [R] pointers."""
    start = 0
    while start < count:
        at = start + tl.arange(0, COPY)[None, :]
        mask = live[:, None] & (at < count)
        tl.store(target[:, None] + at, tl.load(source[:, None] + at, mask=mask, other=0), mask=mask)
        start += COPY


@triton.jit
def _sequence(at, prefix, length, planned, live):
    """Tokens of prefix and plan, one after the other. at [R] or [R, C]; prefix, planned pointers to rows' first."""
    known = tl.load(prefix + at, mask=live & (at < length), other=0).to(tl.int32)
    drawn = tl.load(planned + at - length, mask=live & (at >= length), other=0).to(tl.int32)
    return tl.where(at < length, known, drawn)


@triton.jit
def compute(u, end, oldest, lists, count, window, prefix, length, planned, model, pages, progress, row, round,
            SHAPE: tl.constexpr, SEARCH: tl.constexpr, RELATIVE: tl.constexpr, SHARES: tl.constexpr):  # fmt: skip
    """Pass the tokens in slots u to end - 1 of one sequence through the model, a tile of one page at a time.

    Slots are counted along its list of pages. `window` is the index in the sequence of the window's first token. If
    it SHARES its pages, the other programs hear of every tile; RELATIVE is `forward`'s. Returns the last tile's
    hidden rows, and where in it the last token is.
    """
    lane = tl.arange(0, SHAPE.rows)
    hidden = tl.full((SHAPE.rows, SHAPE.width), 0.0, SHAPE.dtype)
    last = 0
    while u < end:
        entry = u // SHAPE.slots
        stop = tl.minimum(tl.minimum(u + SHAPE.rows, (entry + 1) * SHAPE.slots), end)
        live = u + lane < stop
        slot = tl.minimum(u + lane, stop - 1) - entry * SHAPE.slots
        token = _sequence(window + position_of(entry, slot, oldest, SHAPE), prefix, length, planned, live)
        x = embed(token, entry, slot, oldest, live, model, SHAPE)
        hidden = forward(
            x, slot, live, oldest + lane * 0, entry, entry, lists, 0, lists, count, model, pages, SHAPE, 1, False,
            RELATIVE,
        )  # fmt: skip
        last = stop - 1 - u
        u = stop
        tl.debug_barrier()
        if SHARES:
            report_progress(progress, row, round, u, SHAPE, SEARCH)
    return hidden, last


@triton.jit
def prefill(model, pages, beams, problems, longest, columns, SHAPE: tl.constexpr, SEARCH: tl.constexpr):
    """Compute one problem's goal, and what is not yet computed of its prefix; it becomes the first beam. Grid [B].

    longest, columns: numbers in a row of `problems.prefix` and of `problems.table`.
    """
    b = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, SHAPE.rows)
    state = problems.state + b * FIELDS
    transitions = tl.load(state + TRANSITIONS).to(tl.int32)
    entries = tl.load(state + ENTRIES).to(tl.int32)
    begin = tl.load(state + BEGIN).to(tl.int32)
    if SHAPE.goal:
        start = 0
        while start < SHAPE.observation_dim:
            index = start + lane
            live = index < SHAPE.observation_dim
            token = tl.load(problems.goals + b * SHAPE.observation_dim + index, mask=live, other=0).to(tl.int32)
            x = embed_goal(token, index, live, model, SHAPE)
            slot = tl.where(live, index, 0)
            goal_page = problems.goal_pages + b
            forward(x, slot, live, lane * 0, 0, 0, goal_page, 0, goal_page, 1, model, pages, SHAPE, 1, True, False)
            start += SHAPE.rows
            tl.debug_barrier()
    prefix = problems.prefix + b * longest
    lists = problems.table + b * columns
    length = transitions * SHAPE.transition_dim + SHAPE.observation_dim
    oldest = entries - transitions - 1
    hidden, last = compute(
        begin, entries * SHAPE.slots, oldest, lists, entries, 0, prefix, length, beams.tokens, model, pages,
        problems.progress, b, 0, SHAPE, SEARCH, not SEARCH.window, False,
    )  # fmt: skip
    if not SEARCH.window:  # the plan reads pages of its own
        of_ring = lists
        first = columns - 1 - entries  # so that all plans begin after the same page
        lists = problems.plan_table + b * columns + first
        entry = tl.maximum(entries - SEARCH.entries, 0)
        while entry < entries:
            turn_page(tl.load(of_ring + entry), tl.load(lists + entry), first + entry, model, pages, SHAPE)
            entry += 1
    logits = logits_after(hidden, SHAPE.observation_dim - 1, model, SHAPE)
    live = lane == last
    check_logits(logits, live, lane * 0, problems, SHAPE)
    beam = b * SEARCH.beam_width
    column = tl.arange(0, SHAPE.padded)[None, :]
    tl.store(beams.logits + beam * SHAPE.padded + column + lane[:, None] * 0, logits, mask=live[:, None])
    tl.store(beams.returns + beam, 0.0)
    table = beams.table + beam * (SEARCH.entries + 1)
    newest = tl.arange(0, 16)
    shift = 0
    while shift < SEARCH.entries:  # the beam's list ends where the prefix's does
        back = shift + newest
        mask = (back < SEARCH.entries) & (back < entries)
        page = tl.load(lists + entries - 1 - back, mask=mask, other=0)
        tl.store(table + SEARCH.entries - 1 - back, page.to(tl.int32), mask=mask)
        shift += 16
    if SHAPE.goal:
        tl.store(table + SEARCH.entries, tl.load(problems.goal_pages + b).to(tl.int32))
    if SEARCH.share:
        start_sharing(problems.progress, b, SEARCH.beam_width)


@triton.jit(do_not_specialize=["round", "first_page", "rows"])
def expand(
    model, pages, beams, candidates, problems, round, rows, first_page, SHAPE: tl.constexpr, SEARCH: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Decode an action, a reward and a value for each candidate. Grid: `rows` (B * C) over TILE, at most SHAPE.rows.

    first_page: the page of the first candidate of this round; the others' follow.
    """
    lane = tl.arange(0, SHAPE.rows)
    row = tl.program_id(0) * TILE + lane
    live = (lane < TILE) & (row < rows)
    row = tl.where(live, row, 0).to(tl.int64)
    problem = row // (SEARCH.beam_width * SEARCH.expand)
    index = (row - problem * SEARCH.beam_width * SEARCH.expand).to(tl.int32)
    parent = problem * SEARCH.beam_width
    if round > 0:
        parent += index // SEARCH.expand
    state = problems.state + problem * FIELDS
    seed = tl.load(state + SEED)
    number = tl.load(state + NUMBER)
    transitions = tl.load(state + TRANSITIONS).to(tl.int32) + round
    ACTION: tl.constexpr = SEARCH.action_rule  # named here: Triton 3.6 takes no attribute as a constant
    REWARD: tl.constexpr = SEARCH.reward_rule
    VALUE: tl.constexpr = SEARCH.value_rule
    longest: tl.constexpr = SEARCH.horizon * SHAPE.transition_dim
    first_token = round * SHAPE.transition_dim
    tokens = candidates.tokens + row * longest
    table = candidates.table + row * (SEARCH.entries + 1)
    copy(beams.tokens + parent * longest, tokens, first_token, live)
    copy(beams.rewards + parent * SEARCH.horizon, candidates.rewards + row * SEARCH.horizon, round, live)
    inherited = beams.table + parent * (SEARCH.entries + 1)
    copy(inherited + 1, table, SEARCH.entries - 1, live)
    tl.store(table + SEARCH.entries - 1, (first_page + row).to(tl.int32), mask=live)
    if SHAPE.goal:
        copy(inherited + SEARCH.entries, table + SEARCH.entries, 1, live)
    tl.debug_barrier()
    if SEARCH.window:
        transitions = tl.minimum(transitions, SEARCH.entries - 2)
    oldest = tl.maximum(SEARCH.entries - 2 - transitions, 0)
    entry = SEARCH.entries - 1
    ordinal = SEARCH.entries if SEARCH.window else SEARCH.context_pages + round
    lists = candidates.table + tl.program_id(0).to(tl.int64) * TILE * (SEARCH.entries + 1)
    steps = candidates.steps + tl.program_id(0).to(tl.int64) * (TILE * SEARCH.steps)
    share_tile(steps, oldest, live, entry, lists, SEARCH.entries + 1, SEARCH.entries, SHAPE, TILE)
    column = tl.arange(0, SHAPE.padded)[None, :]
    newest = beams.logits + parent * SHAPE.padded
    reward = tl.full((SHAPE.rows,), 0.0, tl.float32)
    for step in tl.range(0, SHAPE.action_dim + 1, disable_licm=True):
        noise = uniform(seed, number, index, first_token + step + lane * 0)
        logits = tl.load(newest[:, None] + column, mask=live[:, None], other=0.0)
        if step < SHAPE.action_dim:
            token = draw(probabilities(logits, SHAPE.vocabulary, ACTION), noise, SHAPE.vocabulary, ACTION)
        else:
            p = probabilities(logits, SHAPE.vocabulary, REWARD)
            token = draw(p, noise, SHAPE.vocabulary, REWARD)
            reward = _number(p, problems.reward_edges, SHAPE, SEARCH)
        tl.store(tokens + first_token + step, token, mask=live)
        slot = lane * 0 + step
        x = embed(token, entry, slot, oldest, live, model, SHAPE)
        hidden = forward(
            x, slot, live, oldest, entry, ordinal, lists, SEARCH.entries + 1, steps, SEARCH.entries, model, pages,
            SHAPE, TILE, False, False, TILE <= 8,
        )  # fmt: skip
        logits = logits_after(hidden, SHAPE.observation_dim + step, model, SHAPE)
        check_logits(logits, live, first_token + step + 1 + lane * 0, problems, SHAPE)
        newest = candidates.logits + row * SHAPE.padded
        tl.store(newest[:, None] + column, logits, mask=live[:, None])
        tl.debug_barrier()  # read back, a row has a warp of its own: nothing that follows waits for another warp
    step = SHAPE.action_dim + 1
    noise = uniform(seed, number, index, first_token + step + lane * 0)
    logits = tl.load(newest[:, None] + column, mask=live[:, None], other=0.0)
    p = probabilities(logits, SHAPE.vocabulary, VALUE)
    tl.store(tokens + first_token + step, draw(p, noise, SHAPE.vocabulary, VALUE), mask=live)
    value = _number(p, problems.value_edges, SHAPE, SEARCH)
    discounts = problems.discounts + round
    returns = tl.load(beams.returns + parent, mask=live, other=0.0) + reward * tl.load(discounts)
    tl.store(candidates.rewards + row * SEARCH.horizon + round, reward, mask=live)
    tl.store(candidates.returns + row, returns, mask=live)
    tl.store(candidates.value + row, value, mask=live)
    tl.store(candidates.score + row, returns + value * tl.load(discounts + 1), mask=live)


@triton.jit
def recompute(model, pages, beams, candidates, problems, kept, row, round, longest, SHAPE: tl.constexpr,
              SEARCH: tl.constexpr):  # fmt: skip
    """Crop a beam's window, and compute it anew onto pages of its own, or take over those of a beam before it."""
    b = row // SEARCH.beam_width
    before = tl.load(problems.state + b * FIELDS + TRANSITIONS).to(tl.int32)
    tokens = beams.tokens + row * (SEARCH.horizon * SHAPE.transition_dim)
    table = beams.table + row * (SEARCH.entries + 1)
    transitions = tl.minimum(before + round + 1, SEARCH.entries - 2)
    oldest = SEARCH.entries - 1 - transitions
    begin = oldest * SHAPE.slots + SHAPE.action_dim + 1
    end = (SEARCH.entries - 1) * SHAPE.slots + SHAPE.action_dim + 1
    window = (before + round + 1 - transitions) * SHAPE.transition_dim
    if SEARCH.share:
        shared = share_pages(
            row, b, candidates.tokens, kept, table, round, transitions, problems.progress, SHAPE, SEARCH
        )
        begin = tl.maximum(begin, shared * SHAPE.slots)
        report_progress(problems.progress, row, round, shared * SHAPE.slots, SHAPE, SEARCH)
    tl.debug_barrier()
    compute(
        begin, end, oldest, table, SEARCH.entries, window, problems.prefix + b * longest,
        before * SHAPE.transition_dim + SHAPE.observation_dim, tokens, model, pages, problems.progress, row, round,
        SHAPE, SEARCH, False, SEARCH.share,
    )  # fmt: skip
    tl.atomic_add(problems.slots + b, (end - begin).to(tl.int64))


@triton.jit(do_not_specialize=["round", "rows"])
def observe(
    model, pages, beams, candidates, problems, kept, round, rows, longest, SHAPE: tl.constexpr, SEARCH: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Make kept candidates beams, and decode their next observations. Grid: `rows` (B * W) over TILE.

    With `SEARCH.window` a beam's window is cropped and computed anew first; TILE is 1. A tile's beams take turns in its
    rows. Those of one are its next tokens as far as they can be guessed: those of the observation before. A guess that
    the model itself would have drawn is kept, with all it computed; the first that it would not is replaced by what it
    drew, and is the beam's first row in the next pass. So the tokens are those of decoding one by one, to the bit.

    kept: [B, W] int64, which candidate each beam continues.
    """
    lane = tl.arange(0, SHAPE.rows)
    each: tl.constexpr = SHAPE.rows // TILE
    ahead = lane // TILE  # tokens after its beam's first
    first_row = tl.program_id(0).to(tl.int64) * TILE
    if SEARCH.share:
        first_row = take_ticket(problems.progress, round)
    row = first_row + lane % TILE
    beside = lane[:, None] % TILE == lane[None, :] % TILE
    there = row < rows
    row = tl.where(there, row, 0)
    alone = there & (ahead == 0)
    b = row // SEARCH.beam_width
    source = b * (SEARCH.beam_width * SEARCH.expand) + tl.load(kept + row)
    state = problems.state + b * FIELDS
    seed, number = tl.load(state + SEED), tl.load(state + NUMBER)
    before = tl.load(state + TRANSITIONS).to(tl.int32)
    OBSERVATION: tl.constexpr = SEARCH.observation_rule
    planned_most: tl.constexpr = SEARCH.horizon * SHAPE.transition_dim
    done_tokens = round * SHAPE.transition_dim + SHAPE.action_dim + 2
    tokens = beams.tokens + row * planned_most
    copy(candidates.tokens + source * planned_most, tokens, done_tokens, alone)
    copy(candidates.rewards + source * SEARCH.horizon, beams.rewards + row * SEARCH.horizon, round + 1, alone)
    tl.store(beams.returns + row, tl.load(candidates.returns + source), mask=alone)
    transitions = before + round + 1
    if SEARCH.window:
        transitions = tl.minimum(transitions, SEARCH.entries - 2)
        recompute(model, pages, beams, candidates, problems, kept, first_row, round, longest, SHAPE, SEARCH)
    else:
        count: tl.constexpr = SEARCH.entries + 1
        copy(candidates.table + source * count, beams.table + row * count, count, alone)
    oldest = tl.maximum(SEARCH.entries - 1 - transitions, 0)
    entry = SEARCH.entries - 1
    ordinal = entry if SEARCH.window else SEARCH.context_pages + round
    tl.debug_barrier()  # what follows reads tokens and tables that other threads have just copied
    lists = beams.table + first_row * (SEARCH.entries + 1)
    steps = beams.steps + first_row * SEARCH.steps
    share_tile(steps, oldest, alone, entry, lists, SEARCH.entries + 1, SEARCH.entries, SHAPE, TILE)
    fed = tokens + done_tokens - 1  # the value token, then the observation's
    now = (before + round) * SHAPE.transition_dim
    length = before * SHAPE.transition_dim + SHAPE.observation_dim
    prefix = problems.prefix + b * longest
    start = 0
    while start < SHAPE.observation_dim:
        at = start + tl.arange(0, COPY)[None, :]
        mask = alone[:, None] & (at < SHAPE.observation_dim)
        guess = _sequence(now[:, None] + at, prefix[:, None], length[:, None], tokens[:, None], mask)
        tl.store(fed[:, None] + 1 + at, guess, mask=mask)
        start += COPY
    tl.debug_barrier()
    column = tl.arange(0, SHAPE.padded)[None, :]
    done = lane * 0
    passes = lane * 0
    slowest = 0
    while slowest <= SHAPE.observation_dim:
        at = done + ahead
        live = there & (at <= SHAPE.observation_dim)
        if not SEARCH.draft:
            live = live & alone
        token = tl.load(fed + at, mask=live, other=0).to(tl.int32)
        slot = tl.where(at == 0, SHAPE.slots, tl.where(live, SHAPE.action_dim + at, 0))
        x = embed(token, entry, slot, oldest, live, model, SHAPE)
        hidden = forward(
            x, slot, live, oldest, entry, ordinal, lists, SEARCH.entries + 1, steps, SEARCH.entries, model, pages,
            SHAPE, TILE, False, False,
        )  # fmt: skip
        logits = tl.full((SHAPE.rows, SHAPE.padded), 0.0, tl.float32)
        furthest = tl.max(tl.where(live, at, 0), 0)
        for place in tl.range(slowest, furthest + 1, disable_licm=True):  # tokens at different places have other heads
            head = tl.where(place == 0, SHAPE.transition_dim - 1, place - 1)
            logits = tl.where((at == place)[:, None], logits_after(hidden, head, model, SHAPE), logits)
        p = probabilities(logits, SHAPE.vocabulary, OBSERVATION)
        noise = uniform(seed, number, (row - b * SEARCH.beam_width).to(tl.int32), done_tokens + at)
        drawn = draw(p, noise, SHAPE.vocabulary, OBSERVATION)
        guessed = tl.load(fed + at + 1, mask=live & (at < SHAPE.observation_dim), other=0)
        wrong = live & (at < SHAPE.observation_dim) & (drawn != guessed)
        right = tl.where(wrong, ahead + 1, tl.where(live, each, ahead))
        right = tl.min(tl.where(beside, right[None, :], each), 1)
        check_logits(logits, live & (ahead < right), done_tokens + at, problems, SHAPE)
        tl.debug_barrier()  # every thread has read the guess: all have to find the same tokens right
        tl.store(fed + at + 1, drawn, mask=live & (at < SHAPE.observation_dim) & (ahead >= right - 1))
        last = live & (at == SHAPE.observation_dim) & (ahead < right)
        tl.store((beams.logits + row * SHAPE.padded)[:, None] + column, logits, mask=last[:, None])
        done += right
        passes += (right > 0).to(tl.int32)
        slowest = tl.min(tl.where(there, done, SHAPE.observation_dim + 1), 0)
        tl.debug_barrier()
    tl.atomic_add(problems.tiles + b, passes.to(tl.int64), mask=alone)


@triton.jit(do_not_specialize=["rounds"])
def take(candidates, problems, kept, score, out, rounds, SHAPE: tl.constexpr, SEARCH: tl.constexpr):
    """Gather one candidate a problem: tokens, rewards, value and score. Grid [B].

    kept: [B] int64; score: [B] float32; out: [B, H*K + H + 5] int32, floats by their bits; the last three are the code
    of what went wrong, or -1, and the problem's tiles and slots.
    """
    b = tl.program_id(0).to(tl.int64)
    row = b * (SEARCH.beam_width * SEARCH.expand) + tl.load(kept + b)
    longest: tl.constexpr = SEARCH.horizon * SHAPE.transition_dim
    target = out + b * (longest + SEARCH.horizon + 5)
    start = 0
    while start < longest:
        at = start + tl.arange(0, COPY)
        mask = at < (rounds - 1) * SHAPE.transition_dim + SHAPE.action_dim + 2
        token = tl.load(candidates.tokens + row * longest + at, mask=mask, other=0).to(tl.int32)
        tl.store(target + at, token, mask=at < longest)
        start += COPY
    start = 0
    while start < SEARCH.horizon:
        at = start + tl.arange(0, COPY)
        reward = tl.load(candidates.rewards + row * SEARCH.horizon + at, mask=at < rounds, other=0.0)
        tl.store(target + longest + at, reward.to(tl.int32, bitcast=True), mask=at < SEARCH.horizon)
        start += COPY
    numbers = target + longest + SEARCH.horizon
    tl.store(numbers, tl.load(candidates.value + row).to(tl.int32, bitcast=True))
    tl.store(numbers + 1, tl.load(score + b).to(tl.int32, bitcast=True))
    fault = tl.load(problems.fault)
    tl.store(numbers + 2, tl.where(fault >= NO_FAULT, -1, fault).to(tl.int32))
    tl.store(numbers + 3, tl.load(problems.tiles + b).to(tl.int32))
    tl.store(numbers + 4, tl.load(problems.slots + b).to(tl.int32))
