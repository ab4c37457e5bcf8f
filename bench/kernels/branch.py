"""`branch`: whole likelihood searches against the reference, then a token of all beams timed.

    python bench/kernels/branch.py --json NAME.json
    python bench/kernels/branch.py --check               no GPU needed

Timed are 32 and 128 beams that each go on with a token, in bfloat16 and a rolling context, beside the reference engine
in float32, which passes the token through the model when it is asked for the next one's probabilities. The limit is the
time of the tokens' matrix products at the GPU's rate.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # behind Python's own: there is a module called `select`, too

import timing
import torch
from gpu_checks import Case, random_case, reference_plans, same_plan
from plan_inputs import moments_of, random_checkpoint

from ttengine.config import PlanConfig
from ttengine.engines import NoiseKey

BEAMS, TOKENS, WARM_UP = (32, 128), 100, 20


def token_us(case: Case, engine: str, tokens: int, clock: type = timing.Clock, **changes: Any) -> float:
    """Median microseconds for all beams to go on with a token, along one search. The first beams are equal."""
    planner, timed = case.planner(engine=engine, context_kind="rolling", **changes), clock()
    (moment,) = moments_of(case.checkpoint, 1)
    beams = torch.arange(case.config.beam_width, device=planner.engine.device)[None]  # type: ignore[attr-defined]
    with torch.inference_mode():
        planner.engine.prefill(planner._prefixes(moment.observation[None], [moment.context]), None, [NoiseKey()])
        for token in range(tokens):
            likely = planner.engine.next_log_probabilities().argmax(dim=-1)
            from_whom = beams * 0 if token == 0 else beams
            with clock_of(timed, token):
                planner.engine.branch(from_whom, likely.gather(1, from_whom))
                if engine == "reference":
                    planner.engine.next_log_probabilities()
    return timed.medians_us()["token"]


def clock_of(timed: Any, token: int) -> Any:
    """Time a token under its name; the first ones, and those of the first page, under another."""
    return timed("token" if token >= WARM_UP else "warm-up")


def compare(case: Case | None = None) -> list[str]:
    """Actions and scores of whole likelihood searches."""
    tiny = Case(random_checkpoint(2, 1, layers=1, heads=1, width=16, bins=10), "", PlanConfig(horizon=2, beam_width=2))
    case = case or (random_case("halfcheetah-medium") if timing.DEVICE.type == "cuda" else tiny)
    moments, wrong = moments_of(case.checkpoint, 2), []
    for context in ("rolling", "window"):
        config = dataclasses.replace(case.config, objective="likelihood", context_kind=context)  # type: ignore[arg-type]
        planner = case._replace(config=config).planner()
        ours = [planner.plan(*moment, seed=3, step=i) for i, moment in enumerate(moments)]
        if not all(map(same_plan, ours, reference_plans(case._replace(config=config), moments))):
            wrong.append(f"plans with context {context} are not the reference engine's")
    return wrong


def measure(limits: timing.Limits) -> Iterator[dict[str, Any]]:
    """A row for each number of beams."""
    base = random_case("hopper")
    model = base.checkpoint.model.config
    token = 2 * 12 * model.layers * model.width**2 + 2 * model.width * (model.n_bins + 1)
    for width in BEAMS:
        case = base._replace(config=dataclasses.replace(base.config, beam_width=width, objective="likelihood"))
        ours = token_us(case, "triton", TOKENS, precision="bf16")
        theirs = token_us(case, "reference", TOKENS)
        least = 1e6 * width * token / limits.flops_per_s
        yield timing.row(f"hopper, {width} beams", ours, least, "reference engine, float32", theirs)


if __name__ == "__main__":
    sys.exit(timing.main(__doc__, compare, measure))
