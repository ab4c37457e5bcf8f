"""How often a plan in 16 bits begins with the very action that it begins with in float32, and how far it is if not.

    python bench/first_actions.py --model halfcheetah --preset halfcheetah-medium --data mine.hdf5
    python bench/first_actions.py --model hopper --preset hopper-demonstrator --virtual-gpu    slowly, without a GPU

The triton engine plans every moment four times: in float32, bfloat16 and float16, and in float32 with another seed. A
search draws its candidates, so that what another seed changes is what a change of no importance looks like.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import find_ttengine  # noqa: F401 - finds it
import numpy as np
import torch
from gpu_checks import Case
from plan_inputs import Moment, cropped, read_log, replay, synthetic_log

from ttengine.checkpoint import load
from ttengine.config import WINDOW_CONTEXT, plan_preset


def compare_precisions(case: Case, moments: Iterable[Moment], limit_s: float = math.inf) -> dict[str, Any]:
    """Plan each moment in 16 bits and with another seed, and compare the first actions with float32's.

    Args:
        case: model and search.
        moments: where to plan, with contexts as long as the search takes, or longer.
        limit_s: no further moment is begun after so many seconds; one always is.
    Returns:
        `plans`; and of `bf16`, `fp16` and `other_seed` the share of actions equal to the bit, and the mean over all
        components of the absolute difference, in the action's units.
    """
    full, *halves = (case.planner(precision=precision) for precision in ("fp32", "bf16", "fp16"))
    apart: dict[str, list[float]] = {"bf16": [], "fp16": [], "other_seed": []}
    until = time.perf_counter() + limit_s
    for step, moment in enumerate(moments):
        inputs = moment.observation, cropped(moment.context, full.context_capacity)
        action = full.plan(*inputs, seed=0, step=step).action
        others = [half.plan(*inputs, seed=0, step=step) for half in halves]
        others.append(full.plan(*inputs, seed=1, step=step))
        for differences, other in zip(apart.values(), others, strict=True):
            differences.append(float(np.abs(other.action - action).mean()))
        if time.perf_counter() > until:
            break
    found = {
        name: {
            "share_equal": round(differences.count(0.0) / len(differences), 4),
            "mean_difference": float(f"{np.mean(differences):.3g}"),
        }
        for name, differences in apart.items()
    }
    return {"plans": len(apart["bf16"]), **found}


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="file or shipped name")
    parser.add_argument("--preset", required=True)
    parser.add_argument("--context", default="rolling", choices=["rolling", "window"])
    parser.add_argument("--data", type=Path, default=None, help="dataset to replay; else a random walk")
    parser.add_argument("--plans", type=int, default=100)
    parser.add_argument("--stride", type=int, default=1, help="control steps from one plan to the next (default 1)")
    parser.add_argument("--virtual-gpu", action="store_true", help="run what triton compiles on the CPU, slowly")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.virtual_gpu:
        os.environ.pop("TRITON_INTERPRET", None)
        from virtual_gpu.driver import VirtualGPU, plan_on

        plan_on(VirtualGPU())
    elif not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here: add --virtual-gpu")
    checkpoint = load(arguments.model)
    model = checkpoint.model.config
    search = dataclasses.replace(plan_preset(arguments.preset), context_kind=arguments.context)
    log = read_log(arguments.data) if arguments.data else synthetic_log(checkpoint.discretizer, model.action_dim)
    capacity = max(model.layers * model.context, WINDOW_CONTEXT)  # what any search takes
    moments = (moment for moment, _ in replay(log, capacity, capacity))
    some = itertools.islice(moments, 0, arguments.plans * arguments.stride, arguments.stride)
    record = {
        "preset": arguments.preset,
        "context": arguments.context,
        "weights": arguments.model,
        "observations": log.label,
        "stride": arguments.stride,
        "gpu": "virtual sm_90" if arguments.virtual_gpu else torch.cuda.get_device_name(),
        **compare_precisions(Case(checkpoint, arguments.model, search), some),
    }
    print(json.dumps(record))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
