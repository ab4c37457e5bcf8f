"""Plans by compiled kernels without a GPU, every access to memory looked at. Prints JSON; a program of its own.

Whole plans of the triton engine run on `virtual_gpu`, in float32 and in bfloat16, their blocks in another order each
time, tiles of candidates and beams as on a GPU with many multiprocessors and as on one. The first planner of each kind
captures its search and replays it, the others launch kernel by kernel.
"""

from __future__ import annotations

import json
import os
import random
import sys
from typing import Any, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)

import numpy as np
import torch
from plan_inputs import moments_of
from test_engine_cpp import make_checkpoint
from virtual_gpu.driver import VirtualGPU, plan_on

from ttengine.config import PlanConfig
from ttengine.engines import Candidates, triton_memory
from ttengine.objectives import Objective
from ttengine.planner import Plan, Planner


def cautious(candidates: Candidates) -> torch.Tensor:
    """An objective of PyTorch's operations."""
    return candidates.values - candidates.rewards[..., -1] - candidates.actions.square().sum(dim=(-1, -2))


class Kind(NamedTuple):
    """What is planned: settings of the search, whether there is a goal, and candidates or beams of a tile."""

    settings: dict[str, Any]
    tiles: list[int]
    goal: bool = False
    objective: Objective | None = None


KINDS = {
    "rolling fp32": Kind({}, [4, 16, 1]),
    "window bf16": Kind({"precision": "bf16", "context_kind": "window"}, [16, 1], goal=True),
    "objective fp32": Kind({}, [4, 4], objective=cautious),
}


def content(plan: Plan) -> bytes:
    """Everything that was found."""
    return b"".join(getattr(plan, name).tobytes() for name in ("actions", "observations", "rewards", "value", "score"))


def main() -> None:
    """Plan along an episode, as the reference engine does."""
    gpu = VirtualGPU(checks=True, shuffle=random.Random(0))
    plan_on(gpu)
    report: dict[str, Any] = {}
    for kind in sys.argv[1:] or KINDS:
        settings, tiles, has_goal, objective = KINDS[kind]
        checkpoint = make_checkpoint(layers=2, heads=2, width=32, context=2, goal=has_goal)
        searches = [{**settings, "engine": "reference", "precision": "fp32"}]
        searches += [{**settings, "engine": "triton", "graph": i == 0} for i in range(len(tiles))]
        reference, *planners = (
            Planner(checkpoint, PlanConfig(horizon=4, beam_width=9, **search), objective=objective, device="cpu")
            for search in searches
        )
        rows = []
        for step, moment in enumerate(moments_of(checkpoint, 4)):
            goal = np.ones(len(moment.observation)) if has_goal else None
            theirs = reference.plan(*moment, goal=goal, seed=3, step=step)
            plans = []
            for planner, tile in zip(planners, tiles, strict=True):
                triton_memory.sequences_of_a_tile = lambda *_, tile=tile: tile
                plans.append(planner.plan(*moment, goal=goal, seed=3, step=step))
            ours, *others = plans
            rows.append(
                {
                    "same_actions": np.array_equal(ours.actions, theirs.actions),
                    "off": abs(float(ours.score - theirs.score)),
                    "same_bytes": all(content(ours) == content(other) for other in others),
                    "graphs": [planner.engine._memory.graph is not None for planner in planners],  # type: ignore[attr-defined]
                }
            )
        report[kind] = rows
    report["executed"] = {kernel.function.name: kernel.executed() for kernel in gpu.kernels.values()}
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
