"""`select_beams`: against the reference, then timed beside torch.topk and torch.sort.

    python bench/kernels/select.py --json NAME.json
    python bench/kernels/select.py --check               no GPU needed

The limit is the time in which the GPU copies as many bytes as scores and what is kept; a search waits for one launch.
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
from ttengine.kernels.select import select_beams

SIZES = {
    "halfcheetah-medium": (1, 64, 32),
    "hopper": (1, 256, 128),
    "hopper, 64 problems at once": (64, 256, 128),
    "hopper, 256 problems at once": (256, 256, 128),
    "as many as it ranks": (1, 4096, 512),
}
"""Problems, candidates, beams."""
TINY = {"one": (1, 1, 1), "blocks": (2, 130, 65), "more beams than candidates": (2, 31, 33)}


def inputs(problems: int, candidates: int) -> Tensor:
    """Scores with many ties."""
    generator = torch.Generator(timing.DEVICE).manual_seed(0)
    size = (problems, candidates)
    return torch.randint(0, max(2, candidates // 4), size, generator=generator, device=timing.DEVICE).float()


def topk_and_sort(score: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The same in PyTorch, but for who is kept of equals."""
    kept = score.topk(width, dim=1, sorted=False).indices.sort(dim=1).values
    return score.gather(1, kept), kept


def compare() -> list[str]:
    """Every size; scores and indices have to be the same, ties included."""
    wrong = []
    for name, (problems, candidates, width) in (SIZES if timing.DEVICE.type == "cuda" else TINY).items():
        score = inputs(problems, candidates)
        found, wanted = (keep(score, width) for keep in (select_beams, reference.select_beams))
        for what, ours, theirs in zip(("scores", "indices"), found, wanted, strict=True):
            if not torch.equal(ours, theirs):
                wrong.append(f"select_beams, {name}: {what} other than the reference's")
    return wrong


def measure(limits: timing.Limits, sizes: dict[str, tuple[int, int, int]] = SIZES) -> Iterator[dict[str, Any]]:
    """A row for each size."""
    for name, (problems, candidates, width) in sizes.items():
        score = inputs(problems, candidates)
        us, theirs = (
            timing.median_us(lambda keep=keep, s=score, w=width: keep(s, w)) for keep in (select_beams, topk_and_sort)
        )
        moved = score.nbytes + problems * width * (4 + 8)
        yield timing.row(name, us, 1e6 * moved / limits.bytes_per_s, "PyTorch, topk and sort", theirs)


if __name__ == "__main__":
    sys.exit(timing.main(__doc__, compare, measure))
