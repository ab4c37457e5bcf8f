"""What the Triton kernels execute, counted without a GPU: instructions of a warp, bytes read, barriers; by source line.

    python bench/executed_instructions.py                         halfcheetah's shipped model and preset, bf16
    python bench/executed_instructions.py --precision fp32 --lines 30

Kernels are compiled for sm_90 and run on `virtual_gpu`, with a horizon and a beam cut short: what a token or a tile
costs hardly depends on them. A step is a token of `expand`'s tile, of `observe` a pass of one beam (of all in a tile of
several their share), the whole of `prefill`. Counted are PTX instructions; ptxas drops most moves.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
from collections import Counter

os.environ.pop("TRITON_INTERPRET", None)

import find_ttengine  # noqa: F401 - finds it
from plan_inputs import moments_of
from rich.console import Console
from rich.table import Table
from virtual_gpu.driver import MULTIPROCESSORS, Kernel, VirtualGPU, plan_on

from ttengine.checkpoint import load
from ttengine.config import plan_preset
from ttengine.engines import triton_memory
from ttengine.engines.triton import WARPS
from ttengine.planner import Planner


def by_line(kernel: Kernel) -> Counter[str]:
    """Executed instructions of all warps by the line of the source that they come from."""
    here, lines = "?", {}
    for number, text in enumerate(kernel.text.splitlines(), 1):
        found = re.search(r"\.loc\s.*// *(\S+?):(\d+)", text)
        here = f"{found[1]}:{found[2]}" if found else here
        lines[number] = here
    total: Counter[str] = Counter()
    for block, times in zip(kernel.function.blocks, kernel.passes, strict=True):
        for instruction in block.instructions:
            total[lines[instruction.line]] += times
    return total


def main() -> None:
    """Plan once on the virtual GPU; print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="halfcheetah", help="file or shipped name")
    parser.add_argument("--preset", default="halfcheetah-medium")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp16", "fp32"])
    parser.add_argument("--context", default="rolling", choices=["rolling", "window"])
    parser.add_argument(
        "--tile", type=int, choices=[1, 2, 4, 8, 16], help="candidates or beams; by default as for one plan"
    )
    parser.add_argument("--lines", type=int, default=10, help="of each kernel, the most expensive ones")
    arguments = parser.parse_args()
    gpu = VirtualGPU()
    plan_on(gpu)
    checkpoint, preset = load(arguments.model), plan_preset(arguments.preset)
    beams, rule = max(4, arguments.tile or 0), triton_memory.sequences_of_a_tile
    whole = {beams * preset.expand: preset.beam_width * preset.expand, beams: preset.beam_width}
    triton_memory.sequences_of_a_tile = lambda cut_short, _, least: (
        arguments.tile or rule(whole[cut_short], MULTIPROCESSORS, least)
    )
    settings = {"engine": "triton", "horizon": 2, "beam_width": beams, "graph": False}
    settings |= {"precision": arguments.precision, "context_kind": arguments.context}
    planner = Planner(checkpoint, dataclasses.replace(preset, **settings), device="cpu")
    plan = planner.plan(*moments_of(checkpoint, 12)[-1])
    table = Table("kernel", "instructions of a warp and step", "bytes read", "barriers")
    for kernel in gpu.kernels.values():
        name, blocks = kernel.function.name, kernel.blocks
        tokens = checkpoint.model.config.action_dim + 1
        steps = {"expand": blocks * tokens, "observe": plan.counters.observe_tiles, "prefill": blocks}.get(name)
        if steps is None:
            continue
        warps = steps * WARPS
        figures = (kernel.executed().total() / warps, kernel.loaded / steps, kernel.barriers / steps)
        table.add_row(name, *(f"{figure:,.0f}" for figure in figures))
        for line, count in by_line(kernel).most_common(arguments.lines):
            table.add_row(f"  {line}", f"{count / warps:,.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
