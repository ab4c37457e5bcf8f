"""`prefill`, `expand`, `observe`, `take` and the selection between: whole plans against the reference, then each timed.

    python bench/kernels/segments.py --json NAME.json
    python bench/kernels/segments.py --check               no GPU needed

Timed are the verbs of the triton engine, in bfloat16, a rolling context and without a graph, beside the reference
engine's in float32. `prefill` is computed by the first `expand`: its time is that one's less a later one's. The limit
is the time of the tokens' matrix products at the GPU's rate; for what only moves numbers, of copying them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # behind Python's own: there is a module called `select`, too

import timing
import torch
from gpu_checks import Case, check_paths, check_plans, correct, random_case
from plan_inputs import moments_of, random_checkpoint

from ttengine.config import PlanConfig
from ttengine.engines import Engine, NoiseKey
from ttengine.objectives import discounted_return

PRESETS, WARM_UP, PLANS, REFERENCE_PLANS = ("halfcheetah-medium", "hopper"), 3, 20, 2


def search(engine: Engine, config: PlanConfig, prefix: torch.Tensor, key: NoiseKey, clock: Any) -> None:
    """Search once, each verb under its name on the clock."""
    score = discounted_return(config.discount)
    with clock("prefill, first expand"):
        engine.prefill([prefix], None, [key])
        candidates = engine.expand(config.expand)
    while candidates.rounds < config.horizon:
        scored = score(candidates)
        with clock("select"):
            engine.select(engine.select_beams(scored, config.beam_width)[1])
        with clock("observe"):
            engine.observe()
        with clock("expand"):
            candidates = engine.expand(config.expand)
    best = engine.select_beams(score(candidates), 1)[1]
    with clock("take"):
        candidates.take(best)


def verbs(case: Case, plans: int, clock: type = timing.Clock, **changes: Any) -> dict[str, float]:
    """Median microseconds of each verb along an episode."""
    planner, timed = case.planner(graph=False, context_kind="rolling", **changes), clock()
    for step, moment in enumerate(moments_of(case.checkpoint, WARM_UP + plans)):
        if step == WARM_UP:
            timed = clock()
        with torch.inference_mode():
            (prefix,) = planner._prefixes(moment.observation[None], [moment.context])
            search(planner.engine, planner.config, prefix, NoiseKey(0, step), timed)
            found = timed.medians_us()  # waits: the next plan's tokens go where this one's were
    found["prefill"] = found.pop("prefill, first expand") - found["expand"]
    return found


def limits_us(case: Case, limits: timing.Limits) -> dict[str, float]:
    """The least time of each verb: matrix products of its tokens (attention aside), or numbers moved."""
    model, plan = case.checkpoint.model.config, case.config
    layers, K = 2 * 12 * model.layers * model.width**2, model.transition_dim
    token, candidates = layers + 2 * model.width * (model.n_bins + 1), plan.beam_width * plan.expand
    flops = {"prefill": (K - 1) * layers, "expand": candidates * (model.action_dim + 1) * token}
    flops |= {"observe": plan.beam_width * (model.observation_dim + 1) * token}
    moved = {"select": 4 * candidates + 12 * plan.beam_width, "take": 12 * plan.horizon * (K + 1)}
    found = {verb: 1e6 * work / limits.flops_per_s for verb, work in flops.items()}
    return found | {verb: 1e6 * count / limits.bytes_per_s for verb, count in moved.items()}


def compare(case: Case | None = None) -> list[str]:
    """Tokens of every round, then whole plans: drafted or not, with and without a graph, alone and in a batch."""
    tiny = Case(random_checkpoint(2, 1, layers=1, heads=1, width=16, bins=10), "", PlanConfig(horizon=2, beam_width=2))
    case = case or (random_case(PRESETS[0]) if timing.DEVICE.type == "cuda" else tiny)
    records = {f"plans {context}": check_plans(case, context, 3) for context in ("rolling", "window")}
    records["paths"] = check_paths(case)
    return [f"{name} are not the reference engine's: {r}" for name, r in records.items() if not correct({name: r})]


def measure(limits: timing.Limits) -> Iterator[dict[str, Any]]:
    """A row for each preset and verb."""
    for preset in PRESETS:
        case = random_case(preset)
        least, ours = limits_us(case, limits), verbs(case, PLANS, precision="bf16")
        ours["observe, no drafts"] = verbs(case, PLANS, precision="bf16", draft=False)["observe"]
        theirs = verbs(case, REFERENCE_PLANS, engine="reference")
        for name, us in ours.items():
            verb = name.split(",")[0]
            yield timing.row(f"{preset}, {name}", us, least[verb], "reference engine, float32", theirs[verb])


if __name__ == "__main__":
    sys.exit(timing.main(__doc__, compare, measure))
