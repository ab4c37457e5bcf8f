"""Speed that can be held without timing the wall: exact counters, a ratio within one process, instruction counts."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from count_instructions import SWITCH

from ttengine.config import plan_preset
from ttengine.context import Context
from ttengine.engines import ENGINES
from ttengine.planner import Plan, Planner

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
from plan_inputs import find_body, random_checkpoint

needs_cpp = pytest.mark.skipif("cpp" not in ENGINES, reason="there is no cpp engine")

PRESETS = ("halfcheetah-medium", "hopper", "walker2d-medium", "ant-medium")
CONTEXTS = ("window", "rolling")

PHYSICAL_ROWS_AND_PAGES = {
    ("halfcheetah-medium", "window"): (8_246, 151),
    ("halfcheetah-medium", "rolling"): (4_412, 159),
    ("hopper", "window"): (81_200, 624),
    ("hopper", "rolling"): (35_522, 661),
    ("walker2d-medium", "window"): (131_560, 617),
    ("walker2d-medium", "rolling"): (56_318, 690),
    ("ant-medium", "window"): (46_782, 599),
    ("ant-medium", "rolling"): (25_380, 599),
}
"""Recorded, not derived: how many rows are left once equal ones are shared depends on what the model samples. The same
on every instruction set. Who changes the sharing, or how long pages are held, records them anew."""

INSTRUCTIONS_PER_ROW = 95_500
"""Recorded: callgrind's count over a plan's physical rows, with AVX2, for one layer of the released width; what Python
and PyTorch do around the engine is in it. Who makes the engine faster records it anew."""

INSTRUCTIONS_BAND = 0.1
"""How far the count may be off, as a share: compilers and PyTorch versions differ."""


def make_planner(preset: str, context: str, engine: str, layers: int, width: int, **search: Any) -> Planner:
    body = find_body(preset)
    checkpoint = random_checkpoint(body.observation_dim, body.action_dim, layers=layers, width=width)
    config = dataclasses.replace(
        plan_preset(preset),
        engine=engine,
        context_kind=context,
        threads=1,
        **search,  # type: ignore[arg-type]
    )
    return Planner(checkpoint, config)


def plan_with_full_context(planner: Planner, step: int = 0) -> Plan:
    N, M = planner.model.config.observation_dim, planner.model.config.action_dim
    rng = np.random.default_rng(3)
    T = planner.context_capacity
    context = Context(rng.standard_normal((T, N)), rng.standard_normal((T, M)), rng.random(T), T)
    return planner.plan(rng.standard_normal(N), context, seed=5, step=step)


def expected_steps_and_rows(planner: Planner) -> tuple[int, int]:
    """Token steps and logical rows of a plan with a full context, by hand.

    The first action token comes with the prefill; each round feeds its actions and its reward for every candidate,
    and, but for the last, its value and the next observation for every beam. In a window the value is fed by passing
    the cropped window, four transitions, through the model again.
    """
    config, model = planner.config, planner.model.config
    N, M, K = model.observation_dim, model.action_dim, model.transition_dim
    H, W, C = config.horizon, config.beam_width, config.beam_width * config.expand
    steps = 1 + H * (M + 1) + (H - 1) * (1 + N)
    if config.context_kind == "window":  # five transitions and the observation do not fit: one is cropped
        return steps, (4 * K + N) + H * C * (M + 1) + (H - 1) * W * (4 * K + N)
    return steps, (planner.context_capacity * K + N) + H * C * (M + 1) + (H - 1) * W * (1 + N)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("engine", ["reference", pytest.param("cpp", marks=needs_cpp)])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_plan_takes_the_token_steps_and_the_logical_rows_of_the_papers_settings(
    preset: str, engine: str, context: str
) -> None:
    search = {"horizon": 3, "beam_width": 8} if engine == "reference" else {}  # the preset itself would take minutes
    planner = make_planner(preset, context, engine, layers=1, width=16, **search)
    counters = plan_with_full_context(planner).counters
    assert (counters.token_steps, counters.logical_rows) == expected_steps_and_rows(planner)


@needs_cpp
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("preset", PRESETS)
def test_de_duplication_leaves_exactly_the_recorded_physical_rows_and_pages(preset: str, context: str) -> None:
    counters = plan_with_full_context(make_planner(preset, context, "cpp", layers=1, width=16)).counters
    assert counters.physical_rows < counters.logical_rows
    assert (counters.physical_rows, counters.pages) == PHYSICAL_ROWS_AND_PAGES.get((preset, context))


@needs_cpp
@pytest.mark.parametrize("context", CONTEXTS)
def test_without_de_duplication_every_row_is_computed_but_for_past_value_tokens(context: str) -> None:
    """No token attends to a value token: it is computed only where its own successor is wanted."""
    planner = make_planner("halfcheetah-medium", context, "cpp", layers=1, width=16, deduplicate=False)
    H, W = planner.config.horizon, planner.config.beam_width
    # in the context: four transitions of the cropped window or five; then three of the four in each window after it
    past_values = 4 + (H - 1) * W * 3 if context == "window" else planner.context_capacity
    counters = plan_with_full_context(planner).counters
    assert counters.physical_rows == counters.logical_rows - past_values


@needs_cpp
def test_a_rolling_context_passes_only_the_new_transition_through_the_model() -> None:
    planner = make_planner("halfcheetah-medium", "rolling", "cpp", layers=1, width=16, deduplicate=False)
    N, M, K = 17, 6, planner.model.config.transition_dim
    T, rng = planner.context_capacity, np.random.default_rng(0)
    observations, actions = rng.standard_normal((T + 2, N)), rng.standard_normal((T + 2, M))
    rows = []
    for first in (0, 1):
        past = slice(first, first + T)
        context = Context(observations[past], actions[past], np.zeros(T), T)
        rows.append(planner.plan(observations[first + T], context).counters.physical_rows)
    # at first the whole context, without its value tokens, and the observation; then, with that observation known,
    # its action and reward and the next observation
    assert rows[0] - rows[1] == (T * (K - 1) + N) - (M + 1 + N)


@pytest.fixture
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@needs_cpp
@pytest.mark.alone
@pytest.mark.parametrize("context", CONTEXTS)
def test_cpp_is_at_least_five_times_as_fast_as_pytorch_on_one_thread(
    benchmark: Any, one_thread: None, context: str
) -> None:
    if benchmark.disabled:
        pytest.skip("benchmarks are switched off (--benchmark-disable)")
    planners = {
        engine: make_planner("halfcheetah-medium", context, engine, layers=4, width=128, horizon=2, beam_width=16)
        for engine in ("reference", "cpp")
    }
    baseline = [_seconds(planners["reference"]) for _ in range(2)]
    benchmark.pedantic(plan_with_full_context, args=(planners["cpp"],), rounds=5, iterations=1, warmup_rounds=1)
    baseline.append(_seconds(planners["reference"]))
    ratio = min(baseline) / benchmark.stats.stats.min
    benchmark.extra_info["ratio_to_pytorch"] = round(ratio, 2)
    assert ratio >= 5


def _seconds(planner: Planner) -> float:
    started = time.perf_counter()
    plan_with_full_context(planner)
    return time.perf_counter() - started


@pytest.fixture
def switch_library(tmp_path: Path) -> Path:
    """The library that switches counting on and off; skips where valgrind or a C compiler is missing."""
    compiler = shutil.which("cc")
    if shutil.which("valgrind") is None or compiler is None:
        pytest.skip("valgrind and a C compiler are needed to count instructions")
    source, library = tmp_path / "switch.c", tmp_path / "switch.so"
    source.write_text(SWITCH)
    built = subprocess.run([compiler, "-shared", "-fPIC", source, "-o", library], capture_output=True, text=True)
    if "callgrind.h" in built.stderr:
        pytest.skip("valgrind's header callgrind.h is not installed")
    assert built.returncode == 0, built.stderr
    return library


@needs_cpp
def test_a_plan_executes_the_recorded_number_of_instructions_per_row(switch_library: Path, tmp_path: Path) -> None:
    model, counts = tmp_path / "model.safetensors", tmp_path / "counts"
    random_checkpoint(17, 6, layers=1).save(model)
    script = str(Path(__file__).with_name("count_instructions.py"))
    valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={counts}"]
    run = subprocess.run(
        [*valgrind, sys.executable, script, str(switch_library), str(model), "cpp", "1"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    (total,) = [int(line.split()[1]) for line in counts.read_text().splitlines() if line.startswith("totals:")]
    assert total / int(run.stdout) == pytest.approx(INSTRUCTIONS_PER_ROW, rel=INSTRUCTIONS_BAND)
