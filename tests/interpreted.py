"""Triton without a GPU: what the tests of kernels share.

The interpreter runs a kernel's programs one after the other on the CPU. It hides races, reads outside of tensors and
memory that nobody wrote; so fresh memory is poisoned, stands between canaries, and programs run in shuffled order.
"""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where kernels run in tests: on a GPU if there is one, else interpreted."""

CANARY = -12_345
MARGIN = 64


def pytest_configure() -> None:
    """Without a GPU let kernels be interpreted: Triton looks when they are imported."""
    if DEVICE.type == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
        if importlib.util.find_spec("triton"):
            sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
            from interpreting import round_alike, speed_up

            speed_up()
            round_alike()


class Poison:
    """Makes memory that is NaN (or far out of range) until it is written, between canaries."""

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []

    def new(self, size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Stands in for `triton_memory._new`."""
        count = int(torch.Size(size).numel())
        buffer = torch.full((count + 2 * MARGIN,), CANARY, dtype=dtype, device=device)
        self.buffers.append(buffer)
        inner = buffer[MARGIN : MARGIN + count]
        inner.fill_(float("nan") if dtype.is_floating_point else 2**30 + 7)
        return inner.view(size)

    def check(self) -> None:
        """Nobody wrote outside of what was asked for."""
        assert self.buffers
        for buffer in self.buffers:
            assert bool((buffer[:MARGIN] == CANARY).all())
            assert bool((buffer[-MARGIN:] == CANARY).all())


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[Poison]:
    """Poison the triton engine's memory; look at the canaries after the test."""
    from ttengine.engines import triton_memory

    made = Poison()
    monkeypatch.setattr(triton_memory, "_new", made.new)
    yield made
    made.check()


@pytest.fixture
def shuffled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Run the programs of each interpreted kernel in another order; the list counts shuffled kernels."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    builder = interpreter.interpreter_builder
    set_index, rng = builder.set_grid_idx, random.Random(0)
    order: list[int] = []
    count: list[int] = []

    def set_shuffled(x: int, y: int, z: int) -> None:
        programs = builder.grid_dim[0]
        if x == 0 and programs > 1:
            order[:] = rng.sample(range(programs), programs)
            count.append(programs)
        set_index(order[x] if programs > 1 else x, y, z)

    monkeypatch.setattr(builder, "set_grid_idx", set_shuffled)
    return count
