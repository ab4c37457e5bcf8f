"""Products of float32 on matrix units: as exact as float32, whatever the numbers' sizes."""

from __future__ import annotations

import pytest
import torch
from interpreted import DEVICE

pytest.importorskip("triton")
import triton
import triton.language as tl

from ttengine.kernels.products import factor, product, take_apart

ROWS, INNER, COLUMNS = 16, 128, 32


@triton.jit
def _multiply(a, b, out, ROWS: tl.constexpr, INNER: tl.constexpr, COLUMNS: tl.constexpr):
    row, inner, column = tl.arange(0, ROWS)[:, None], tl.arange(0, INNER), tl.arange(0, COLUMNS)[None, :]
    kind: tl.constexpr = a.dtype.element_ty
    left = tl.load(a + row * INNER + inner[None, :])
    right = tl.load(b + inner[:, None] * COLUMNS + column)
    tl.store(out + row * COLUMNS + column, product(factor(left, kind), factor(right, kind)))


def multiplied(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    out = torch.empty(ROWS, COLUMNS, device=DEVICE)
    _multiply[(1,)](a.to(DEVICE), b.to(DEVICE), out, ROWS, INNER, COLUMNS)
    return out.cpu()


@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
def test_a_product_of_float32_is_as_exact_as_float32(size: float) -> None:
    """Numbers of the sizes of weights, activations and hidden units; off by less than rounding the factors is."""
    generator = torch.Generator().manual_seed(0)
    a = size * torch.randn(ROWS, INNER, generator=generator)
    b = torch.randn(INNER, COLUMNS, generator=generator)
    exact = a.double() @ b.double()
    scale = a.double().abs() @ b.double().abs()  # what float32 rounds
    off = ((multiplied(a, b).double() - exact).abs() / scale).max()
    assert off < 2**-23
    coarse = ((a.half().double() @ b.half().double() - exact).abs() / scale).max()
    assert coarse > 100 * off


def test_products_of_16_bits_are_as_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(ROWS, INNER, generator=generator).half()
    b = torch.randn(INNER, COLUMNS, generator=generator).half()
    torch.testing.assert_close(multiplied(a, b), (a.double() @ b.double()).float(), rtol=0, atol=1e-5)


def test_two_parts_hold_22_bits() -> None:
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 4, 10_000)
    nearest, rest = take_apart(x).double()
    assert bool(((nearest + rest / 2048 - x.double()).abs() <= x.double().abs() * 2**-22 + 2**-36).all())
    assert bool((take_apart(torch.tensor([65_504.0, -70_000.0])).isfinite() == torch.tensor([[True, False]] * 2)).all())
