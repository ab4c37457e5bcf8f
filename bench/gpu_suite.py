"""Everything to run where there is a GPU: correctness, memory checks, path counters, latency, batches, limits.

    python bench/gpu_suite.py --json bench/results/triton/NAME.json        under 9 minutes
    python bench/gpu_suite.py --quick                                      a minute: correctness and one preset

Needs PyTorch, Triton and NumPy; ttengine may be installed, or is taken from beside this file. First the kernels and
whole plans are held to the float32 reference on the same GPU; a mismatch ends the run with 1 before anything is timed.
Then each preset is planned by the triton engine (float32, bfloat16), by PyTorch with a static cache, eager and
compiled, and by the naive planner. Every number says how many plans it is of. Stages that would pass the time limit are
left out, and named.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import itertools
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if importlib.util.find_spec("ttengine") is None or not importlib.util.find_spec("ttengine.kernels"):
    sys.path.insert(0, str(ROOT))
    sys.modules["ttengine.kernels"] = importlib.import_module("kernels")

import numpy as np
import torch
import triton
import triton.language as tl
from harness import commit, percentile, write_json
from naive_engine import time_naive
from plan_inputs import BODIES, Moment, find_body, random_checkpoint, replay, synthetic_log
from token_equality import Pair, compare_plans
from torch_engine import torch_planner

from ttengine.checkpoint import Checkpoint, load
from ttengine.config import WINDOW_CONTEXT, ModelConfig, PlanConfig, plan_preset
from ttengine.context import Context
from ttengine.errors import TTEngineError
from ttengine.kernels import reference
from ttengine.planner import Planner

PRESETS = ("halfcheetah-medium", "hopper", "walker2d-medium", "ant-medium")
TARGETS_MS = {
    "halfcheetah-medium": (2.0, 3.0),
    "hopper": (4.0, 8.0),
    "walker2d-medium": (7.0, 8.0),
    "ant-medium": (6.0, 10.0),
}
"""p50 and p99 on an H200."""
BATCHES = (1, 4, 16, 64, 256)
WARM_UP = 3
"""Untimed plans before: the first compiles kernels and captures the graph."""


@triton.jit
def _read(source, out, count, repeats, BLOCK: tl.constexpr):
    """Every program reads all of `source`, again and again: from the L2 cache, as segments read weights."""
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(repeats):
        start = 0
        while start < count:
            total += tl.load(source + start + lane)
            start += BLOCK
    tl.store(out + tl.program_id(0) * BLOCK + lane, total)


class Suite:
    """Runs stages against a clock and keeps what they measured."""

    def __init__(self, limit_s: float, model: str | None) -> None:
        self.started = time.perf_counter()
        self.limit_s = limit_s
        self.model = model
        self.report: dict[str, Any] = {"machine": machine(), "stages_s": {}, "left_out": []}

    def stage(self, name: str, needs_s: float, run: Callable[[], Any]) -> None:
        """Run a stage if its time is left; an error is kept, printed, and ends only this stage."""
        if time.perf_counter() - self.started + needs_s > self.limit_s:
            self.report["left_out"].append(name)
            print(f"{name}: left out, no time")
            return
        began = time.perf_counter()
        try:
            self.report[name] = run()
        except (TTEngineError, RuntimeError) as error:
            self.report[name] = {"error": f"{type(error).__name__}: {error}"}
        self.report["stages_s"][name] = round(time.perf_counter() - began, 1)
        print(f"{name} ({self.report['stages_s'][name]} s): {json.dumps(self.report[name])}", flush=True)

    def checkpoint(self, preset: str) -> tuple[Checkpoint, str]:
        """The model of a preset, and what to call its weights."""
        body = find_body(preset)
        if self.model is not None and preset.startswith("halfcheetah"):
            return load(self.model), self.model
        return random_checkpoint(body.observation_dim, body.action_dim), "random"


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    facts = {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__}
    facts |= {"commit": commit(), "device": "cpu, interpreted"}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts |= {"device": properties.name, "multiprocessors": properties.multi_processor_count}
        facts |= {"memory_gib": round(properties.total_memory / 2**30, 1), "cuda": torch.version.cuda}
        smi = shutil.which("nvidia-smi")
        if smi:
            query = [smi, "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader"]
            facts["driver_and_clock"] = subprocess.run(
                query, capture_output=True, text=True, check=False
            ).stdout.strip()
    return facts


def on_device(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Copies on the GPU, or the tensors themselves under the interpreter."""
    return [each.to("cuda" if torch.cuda.is_available() else "cpu") for each in tensors]


def check_kernels() -> dict[str, Any]:
    """Each stand-alone kernel against its reference; draws beside an edge are counted."""
    from ttengine.kernels.attention import paged_attention
    from ttengine.kernels.sampling import sample_topk
    from ttengine.kernels.select import select_beams

    generator = torch.Generator().manual_seed(0)
    logits, noise = torch.randn(2000, 101, generator=generator) * 2, torch.rand(2000, generator=generator)
    other = {}
    for rule in ({"cdf": 0.6}, {"k": 1}, {"k": 40}, {"cdf": 0.5, "k": 5}):
        found = sample_topk(*on_device(logits, noise), **rule).cpu()
        other[str(rule)] = int((found != reference.sample_topk(logits, noise, **rule)).sum())
    query, (keys, values) = (
        torch.randn(300, 4, 32, generator=generator),
        torch.randn(2, 64, 4, 15, 32, generator=generator),
    )
    table = torch.randint(0, 64, (300, 7), generator=generator).int()
    lengths = torch.randint(0, 7 * 15 + 1, (300,), generator=generator).int()
    found = paged_attention(*on_device(query, keys, values, table, lengths)).cpu()
    apart = float((found - reference.paged_attention(query, keys, values, table, lengths)).abs().max())
    wrong = 0
    for width in (1, 31, 32, 33, 127, 128, 200, 256):
        score = torch.randint(0, 99, (3, 2 * width), generator=generator).float()
        pairs = zip(select_beams(*on_device(score), width), reference.select_beams(score, width), strict=True)
        wrong += sum(not torch.equal(ours.cpu(), theirs) for ours, theirs in pairs)
    ok = max(other.values()) <= 2 and apart < 1e-4 and wrong == 0
    return {"ok": ok, "other_tokens_of_2000": other, "attention_largest_error": apart, "wrong_selections": wrong}


def check_plans(suite: Suite, preset: str, context: str, plans: int) -> dict[str, Any]:
    """Tokens of whole plans in float32 against the reference engine's on the same device, near-ties counted."""
    checkpoint, weights = suite.checkpoint(preset)
    config = dataclasses.replace(plan_preset(preset), context_kind=context)  # type: ignore[arg-type]
    pair = Pair(checkpoint, config, "triton")
    log = synthetic_log(checkpoint.discretizer, checkpoint.model.config.action_dim)
    record = compare_plans(pair, log, 0, plans)
    return {"weights": weights, **{k: record[k] for k in ("plans", "equal", "near_ties", "mismatches")}}


def check_paths(suite: Suite, preset: str) -> dict[str, Any]:
    """The graph is replayed; drafts come true; neither changes a byte; a batch plans like its problems alone."""
    checkpoint, _ = suite.checkpoint(preset)
    moments = moments_of(checkpoint, 3)
    config = dataclasses.replace(plan_preset(preset), engine="triton")
    found, tiles, graphs = {}, {}, {}
    for name, change in (("as is", {}), ("no drafts", {"draft": False}), ("no graph", {"graph": False})):
        planner = Planner(checkpoint, dataclasses.replace(config, **change))  # type: ignore[arg-type]
        plans = [planner.plan(*moment, seed=3, step=i) for i, moment in enumerate(moments)]
        found[name] = [plan.actions.tobytes() + plan.score.tobytes() for plan in plans]
        tiles[name] = plans[-1].counters.observe_tiles
        graphs[name] = planner.engine._memory.graph is not None  # type: ignore[attr-defined]
    planner = Planner(checkpoint, config)
    batch = planner.plan(
        np.stack([m.observation for m in moments]), [m.context for m in moments], seed=[3, 3, 3], step=[0, 1, 2]
    )
    alone = [batch.actions[b].tobytes() + batch.score[b].tobytes() for b in range(3)]
    model = checkpoint.model.config
    tokens = (config.horizon - 1) * config.beam_width * (model.observation_dim + 1)
    return {
        "ok": len({tuple(plans) for plans in [*found.values(), alone]}) == 1 and tiles["as is"] < tiles["no drafts"],
        "same_bytes": {name: plans == found["as is"] for name, plans in [*found.items(), ("batch", alone)]},
        "graph": graphs,
        "observation_tokens_a_tile": round(tokens / tiles["as is"], 3),
    }


def memcheck() -> dict[str, Any]:
    """Compute-sanitizer over a tiny plan of each kind, where the tool is here."""
    tool = shutil.which("compute-sanitizer") or next(iter(Path("/usr/local").glob("cuda*/bin/compute-sanitizer")), None)
    if tool is None:
        return {"skipped": "compute-sanitizer is not on this machine"}
    command = [str(tool), "--tool", "memcheck", "--error-exitcode", "9", sys.executable, __file__, "--tiny-plans"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    return {"ok": done.returncode == 0, "said": (done.stdout + done.stderr).strip().splitlines()[-3:]}


def tiny_plans() -> None:
    """One small plan of each kind, kernels launched one by one."""
    for context, width in itertools.product(("rolling", "window"), (32, 64)):
        checkpoint = random_checkpoint(5, 2, layers=2, heads=2, width=width)
        config = PlanConfig(horizon=3, beam_width=9, engine="triton", context_kind=context, graph=False)  # type: ignore[arg-type]
        planner = Planner(checkpoint, config)
        for moment in moments_of(checkpoint, 2):
            print(context, width, float(planner.plan(*moment).score))


def moments_of(checkpoint: Checkpoint, count: int) -> list[Moment]:
    """Control steps with full contexts."""
    model = checkpoint.model.config
    log = synthetic_log(checkpoint.discretizer, model.action_dim)
    capacity = model.layers * model.context
    return [moment for moment, _ in itertools.islice(replay(log, max(capacity, WINDOW_CONTEXT), capacity), count)]


def cropped(context: Context, capacity: int) -> Context:
    """The last `capacity` transitions of a context."""
    return Context(context.observations, context.actions, context.rewards, capacity)


def timed(planner: Planner, moments: Sequence[Moment], plans: int) -> dict[str, Any]:
    """Latency of plans along an episode, from NumPy observation to NumPy action."""
    model = planner.model.config
    seconds = []
    for step, moment in enumerate(itertools.islice(itertools.cycle(moments), plans + WARM_UP)):
        context = cropped(moment.context, planner.context_capacity)
        began = time.perf_counter()
        action = planner.plan(moment.observation, context, step=step).action
        seconds.append(time.perf_counter() - began)
        assert action.shape == (model.action_dim,)
    shares = {f"p{share}_ms": round(1e3 * percentile(seconds[WARM_UP:], share / 100), 4) for share in (50, 90, 99)}
    return {**shares, "plans": plans}


def latency(suite: Suite, preset: str, plans: int, slow_plans: int) -> dict[str, Any]:
    """Each engine and context kind on one preset, with speed-ups over the naive planner and over eager PyTorch."""
    checkpoint, weights = suite.checkpoint(preset)
    moments = moments_of(checkpoint, 200)
    base = plan_preset(preset)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows: dict[str, Any] = {}
    for context, precision, draft in itertools.product(("rolling", "window"), ("bf16", "fp32"), (True, False)):
        if precision == "fp32" and not draft:
            continue
        config = dataclasses.replace(base, engine="triton", context_kind=context, precision=precision, draft=draft)  # type: ignore[arg-type]
        planner = Planner(checkpoint, config)
        name = f"triton {precision} {context}{'' if draft else ', no drafts'}"
        rows[name] = timed(planner, moments, plans)
        rows[name]["launches"] = (
            3 * config.horizon + 1
        )  # prefill; expand, rank, observe a round; take for the last observe
    rolling = dataclasses.replace(base, engine="reference", context_kind="rolling")
    rows["PyTorch eager rolling"] = timed(torch_planner(checkpoint, rolling, device=device), moments, slow_plans)
    if device == "cuda":
        compiled = torch_planner(checkpoint, rolling, device=device, compiled=True)
        rows["PyTorch compiled rolling"] = timed(compiled, moments, slow_plans)
    first = Moment(moments[0].observation, cropped(moments[0].context, WINDOW_CONTEXT))
    naive = time_naive(checkpoint, base, [first], 1, device)
    rows["naive"] = {"p50_ms": round(1e3 * naive.seconds, 2), "basis": naive.basis}
    p50, p99 = TARGETS_MS[preset]
    for name, row in rows.items():
        row["x_naive"] = round(rows["naive"]["p50_ms"] / row["p50_ms"], 1)
        row["x_eager"] = round(rows["PyTorch eager rolling"]["p50_ms"] / row["p50_ms"], 1)
        if name.startswith("triton bf16"):
            row["meets_target"] = row["p50_ms"] <= p50 and row["p99_ms"] <= p99
    period_ms = 1e3 * BODIES[preset.split("-")[0]].control_period_s
    return {"weights": weights, "target_p50_p99_ms": [p50, p99], "control_period_ms": period_ms, "rows": rows}


def batches(suite: Suite, preset: str, repeats: int) -> dict[str, Any]:
    """Plans a second of many environments at once, bfloat16, rolling."""
    checkpoint, weights = suite.checkpoint(preset)
    moments = moments_of(checkpoint, max(BATCHES))
    result: dict[str, Any] = {"weights": weights}
    for size in BATCHES:
        config = dataclasses.replace(plan_preset(preset), engine="triton", precision="bf16", context_kind="rolling")
        planner = Planner(checkpoint, config)
        observations = np.stack([moment.observation for moment in moments[:size]])
        contexts = [moment.context for moment in moments[:size]]
        seconds = []
        for step in range(repeats + WARM_UP):
            began = time.perf_counter()
            planner.plan(observations, contexts, step=step)
            seconds.append(time.perf_counter() - began)
        median = percentile(seconds[WARM_UP:], 0.5)
        result[str(size)] = {"p50_ms": round(1e3 * median, 3), "plans_per_s": round(size / median, 1), "plans": repeats}
    return result


def limits(report: dict[str, Any]) -> dict[str, Any]:
    """The L2 cache's bandwidth, of one multiprocessor and of all, and the share of it that token steps reach.

    The bound of a token step is the time in which one multiprocessor reads the weights that the step uses.
    """
    count, repeats, block = 1 << 19, 40, 4096  # 2 MB, as large as the packed weights
    source = torch.zeros(count, device="cuda")
    bandwidth = {}
    for programs in (1, torch.cuda.get_device_properties(0).multi_processor_count):
        out = torch.zeros(programs * block, device="cuda")
        times = []
        for _ in range(4):
            torch.cuda.synchronize()
            began = time.perf_counter()
            _read[(programs,)](source, out, count, repeats, block, num_warps=8)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        bandwidth[programs] = programs * repeats * count * 4 / min(times[1:])
    one, all_of_them = bandwidth.values()
    result: dict[str, Any] = {"l2_gb_per_s_one": round(one / 1e9, 1), "l2_gb_per_s_all": round(all_of_them / 1e9, 1)}
    for preset in PRESETS:
        rows = report.get(f"latency {preset}", {}).get("rows", {})
        if "triton bf16 rolling, no drafts" not in rows:
            continue
        body, config = find_body(preset), plan_preset(preset)
        model = ModelConfig(body.observation_dim, body.action_dim)
        steps = config.horizon * (body.action_dim + 1) + (config.horizon - 1) * (body.observation_dim + 1)
        weights = 2 * (model.layers * 12 * model.width**2 + model.width * 128)
        bound_us = 1e6 * weights / one
        step_us = 1e3 * rows["triton bf16 rolling, no drafts"]["p50_ms"] / steps
        result[preset] = {
            "step_us": round(step_us, 2),
            "bound_us": round(bound_us, 2),
            "share": round(bound_us / step_us, 3),
        }
    return result


def print_table(report: dict[str, Any]) -> None:
    """Latencies, a line each."""
    print(f"\n{'preset':20}{'engine':34}{'p50 ms':>10}{'p99 ms':>10}{'x naive':>9}{'x eager':>9}{'plans':>7}  target")
    for preset in PRESETS:
        for name, row in report.get(f"latency {preset}", {}).get("rows", {}).items():
            p50, p99, naive, eager, plans = (
                row.get(key, "") for key in ("p50_ms", "p99_ms", "x_naive", "x_eager", "plans")
            )
            met = {None: "", True: "met", False: "missed"}[row.get("meets_target")]
            print(f"{preset:20}{name:34}{p50:>10}{p99:>10}{naive:>9}{eager:>9}{plans:>7}  {met}")


def main() -> int:
    """Check, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=PRESETS)
    parser.add_argument("--limit-s", type=float, default=520.0, help="no stage begins that would end later")
    parser.add_argument("--plans", type=int, default=1000)
    parser.add_argument("--checks", type=int, default=40, help="plans compared for each preset and context")
    parser.add_argument("--model", default=None, help="real weights for halfcheetah: a file or a shipped name")
    parser.add_argument("--quick", action="store_true", help="correctness, and latency of the first preset")
    parser.add_argument("--tiny-plans", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "this suite measures a GPU, and PyTorch sees none here; tests run the kernels interpreted", file=sys.stderr
        )
        return 2
    if arguments.tiny_plans:
        tiny_plans()
        return 0
    suite = Suite(arguments.limit_s, arguments.model)
    presets = arguments.presets[:1] if arguments.quick else arguments.presets
    suite.stage("kernels", 0, check_kernels)
    for preset, context in itertools.product(presets, ("rolling", "window")):
        suite.stage(
            f"plans {preset} {context}", 30, lambda p=preset, c=context: check_plans(suite, p, c, arguments.checks)
        )
    suite.stage("paths", 20, lambda: check_paths(suite, presets[0]))
    checks = [stage for name, stage in suite.report.items() if name.split()[0] in ("kernels", "plans", "paths")]
    passed = all(not c.get("error") and c.get("ok", True) and not c.get("mismatches", 0) for c in checks)
    suite.report["correct"] = passed
    if passed:
        for preset in presets:
            suite.stage(f"latency {preset}", 60, lambda p=preset: latency(suite, p, arguments.plans, 5))
        if not arguments.quick:
            suite.stage("batches hopper", 60, lambda: batches(suite, "hopper", 8))
        suite.stage("limits", 10, lambda: limits(suite.report))
    suite.stage("memcheck", 0 if not passed else 60, memcheck)
    print_table(suite.report)
    if arguments.json is not None:
        write_json(arguments.json, suite.report)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
