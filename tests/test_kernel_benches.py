"""The benches of single kernels: their comparisons, tiny and interpreted, and that a wrong kernel ends them."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from interpreted import DEVICE
from test_engine_cpp import make_checkpoint

from ttengine.config import PlanConfig
from ttengine.engines import TritonEngine

pytest.importorskip("triton")
sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
sys.path.append(str(Path(__file__).resolve().parent.parent / "bench" / "kernels"))
import timing
from gpu_checks import Case
from harness import commit
from plan_inputs import moments_of as gpu_moments

FOLDER = Path(timing.__file__).parent
NAMES = ("attention", "sampling", "select", "segments", "branch", "sharing", "transformer", "products")
LIMITS = timing.Limits(bytes_per_s=4e12, flops_per_s=8e14)


def load(name: str) -> ModuleType:
    """A bench by its path: Python has a module called `select` already."""
    spec = importlib.util.spec_from_file_location(f"bench_of_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Time nothing: what was to be timed runs once, and the list keeps what it gave."""
    results: list[Any] = []

    def run_once(run: Callable[[], Any]) -> float:
        results.append(run())
        return 10.0 * len(results)

    monkeypatch.setattr(timing, "median_us", run_once)
    return results


def tiny(**search: Any) -> Case:
    """A model that the interpreter runs in no time."""
    checkpoint = make_checkpoint(observation_dim=3, action_dim=1, layers=1, heads=1, width=16, context=1)
    return Case(checkpoint, "tiny", PlanConfig(**{"horizon": 2, "beam_width": 2, **search}))


def lower(result: torch.Tensor) -> torch.Tensor:
    return result - 0.01


def shifted(result: torch.Tensor) -> torch.Tensor:
    return (result + 1) % 2


def swapped(result: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return result[0], result[1].flip(1)


@pytest.mark.parametrize(
    ("name", "kernel", "break_it"),
    [
        ("attention", "paged_attention", lower),
        ("attention", "paged_attention", lambda result: result * float("nan")),
        ("sampling", "sample_topk", shifted),
        ("select", "select_beams", swapped),
        ("select", "select_beams", lambda result: (result[0] + 1, result[1])),
    ],
)
def test_a_right_kernel_passes_and_a_wrong_one_ends_the_bench_with_1(
    name: str, kernel: str, break_it: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    bench = load(name)
    assert timing.main("", bench.compare, bench.measure, ["--check"]) == 0
    right = getattr(bench, kernel)
    monkeypatch.setattr(bench, kernel, lambda *arguments, **settings: break_it(right(*arguments, **settings)))
    assert timing.main("", bench.compare, bench.measure, ["--check"]) == 1
    assert kernel in capsys.readouterr().err


def test_nothing_is_timed_after_a_mismatch_or_for_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_now(*_: Any) -> Any:
        raise AssertionError("timed")

    monkeypatch.setattr(timing, "DEVICE", torch.device("cuda"))
    monkeypatch.setattr(timing, "measure_limits", not_now)
    assert timing.main("", lambda: ["a kernel is wrong"], not_now, []) == 1
    assert timing.main("", lambda: [], not_now, ["--check"]) == 0
    with pytest.raises(AssertionError, match="timed"):
        timing.main("", lambda: [], not_now, [])


def test_segments_that_plan_other_tokens_end_the_bench_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = load("segments")
    run = TritonEngine.run

    def wrong(self: TritonEngine, search: Any, **how: Any) -> Any:
        beams, score = run(self, search, **how)
        beams.tokens[:, :, 0] = (beams.tokens[:, :, 0] + 5) % 10
        return beams, score

    monkeypatch.setattr(TritonEngine, "run", wrong)
    (complaint,) = bench.compare(tiny())
    assert complaint.startswith("paths are not the reference engine's")
    assert timing.main("", lambda: [complaint], bench.measure, ["--check"]) == 1


def test_what_is_timed_beside_a_kernel_computes_the_same(once: list[Any]) -> None:
    """Also: sizes, and what a bench says that it moves."""
    attention, sampling, select = (load(name) for name in NAMES[:3])
    if DEVICE.type == "cpu":  # the interpreter knows no bfloat16
        right = attention.inputs
        attention.inputs = lambda rows, slots, entries, dtype: right(rows, slots, entries, torch.float32)
    (row,) = attention.measure(LIMITS, {"a": (17, 7, 3)})
    torch.testing.assert_close(*once, atol=timing.TOLERANCE[once[0].dtype], rtol=0)
    assert (row["us"], row["competitor_us"], row["x"]) == (10.0, 20.0, 2.0)
    once.clear()
    rows = list(sampling.measure(LIMITS, {"a": (20, 9)}))
    assert [row["case"] for row in rows] == ["a, cdf 0.6", "a, top 40", "a, greedy"]
    assert all(torch.equal(*pair) for pair in zip(once[::2], once[1::2], strict=True))
    assert rows[0]["of_limit"] == timing.significant(20 * (9 * 4 + 4 + 8) / LIMITS.bytes_per_s * 1e6 / 10)
    once.clear()
    list(select.measure(LIMITS, {"a": (3, 40, 7), "b": (1, 5, 5)}))
    for (ours, kept), (theirs, other) in zip(once[::2], once[1::2], strict=True):
        assert torch.equal(ours.sort().values, theirs.sort().values)
        assert kept.shape == other.shape
    assert all(bool((other.diff() > 0).all()) for _, other in once)


def test_attention_is_timed_on_pages_of_which_no_two_rows_share_one() -> None:
    _, keys, _, table, lengths = load("attention").inputs(9, 4, 3, torch.float32)
    assert sorted(table.flatten().tolist()) == list(range(len(keys)))
    assert 6 <= int(lengths.min()) <= int(lengths.max()) <= 12


def test_every_verb_of_both_engines_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, names = load("segments"), []

    class Count:
        def __init__(self) -> None:
            self.names: list[str] = []

        @contextmanager
        def __call__(self, name: str) -> Iterator[None]:
            self.names.append(name)
            names.append(name)
            yield

        def medians_us(self) -> dict[str, float]:
            times = {"prefill, first expand": 7.0, "expand": 2.0, "take": float(self.names.count("take"))}
            return {name: times.get(name, 1.0) for name in self.names}

    monkeypatch.setattr(bench, "WARM_UP", 1)
    for changes in ({}, {"draft": False}, {"engine": "reference"}):
        names.clear()
        found = bench.verbs(tiny(horizon=3), 1, Count, **changes)
        assert found == {"prefill": 5.0, "select": 1.0, "observe": 1.0, "expand": 2.0, "take": 1.0}
        a_plan = ["prefill, first expand", *["select", "observe", "expand"] * 2, "take"]
        assert names == 2 * a_plan
        assert found.keys() == bench.limits_us(tiny(), LIMITS).keys()
    monkeypatch.setattr(bench, "random_case", lambda preset: tiny())
    monkeypatch.setattr(bench, "verbs", lambda *_, **how: dict.fromkeys(found, 3.0 if how.get("draft", True) else 4.0))
    rows = {row["case"]: row for row in bench.measure(LIMITS)}
    assert len(rows) == 2 * 6
    assert [rows[f"hopper, observe{end}"]["us"] for end in ("", ", no drafts")] == [3.0, 4.0]


def test_limits_of_segments_count_the_tokens_that_they_decode() -> None:
    """Two candidates for each of two beams, an action and a reward each; observations of 3, and the value before."""
    case = tiny()
    model = case.checkpoint.model.config
    token = 2 * (12 * 16**2 + 16 * (model.n_bins + 1))
    found = load("segments").limits_us(case, LIMITS)
    assert found["expand"] == pytest.approx(4 * 2 * token / LIMITS.flops_per_s * 1e6)
    assert found["observe"] == pytest.approx(2 * 4 * token / LIMITS.flops_per_s * 1e6)
    assert found["prefill"] == pytest.approx(5 * 2 * 12 * 16**2 / LIMITS.flops_per_s * 1e6)


def test_numbers_are_written_with_machine_versions_and_commit(
    once: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(timing, "DEVICE", torch.device("cuda"))
    monkeypatch.setattr(timing, "measure_limits", lambda: LIMITS)
    path = tmp_path / "deep" / "numbers.json"

    def measure(limits: timing.Limits) -> Iterator[dict[str, Any]]:
        yield timing.row("a case", 8.0, 2.0, "somebody", 24.0)

    assert timing.main("", lambda: [], measure, ["--json", str(path)]) == 0
    written = json.loads(path.read_text())
    assert {"python", "torch", "triton", "device"} <= set(written["machine"])
    assert written["machine"]["commit"] == commit()
    assert written["limits"] == {"bytes_per_s": 4e12, "flops_per_s": 8e14}
    said = {"case": "a case", "competitor": "somebody", "us": 8.0, "of_limit": 0.25, "competitor_us": 24.0, "x": 3.0}
    assert written["rows"] == [said]
    assert "somebody" in capsys.readouterr().out


def test_a_token_of_a_likelihood_search_is_timed_and_a_wrong_one_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    class Counter:
        @contextmanager
        def __call__(self, name: str) -> Iterator[None]:
            names.append(name)
            yield

        def medians_us(self) -> dict[str, float]:
            return {"token": 7.0}

    branch, case = load("branch"), tiny(horizon=6, objective="likelihood")
    for engine in ("triton", "reference"):
        assert branch.token_us(case, engine, branch.WARM_UP + 3, Counter) == 7.0
    assert names == 2 * (["warm-up"] * branch.WARM_UP + ["token"] * 3)
    case = tiny(objective="likelihood")
    verb = TritonEngine.branch
    monkeypatch.setattr(TritonEngine, "branch", lambda self, beams, tokens: verb(self, beams, (tokens + 1) % 4))
    assert "context rolling are not the reference engine's" in branch.compare(case)[0]


def test_windows_that_change_a_plan_where_they_are_shared_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also: plans are timed with sharing and without."""
    bench = load("sharing")
    monkeypatch.setattr(bench, "random_case", lambda preset: tiny())
    monkeypatch.setattr(bench, "PRESETS", ("hopper",))
    monkeypatch.setattr(bench, "moments_of", lambda checkpoint, count: gpu_moments(checkpoint, min(count, 2)))

    def time_one(planner: Any, moments: Any, plans: int) -> dict[str, float]:
        planner.plan(*moments[0])
        return {"p50_ms": 3.0 if planner.config.deduplicate else 6.0}

    monkeypatch.setattr(bench, "timed", time_one)
    (row,) = bench.measure(LIMITS)
    assert (row["us"], row["competitor_us"], row["x"]) == (3000.0, 6000.0, 2.0)
    run = TritonEngine.run

    def wrong(self: TritonEngine, search: Any, **how: Any) -> Any:
        beams, score = run(self, search, **how)
        return beams, score + int(self.config.deduplicate)

    monkeypatch.setattr(TritonEngine, "run", wrong)
    assert bench.compare(tiny())[0] == "plan 0 has other bytes where windows are shared"


def test_products_are_held_to_float64_and_their_limit_is_three_products(
    once: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = load("products")
    (row,) = bench.measure(LIMITS, {"tiny": (16, 16, 64)})
    torch.testing.assert_close(*once)
    assert row["of_limit"] == timing.significant(3 * 2 * 16 * 16 * 64 / LIMITS.flops_per_s * 1e6 / 10)
    multiply = bench.in_kernel
    monkeypatch.setattr(bench, "TINY", {"tiny": (16, 16, 64)})
    monkeypatch.setattr(bench, "in_kernel", lambda a, b: multiply(a.half().float(), b))
    assert "product, tiny" in bench.compare()[0]


def test_a_tile_is_held_to_the_model_and_its_limit_is_reading_the_layers_weights(
    once: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = load("transformer")
    monkeypatch.setattr(bench, "PASSES", 2)
    monkeypatch.setattr(bench, "l2_bytes_per_s", lambda programs: 1e9 * programs)
    (row,) = bench.measure(LIMITS, {"tiny": (2, 1, 16)}, "fp32")
    torch.testing.assert_close(*once, atol=1e-4, rtol=0)
    assert (row["us"], row["competitor_us"]) == (5.0, 10.0)
    assert row["of_limit"] == timing.significant(2 * 12 * 16**2 * 4 / 1e9 * 1e6 / 5)
    hidden = bench.Tile.in_kernel
    monkeypatch.setattr(bench, "TINY", {"tiny": (1, 1, 16)})
    monkeypatch.setattr(bench.Tile, "in_kernel", lambda self: hidden(self) + 1e-3)
    assert "forward, tiny, float32" in bench.compare()[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, the benches would run")
@pytest.mark.parametrize(("name", "arguments"), list(itertools.product(NAMES, ((), ("--check",)))))
def test_without_a_gpu_a_bench_only_compares(name: str, arguments: tuple[str, ...]) -> None:
    """As programs, from another folder: each finds what it imports, `select` the module of that name too."""
    command = [sys.executable, str(FOLDER / f"{name}.py"), *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=FOLDER, env=environment)
    assert done.returncode == (0 if arguments else 2), done.stderr
    assert ("PyTorch sees none here" in done.stderr) == (not arguments)


def test_every_file_of_kernels_that_is_launched_has_a_bench_of_its_name(repository: Path) -> None:
    kernels = {path.stem for path in (repository / "kernels").glob("*.py") if "@triton.jit" in path.read_text()}
    assert kernels == set(NAMES)
    assert all((FOLDER / f"{name}.py").is_file() for name in NAMES)
