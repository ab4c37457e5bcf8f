"""Products of float32 in two parts of float16: as near to float64 as PyTorch's; then timed beside them.

    python bench/kernels/products.py --json NAME.json
    python bench/kernels/products.py --check               no GPU needed

Timed are a beam's rows times a matrix of the feed-forward layer, a program for 16 rows and 64 columns. The competitor
is PyTorch's float32, without TF32. The limit is the time of three products of 16 bits at the GPU's rate.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # behind Python's own: there is a module called `select`, too

import timing
import torch
import triton
import triton.language as tl
from torch import Tensor

from ttengine.kernels.products import factor, product

SIZES = {"hopper, 256 rows": (256, 128, 512), "256 wide, 1,024 rows": (1024, 256, 1024)}
"""Rows, inner and columns."""
TINY = {"a tile": (16, 64, 64), "tiles": (32, 16, 128)}
ROWS, COLUMNS = 16, 64
WORSE = 3.0
"""Times PyTorch's distance from float64 that is no rounding any more."""


@triton.jit
def one_tile(a, b, out, inner: tl.constexpr, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """[rows, inner] times [inner, columns]. Grid [rows / ROWS, columns / COLUMNS]."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    between = tl.arange(0, inner)
    left = factor(tl.load(a + row * inner + between[None, :]), tl.float32)
    right = factor(tl.load(b + between[:, None] * columns + column), tl.float32)
    tl.store(out + row * columns + column, product(left, right))


def inputs(rows: int, inner: int, columns: int) -> tuple[Tensor, Tensor]:
    """Activations, and weights as small as a model's."""
    how: dict[str, Any] = {"generator": torch.Generator(timing.DEVICE).manual_seed(0), "device": timing.DEVICE}
    return torch.randn(rows, inner, **how), 0.05 * torch.randn(inner, columns, **how)


def in_kernel(a: Tensor, b: Tensor) -> Tensor:
    """a @ b."""
    (rows, inner), columns = a.shape, b.shape[1]
    out = torch.empty(rows, columns, device=a.device)
    one_tile[(rows // ROWS, columns // COLUMNS)](a, b, out, inner, columns, ROWS, COLUMNS)
    return out


def compare() -> list[str]:
    """Distances from the product in float64."""
    wrong = []
    for name, size in (SIZES if timing.DEVICE.type == "cuda" else TINY).items():
        a, b = inputs(*size)
        exact = a.double() @ b.double()
        ours, theirs = (float((found - exact).square().mean().sqrt()) for found in (in_kernel(a, b), a @ b))
        if not ours < WORSE * theirs:
            wrong.append(f"product, {name}: {ours:.1e} from the product in float64, PyTorch's {theirs:.1e}")
    return wrong


def measure(limits: timing.Limits, sizes: dict[str, tuple[int, int, int]] = SIZES) -> Iterator[dict[str, Any]]:
    """A row for each size."""
    for name, size in sizes.items():
        a, b = inputs(*size)
        us, theirs = (timing.median_us(lambda m=multiply, x=a, y=b: m(x, y)) for multiply in (in_kernel, torch.mm))
        rows, inner, columns = size
        least = 1e6 * 3 * 2 * rows * inner * columns / limits.flops_per_s
        yield timing.row(name, us, least, "PyTorch, float32", theirs)


if __name__ == "__main__":
    sys.exit(timing.main(__doc__, compare, measure))
