"""Launches of the triton engine without a GPU: compiled and counted, run by nobody. Prints JSON; a program of its own.

The interpreter goes another way to a kernel than a GPU does: there, arguments are specialised, and each specialisation
is compiled. Here Triton believes in a GPU whose driver launches nothing.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import numpy as np
import torch
import triton
from test_engine_cpp import make_checkpoint
from triton.compiler.compiler import max_shared_mem
from virtual_gpu import driver

from ttengine.config import PlanConfig
from ttengine.discretizer import Discretizer
from ttengine.engines import Candidates, triton_memory
from ttengine.engines import triton as engine_module
from ttengine.planner import Clock, Planner


def new(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Memory in which a plan reads as one without a fault."""
    return torch.full(size, 0.0 if dtype.is_floating_point else -1, dtype=dtype, device=device)


def search_where_nothing_lies(planner: Planner) -> str:
    """Search on a device whose numbers nobody can read: whatever looks at one, or copies one there, is an error.

    What a CUDA graph captures may do neither. Returns the error, or nothing.
    """
    nowhere = torch.device("meta")
    planner = Planner(planner.checkpoint, planner.config, objective=slow_and_low, device="cpu")
    engine = planner.engine
    assert isinstance(engine, engine_module.TritonEngine)
    arguments = (planner.model.config, engine.shape, engine.search, planner.discretizer, planner.config, nowhere)
    engine._memory = triton_memory.Memory(1, *arguments)
    engine.discretizer = object.__new__(Discretizer)  # one that does not look at its edges
    vars(engine.discretizer).update(edges=planner.discretizer.edges.to(nowhere), last_duplicate=False)
    try:
        with torch.inference_mode():
            planner._search(Clock(None), [])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def slow_and_low(candidates: Candidates) -> torch.Tensor:
    """An objective that reads everything."""
    height, effort = candidates.observations[..., -1, 0], candidates.actions.square().sum(dim=(-1, -2))
    return candidates.discounted_return(0.5) + candidates.values - candidates.rewards.mean(dim=-1) - height - effort


def main() -> None:
    """Plan with every kind of search, in every way that a control loop may call."""
    gpu = driver.VirtualGPU(runs=False)
    driver.install(gpu)
    engine_module.check_machine = lambda device: None
    triton_memory._new = new  # type: ignore[assignment]

    def newly_compiled() -> list[str]:
        names = sorted(gpu.compiled)
        gpu.compiled.clear()
        return names

    report: dict[str, Any] = {"triton": triton.__version__}
    for name, search, sizes in (
        ("rolling", {"precision": "bf16"}, {}),
        ("window", {"precision": "bf16", "context_kind": "window"}, {"goal": True}),
        ("likelihood", {"objective": "likelihood"}, {}),
    ):
        checkpoint = make_checkpoint(layers=1, heads=1, width=16, context=1, **sizes)
        planner = Planner(checkpoint, PlanConfig(horizon=3, beam_width=2, engine="triton", **search), device="cpu")
        goal = np.zeros(3) if sizes else None
        planner.engine._try_out()  # type: ignore[attr-defined]
        record = {"constructed": newly_compiled()}
        gpu.launched.clear()
        planner.plan(np.zeros(3), goal=goal)
        record["launched"] = list(gpu.launched)
        context = planner.empty_context()
        for step in range(3):
            planner.plan(np.ones(3), context, goal=goal, step=step, seed=step)
            context = context.append(np.ones(3), np.ones(2), 1.0)
        if name != "likelihood":
            planner.plan(np.ones(3), context, goal=goal, deadline_s=1e-9)
            planner.plan(np.ones(3), context, goal=goal, deadline_s=1e9)
        record["later"] = newly_compiled()
        if name != "likelihood":
            record["looked at"] = search_where_nothing_lies(planner)
        report[name] = record
    driver.SHARED_MEMORY = 16
    max_shared_mem.cache_clear()
    planner = Planner(make_checkpoint(layers=2, heads=1, width=16, context=1), planner.config, device="cpu")
    engine_module.describe = lambda device: "a small GPU"
    try:
        planner.engine._try_out()  # type: ignore[attr-defined]
    except Exception as error:
        report["too small"] = f"{type(error).__name__}: {error}"
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
