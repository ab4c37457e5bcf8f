"""`forward`, a tile of 16 tokens through all layers: against the model in PyTorch, then timed.

    python bench/kernels/transformer.py --json NAME.json
    python bench/kernels/transformer.py --check               no GPU needed

Timed is one program that passes the 16 tokens of an observation through a model with absolute positions in bfloat16,
its weights in the L2 cache as they are in a plan. The competitor is the model in PyTorch, in bfloat16; rotary positions
it would copy from the host at every call. The limit is the time in which one multiprocessor reads the layers' weights
from the L2 cache, measured in the same run: the bound of a token step.
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
from gpu_times import l2_bytes_per_s
from plan_inputs import random_checkpoint
from torch import Tensor

from ttengine.config import PlanConfig
from ttengine.engines.triton import WARPS
from ttengine.engines.triton_memory import compiled_for
from ttengine.kernels.transformer import embed, forward, pack

SIZES = {"4 layers, 4 heads, 128 wide": (4, 4, 128), "4 layers, 4 heads, 256 wide": (4, 4, 256)}
TINY = {"smallest": (1, 1, 16), "two layers, two heads": (2, 2, 32)}
PASSES = 20
"""Tiles timed in a row: the first finds no weights in the L2 cache, the others do."""


@triton.jit
def one_tile(tokens, hidden, model, pages, lists, SHAPE: tl.constexpr):
    """Pass an observation of `SHAPE.rows` tokens, a sequence's first, through all layers. Grid [1]."""
    lane = tl.arange(0, SHAPE.rows)
    slot = SHAPE.action_dim + 1 + lane
    live = lane >= 0
    x = embed(tl.load(tokens + lane), 0, slot, 0, live, model, SHAPE)
    found = forward(x, slot, live, lane * 0, 0, 0, lists, 0, lists, 1, model, pages, SHAPE, 1, False, False)
    tl.store(hidden + lane[:, None] * SHAPE.width + tl.arange(0, SHAPE.width)[None, :], found)


class Tile:
    """A model, an observation, and what the kernel needs of both."""

    def __init__(self, layers: int, heads: int, width: int, precision: str = "fp32") -> None:
        sizes: dict[str, Any] = {"layers": layers, "heads": heads, "width": width, "bins": 10}
        self.model = random_checkpoint(16, 3, positions="absolute", **sizes).model.to(timing.DEVICE)
        self.tokens = (torch.arange(16, device=timing.DEVICE) * 7 % 10).int()
        config = PlanConfig(1, 1, precision=precision)  # type: ignore[arg-type]
        self.shape, search = compiled_for(self.model.config, config, timing.DEVICE)
        self.packed = pack(self.model.state_dict(), self.shape, (search.entries + 1) * self.shape.transition_dim)
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        part = torch.bfloat16 if precision == "bf16" else torch.float16
        self.pages = torch.full((1, self.shape.page_size), float("nan"), dtype=part, device=timing.DEVICE)
        self.hidden = torch.empty(16, width, dtype=self.dtype, device=timing.DEVICE)
        self.lists = torch.zeros(2, dtype=torch.int32, device=timing.DEVICE)

    def in_kernel(self) -> Tensor:
        """[16, D], what the heads read."""
        one_tile[(1,)](
            self.tokens, self.hidden, self.packed, self.pages, self.lists, SHAPE=self.shape, num_warps=WARPS,
            num_stages=self.shape.stages, enable_fp_fusion=False,
        )  # fmt: skip
        return self.hidden

    def in_pytorch(self) -> Tensor:
        """The same, of the model in whatever it is."""
        with torch.inference_mode():
            return self.model.hidden(self.tokens[None].long())[0]


def compare() -> list[str]:
    """Float32 to rounding; bfloat16, which the interpreter does not know, at most twice as far off as PyTorch's."""
    gpu, wrong = timing.DEVICE.type == "cuda", []
    for name, size in (SIZES if gpu else TINY).items():
        tile = Tile(*size)
        apart = float((tile.in_kernel() - tile.in_pytorch()).abs().max())
        if not apart < timing.TOLERANCE[torch.float32]:
            wrong.append(f"forward, {name}, float32: {apart:.1e} from the model")
        if gpu:
            tile = Tile(*size, precision="bf16")
            right, ours = tile.in_pytorch(), tile.in_kernel().float()
            tile.model.bfloat16()
            apart, theirs = (float((found - right).square().mean().sqrt()) for found in (ours, tile.in_pytorch()))
            if not apart < 2 * theirs:
                wrong.append(f"forward, {name}, bfloat16: {apart:.1e} from the model, PyTorch's {theirs:.1e}")
    return wrong


def measure(
    limits: timing.Limits, sizes: dict[str, tuple[int, int, int]] = SIZES, precision: str = "bf16"
) -> Iterator[dict[str, Any]]:
    """A row for each size."""
    l2 = l2_bytes_per_s(1)
    for name, size in sizes.items():
        tile = Tile(*size, precision=precision)
        tile.model.to(tile.dtype)
        us, theirs = (timing.median_us(lambda r=run: again(r)) / PASSES for run in (tile.in_kernel, tile.in_pytorch))
        least = 1e6 * tile.shape.layers * tile.shape.layer_matrices * tile.dtype.itemsize / l2
        yield timing.row(name, us, least, "the model in PyTorch", theirs)


def again(run: Any) -> Tensor:
    """Run `PASSES` times; return what the last gave."""
    return [run() for _ in range(PASSES)][-1]


if __name__ == "__main__":
    sys.exit(timing.main(__doc__, compare, measure))
