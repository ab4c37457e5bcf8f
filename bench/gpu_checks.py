"""What has to be right before a GPU is timed: kernels and plans against the reference, graph and drafts, memory.

python bench/gpu_checks.py      small plans of every kind, for compute-sanitizer
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import find_ttengine  # noqa: F401 - finds it
import numpy as np
import torch
from plan_inputs import Moment, find_body, moments_of, random_checkpoint, synthetic_log
from token_equality import Pair, compare_plans

from ttengine.checkpoint import Checkpoint
from ttengine.config import PlanConfig, plan_preset
from ttengine.kernels import reference
from ttengine.planner import Plan, Planner

STAGES = ("kernels", "plans", "paths", "memcheck")
"""First words of the stages that say whether something is right; the others only measure."""

FULL_TILES = {"candidates_of_a_tile": 16, "beams_of_a_tile": 16}
"""Those of a batch of hundreds."""

WIDTHS = (1, 31, 32, 33, 127, 128, 200, 256)


class Case(NamedTuple):
    """A model, what to call its weights, and the search of a preset."""

    checkpoint: Checkpoint
    weights: str
    config: PlanConfig

    def planner(self, **changes: Any) -> Planner:
        """A planner on the GPU if there is one: the triton engine's, in float32, unless the changes say otherwise."""
        config = dataclasses.replace(self.config, **{"engine": "triton", **changes})
        return Planner(self.checkpoint, config, device="cuda" if torch.cuda.is_available() else "cpu")


def random_case(preset: str) -> Case:
    """The search of a preset with an untrained model of the released size."""
    body = find_body(preset)
    return Case(random_checkpoint(body.observation_dim, body.action_dim), "random", plan_preset(preset))


def with_tiles(planner: Planner, problems: int, **rows: int) -> Planner:
    """Let a planner take tiles of so many candidates (`candidates_of_a_tile`) or beams (`beams_of_a_tile`)."""
    memory = planner.engine._remember(problems)  # type: ignore[attr-defined]
    for name, count in rows.items():
        assert hasattr(memory, name)
        setattr(memory, name, count)
    return planner


def correct(report: Mapping[str, Any]) -> bool:
    """Whether something was checked, and no check in a report failed: by an error, `ok` not true, or a mismatch.

    A check that was skipped, as memcheck is where its tool is missing, did not fail.
    """
    checks = [record for name, record in report.items() if name.split()[0] in STAGES]
    return bool(checks) and not any(
        "error" in check or not check.get("ok", True) or check.get("mismatches") for check in checks
    )


def on_device(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Copies on the GPU, or the tensors themselves under the interpreter."""
    return [each.to("cuda" if torch.cuda.is_available() else "cpu") for each in tensors]


def check_kernels(rows: int = 2000) -> dict[str, Any]:
    """Each stand-alone kernel against its reference; draws beside an edge are counted."""
    from ttengine.kernels.attention import paged_attention
    from ttengine.kernels.sampling import sample_topk
    from ttengine.kernels.select import select_beams

    generator = torch.Generator().manual_seed(0)
    logits, noise = torch.randn(rows, 101, generator=generator) * 2, torch.rand(rows, generator=generator)
    other = {}
    for rule in ({"cdf": 0.6}, {"k": 1}, {"k": 40}, {"cdf": 0.5, "k": 5}):
        found = sample_topk(*on_device(logits, noise), **rule).cpu()
        other[str(rule)] = int((found != reference.sample_topk(logits, noise, **rule)).sum())
    rows_of_pages = max(16, rows // 7)
    query = torch.randn(rows_of_pages, 4, 32, generator=generator)
    keys, values = torch.randn(2, 64, 4, 15, 32, generator=generator)
    table = torch.randint(0, 64, (rows_of_pages, 7), generator=generator).int()
    lengths = torch.randint(0, 7 * 15 + 1, (rows_of_pages,), generator=generator).int()
    found = paged_attention(*on_device(query, keys, values, table, lengths)).cpu()
    apart = float((found - reference.paged_attention(query, keys, values, table, lengths)).abs().max())
    wrong = 0
    for width in WIDTHS:
        score = torch.randint(0, 99, (3, 2 * width), generator=generator).float()
        pairs = zip(select_beams(*on_device(score), width), reference.select_beams(score, width), strict=True)
        wrong += sum(not torch.equal(ours.cpu(), theirs) for ours, theirs in pairs)
    return {
        "ok": max(other.values()) <= rows // 1000 and apart < 1e-4 and wrong == 0,
        f"other_tokens_of_{rows}": other,
        "attention_largest_error": apart if math.isfinite(apart) else str(apart),  # JSON has no NaN
        "wrong_selections": wrong,
    }


def check_plans(case: Case, context: str, plans: int, limit_s: float = math.inf) -> dict[str, Any]:
    """Tokens of whole plans in float32 against the reference engine's on the same device, near-ties counted.

    Near-ties are rare: with many of them arithmetic is worse than float32's, and that is not right either.
    """
    pair = Pair(case.checkpoint, dataclasses.replace(case.config, context_kind=context), "triton")  # type: ignore[arg-type]
    log = synthetic_log(case.checkpoint.discretizer, case.checkpoint.model.config.action_dim)
    record = compare_plans(pair, log, 0, plans, limit_s)
    counts: dict[str, Any] = {key: record[key] for key in ("plans", "equal", "near_ties", "mismatches")}
    return {"ok": counts["near_ties"] <= 2 + counts["plans"] // 4, "weights": case.weights, **counts}


def graphs_are_where_they_belong(graphs: Mapping[str, bool], gpu: bool) -> bool:
    """Whether every planner captured a graph but the one called "no graph"; without a GPU, none."""
    return dict(graphs) == {name: gpu and name != "no graph" for name in graphs}


def check_paths(case: Case) -> dict[str, Any]:
    """The graph is replayed; drafts come true; neither changes a byte; a batch plans like its problems alone.

    A batch also in tiles as full as those of a large one.
    What comes back through the graph is what the reference engine plans, near-ties aside: for one moment at least.
    """
    moments = moments_of(case.checkpoint, 3)
    plans, graphs = {}, {}
    for name, change in (("as is", {}), ("no drafts", {"draft": False}), ("no graph", {"graph": False})):
        planner = case.planner(**change)
        plans[name] = [planner.plan(*moment, seed=3, step=i) for i, moment in enumerate(moments)]
        graphs[name] = planner.engine._memory.graph is not None  # type: ignore[attr-defined]
    found = {name: [plan.actions.tobytes() + plan.score.tobytes() for plan in some] for name, some in plans.items()}
    for name, rows in (("batch", {}), ("full tiles", FULL_TILES)):
        batch = with_tiles(case.planner(), 3, **rows).plan(
            np.stack([m.observation for m in moments]), [m.context for m in moments], seed=[3, 3, 3], step=[0, 1, 2]
        )
        found[name] = [batch.actions[b].tobytes() + batch.score[b].tobytes() for b in range(3)]
    tiles, tiles_without_drafts = (
        sum(plan.counters.observe_tiles for plan in plans[name]) for name in ("as is", "no drafts")
    )
    same_bytes = {name: some == found["as is"] for name, some in found.items()}
    as_reference = sum(map(same_plan, plans["as is"], reference_plans(case, moments)))
    return {
        "ok": all(same_bytes.values())
        and graphs_are_where_they_belong(graphs, torch.cuda.is_available())
        and tiles < tiles_without_drafts
        and as_reference > 0,
        "same_bytes": same_bytes,
        "graph": graphs,
        "tiles": {"drafts": tiles, "no drafts": tiles_without_drafts},
        "plans_as_reference_of_3": as_reference,
    }


def reference_plans(case: Case, moments: Sequence[Moment]) -> list[Plan]:
    """What the reference engine plans on the same device as triton."""
    planner = case.planner(engine="reference")
    return [planner.plan(*moment, seed=3, step=i) for i, moment in enumerate(moments)]


def same_plan(ours: Plan, theirs: Plan) -> bool:
    """Whether two engines planned the same actions, and the score is the same but for rounding."""
    near = abs(ours.score - theirs.score) < 1e-3 * max(1.0, abs(theirs.score))
    return np.array_equal(ours.actions, theirs.actions) and bool(near)


def memcheck(limit_s: float = 240.0) -> dict[str, Any]:
    """Compute-sanitizer over a tiny plan of each kind, where the tool is here; ended after `limit_s`, it has failed."""
    tool = shutil.which("compute-sanitizer") or next(Path("/usr/local").glob("cuda*/bin/compute-sanitizer"), None)
    if tool is None:
        return {"skipped": "compute-sanitizer is not on this machine"}
    command = [str(tool), "--tool", "memcheck", "--error-exitcode", "9", sys.executable, __file__]
    # PyTorch's pool would hide reads past the end of one tensor: they lie in the next
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s, env=environment)
    return {"ok": done.returncode == 0, "said": (done.stdout + done.stderr).strip().splitlines()[-3:]}


def tiny_plans() -> None:
    """The stand-alone kernels, and small plans of each kind, kernels launched one by one."""
    print(check_kernels(rows=32))
    for objective, context, precision, width in (
        ("return", "rolling", "fp32", 32),
        ("return", "window", "fp32", 64),
        ("return", "rolling", "bf16", 64),
        ("return", "rolling", "fp16", 32),
        ("return", "window", "bf16", 32),
        ("likelihood", "rolling", "fp32", 32),
        ("likelihood", "window", "bf16", 64),
    ):
        checkpoint = random_checkpoint(5, 2, layers=2, heads=2, width=width)
        config = PlanConfig(3, 9, context_kind=context, precision=precision, objective=objective, graph=False)  # type: ignore[arg-type]
        planner = Case(checkpoint, "random", config).planner()
        for moment in moments_of(checkpoint, 2):
            print(objective, context, precision, width, float(planner.plan(*moment).score))


if __name__ == "__main__":
    tiny_plans()
