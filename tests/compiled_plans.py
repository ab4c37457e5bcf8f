"""Plans by compiled kernels without a GPU, every access to memory looked at. Prints JSON; a program of its own.

Whole plans of the triton engine run on `virtual_gpu`, in float32 and in bfloat16, their blocks in another order each
time, tiles of candidates and beams as on a GPU with many multiprocessors and as on one.
"""

from __future__ import annotations

import json
import os
import random
import sys
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import numpy as np
from plan_inputs import moments_of
from test_engine_cpp import make_checkpoint
from virtual_gpu.driver import VirtualGPU, plan_on

from ttengine.config import PlanConfig
from ttengine.engines import triton_memory
from ttengine.planner import Plan, Planner

KINDS: dict[str, tuple[dict[str, Any], bool, list[int]]] = {
    "rolling fp32": ({}, False, [4, 16, 1]),
    "window bf16": ({"precision": "bf16", "context_kind": "window"}, True, [16, 1]),
}
"""Settings of the search, whether there is a goal, and candidates or beams of a tile."""


def content(plan: Plan) -> bytes:
    """Everything that was found."""
    return b"".join(getattr(plan, name).tobytes() for name in ("actions", "observations", "rewards", "value", "score"))


def main() -> None:
    """Plan along an episode, as the reference engine does."""
    gpu = VirtualGPU(checks=True, shuffle=random.Random(0))
    plan_on(gpu)
    report: dict[str, Any] = {}
    for kind in sys.argv[1:] or KINDS:
        settings, has_goal, tiles = KINDS[kind]
        checkpoint = make_checkpoint(layers=2, heads=2, width=32, context=2, goal=has_goal)
        planners = [
            Planner(checkpoint, PlanConfig(horizon=4, beam_width=9, engine=engine, **search), device="cpu")
            for engine, search in [
                ("reference", {**settings, "precision": "fp32"}),
                *[("triton", settings)] * len(tiles),
            ]
        ]
        rows = []
        for step, moment in enumerate(moments_of(checkpoint, 4)):
            goal = np.ones(len(moment.observation)) if has_goal else None
            plans = []
            for planner, tile in zip(planners, [0, *tiles], strict=True):
                triton_memory.sequences_of_a_tile = lambda *_, tile=tile: tile
                plans.append(planner.plan(*moment, goal=goal, seed=3, step=step))
            theirs, ours, *others = plans
            rows.append(
                {
                    "same_actions": np.array_equal(ours.actions, theirs.actions),
                    "off": abs(float(ours.score - theirs.score)),
                    "same_bytes": all(content(ours) == content(other) for other in others),
                }
            )
        report[kind] = rows
    report["executed"] = {kernel.function.name: kernel.executed() for kernel in gpu.kernels.values()}
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
