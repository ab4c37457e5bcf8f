"""Everything to run where there is a GPU: correctness, memory checks, path counters, latency, batches, limits.

    python bench/gpu_suite.py --json bench/results/triton/NAME.json        under 9 minutes
    python bench/gpu_suite.py --quick                                      a minute or two: one preset
    python bench/gpu_suite.py --checks 1000 --check-s 1e4 --limit-s 1e5    as long as 1,000 compared plans take

Needs PyTorch, Triton and NumPy; ttengine may be installed, or is taken from beside this file. First the kernels and
whole plans are held to the float32 reference on the same GPU; a mismatch ends the run with 1 before anything is timed.
Then each preset is planned by the triton engine (in every precision), by PyTorch in float32 with a static cache, eager
and compiled, and by the naive planner. Every number says how many plans it is of. Stages that would pass the time limit
are left out, and named; the report is written after every stage.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import find_ttengine  # noqa: F401 - finds it
import torch
from gpu_checks import (
    FULL_TILES,
    Case,
    check_kernels,
    check_paths,
    check_plans,
    correct,
    memcheck,
    random_case,
    tiny_plans,
    with_tiles,
)
from gpu_times import (
    CONTEXTS,
    PRESETS,
    THROUGHPUT,
    TILES,
    VARIANTS,
    attempt,
    batches,
    first_actions,
    latency,
    launches,
    limits,
    pytorch,
    tiles,
)
from harness import gpu_machine, write_json
from plan_inputs import moments_of

from ttengine.checkpoint import load
from ttengine.config import plan_preset

CHECK_S = 10.0
"""Most seconds of comparing plans of one preset and context."""


class Suite:
    """Runs stages against a clock and keeps what they measured, in a file too if it is given one."""

    def __init__(self, limit_s: float, model: str | None, path: Path | None = None) -> None:
        self.started = time.perf_counter()
        self.limit_s = limit_s
        self.model = model
        self.path = path
        self.report: dict[str, Any] = {"machine": gpu_machine(), "stages_s": {}, "left_out": []}

    def left_s(self) -> float:
        """Seconds until the limit."""
        return self.started + self.limit_s - time.perf_counter()

    def stage(self, name: str, needs_s: float, run: Callable[[], dict[str, Any]]) -> None:
        """Run a stage if its time is left; an error is kept, printed, and ends only this stage."""
        if needs_s > self.left_s():
            self.report["left_out"].append(name)
            print(f"{name}: left out, no time")
        else:
            began = time.perf_counter()
            self.report[name] = attempt(run)
            self.report["stages_s"][name] = round(time.perf_counter() - began, 1)
            print(f"{name} ({self.report['stages_s'][name]} s): {json.dumps(self.report[name])}", flush=True)
        self.write()

    def write(self) -> None:
        """Write what is known so far, and whether it is correct."""
        self.report["correct"] = correct(self.report)
        if self.path is not None:
            write_json(self.path, self.report)

    def case(self, preset: str) -> Case:
        """The model and the search of a preset."""
        if self.model is not None and preset.startswith("halfcheetah"):
            return Case(load(self.model), self.model, plan_preset(preset))
        return random_case(preset)


def compile_ahead(presets: Sequence[str]) -> dict[str, Any]:
    """Compile what later stages launch, in several processes, into the caches on disk.

    One after the other it would take half of the time limit. What fails here is compiled where it is needed.
    """
    jobs = [(preset, json.dumps(variant)) for preset in presets for variant in VARIANTS]
    jobs += [(preset, context) for preset in presets for context in CONTEXTS] + [(presets[0], "tiny plans")]
    jobs += [(presets[0], json.dumps(variant)) for variant in ({"draft": False}, {"rows": 16})]
    jobs += [(preset, json.dumps({**THROUGHPUT, "rows": rows})) for preset in presets[:2] for rows in TILES]
    workers = min(len(jobs), os.cpu_count() or 1, 16)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        done = list(pool.map(compile_one, *zip(*jobs, strict=True)))
    failed = {" ".join(job): record["error"] for job, record in zip(jobs, done, strict=True) if "error" in record}
    return {"jobs": len(jobs), "processes": workers, "failed": failed}


def compile_one(preset: str, what: str) -> dict[str, Any]:
    """Plan once with a variant of the triton engine (as JSON), with PyTorch compiled for a context, or tiny ones.

    A variant may name the rows of its tiles.
    """

    def plan() -> dict[str, Any]:
        if what == "tiny plans":
            tiny_plans()
            return {}
        case = random_case(preset)
        if what in CONTEXTS:
            planner = pytorch(case, what, compiled=True)
        else:
            variant = json.loads(what)
            tiles = dict.fromkeys(FULL_TILES, variant.pop("rows")) if "rows" in variant else {}
            planner = with_tiles(case.planner(**variant, graph=False), 1, **tiles)
        planner.plan(*moments_of(case.checkpoint, 1)[0])
        return {}

    return attempt(plan)


def print_table(report: dict[str, Any]) -> None:
    """Latencies, a line each."""
    print(f"\n{'preset':20}{'engine':34}{'p50 ms':>10}{'p99 ms':>10}{'x naive':>9}{'x eager':>9}{'plans':>7}  target")
    for preset in PRESETS:
        for name, row in report.get(f"latency {preset}", {}).get("rows", {}).items():
            p50, p99, naive, eager, plans = (
                row.get(key, "") for key in ("p50_ms", "p99_ms", "x_naive", "x_eager", "plans")
            )
            met = "error" if "error" in row else {None: "", True: "met", False: "missed"}[row.get("meets_target")]
            print(f"{preset:20}{name:34}{p50:>10}{p99:>10}{naive:>9}{eager:>9}{plans:>7}  {met}")


def main() -> int:
    """Check, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=PRESETS)
    parser.add_argument("--limit-s", type=float, default=520.0, help="no stage begins that would end later")
    parser.add_argument("--plans", type=int, default=1000)
    parser.add_argument("--checks", type=int, default=40, help="plans compared for each preset and context, at most")
    parser.add_argument("--check-s", type=float, default=CHECK_S, help="most seconds of comparing each of them")
    parser.add_argument("--model", default=None, help="real weights for halfcheetah: a file or a shipped name")
    parser.add_argument("--quick", action="store_true", help="correctness, and latency of the first preset")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "this suite measures a GPU, and PyTorch sees none here; tests run the kernels interpreted", file=sys.stderr
        )
        return 2
    suite = Suite(arguments.limit_s, arguments.model, arguments.json)
    presets = arguments.presets[:1] if arguments.quick else arguments.presets
    run(suite, presets, arguments.plans, arguments.checks, arguments.quick, arguments.check_s)
    print_table(suite.report)
    return 0 if suite.report["correct"] else 1


def run(suite: Suite, presets: Sequence[str], plans: int, checks: int, quick: bool, check_s: float = CHECK_S) -> None:
    """All stages, in order; after a failed check nothing is timed."""
    suite.stage("kernels", 0, check_kernels)
    suite.stage("compile", 90, lambda: compile_ahead(presets))
    for preset, context in itertools.product(presets, CONTEXTS):
        suite.stage(
            f"plans {preset} {context}",
            min(check_s, checks) + 5,
            lambda p=preset, c=context: check_plans(suite.case(p), c, checks, check_s),
        )
    suite.stage("paths", 20, lambda: check_paths(suite.case(presets[0])))
    if not correct(suite.report):
        suite.stage("memcheck", 0, memcheck)  # it may say why
        return
    suite.stage("launches", 10, lambda: launches(suite.case(presets[0])))
    for preset in presets:
        suite.stage(f"latency {preset}", 95, lambda p=preset: latency(suite.case(p), p, plans, 5))
    if not quick:
        suite.stage("batches hopper", 60, lambda: batches(suite.case("hopper"), 8))
    for preset in presets:
        suite.stage(f"first actions {preset}", 12, lambda p=preset: first_actions(suite.case(p), plans, 4.0))
    for preset in presets[:2]:
        suite.stage(f"tiles {preset}", 45, lambda p=preset: tiles(suite.case(p), plans, 8.0))
    suite.stage("limits", 5, lambda: limits(suite.report))
    suite.stage("memcheck", 60, lambda: memcheck(suite.left_s()))


if __name__ == "__main__":
    sys.exit(main())
