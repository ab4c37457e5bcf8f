"""The compiled core: the page pool against a plain Python model, its errors, and what it says about its build."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ttengine.errors import EngineError
from ttengine.native import PagePool, PagePoolError, build_info


class PagePoolAgainstModel(RuleBasedStateMachine):
    """A pool and a model of it in dictionaries go through the same calls and must agree after each."""

    @initialize(capacity=st.integers(1, 9), page_bytes=st.sampled_from([1, 7, 63, 64, 65, 200]))
    def make(self, capacity: int, page_bytes: int) -> None:
        self.pool = PagePool(capacity, page_bytes)
        self.capacity, self.page_bytes = capacity, page_bytes
        self.references: dict[int, int] = {}
        self.stamp: dict[int, int] = {}
        self.free = list(range(capacity))[::-1]
        self.peak = 0
        self.writes = 0

    @rule(count=st.integers(0, 10))
    def acquire(self, count: int) -> None:
        if count > len(self.free):
            with pytest.raises(PagePoolError, match=f"{count} pages were asked for, {len(self.free)} of"):
                self.pool.acquire(count)
            return
        pages = self.pool.acquire(count)
        assert pages == [self.free.pop() for _ in range(count)]
        for page in pages:
            self.references[page] = 1
            self.write(page)
        self.peak = max(self.peak, len(self.references))

    @precondition(lambda self: self.references)
    @rule(data=st.data(), times=st.integers(0, 3))
    def retain(self, data: st.DataObject, times: int) -> None:
        page = data.draw(st.sampled_from(sorted(self.references)))
        self.pool.retain(page, times)
        self.references[page] += times

    @precondition(lambda self: self.references)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(sorted(self.references)))
        self.references[page] -= 1
        gone = self.references[page] == 0
        assert self.pool.release(page) is gone
        if gone:
            del self.references[page], self.stamp[page]
            self.free.append(page)

    @precondition(lambda self: self.references)
    @rule(data=st.data())
    def rewrite(self, data: st.DataObject) -> None:
        self.write(data.draw(st.sampled_from(sorted(self.references))))

    @precondition(lambda self: self.free)
    @rule(data=st.data(), verb=st.sampled_from(["retain", "release", "view"]))
    def misuse_a_free_page(self, data: st.DataObject, verb: str) -> None:
        page = data.draw(st.sampled_from(self.free))
        with pytest.raises(PagePoolError, match=f"page {page} cannot be"):
            getattr(self.pool, verb)(page)

    @rule(beyond=st.integers(0, 2**31), verb=st.sampled_from(["retain", "release", "view", "references"]))
    def misuse_an_unknown_page(self, beyond: int, verb: str) -> None:
        with pytest.raises(PagePoolError, match="does not exist"):
            getattr(self.pool, verb)(self.capacity + beyond)

    @precondition(lambda self: self.references)
    @rule(data=st.data())
    def overflow_a_count(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(sorted(self.references)))
        with pytest.raises(PagePoolError, match="overflow its count"):
            self.pool.retain(page, 2**32 - self.references[page])

    @invariant()
    def books_agree(self) -> None:
        pool = self.pool
        assert (pool.capacity, pool.page_bytes) == (self.capacity, self.page_bytes)
        assert (pool.free, pool.live, pool.peak) == (len(self.free), len(self.references), self.peak)
        assert [pool.references(page) for page in range(self.capacity)] == [
            self.references.get(page, 0) for page in range(self.capacity)
        ]

    @invariant()
    def no_page_was_written_through_another(self) -> None:
        for page, stamp in self.stamp.items():
            assert (self.pool.view(page) == stamp).all()

    def write(self, page: int) -> None:
        """Fill a page with a byte that its neighbours do not hold."""
        self.writes += 1
        self.stamp[page] = self.writes % 251
        self.pool.view(page)[:] = self.stamp[page]


TestPagePoolAgainstModel = PagePoolAgainstModel.TestCase


def test_pages_are_aligned_to_64_bytes_and_exactly_as_long_as_asked() -> None:
    pool = PagePool(capacity=5, page_bytes=100)
    views = [pool.view(page) for page in pool.acquire(5)]
    assert [view.ctypes.data % 64 for view in views] == [0] * 5
    assert all(view.shape == (100,) and view.dtype == np.uint8 for view in views)


def test_a_view_keeps_the_pool_alive() -> None:
    pool = PagePool(capacity=1, page_bytes=1 << 20)
    view = pool.view(pool.acquire()[0])
    view[:] = 7
    del pool
    assert (view == 7).all()


@pytest.mark.parametrize(
    ("capacity", "page_bytes", "message"),
    [
        (0, 1, "capacity is 0 pages, allowed is 1 to 2147483647"),
        (2**31, 1, "capacity is 2147483648 pages"),
        (1, 0, "a page has 0 bytes"),
        (2**31 - 1, 2**40, "overflow the address space"),
        (1, 2**64 - 1, "overflows when aligned"),
        (1, 2**62, "the system refused"),
    ],
)
def test_a_pool_of_impossible_size_is_a_typed_error(capacity: int, page_bytes: int, message: str) -> None:
    with pytest.raises(PagePoolError, match=message):
        PagePool(capacity, page_bytes)


def test_pool_errors_are_engine_errors() -> None:
    assert issubclass(PagePoolError, EngineError)


def test_build_info_tells_version_compiler_and_portable_flags() -> None:
    info = build_info()
    assert info["version"] == version("ttengine")
    assert info["build_type"] == "Release"
    assert info["cxx_standard"] == 201703
    assert str(info["compiler"]).split()[0] in {"GNU", "Clang", "AppleClang"}
    assert "-O" in str(info["flags"])
    assert "native" not in str(info["flags"])


def test_a_missing_core_is_an_error_that_says_how_to_build_it() -> None:
    program = (
        "import sys; sys.modules['ttengine._native'] = None\n"
        "from ttengine.errors import EngineError\n"
        "try:\n    import ttengine.native\n"
        "except EngineError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "cannot be loaded" in done.stdout
    assert "pip install ." in done.stdout
