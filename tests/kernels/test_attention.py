"""Attention over pages: the reference's sums, whatever lies beside what is seen."""

from __future__ import annotations

import pytest
import torch
from interpreted import DEVICE

from ttengine.kernels import reference

pytest.importorskip("triton")
from ttengine.kernels.attention import paged_attention


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
