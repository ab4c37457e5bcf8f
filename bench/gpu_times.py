"""How fast the triton engine plans on a GPU beside PyTorch and the naive planner; what it launches; what limits it."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import find_ttengine  # noqa: F401 - finds it
import numpy as np
import torch
import triton
import triton.language as tl
from first_actions import compare_precisions
from gpu_checks import FULL_TILES, Case, with_tiles
from harness import percentile
from naive_engine import time_naive
from plan_inputs import BODIES, Moment, cropped, find_body, moments_of
from torch_engine import torch_planner

from ttengine.config import WINDOW_CONTEXT, ModelConfig, PlanConfig, plan_preset
from ttengine.planner import Planner

PRESETS = ("halfcheetah-medium", "hopper", "walker2d-medium", "ant-medium")
TARGETS_MS = {
    "halfcheetah-medium": (2.0, 3.0),
    "hopper": (4.0, 8.0),
    "walker2d-medium": (7.0, 8.0),
    "ant-medium": (6.0, 10.0),
}
"""p50 and p99 on an H200."""
CONTEXTS = ("rolling", "window")
VARIANTS = tuple(
    {"context_kind": context, "precision": precision, "draft": draft}
    for context in CONTEXTS
    for precision, draft in (("bf16", True), ("bf16", False), ("fp16", True), ("fp32", True))
)
"""What is timed of the triton engine on each preset."""
THROUGHPUT = {"precision": "bf16", "context_kind": "rolling"}
"""What is planned for many environments at once, and what launches are counted of."""
BATCHES = (1, 4, 16, 64, 256, 1024)
TILES = (1, 2, 4, 8, 16)
WARM_UP, WARM_UP_S = 3, 0.5
"""Untimed plans before, at least: the first compiles kernels and captures the graph; and seconds, after it: an idle
GPU's clock is low."""
ROW_S, NAIVE_S = 5.0, 15.0
"""Most seconds of a row of latencies, and of a naive plan that is timed whole."""


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


def attempt(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what was measured, or its error, whatever it is: it must not take other numbers with it."""
    try:
        return run()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:2000]}


def timed(planner: Planner, moments: Sequence[Moment], plans: int, limit_s: float = math.inf) -> dict[str, Any]:
    """Latency of plans along an episode, from NumPy observation to NumPy action; of fewer than `plans` after `limit_s`.

    A plan waits for the GPU by itself: its action is on the host.
    """
    steps = enumerate(itertools.cycle(moments))

    def once() -> float:
        step, moment = next(steps)
        context = cropped(moment.context, planner.context_capacity)
        began = time.perf_counter()
        action = planner.plan(moment.observation, context, step=step).action
        seconds = time.perf_counter() - began
        assert action.shape == (planner.model.config.action_dim,)
        return seconds

    warm_up(once)
    seconds, until = [once()], time.perf_counter() + limit_s
    while len(seconds) < plans and time.perf_counter() < until:
        seconds.append(once())
    shares = {f"p{share}_ms": round(1e3 * percentile(seconds, share / 100), 4) for share in (50, 90, 99)}
    return {**shares, "plans": len(seconds)}


def warm_up(once: Callable[[], object]) -> None:
    """Call what is to be timed until kernels are compiled and the GPU's clock is up."""
    for _ in range(WARM_UP):
        once()
    until = time.perf_counter() + WARM_UP_S
    while time.perf_counter() < until:
        once()


def latency(case: Case, preset: str, plans: int, slow_plans: int) -> dict[str, Any]:
    """Each engine and context kind on one preset, with speed-ups over the naive planner and over eager PyTorch.

    Eager PyTorch is that of the same context kind; the naive planner knows only windows.
    """
    moments = moments_of(case.checkpoint, plans + 500)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows: dict[str, Any] = {}
    for variant in VARIANTS:
        words = f"triton {variant['precision']} {variant['context_kind']}{'' if variant['draft'] else ', no drafts'}"
        rows[words] = attempt(lambda v=variant: timed(case.planner(**v), moments, plans, ROW_S))
    for context in CONTEXTS:
        rows[f"PyTorch eager {context}"] = attempt(
            lambda c=context: timed(pytorch(case, c, device=device), moments, slow_plans, ROW_S)
        )
        if device == "cuda":
            rows[f"PyTorch compiled {context}"] = attempt(
                lambda c=context: timed_compiled(case, c, moments, slow_plans)
            )
    rows["naive"] = attempt(lambda: naive(case, moments[0], device))
    p50, p99 = TARGETS_MS[preset]
    for name, row in rows.items():
        eager = next((f"PyTorch eager {context}" for context in CONTEXTS if context in name), "PyTorch eager window")
        for key, other in (("x_naive", "naive"), ("x_eager", eager)):
            if "p50_ms" in row and "p50_ms" in rows[other]:
                row[key] = round(rows[other]["p50_ms"] / row["p50_ms"], 1)
        if name.startswith(("triton bf16", "triton fp16")) and "p50_ms" in row:
            row["meets_target"] = row["p50_ms"] <= p50 and row["p99_ms"] <= p99
    period_ms = 1e3 * BODIES[preset.split("-")[0]].control_period_s
    return {"weights": case.weights, "target_p50_p99_ms": [p50, p99], "control_period_ms": period_ms, "rows": rows}


def pytorch(case: Case, context: str, *, device: str = "cuda", compiled: bool = False) -> Planner:
    """PyTorch's static cache."""
    config = dataclasses.replace(case.config, engine="reference", context_kind=context)  # type: ignore[arg-type]
    return torch_planner(case.checkpoint, config, device=device, compiled=compiled)


def timed_compiled(case: Case, context: str, moments: Sequence[Moment], plans: int) -> dict[str, Any]:
    """Latency of compiled PyTorch, and how many of its functions PyTorch would not capture as CUDA graphs."""
    from torch._dynamo.utils import counters

    planner = pytorch(case, context, compiled=True)
    before = counters["inductor"]["cudagraph_skips"]
    row = timed(planner, moments, plans, ROW_S)
    return {**row, "not_captured": counters["inductor"]["cudagraph_skips"] - before}


def naive(case: Case, moment: Moment, device: str) -> dict[str, Any]:
    """A plan of the naive planner: timed whole, unless one round says that it would take longer than `NAIVE_S`."""
    first = [Moment(moment.observation, cropped(moment.context, WINDOW_CONTEXT))]
    guess = time_naive(case.checkpoint, case.config, first, 1, device)
    rounds = case.config.horizon if guess.seconds < NAIVE_S else 1
    found = time_naive(case.checkpoint, case.config, first, rounds, device)
    return {"p50_ms": round(1e3 * found.seconds, 2), "basis": found.basis}


def batches(case: Case, repeats: int) -> dict[str, Any]:
    """Plans a second of many environments at once, each a step further in every plan; bfloat16, rolling."""
    moments = moments_of(case.checkpoint, 2 * max(BATCHES))
    result: dict[str, Any] = {"weights": case.weights}
    for size in BATCHES:
        result[str(size)] = attempt(lambda size=size: one_batch(case, moments, size, repeats))
    return result


def one_batch(case: Case, moments: Sequence[Moment], size: int, repeats: int) -> dict[str, Any]:
    """Latency of one size; the largest may be more than the GPU's memory holds."""
    median = percentile(timed_batches(case.planner(**THROUGHPUT), moments, size, repeats), 0.5)
    return {"p50_ms": round(1e3 * median, 3), "plans_per_s": round(size / median, 1), "plans": repeats}


def tiles(case: Case, plans: int, limit_s: float) -> dict[str, Any]:
    """Latency with tiles of each size, of candidates and of beams; and the sizes that the engine takes by itself.

    In bfloat16, with a rolling context.
    """
    moments = moments_of(case.checkpoint, plans + 500)
    result: dict[str, Any] = {"weights": case.weights}
    for kind in FULL_TILES:
        memory = case.planner(**THROUGHPUT).engine._remember(1)  # type: ignore[attr-defined]
        result[kind] = {"taken": getattr(memory, kind)}
        for rows in TILES:
            planner = with_tiles(case.planner(**THROUGHPUT), 1, **{kind: rows})
            limit = limit_s / len(TILES) / len(FULL_TILES)
            result[kind][str(rows)] = attempt(lambda p=planner, s=limit: timed(p, moments, plans, s))
    return result


def first_actions(case: Case, plans: int, limit_s: float) -> dict[str, Any]:
    """How the first actions of plans in 16 bits compare with those in float32, in both kinds of context."""
    moments = moments_of(case.checkpoint, plans)
    result: dict[str, Any] = {"weights": case.weights}
    for context in CONTEXTS:
        search = dataclasses.replace(case.config, context_kind=context)  # type: ignore[arg-type]
        result[context] = compare_precisions(case._replace(config=search), moments, limit_s / len(CONTEXTS))
    return result


def timed_batches(planner: Planner, moments: Sequence[Moment], size: int, repeats: int) -> list[float]:
    """Seconds of plans for `size` environments, which stand at successive moments and move on together."""
    starts = itertools.cycle(range(len(moments) - size + 1))

    def once() -> float:
        step = next(starts)
        some = moments[step : step + size]
        observations = np.stack([moment.observation for moment in some])
        contexts = [cropped(moment.context, planner.context_capacity) for moment in some]
        began = time.perf_counter()
        planner.plan(observations, contexts, step=step)
        return time.perf_counter() - began

    warm_up(once)
    return [once() for _ in range(repeats)]


def launches(case: Case) -> dict[str, Any]:
    """What one plan makes the GPU do, counted by PyTorch's profiler: replayed as a graph, and launched one by one."""
    if not torch.cuda.is_available():
        return {"skipped": "without a GPU nothing is launched"}
    result: dict[str, Any] = {"limit": 3 * case.config.horizon + 10}
    moments = moments_of(case.checkpoint, WARM_UP + 1)
    for name, graph in (("replayed", True), ("one by one", False)):
        planner = case.planner(**THROUGHPUT, graph=graph)
        for step, moment in enumerate(moments[:-1]):
            planner.plan(*moment, step=step)
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            planner.plan(*moments[-1], step=WARM_UP)
            torch.cuda.synchronize()
        on_gpu = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        result[name] = count_work(event.name for event in on_gpu if not event.is_user_annotation)
        result[name]["within_limit"] = result[name]["kernels"] + result[name]["copies"] <= result["limit"]
    return result


def count_work(names: Iterable[str]) -> dict[str, Any]:
    """Count what the profiler saw on a GPU: kernels, copies (and clearings), and the names of both.

    Raises:
        RuntimeError: it saw no kernel, so that it cannot have looked.
    """
    counted = Counter(name[:60] for name in names)
    copies = sum(count for name, count in counted.items() if name.startswith(("Memcpy", "Memset")))
    kernels = counted.total() - copies
    if not kernels:
        raise RuntimeError("the profiler saw no kernel; is this user allowed to read the GPU's activity?")
    return {"kernels": kernels, "copies": copies, "names": dict(counted.most_common())}


def limits(report: dict[str, Any]) -> dict[str, Any]:
    """The L2 cache's bandwidth, of one multiprocessor and of all, and the share of it that token steps reach.

    The bound of a token step is the time in which one multiprocessor reads the weights that the step uses.
    """
    one, all_of_them = map(l2_bytes_per_s, (1, torch.cuda.get_device_properties(0).multi_processor_count))
    result: dict[str, Any] = {"l2_gb_per_s_one": round(one / 1e9, 1), "l2_gb_per_s_all": round(all_of_them / 1e9, 1)}
    for preset in PRESETS:
        row = report.get(f"latency {preset}", {}).get("rows", {}).get("triton bf16 rolling, no drafts", {})
        if "p50_ms" not in row:
            continue
        body, config = find_body(preset), plan_preset(preset)
        bound_us = 1e6 * weights_of_a_step(ModelConfig(body.observation_dim, body.action_dim)) / one
        step_us = 1e3 * row["p50_ms"] / token_steps(body.observation_dim, body.action_dim, config)
        result[preset] = {
            "step_us": round(step_us, 2),
            "bound_us": round(bound_us, 2),
            "share": round(bound_us / step_us, 3),
        }
    return result


def l2_bytes_per_s(programs: int) -> float:
    """What so many programs, on a multiprocessor each, read from the L2 cache."""
    count, repeats, block = 1 << 19, 40, 16384  # 2 MB, as large as the packed weights; 64 KB on their way at a time
    source, out = torch.zeros(count, device="cuda"), torch.zeros(programs * block, device="cuda")
    ms = triton.testing.do_bench(
        lambda: _read[(programs,)](source, out, count, repeats, block, num_warps=16), return_mode="median"
    )
    return float(programs * repeats * count * 4 / (1e-3 * ms))


def weights_of_a_step(model: ModelConfig) -> int:
    """Bytes of bfloat16 weights that one token passes: all layers, and one head of 128 columns."""
    return 2 * (model.layers * 12 * model.width**2 + model.width * 128)


def token_steps(observation_dim: int, action_dim: int, config: PlanConfig) -> int:
    """Token steps of a plan after its prefill."""
    return config.horizon * (action_dim + 1) + (config.horizon - 1) * (observation_dim + 1)
