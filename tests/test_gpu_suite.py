"""The suite for machines with a GPU, its stages run small and interpreted."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interpreted import DEVICE
from test_engine_cpp import make_checkpoint

from ttengine.config import PlanConfig, Sampling
from ttengine.engines import TritonEngine
from ttengine.errors import ConfigError, EngineError
from ttengine.planner import Planner

pytest.importorskip("triton")
sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
import gpu_checks
import gpu_suite
import gpu_times
import harness
import token_equality
import torch_engine
from gpu_checks import Case, correct
from gpu_suite import Suite
from plan_inputs import cropped, moments_of

RIGHT = {
    "machine": {},
    "kernels": {"ok": True},
    "plans hopper rolling": {"ok": True, "mismatches": 0, "near_ties": 1},
    "paths": {"ok": True},
    "launches": {"error": "not a check"},
    "memcheck": {"ok": True, "said": []},
    "left_out": [],
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """An untrained model's logits lie close together: where several threads round otherwise, ties would be others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> Case:
    """A tiny model and search, and timing that does not wait."""
    for module, name, value in ((gpu_times, "WARM_UP", 0), (gpu_times, "WARM_UP_S", 0), (gpu_times, "BATCHES", (1, 2))):
        monkeypatch.setattr(module, name, value)
    checkpoint = make_checkpoint(observation_dim=3, action_dim=1, layers=1, heads=1, width=16, context=1)
    return Case(checkpoint, "tiny", PlanConfig(horizon=2, beam_width=2))


def test_plans_and_paths_pass_on_a_right_engine(case: Case) -> None:
    found = gpu_suite.check_plans(case, "window", 1)
    assert (found["plans"], found["equal"], found["mismatches"], found["ok"]) == (1, 1, 0, True)
    paths = gpu_suite.check_paths(case)
    assert paths["ok"]
    assert paths["plans_as_reference_of_3"] == 3
    assert paths["graph"] == {name: DEVICE.type == "cuda" and name != "no graph" for name in paths["graph"]}


def test_a_plan_that_differs_is_a_mismatch(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    expand = TritonEngine.expand

    def wrong(self: TritonEngine, copies: int) -> Any:
        candidates = expand(self, copies)
        candidates.tokens[0, 0, 0] = (candidates.tokens[0, 0, 0] + 5) % 10
        return candidates

    monkeypatch.setattr(TritonEngine, "expand", wrong)
    monkeypatch.setattr(token_equality, "NEAR", 1e-9)
    assert gpu_suite.check_plans(case, "rolling", 1)["mismatches"] == 1


def test_many_near_ties_are_not_right_and_plans_end_with_their_time(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_equality.Pair, "compare", lambda self, prefix, key: 1e-6)
    assert gpu_suite.check_plans(case, "rolling", 2)["ok"]
    found = gpu_suite.check_plans(case, "rolling", 12)
    assert (found["plans"], found["near_ties"], found["ok"]) == (12, 12, False)
    assert gpu_suite.check_plans(case, "rolling", 12, limit_s=0.0)["plans"] == 1


@pytest.mark.parametrize("what", ["graph", "bytes", "drafts", "take"])
def test_paths_that_are_not_right_are_noticed(case: Case, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph where none belongs; a search that drafts change, or do not shorten; a plan that was not searched for."""
    run = TritonEngine.run

    def wrong(self: TritonEngine, search: Any, **how: Any) -> Any:
        beams, score = run(self, search, **how)
        if what == "graph" and DEVICE.type == "cpu":
            self._memory.graph = object()  # type: ignore[assignment]
        elif what == "graph":
            self._memory.graph = None
        elif what == "bytes" and not self.config.draft:
            score += 1
        elif what == "drafts":
            self.counters.observe_tiles = 8
        elif what == "take":
            beams.tokens[:, :, 0] = (beams.tokens[:, :, 0] + 5) % 10
        return beams, score

    monkeypatch.setattr(TritonEngine, "run", wrong)
    found = gpu_suite.check_paths(case)
    assert not found["ok"]
    assert (found["plans_as_reference_of_3"] == 0) == (what == "take")
    assert all(found["same_bytes"].values()) == (what != "bytes")


def test_graphs_belong_on_a_gpu_and_not_to_the_planner_without() -> None:
    right = {"as is": True, "no drafts": True, "no graph": False}
    assert gpu_checks.graphs_are_where_they_belong(right, gpu=True)
    assert gpu_checks.graphs_are_where_they_belong(dict.fromkeys(right, False), gpu=False)
    for name, captured in right.items():
        assert not gpu_checks.graphs_are_where_they_belong({**right, name: not captured}, gpu=True)
    assert not gpu_checks.graphs_are_where_they_belong(right, gpu=False)


def test_stand_alone_kernels_are_compared_with_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    from ttengine.kernels import attention, sampling, select

    monkeypatch.setattr(gpu_checks, "WIDTHS", (1, 33))
    assert gpu_suite.check_kernels(rows=17)["ok"]
    broken = {
        attention: ("paged_attention", lambda query, *_: query),
        sampling: ("sample_topk", lambda logits, noise, **_: torch.zeros(len(logits), dtype=torch.int64)),
        select: ("select_beams", lambda score, width: (score[:, :width], torch.zeros(len(score), width).long())),
    }
    for module, (name, wrong) in broken.items():
        with monkeypatch.context() as patch:
            patch.setattr(module, name, wrong)
            assert not gpu_suite.check_kernels(rows=17)["ok"], name


@pytest.mark.parametrize(
    ("stage", "record"),
    [
        ("kernels", {"ok": False}),
        ("kernels", {"error": "RuntimeError: out of registers"}),
        ("plans ant-medium window", {"ok": True, "mismatches": 1}),
        ("plans ant-medium window", {"ok": False, "mismatches": 0}),
        ("plans ant-medium window", {"error": "EngineError"}),
        ("paths", {"ok": False}),
        ("memcheck", {"ok": False, "said": ["ERROR SUMMARY: 1 error"]}),
        ("memcheck", {"error": "TimeoutExpired"}),
    ],
    ids=str,
)
def test_a_failed_check_makes_the_report_incorrect(stage: str, record: dict[str, Any]) -> None:
    assert correct(RIGHT)
    assert not correct({**RIGHT, stage: record})


def test_what_was_skipped_is_no_failure_and_what_compared_nothing_no_success() -> None:
    assert correct({**RIGHT, "memcheck": {"skipped": "compute-sanitizer is not on this machine"}})
    assert correct({**RIGHT, "latency hopper": {"error": "it only measures"}})
    assert not correct({"machine": {}, "launches": {"replayed": {"kernels": 17}}})


@pytest.mark.parametrize("tool", [None, "sanitizer"])
def test_memcheck_without_its_tool_is_skipped_and_looks_behind_pytorchs_pool(
    tool: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def run(command: list[str], **how: Any) -> Any:
        seen.update(how, command=command)
        return subprocess.CompletedProcess(command, 9, "a\nb\n", "ERROR SUMMARY: 1 error")

    monkeypatch.setattr(gpu_checks.shutil, "which", lambda name: tool)
    monkeypatch.setattr(gpu_checks.Path, "glob", lambda self, pattern: iter(()))
    monkeypatch.setattr(gpu_checks.subprocess, "run", run)
    found = gpu_checks.memcheck(60.0)
    if tool is None:
        assert list(found) == ["skipped"]
    else:
        assert found == {"ok": False, "said": ["a", "b", "ERROR SUMMARY: 1 error"]}
        assert seen["command"][-1] == gpu_checks.__file__
        assert seen["env"]["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
        assert seen["timeout"] == 60.0


def stages_of(monkeypatch: pytest.MonkeyPatch, **records: dict[str, Any]) -> Suite:
    """A suite after all of its stages, which say that all is well but for what is given."""
    names = ("check_kernels", "check_plans", "check_paths", "memcheck", "compile_ahead")
    for name in (*names, "latency", "batches", "first_actions", "tiles", "limits", "launches"):
        record = records.get(name, {"ok": True})
        monkeypatch.setattr(gpu_suite, name, lambda *_, record=record: record)
    suite = Suite(1e6, None)
    gpu_suite.run(suite, ["hopper"], 1, 1, quick=False)
    return suite


@pytest.mark.parametrize("check", ["check_kernels", "check_plans", "check_paths"])
def test_nothing_is_timed_after_a_failed_check(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = stages_of(monkeypatch, **{check: {"ok": False}})
    assert not {"latency hopper", "batches hopper", "limits", "launches", "first actions hopper"} & set(suite.report)
    assert "memcheck" in suite.report
    assert suite.report["correct"] is False


def test_memcheck_counts_after_the_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    good = stages_of(monkeypatch)
    assert list(good.report["stages_s"])[-1] == "memcheck"
    assert good.report["correct"] is True
    bad = stages_of(monkeypatch, memcheck={"ok": False})
    assert "latency hopper" in bad.report
    assert bad.report["correct"] is False


@pytest.mark.parametrize("correct_at_the_end", [True, False])
def test_the_exit_code_is_that_of_the_report(correct_at_the_end: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py", "--quick"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_suite, "gpu_machine", dict)
    presets: list[Any] = []

    def run(suite: Suite, some: Any, *_: Any) -> None:
        presets.extend(some)
        suite.report["correct"] = correct_at_the_end

    monkeypatch.setattr(gpu_suite, "run", run)
    assert gpu_suite.main() == (0 if correct_at_the_end else 1)
    assert presets == [gpu_times.PRESETS[0]]


def test_latency_and_batches_time_every_engine(case: Case) -> None:
    rows = gpu_suite.latency(case, "hopper", 1, 1)["rows"]
    eager = {"PyTorch eager rolling", "PyTorch eager window"}
    assert {"triton bf16 rolling", "triton fp32 window", "naive", *eager} <= set(rows)
    assert rows["PyTorch eager rolling"]["x_eager"] == rows["PyTorch eager window"]["x_eager"] == 1
    assert all(row["p50_ms"] > 0 for row in rows.values())
    assert not any("launches" in row for row in rows.values())  # they are counted, not reckoned
    assert rows["naive"]["x_naive"] == 1
    assert "whole plans" in rows["naive"]["basis"]
    found = gpu_suite.batches(case, 1)
    assert found["2"]["plans_per_s"] > 0


def test_a_batch_that_does_not_fit_takes_no_other_with_it(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    right = gpu_times.timed_batches

    def fails(planner: Planner, moments: Any, size: int, repeats: int) -> Any:
        if size == 2:
            raise EngineError("more than the GPU has left")
        return right(planner, moments, size, repeats)

    monkeypatch.setattr(gpu_times, "timed_batches", fails)
    found = gpu_suite.batches(case, 1)
    assert found["1"]["plans"] == 1
    assert found["2"] == {"error": "EngineError: more than the GPU has left"}


def test_tiles_of_every_size_are_timed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows_of(planner: Planner, *_: Any) -> dict[str, Any]:
        memory = planner.engine._remember(1)  # type: ignore[attr-defined]
        return {"rows": (memory.candidates_of_a_tile, memory.beams_of_a_tile)}

    monkeypatch.setattr(gpu_times, "timed", rows_of)
    found = gpu_times.tiles(case, 1, 1.0)
    candidates, beams = (found[kind]["taken"] for kind in ("candidates_of_a_tile", "beams_of_a_tile"))
    for rows in (1, 2, 4, 8, 16):
        assert found["candidates_of_a_tile"][str(rows)] == {"rows": (rows, beams)}
        assert found["beams_of_a_tile"][str(rows)] == {"rows": (candidates, rows)}


def test_first_actions_are_compared_between_precisions_and_between_seeds(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second plan in bfloat16 is another one here, and so are both of the other seed."""
    plan, reference = Planner.plan, case.planner(engine="reference", context_kind="window")

    def planned(self: Planner, *arguments: Any, seed: int, step: int) -> Any:
        found = plan(reference, *arguments, seed=0, step=step)
        found.actions[0] += 0.5 * (self.config.precision == "bf16" and step == 1) + 2.0 * seed
        return found

    monkeypatch.setattr(Planner, "plan", planned)
    found = gpu_times.first_actions(case, 2, 1e9)
    for context in ("rolling", "window"):
        assert found[context] == {
            "plans": 2,
            "bf16": {"share_equal": 0.5, "mean_difference": 0.25},
            "fp16": {"share_equal": 1.0, "mean_difference": 0.0},
            "other_seed": {"share_equal": 0.0, "mean_difference": 2.0},
        }
    assert gpu_times.first_actions(case, 2, 0.0)["window"]["plans"] == 1


def test_an_engine_that_fails_takes_no_other_rows_with_it(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise OSError("no compiler")

    monkeypatch.setattr(gpu_times, "torch_planner", fails)
    monkeypatch.setattr(gpu_times, "VARIANTS", gpu_times.VARIANTS[:1])
    rows = gpu_suite.latency(case, "hopper", 1, 1)["rows"]
    assert rows["PyTorch eager rolling"] == {"error": "OSError: no compiler"}
    assert "x_naive" in rows["triton bf16 rolling"]
    assert "x_eager" not in rows["triton bf16 rolling"]


def test_a_row_of_latencies_ends_with_its_time_and_says_how_many_plans_it_is_of(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        now = 0.0

        def perf_counter(self) -> float:
            self.now += 1.0
            return self.now

    planner = Planner(case.checkpoint, dataclasses.replace(case.config, engine="reference"))
    monkeypatch.setattr(gpu_times, "time", Clock())
    moments = moments_of(case.checkpoint, 4)
    assert gpu_times.timed(planner, moments, 9)["plans"] == 9
    few = gpu_times.timed(planner, moments, 9, limit_s=5.0)
    assert few == {"p50_ms": 1000.0, "p90_ms": 1000.0, "p99_ms": 1000.0, "plans": 3}


def test_environments_of_a_batch_move_on_together(case: Case) -> None:
    """Each plan's contexts follow from the last one's, so that kept pages are as in a control loop."""
    seen: list[Any] = []

    class Spy:
        context_capacity = 2

        def plan(self, observations: Any, contexts: Any, *, step: int) -> None:
            seen.append((observations, [context.observations[-1] for context in contexts]))

    gpu_times.timed_batches(Spy(), moments_of(case.checkpoint, 6), 2, 3)  # type: ignore[arg-type]
    assert len(seen) == 3
    for (before, _), (_, executed) in itertools.pairwise(seen):
        np.testing.assert_array_equal(before, executed)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, launches would be counted")
def test_without_a_gpu_no_launches_are_counted(case: Case) -> None:
    assert list(gpu_suite.launches(case)) == ["skipped"]


def test_launches_are_counted_by_what_the_profiler_saw() -> None:
    names = ["expand"] * 5 + ["observe"] * 4 + ["Memcpy HtoD (Pinned -> Device)", "Memset (Device)"]
    found = gpu_times.count_work(names)
    assert (found["kernels"], found["copies"]) == (9, 2)
    assert found["names"]["expand"] == 5
    with pytest.raises(RuntimeError, match="saw no kernel"):
        gpu_times.count_work(["Memcpy DtoH (Device -> Pinned)"])


def test_a_profiler_that_sees_nothing_is_an_error_of_its_stage_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    short = Suite(1e6, None)
    short.stage("kernels", 0, lambda: {"ok": True})
    short.stage("launches", 0, lambda: gpu_times.count_work([]))
    assert "saw no kernel" in short.report["launches"]["error"]
    assert short.report["correct"] is True


def test_a_stage_without_time_is_named_and_an_error_ends_only_its_stage(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    short = Suite(5.0, None, tmp_path / "report.json")
    short.stage("long", 60, lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert short.report["left_out"] == ["long"]
    for name, error in (("torch", RuntimeError("x")), ("triton", Exception("x")), ("tool", OSError("x"))):
        short.stage(name, 0, lambda e=error: (_ for _ in ()).throw(e))
        assert short.report[name] == {"error": f"{type(error).__name__}: x"}
    assert "left out, no time" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["left_out"] == ["long"]


def test_compiling_ahead_plans_once_and_reports_what_fails(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Planner] = []
    plan = Planner.plan
    monkeypatch.setattr(gpu_suite, "random_case", lambda preset: case)
    monkeypatch.setattr(Planner, "plan", lambda self, *a, **k: planned.append(self) or plan(self, *a, **k))
    variant = gpu_times.VARIANTS[1]
    assert gpu_suite.compile_one("hopper", json.dumps(variant)) == {}
    assert gpu_suite.compile_one("hopper", json.dumps({**variant, "rows": 8})) == {}
    for planner in planned:
        assert isinstance(planner.engine, TritonEngine)
        assert variant.items() <= dataclasses.asdict(planner.config).items()
    assert isinstance(planner.engine, TritonEngine)
    assert planner.engine._memory.beams_of_a_tile == planner.engine._memory.candidates_of_a_tile == 8
    assert "ConfigError" in gpu_suite.compile_one("hopper", '{"precision": "fp8"}')["error"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, the suite would run")
def test_without_a_gpu_the_suite_says_so_and_fails() -> None:
    done = subprocess.run([sys.executable, gpu_suite.__file__, "--quick"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "sees none here" in done.stderr


def test_the_suite_needs_pytorch_triton_and_numpy_alone() -> None:
    """Also: where ttengine is not installed, the package and its kernels are taken from beside the bench."""
    absent = ("safetensors", "tyro", "rich", "psutil", "h5py", "gymnasium", "matplotlib")
    code = f"""
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path[:] = [{str(Path(gpu_suite.__file__).parent)!r}] + [path for path in sys.path if path]
sys.modules.update(dict.fromkeys({absent!r}))
import gpu_suite, ttengine.kernels.attention
assert gpu_suite.gpu_machine()["torch"]
assert not any(name.split(".")[0] == "kernels" for name in sys.modules), "kernels loaded twice"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


TINY = {"layers": 2, "heads": 2, "width": 32, "context": 1}
SEARCH = PlanConfig(horizon=4, beam_width=5, context_kind="rolling", engine="reference")


def assert_torch_plans_as_reference(compiled: bool, config: PlanConfig = SEARCH, **sizes: Any) -> None:
    """Contexts of every length that fits and longer, from every tenth moment of an episode."""
    checkpoint = make_checkpoint(**{**TINY, **sizes})
    theirs, ours = Planner(checkpoint, config), torch_engine.torch_planner(checkpoint, config, compiled=compiled)
    assert isinstance(ours.engine, torch_engine.TorchEngine)
    for step, moment in enumerate(moments_of(checkpoint, 31)[::10]):
        for length in (0, 1, 2, 4):
            context = cropped(moment.context, length)
            a, b = (planner.plan(moment.observation, context, seed=7, step=step) for planner in (ours, theirs))
            np.testing.assert_array_equal(a.actions, b.actions)
            np.testing.assert_array_equal(a.observations, b.observations)
            for name in ("score", "rewards", "value"):
                np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-4, atol=1e-5, err_msg=name)


def test_pytorchs_static_cache_plans_the_reference_engines_tokens() -> None:
    assert_torch_plans_as_reference(compiled=False)
    everything = Sampling(k=4, temperature=1.5)
    assert_torch_plans_as_reference(False, dataclasses.replace(SEARCH, observation=everything, value=everything))


@pytest.mark.parametrize("sizes", [{"positions": "absolute"}, {"context": 2}], ids=["absolute", "rotary"])
def test_pytorchs_window_is_cropped_and_computed_anew_in_every_round_that_needs_it(sizes: dict[str, Any]) -> None:
    """Three transitions: with a context of two, the window is too long from the first value on."""
    config = dataclasses.replace(SEARCH, context_kind="window", context=3)
    assert_torch_plans_as_reference(False, config, **sizes)
    checkpoint = make_checkpoint(**{**TINY, **sizes})
    planner = torch_engine.torch_planner(checkpoint, config)
    (moment,) = moments_of(checkpoint, 1)
    contexts = [cropped(moment.context, length) for length in (0, 2)]
    counted = [planner.plan(moment.observation, context).counters for context in contexts]
    assert [counters.prefills for counters in counted] == [1 + 1, 1 + 3]
    K = planner.model.config.transition_dim
    more = 2 * config.beam_width * (2 * K - 1)  # two windows of two transitions in the place of a value's one token
    assert counted[1].physical_rows - counted[0].physical_rows == more


def test_pytorchs_token_steps_compile_as_a_whole_and_write_to_static_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What breaks a graph or writes elsewhere is not captured on a GPU, where the compiled rows would be slow."""
    marked: list[torch.Tensor] = []
    monkeypatch.setattr(torch._dynamo, "mark_static_address", marked.append)
    compiled = []

    def compile_token(function: Any) -> Any:
        compiled.append(function)
        return torch.compile(function, backend="eager", dynamic=False, fullgraph=True)

    monkeypatch.setattr(torch_engine, "compile_token", compile_token)
    assert_torch_plans_as_reference(compiled=True)
    assert len(compiled) == 3  # greedy, actions, the model
    assert len(marked) == 2 + 2 * TINY["layers"]


def test_pytorchs_planner_refuses_what_it_does_not_search_for() -> None:
    for change in ({"percentile": 0.5}, {"objective": "likelihood"}):
        with pytest.raises(ConfigError, match="PyTorch planner"):
            torch_engine.torch_planner(make_checkpoint(**TINY), dataclasses.replace(SEARCH, **change))


def test_moments_follow_each_other_with_contexts_as_long_as_any_search_takes() -> None:
    for model, least in (({"layers": 4, "context": 5}, 20), ({"layers": 1, "context": 1}, 5)):
        moments = moments_of(make_checkpoint(**{**TINY, **model}), 1200)
        assert len(moments) == 1200
        assert all(len(moment.context) == least for moment in moments)
        for before, after in itertools.pairwise(moments):
            np.testing.assert_array_equal(before.observation, after.context.observations[-1])


def test_a_machine_without_a_gpu_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    facts = harness.gpu_machine()
    assert facts["device"] == "cpu, interpreted"
    assert facts["commit"] == harness.commit()
