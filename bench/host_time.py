"""What the host does in a plan of the triton engine, timed without a GPU: all but kernels, launches and copies.

    python bench/host_time.py
    python bench/host_time.py --preset hopper --context rolling --problems 1 64 1024

From NumPy observations to NumPy actions, around a graph that replays nothing. On a GPU this comes on top of what the
kernels take. Random weights; each plan follows from the one before, as in a control loop.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import find_ttengine  # noqa: F401 - finds it
import numpy as np
import torch
from plan_inputs import find_body, moments_of, random_checkpoint
from rich.console import Console
from rich.table import Table
from virtual_gpu.driver import VirtualGPU, plan_on

from ttengine.config import plan_preset
from ttengine.engines import TritonEngine, triton_memory
from ttengine.planner import Planner


def without_kernels(planner: Planner) -> Planner:
    """Let a planner's searches find nothing, at once."""
    engine = planner.engine
    assert isinstance(engine, TritonEngine)

    def run(search: Callable[[], Any], *, anytime: bool) -> Any:
        engine._round = engine.config.horizon
        return engine._fetch()

    engine.run = run  # type: ignore[method-assign]
    return planner


def untouched(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Memory in which a plan reads as one without a fault, and that takes none where nobody writes."""
    return torch.zeros((), dtype=dtype).expand(size) if dtype.is_floating_point else torch.full(size, -1, dtype=dtype)


def latencies(planner: Planner, problems: int, plans: int) -> list[float]:
    """Seconds of plans of a batch, sorted; each problem is one control step ahead of the one before it."""
    moments = moments_of(planner.checkpoint, plans + problems)
    taken = []
    for step in range(plans):
        batch = moments[step : step + problems]
        observations, contexts = np.stack([each.observation for each in batch]), [each.context for each in batch]
        began = time.perf_counter()
        planner.plan(observations, contexts, step=step)
        taken.append(time.perf_counter() - began)
    return sorted(taken[plans // 10 :])  # the first ones find memory and pages


def main() -> None:
    """Plan without kernels; print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    presets = ["halfcheetah-medium", "hopper", "walker2d-medium", "ant-medium"]
    parser.add_argument("--preset", nargs="+", default=presets)
    parser.add_argument("--context", nargs="+", default=["rolling", "window"], choices=["rolling", "window"])
    parser.add_argument("--problems", nargs="+", type=int, default=[1, 256])
    parser.add_argument("--plans", type=int, default=100, help="of each (default 100)")
    arguments = parser.parse_args()
    plan_on(VirtualGPU(runs=False))
    triton_memory._new = untouched  # type: ignore[assignment]
    table = Table("preset", "context", "problems", "ms p50", "ms p90", "us a problem")
    for preset, kind, problems in itertools.product(arguments.preset, arguments.context, arguments.problems):
        body = find_body(preset)
        config = dataclasses.replace(plan_preset(preset), engine="triton", context_kind=kind)
        planner = without_kernels(
            Planner(random_checkpoint(body.observation_dim, body.action_dim), config, device="cpu")
        )
        taken = latencies(planner, problems, arguments.plans)
        middle, late = (taken[int(len(taken) * share)] for share in (0.5, 0.9))
        figures = (f"{middle * 1e3:.2f}", f"{late * 1e3:.2f}", f"{middle / problems * 1e6:.0f}")
        table.add_row(preset, kind, str(problems), *figures)
    Console().print(table)


if __name__ == "__main__":
    main()
