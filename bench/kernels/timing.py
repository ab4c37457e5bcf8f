"""What the benches of kernels share: compare; then time beside a competitor and the machine's limits, print, write.

Imported before Triton: without a GPU it has to be told to interpret.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent))
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    from interpreting import round_alike, speed_up

    speed_up()
    round_alike()

import find_ttengine  # noqa: F401 - finds it
import triton
from harness import gpu_machine, significant, write_json

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest difference from the reference that is rounding, for numbers of order one."""


class Limits(NamedTuple):
    """What this GPU can do, measured in the same run."""

    bytes_per_s: float
    """of copying 512 MB: read and written bytes"""
    flops_per_s: float
    """of a bfloat16 matrix product with 8192 rows and columns"""


def measure_limits() -> Limits:
    """Copy, and multiply."""
    source, square = torch.zeros(1 << 27, device=DEVICE), torch.zeros(8192, 8192, dtype=torch.bfloat16, device=DEVICE)
    target, product = torch.empty_like(source), torch.empty_like(square)
    copy_us = median_us(lambda: target.copy_(source))
    product_us = median_us(lambda: torch.mm(square, square, out=product))
    return Limits(2 * source.nbytes / copy_us * 1e6, 2 * 8192**3 / product_us * 1e6)


def median_us(run: Callable[[], object]) -> float:
    """Median time of what the GPU does in `run`, replayed as a CUDA graph: the host has no part in it.

    The L2 cache is cleared before every replay.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles, and lets libraries allocate, which a capture may not
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return 1e3 * float(triton.testing.do_bench(graph.replay, rep=200, return_mode="median"))


class Clock:
    """Times named pieces of a longer run on the GPU, which is kept busy before each: meanwhile the host launches it."""

    def __init__(self) -> None:
        self.events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = defaultdict(list)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(4_000_000)  # cycles: about two milliseconds
        start.record()
        yield
        end.record()
        self.events[name].append((start, end))

    def medians_us(self) -> dict[str, float]:
        """Wait for the GPU; return the median time of each piece."""
        torch.cuda.synchronize()
        return {name: statistics.median(1e3 * a.elapsed_time(b) for a, b in all) for name, all in self.events.items()}


def row(case: str, us: float, limit_us: float, competitor: str, competitor_us: float) -> dict[str, Any]:
    """A line of the table: the kernel's time, the share of the limit that it reaches, the competitor's time."""
    numbers = {"us": us, "of_limit": limit_us / us, "competitor_us": competitor_us, "x": competitor_us / us}
    return {"case": case, "competitor": competitor, **{key: significant(value) for key, value in numbers.items()}}


def main(
    doc: str,
    compare: Callable[[], list[str]],
    measure: Callable[[Limits], Iterable[dict[str, Any]]],
    argv: list[str] | None = None,
) -> int:
    """Run one bench.

    Args:
        doc: what `--help` says.
        compare: the kernel with its reference; returns what is wrong, as sentences.
        measure: times it; yields rows.
        argv: the command line.
    Returns:
        The exit code: 0; 1 if something is wrong, before anything is timed; 2 without a GPU.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare; without a GPU interpreted, at tiny sizes")
    parser.add_argument("--json", type=Path, default=None, help="write machine, versions, commit and numbers")
    arguments = parser.parse_args(argv)
    if DEVICE.type == "cpu" and not arguments.check:
        print("kernels are timed on a GPU, and PyTorch sees none here; --check only compares", file=sys.stderr)
        return 2
    wrong = compare()
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    if wrong or arguments.check:
        return 1 if wrong else 0
    limits, rows = measure_limits(), []
    print(f"copies {limits.bytes_per_s / 1e9:.0f} GB/s, multiplies {limits.flops_per_s / 1e12:.0f} TFLOP/s in bfloat16")
    print(f"{'case':44}{'us':>9}{'of limit':>10}{'competitor us':>15}{'x':>8}  competitor")
    for each in measure(limits):
        rows.append(each)
        case, us, share, theirs = (each[key] for key in ("case", "us", "of_limit", "competitor_us"))
        print(f"{case:44}{us:>9}{share:>10}{theirs:>15}{each['x']:>8}  {each['competitor']}", flush=True)
    if arguments.json is not None:
        write_json(arguments.json, {"machine": gpu_machine(), "limits": limits._asdict(), "rows": rows})
    return 0
