"""`paged_attention`: against the reference, then timed beside scaled_dot_product_attention over gathered pages.

    python bench/kernels/attention.py --json NAME.json
    python bench/kernels/attention.py --check               no GPU needed

The limit is the time in which the GPU copies as many bytes as queries, outputs, tables and the keys and values seen.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # behind Python's own: there is a module called `select`, too

import timing
import torch
import torch.nn.functional as F
from torch import Tensor

from ttengine.kernels import reference
from ttengine.kernels.attention import paged_attention

HEADS, HEAD = 4, 32
SIZES = {
    "halfcheetah-medium, 64 candidates": (64, 24, 7),
    "hopper, 256 candidates": (256, 15, 7),
    "walker2d-medium, 256 candidates": (256, 24, 7),
    "hopper, 64 problems at once": (64 * 256, 15, 7),
}
"""Rows, slots of a page, pages of a row, as in a rolling context of 5 transitions."""
TINY = {"two tiles": (17, 7, 3), "one slot": (3, 1, 2)}


def inputs(rows: int, slots: int, entries: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Arguments of `paged_attention`: no two rows share a page, and each sees half of its slots to all of them."""
    generator = torch.Generator(timing.DEVICE).manual_seed(0)
    how: dict[str, Any] = {"generator": generator, "device": timing.DEVICE}
    query = torch.randn(rows, HEADS, HEAD, **how).to(dtype)
    keys, values = (torch.randn(rows * entries, HEADS, slots, HEAD, **how).to(dtype) for _ in range(2))
    table = torch.randperm(rows * entries, **how).view(rows, entries).int()
    lengths = torch.randint((entries * slots + 1) // 2, entries * slots + 1, (rows,), **how).int()
    return query, keys, values, table, lengths


def gathered(query: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor) -> Tensor:
    """The same in PyTorch: gather the pages, mask what is not seen."""
    pages = table.long()
    key, value = (pool[pages].transpose(1, 2).flatten(2, 3) for pool in (keys, values))  # [R, A, entries * S, D/A]
    seen = torch.arange(key.shape[2], device=key.device) < lengths[:, None]
    return F.scaled_dot_product_attention(query[:, :, None], key, value, attn_mask=seen[:, None, None])[:, :, 0]


def compare() -> list[str]:
    """Every size and dtype; the interpreter knows no bfloat16, and the reference takes seconds for a large batch."""
    gpu, wrong = timing.DEVICE.type == "cuda", []
    for name, size in (dict(list(SIZES.items())[:3]) if gpu else TINY).items():
        for dtype in (torch.float32, torch.bfloat16) if gpu else (torch.float32,):
            arguments = inputs(*size, dtype)
            apart = (paged_attention(*arguments) - reference.paged_attention(*arguments)).float().abs().max()
            if not apart < timing.TOLERANCE[dtype]:
                wrong.append(f"paged_attention, {name}, {dtype}: {apart:.1e} from the reference")
    return wrong


def measure(limits: timing.Limits, sizes: dict[str, tuple[int, int, int]] = SIZES) -> Iterator[dict[str, Any]]:
    """A row for each size, in bfloat16."""
    for name, size in sizes.items():
        arguments = inputs(*size, torch.bfloat16)
        query, _, _, table, lengths = arguments
        seen = int(lengths.sum()) * HEADS * HEAD * 2
        moved = 2 * query.nbytes + table.nbytes + lengths.nbytes + seen * query.element_size()
        us, theirs = (timing.median_us(lambda f=f, a=arguments: f(*a)) for f in (paged_attention, gathered))
        yield timing.row(name, us, 1e6 * moved / limits.bytes_per_s, "scaled_dot_product_attention, gathered", theirs)


if __name__ == "__main__":
    sys.exit(timing.main(__doc__, compare, measure))
