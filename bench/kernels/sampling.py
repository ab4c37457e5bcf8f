"""`sample_topk`: against the reference, then timed beside the same filters by torch.sort and torch.topk.

    python bench/kernels/sampling.py --json NAME.json
    python bench/kernels/sampling.py --check               no GPU needed

The limit is the time in which the GPU copies as many bytes as logits, noise and tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # behind Python's own: there is a module called `select`, too

import timing
import torch
from torch import Tensor

from ttengine.kernels import reference
from ttengine.kernels.sampling import sample_topk

RULES: dict[str, dict[str, Any]] = {"cdf 0.6": {"cdf": 0.6}, "top 40": {"k": 40}, "greedy": {"k": 1}}
"""The paper's of actions, walker2d-medium-replay's, and of all that is not drawn."""
SIZES = {
    "halfcheetah-medium, 64 candidates": (64, 101),
    "hopper, 256 candidates": (256, 101),
    "hopper, 64 problems at once": (64 * 256, 101),
}
"""Rows and tokens."""
TINY = {"three tiles": (37, 101), "two tokens": (5, 2)}
NEAR_EDGES = 1000
"""One row in so many may draw another token: its noise fell beside an edge that was rounded the other way."""


def inputs(rows: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Logits as sharp as a trained model's, and noise."""
    generator = torch.Generator(timing.DEVICE).manual_seed(0)
    how: dict[str, Any] = {"generator": generator, "device": timing.DEVICE}
    return 2 * torch.randn(rows, vocabulary, **how), torch.rand(rows, **how)


def compare() -> list[str]:
    """Every size and rule."""
    wrong = []
    for name, size in (SIZES if timing.DEVICE.type == "cuda" else TINY).items():
        for rule, settings in RULES.items():
            arguments = inputs(*size)
            found, wanted = (draw(*arguments, **settings) for draw in (sample_topk, reference.sample_topk))
            other = int((found != wanted).sum())
            if other > size[0] // NEAR_EDGES:
                wrong.append(f"sample_topk, {name}, {rule}: {other} tokens other than the reference's")
    return wrong


def measure(limits: timing.Limits, sizes: dict[str, tuple[int, int]] = SIZES) -> Iterator[dict[str, Any]]:
    """A row for each size and rule, in float32. The reference is plain PyTorch: it sorts for cdf, and takes topk."""
    for name, size in sizes.items():
        logits, noise = inputs(*size)
        moved = logits.nbytes + noise.nbytes + 8 * len(noise)
        for rule, settings in RULES.items():
            us, theirs = (
                timing.median_us(lambda draw=draw, x=logits, u=noise, s=settings: draw(x, u, **s))
                for draw in (sample_topk, reference.sample_topk)
            )
            yield timing.row(f"{name}, {rule}", us, 1e6 * moved / limits.bytes_per_s, "PyTorch, sort and topk", theirs)


if __name__ == "__main__":
    sys.exit(timing.main(__doc__, compare, measure))
