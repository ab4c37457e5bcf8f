"""Shared windows: the same bytes with sharing and without, less computed; then plans timed with and without.

    python bench/kernels/sharing.py --json NAME.json
    python bench/kernels/sharing.py --check               no GPU needed

Timed are whole plans with the paper's window, in bfloat16, as graphs; the competitor computes every beam's window. The
limit is the time of the matrix products of the tokens that were passed through the model, at the GPU's rate.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # behind Python's own: there is a module called `select`, too

import timing
from gpu_checks import Case, random_case
from gpu_times import timed
from plan_inputs import moments_of, random_checkpoint

from ttengine.config import PlanConfig

PRESETS, PLANS = ("halfcheetah-medium", "hopper"), 200


def compare(case: Case | None = None) -> list[str]:
    """Bytes of plans, and rows that passed through the model."""
    tiny = Case(random_checkpoint(2, 1, layers=1, heads=1, width=16, bins=4), "", PlanConfig(horizon=3, beam_width=4))
    case = case or (random_case(PRESETS[0]) if timing.DEVICE.type == "cuda" else tiny)
    moments, wrong = moments_of(case.checkpoint, 2), []
    shared, alone = (case.planner(context_kind="window", deduplicate=share) for share in (True, False))
    for step, moment in enumerate(moments):
        ours, theirs = (planner.plan(*moment, seed=3, step=step) for planner in (shared, alone))
        if (ours.actions.tobytes(), ours.score.tobytes()) != (theirs.actions.tobytes(), theirs.score.tobytes()):
            wrong.append(f"plan {step} has other bytes where windows are shared")
        if ours.counters.physical_rows > theirs.counters.physical_rows:
            wrong.append(f"plan {step} computes more rows where windows are shared")
    return wrong


def measure(limits: timing.Limits) -> Iterator[dict[str, Any]]:
    """A row for each preset."""
    for preset in PRESETS:
        case = random_case(preset)
        moments, model = moments_of(case.checkpoint, PLANS), case.checkpoint.model.config
        both = [case.planner(context_kind="window", precision="bf16", deduplicate=share) for share in (True, False)]
        ours, theirs = (1e3 * timed(planner, moments, PLANS)["p50_ms"] for planner in both)
        flops = both[0].engine.counters.physical_rows * 2 * 12 * model.layers * model.width**2
        yield timing.row(f"{preset}, a plan", ours, 1e6 * flops / limits.flops_per_s, "every window computed", theirs)


if __name__ == "__main__":
    sys.exit(timing.main(__doc__, compare, measure))
