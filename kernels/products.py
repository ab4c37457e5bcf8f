"""Products on matrix units, with sums of float32: of 16-bit numbers as they are, of float32 in two parts.

A float32 number is taken apart into its nearest float16, and 2^11 times the rest, which is a float16 again: together
22 bits at least, or 2^-36 of what is below 6e-5. Of the four products of two numbers' parts that of both rests is
smaller than float32 can tell, and is left out. What is beyond float16's 65,504 becomes infinite. Source: Ootomo and
Yokota, "Recovering single precision accuracy from Tensor Cores while surpassing the FP32 theoretical peak performance"
(2022).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SCALE = tl.constexpr(2048.0)
"""Of rests: so they are no smaller than float16 can say."""


def take_apart(x: Tensor) -> Tensor:
    """[...] float32 -> [2, ...] float16: the nearest, and the scaled rest."""
    nearest = x.half()
    return torch.stack([nearest, ((x - nearest.float()) * SCALE.value).half()])


@triton.jit
def factor(x, kind: tl.constexpr):
    """What `product` takes: numbers of a kind, of float32 in two parts."""
    nearest = x.to(tl.float16 if kind == tl.float32 else kind)
    return (nearest, ((x - nearest.to(tl.float32)) * SCALE).to(tl.float16)) if kind == tl.float32 else (nearest,)


@triton.jit
def whole(x):
    """A factor's numbers, float32."""
    out = x[0].to(tl.float32)
    if len(x) == 2:
        out = tl.fma(x[1].to(tl.float32), 1.0 / SCALE, out)
    return out


@triton.jit
def load_factor(at, mask, kind: tl.constexpr, REST: tl.constexpr):
    """A factor from memory: numbers of that kind, or kept in parts, each rest REST numbers behind its nearest."""
    first = tl.load(at, mask=mask, other=0.0)
    return (first, tl.load(at + REST, mask=mask, other=0.0)) if REST > 0 else factor(first, kind)


@triton.jit
def store_factor(at, x, mask, REST: tl.constexpr):
    """To where `load_factor` finds it."""
    tl.store(at, x[0], mask=mask)
    if REST > 0:
        tl.store(at + REST, x[1], mask=mask)


@triton.jit
def transposed(x):
    """[A, R, C] -> [A, C, R]"""
    nearest = tl.permute(x[0], (0, 2, 1))
    return (nearest, tl.permute(x[1], (0, 2, 1))) if len(x) == 2 else (nearest,)


@triton.jit
def product(a, b):
    """[..., R, N] times [..., N, C], factors of one kind -> [..., R, C] float32."""
    if len(a) == 1:
        out = tl.dot(a[0], b[0], out_dtype=tl.float32)
    else:
        rests = tl.dot(a[1], b[0], acc=tl.dot(a[0], b[1], out_dtype=tl.float32))
        out = tl.dot(a[0], b[0], acc=rests * (1.0 / SCALE))
    return out


@triton.jit
def add_product(x, scale, a, b):
    """Return x * scale + product(a, b): of 16-bit numbers summed up by the matrix unit, of float32 after it."""
    return tl.fma(x, scale, product(a, b)) if len(a) == 2 else tl.dot(a[0], b[0], acc=x * scale)
