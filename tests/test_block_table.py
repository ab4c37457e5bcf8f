"""Block tables against a plain Python model of rows: sharing, copies on write, and pools that are full."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ttengine.errors import EngineError
from ttengine.native import BlockTable, PagePoolError

ROUND_TOKENS = 4


@dataclass(eq=False)
class Page:
    """A page of the model; rows that share it hold the same object."""

    single: bool
    content: bytearray


@dataclass(frozen=True)
class Entry:
    """A page in a row's list: how much of it the row reads, and at which token it begins."""

    page: Page
    filled: int
    begin: int

    @property
    def end(self) -> int:
        """The token after the page's last one."""
        return self.begin + (1 if self.page.single else ROUND_TOKENS)


class BlockTableAgainstModel(RuleBasedStateMachine):
    """A table and a model of it in lists go through the same calls and must agree after each."""

    @initialize(capacity=st.integers(1, 6), page_bytes=st.sampled_from([1, 3, 8]), rows=st.integers(0, 3))
    def make(self, capacity: int, page_bytes: int, rows: int) -> None:
        self.table = BlockTable(capacity, page_bytes)
        self.capacity, self.page_bytes = capacity, page_bytes
        self.rows: list[list[Entry]] = []
        for _ in range(rows):
            self.add()

    @precondition(lambda self: len(self.rows) < 8)
    @rule()
    def add(self) -> None:
        self.table.add()
        self.rows.append([])

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parents = data.draw(st.lists(st.integers(0, len(self.rows) - 1), max_size=8))
        self.table.fork(parents)
        self.rows = [list(self.rows[parent]) for parent in parents]

    @rule(beyond=st.integers(0, 100))
    def fork_an_unknown_row(self, beyond: int) -> None:
        with pytest.raises(EngineError, match=f"row {len(self.rows) + beyond} is unknown"):
            self.table.fork([len(self.rows) + beyond])

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), single=st.booleans(), begin=st.integers(-ROUND_TOKENS, 12))
    def append(self, data: st.DataObject, single: bool, begin: int) -> None:
        row = self.draw_row(data)
        if self.live(single) == self.capacity:
            with pytest.raises(PagePoolError, match=f"the pool is full: all {self.capacity} pages are live"):
                self.table.append(row, single, begin)
            return
        self.table.append(row, single, begin)
        self.rows[row].append(Entry(Page(single, bytearray(self.page_bytes)), 0, begin))

    @precondition(lambda self: any(self.rows))
    @rule(data=st.data(), value=st.integers(0, 255))
    def write(self, data: st.DataObject, value: int) -> None:
        row = data.draw(st.sampled_from([row for row, entries in enumerate(self.rows) if entries]))
        last = self.rows[row][-1]
        slot = data.draw(st.integers(0, min(last.filled, self.page_bytes - 1)))
        page = last.page
        if sum(entry.page is page for entries in self.rows for entry in entries) > 1:
            if self.live(page.single) == self.capacity:
                with pytest.raises(PagePoolError, match="the pool is full"):
                    self.table.write(row, slot, value)
                return
            page = Page(page.single, bytearray(page.content))
        self.table.write(row, slot, value)
        page.content[slot] = value
        self.rows[row][-1] = replace(last, page=page, filled=slot + 1)

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), token=st.integers(-ROUND_TOKENS, 20))
    def drop_before(self, data: st.DataObject, token: int) -> None:
        row = self.draw_row(data)
        self.table.drop_before(row, token, ROUND_TOKENS)
        self.rows[row] = [entry for entry in self.rows[row] if entry.end > token]

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def drop_all(self, data: st.DataObject) -> None:
        row = self.draw_row(data)
        self.table.drop_all(row)
        self.rows[row] = []

    @rule()
    def clear(self) -> None:
        self.table.clear()
        self.rows = []

    @invariant()
    def every_row_reads_what_was_written_for_it(self) -> None:
        assert self.table.rows == len(self.rows)
        for row, entries in enumerate(self.rows):
            read = [bytes(page) for page in self.table.read(row)]
            assert read == [bytes(entry.page.content[: entry.filled]) for entry in entries]

    @invariant()
    def a_page_is_live_while_a_row_lists_it(self) -> None:
        assert self.table.live == (self.live(single=False), self.live(single=True))

    def draw_row(self, data: st.DataObject) -> int:
        return data.draw(st.integers(0, len(self.rows) - 1))

    def live(self, single: bool) -> int:
        """Pages of one kind that some row lists."""
        return len({id(entry.page) for row in self.rows for entry in row if entry.page.single == single})


TestBlockTableAgainstModel = BlockTableAgainstModel.TestCase


def filled_table(capacity: int, rows: int) -> BlockTable:
    """Return a table whose rows read one page each, [row, 10 + row]."""
    table = BlockTable(capacity, page_bytes=4)
    for row in range(rows):
        table.add()
        table.append(row, False, 0)
        table.write(row, 0, row)
        table.write(row, 1, 10 + row)
    return table


def test_forked_rows_share_pages_until_one_of_them_writes() -> None:
    table = filled_table(capacity=3, rows=1)
    table.fork([0, 0])
    assert table.live == (1, 0)
    table.write(1, 2, 77)
    assert table.live == (2, 0)
    assert (table.read(0), table.read(1)) == ([[0, 10]], [[0, 10, 77]])


def test_a_row_that_no_fork_continues_frees_its_pages() -> None:
    table = filled_table(capacity=3, rows=3)
    table.fork([2, 2, 0])
    assert table.live == (2, 0)
    assert [table.read(row) for row in range(3)] == [[[2, 12]], [[2, 12]], [[0, 10]]]


def test_a_full_pool_refuses_and_leaves_every_row_as_it_was() -> None:
    table = filled_table(capacity=2, rows=2)
    table.fork([0, 0, 1])
    with pytest.raises(PagePoolError, match="the pool is full: all 2 pages are live"):
        table.append(2, False, 4)
    with pytest.raises(PagePoolError, match="the pool is full: all 2 pages are live"):
        table.write(0, 2, 99)
    assert table.live == (2, 0)
    assert [table.read(row) for row in range(3)] == [[[0, 10]], [[0, 10]], [[1, 11]]]
    table.write(2, 2, 99)
    assert table.read(2) == [[1, 11, 99]]


def test_rounds_and_single_tokens_come_from_pools_of_their_own() -> None:
    table = BlockTable(capacity=1, page_bytes=4)
    table.add()
    table.append(0, False, 0)
    table.append(0, True, 4)
    table.write(0, 0, 5)
    assert table.live == (1, 1)
    assert table.read(0) == [[], [5]]
    table.drop_before(0, 4, 4)
    assert table.live == (0, 1)
    table.drop_before(0, 5, 4)
    assert table.live == (0, 0)
