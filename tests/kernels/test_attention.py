"""Attention over pages: the reference's sums, whatever lies beside what is seen."""

from __future__ import annotations

import pytest
import torch
from interpreted import DEVICE

from ttengine.kernels import reference

pytest.importorskip("triton")
import triton
import triton.language as tl

from ttengine.kernels.attention import LOG2_E, attend, paged_attention, share_lists


def case(rows: int, slots: int, entries: int, heads: int = 2, head: int = 16) -> tuple[torch.Tensor, ...]:
    """Random pages, tables and lengths; what no row sees is NaN."""
    generator = torch.Generator().manual_seed(rows * slots)
    pages = entries * 3
    keys, values = torch.randn(2, pages, heads, slots, head, generator=generator)
    table = torch.stack([torch.randperm(pages, generator=generator)[:entries] for _ in range(rows)]).int()
    lengths = torch.randint(0, entries * slots + 1, (rows,), generator=generator).int()
    lengths[0], lengths[-1] = entries * slots, 1
    seen = torch.zeros(pages, slots, dtype=torch.bool)
    for row, length in enumerate(lengths.tolist()):
        for i in range(length):
            seen[table[row, i // slots], i % slots] = True
        table[row, -(-length // slots) :] = 2**30  # must not be read
    keys.masked_fill_(~seen[:, None, :, None], float("nan"))
    values.masked_fill_(~seen[:, None, :, None], float("nan"))
    return torch.randn(rows, heads, head, generator=generator), keys, values, table, lengths


@pytest.mark.parametrize(("rows", "slots", "entries"), [(1, 1, 1), (17, 7, 3), (5, 16, 2), (33, 15, 1), (3, 8, 5)])
def test_paged_attention_equals_the_reference(rows: int, slots: int, entries: int) -> None:
    query, keys, values, table, lengths = case(rows, slots, entries)
    visible = [table[r, : -(-n // slots)] for r, n in enumerate(lengths.tolist())]
    assert all(bool((pages < len(keys)).all()) for pages in visible)
    found = paged_attention(*(each.to(DEVICE) for each in (query, keys, values, table, lengths)))
    torch.testing.assert_close(found.cpu(), reference.paged_attention(query, keys, values, table, lengths))


def test_a_row_that_sees_nothing_gives_zeros() -> None:
    query, keys, values, table, lengths = case(4, 5, 2)
    lengths[1] = 0
    found = paged_attention(*(each.to(DEVICE) for each in (query, keys, values, table, lengths)))
    assert not bool(found[1].any())
    assert bool(torch.isfinite(found).all())


def test_a_rows_bits_do_not_depend_on_its_neighbours() -> None:
    arguments = case(20, 7, 3)
    query, keys, values, table, lengths = (each.to(DEVICE) for each in arguments)
    whole = paged_attention(query, keys, values, table, lengths)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0), device="cpu").to(DEVICE)
    shuffled = paged_attention(query[order].contiguous(), keys, values, table[order].contiguous(), lengths[order])
    assert torch.equal(shuffled, whole[order])
    alone = paged_attention(query[4:5].contiguous(), keys, values, table[4:5].contiguous(), lengths[4:5].contiguous())
    assert torch.equal(alone[0], whole[4])


def test_wrong_arguments_are_refused() -> None:
    query, keys, values, table, lengths = case(3, 4, 2)
    with pytest.raises(ValueError, match="expected"):
        paged_attention(query, keys[:, :1], values[:, :1], table, lengths)
    with pytest.raises(ValueError, match="powers of two"):
        paged_attention(query[..., :12], keys[..., :12], values[..., :12], table, lengths)
    with pytest.raises(ValueError, match="int32"):
        paged_attention(query, keys, values, table.long(), lengths)
    with pytest.raises(ValueError, match="do not fit"):
        paged_attention(query, keys, values, table[:2], lengths)
    with pytest.raises(ValueError, match="contiguous"):
        paged_attention(query, keys, values, table.t().contiguous().t(), lengths)


HEAD, SLOTS, ENTRIES, KEYS, TAIL = 16, 7, 5, 16, 3
NOWHERE = 2**30
"""A page that must not be read."""


@triton.jit
def _attend(query, keys, values, lists, steps, begin, end, out, SLOTS: tl.constexpr, ENTRIES: tl.constexpr,
            HEAD: tl.constexpr, SPLIT: tl.constexpr, KEYS: tl.constexpr, TAIL: tl.constexpr,
            SHARED: tl.constexpr):  # fmt: skip
    row = tl.arange(0, 16)
    at = row[:, None] * HEAD + tl.arange(0, HEAD)[None, :]
    first, last = tl.load(begin + row), tl.load(end + row)
    live, anchor, stride = last >= 0, ENTRIES * SLOTS, ENTRIES + 1
    if SHARED:
        share_lists(steps, lists, stride, first, live, anchor, ENTRIES, SLOTS, 16, 2, SPLIT, KEYS, TAIL)
    found = attend(
        (tl.load(query + at) * LOG2_E)[None], keys, values, SLOTS * HEAD, lists, stride, steps, first, last, live,
        anchor, 0, ENTRIES, out, SLOTS, 16, 2, SPLIT, KEYS, 0, 0, TAIL, SHARED, 1,
    )  # fmt: skip
    tl.store(out + at, tl.reshape(found, (16, HEAD)))


def relatives() -> tuple[torch.Tensor, ...]:
    """Queries, pages, lists, begin and end of a tile: two problems of eight rows, the last row not there.

    From the newest entry on back 16, 8, 4, 2 and 1 pages are seen, the second problem's from entry 2 on; then two
    goals'.
    """
    generator = torch.Generator().manual_seed(0)
    row = torch.arange(16)
    numbers = [row * 0, 1 + row // 8, 3 + row // 4, 7 + row // 2, 15 + row, 31 + row // 8]
    table = torch.stack(numbers, dim=1).int()
    table[8:, :2] = NOWHERE
    table[15] = NOWHERE
    keys, values = torch.randn(2, 33, SLOTS, HEAD, generator=generator)
    newest, last = ENTRIES - 1, 4
    for unseen in (keys[15:31, last + 1 :], values[15:31, last + 1 :], keys[31:, TAIL:], values[31:, TAIL:]):
        unseen.fill_(float("nan"))
    begin = torch.where(row < 8, 2, 2 * SLOTS + 2).int()
    end = torch.where(row < 15, newest * SLOTS + last, -1).int()
    return torch.randn(16, HEAD, generator=generator), keys, values, table, begin, end


def attended(*arguments: torch.Tensor, split: int = 1, shared: bool = True) -> tuple[torch.Tensor, list[list[int]]]:
    """[16, HEAD], and how many lists each strand read of each block, of the problem with more."""
    query, keys, values, table, begin, end = (each.to(DEVICE).contiguous() for each in arguments)
    steps = torch.full((1 + 4 * 8 * (1 + 2 * 18),), NOWHERE, dtype=torch.int32, device=DEVICE)
    out = torch.full_like(query, float("nan"))
    _attend[(1,)](
        query, keys, values, table, steps, begin, end, out, SLOTS, ENTRIES, HEAD, split, KEYS, TAIL,
        shared,
        enable_fp_fusion=False,
    )  # fmt: skip
    record = 1 + split * 18
    records = steps[1 : 1 + record * (int(steps[0]) if shared else 0)].view(-1, record)
    read = records[:, 1:].view(-1, split, 18)[:, :, :16].reshape(-1, split, 2, 8).any(dim=3).long()
    blocks = [read[records[:, 0] == start].sum(dim=0) for start in records[:, 0].unique().flip(0)]
    return out.cpu(), [lists.amax(dim=1).tolist() for lists in blocks]


SPLITS = [(1, [[1], [8], [2], [1]]), (2, [[1, 0], [2, 8], [0, 1]])]
"""Strands for a list; how many lists of a problem differ in what each reads, 16 slots of a block. Those are the
goal's; entries 2 to 4, 0 to 2 and 0. They differ as the newest page does."""


@pytest.mark.parametrize(("split", "differ"), SPLITS)
def test_lists_are_read_once_for_all_relatives_and_no_bit_changes(split: int, differ: list[list[int]]) -> None:
    arguments = relatives()
    shared, blocks = attended(*arguments, split=split)
    assert blocks == differ
    assert torch.equal(shared, attended(*arguments, split=split, shared=False)[0])
    query, keys, values, table, begin, end = arguments
    for row in range(15):
        at = torch.arange(int(begin[row]), int(end[row]) + 1)
        pages = torch.cat([table[row, at // SLOTS], table[row, -1:].expand(TAIL)]).long()
        slots = torch.cat([at % SLOTS, torch.arange(TAIL)])
        wanted = (keys[pages, slots] @ query[row]).softmax(dim=0) @ values[pages, slots]
        torch.testing.assert_close(shared[row], wanted)
    assert not bool(shared[15].any())


@pytest.mark.parametrize(("split", "differ"), SPLITS)
def test_a_rows_bits_do_not_depend_on_who_shares_its_list(split: int, differ: list[list[int]]) -> None:
    """In another order, the problems too; and every row with copies of its pages, so that nothing is shared."""
    query, keys, values, table, begin, end = relatives()
    shared = attended(query, keys, values, table, begin, end, split=split)[0]
    order = torch.cat([torch.randperm(8, generator=torch.Generator().manual_seed(i)) + 8 - 8 * i for i in range(2)])
    found, blocks = attended(query[order], keys, values, table[order], begin[order], end[order], split=split)
    assert blocks == differ
    assert torch.equal(found, shared[order])
    pages = torch.where(table == NOWHERE, 0, table).flatten().long()
    own = torch.arange(table.numel()).view_as(table).int()
    found, blocks = attended(query, keys[pages], values[pages], own, begin, end, split=split)
    assert blocks == [[8 * (lists > 0) for lists in block] for block in differ]
    assert torch.equal(found, shared)
