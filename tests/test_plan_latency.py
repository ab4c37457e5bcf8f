"""The planning bench at toy sizes: its naive reference, its arithmetic, its records, its exit codes."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ttengine.data import Trajectories, save_dataset
from ttengine.engines import ENGINES, Candidates, ReferenceEngine

pytest.importorskip("psutil")
sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
import harness
import latency_report
import latency_runs
import plan_latency
from plan_inputs import Log, random_checkpoint, synthetic_log

TOY = ["--layers", "1", "--heads", "2", "--width", "16", "--horizon", "2", "--beam-width", "4", "--threads", "1"]
QUICK = [*TOY, "--slow-plans", "3", "--plans", "3", "--warmup", "1", "--no-memory"]
TOY_LABEL = "hopper (layers=1, heads=2, width=16, horizon=2, beam_width=4)"

# fmt: off
KEYS = [
    "engine", "preset", "context", "dedup", "threads", "plans", "p50_s", "p90_s", "p99_s", "speedup_vs_naive",
    "control_period_s", "meets_control_rate", "token_steps", "logical_rows", "physical_rows", "gflop", "gflops",
    "machine_gflops", "commit", "versions", "weights", "observations", "naive_s", "naive_basis", "memory_mb",
    "utilisation",
]
# fmt: on

PEAK = 50.0
"""What the machine's matrix product reaches in these tests, in GFLOP/s: measuring it takes seconds."""


@pytest.fixture(autouse=True)
def leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(plan_latency, "matmul_gflops", lambda: PEAK)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def bench(*options: str) -> int:
    return plan_latency.main(["--preset", "hopper", *options])


class StubbornEngine(ReferenceEngine):
    """Keeps the worst candidates: its plans are other ones, and worse."""

    def select(self, kept: torch.Tensor) -> None:
        super().select(len(self._problems[0].tokens) - 1 - kept.flip(1))


class DistortedEngine(ReferenceEngine):
    """Makes the same plans and reads their rewards one higher."""

    def expand(self, copies: int) -> Candidates:
        found = super().expand(copies)
        return Candidates(
            found.tokens, found.rewards + 1, found.values, found.observation, found.discretizer, found.action_dim
        )


# --- timing and arithmetic ---


def test_runs_take_turns_and_warm_up_untimed() -> None:
    done: list[tuple[str, bool]] = []

    class FakeRun:
        def __init__(self, name: str, wanted: int) -> None:
            self.name, self.wanted, self.seconds = name, wanted, []

        def plan(self, timed: bool = True) -> None:
            done.append((self.name, timed))
            if timed:
                self.seconds.append(0.0)

    latency_runs.run_in_turns([FakeRun("fast", 100), FakeRun("slow", 4)], warmup=5)  # type: ignore[list-item]
    assert done[:5] == [("fast", False)] * 5
    timed = done[5:]
    assert all(was_timed for _, was_timed in timed)
    assert [place for place, (name, _) in enumerate(timed) if name == "slow"] == [25, 51, 77, 103]
    assert sum(name == "fast" for name, _ in timed) == 100


def test_an_episodes_first_plan_is_not_timed() -> None:
    subject = latency_runs.make_subject("hopper", None, None, {"layers": 1, "heads": 2, "width": 16}, {"horizon": 1})
    short = [(0, subject.lead + 3)]
    log = subject.log
    subject = latency_runs.Subject(
        subject.preset,
        subject.body,
        subject.checkpoint,
        subject.weights,
        Log(log.observations, log.actions, log.rewards, short, log.label),
        subject.config,
    )
    run = latency_runs.Run(subject, latency_runs.Variant("reference", "window"), 1, 4)
    calls = []
    planner = run._planner
    assert planner is not None
    plan = planner.plan
    planner.plan = lambda *a, **k: calls.append(a) or plan(*a, **k)  # type: ignore[method-assign]
    for _ in range(4):
        run.plan()
    assert len(run.seconds) == 4
    assert len(calls) == 6  # two steps of three are timed


def test_percentiles_are_measured_values_and_err_on_the_slow_side() -> None:
    values = [float(v) for v in range(1, 101)]
    assert [harness.percentile(values[::-1], share) for share in (0.5, 0.9, 0.99)] == [50, 90, 99]
    assert [harness.percentile([3.0, 1.0, 2.0], share) for share in (0.5, 0.9, 0.99)] == [2, 3, 3]
    assert harness.percentile([7.0], 0.5) == 7


def test_a_linear_fit_finds_the_line_and_says_how_well_it_fits() -> None:
    assert harness.linear_fit([1, 2, 4], [5, 7, 11]) == pytest.approx((2, 3, 1))
    x, y = [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 5.0]
    slope, intercept = np.polyfit(x, y, 1)
    assert harness.linear_fit(x, y) == pytest.approx((slope, intercept, np.corrcoef(x, y)[0, 1] ** 2))


def test_the_matrix_product_peak_counts_multiplications_and_additions(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(ticks) * 0.5)
    assert harness.matmul_gflops(size=100) == pytest.approx(2 * 100**3 / 0.5 / 1e9)


def test_a_commit_is_unknown_without_git_and_dirty_with_other_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    commit = harness.commit.__wrapped__
    assert commit() == "unknown"
    if not shutil.which("git"):
        pytest.skip("git is not here")
    (tmp_path / "setup.py").write_text("1")
    harness._git("init", "--quiet")
    harness._git("add", ".")
    harness._git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "--message", "one")
    clean = commit()
    assert len(clean) == 40
    (tmp_path / "notes.txt").write_text("no code")
    assert commit() == clean
    (tmp_path / "setup.py").write_text("2")
    assert commit() == f"{clean}-dirty"


def test_differing_plans_are_an_error_when_they_are_many_and_their_scores_are_off() -> None:
    variant = latency_runs.Variant("cpp", "window")
    assert latency_runs.Comparison(variant, 98, [0.5, 0.5]).agrees
    assert latency_runs.Comparison(variant, 0, [1e-4, 1e-3]).agrees
    assert not latency_runs.Comparison(variant, 97, [0.5, 0.0, 0.0]).agrees
    assert latency_runs.Comparison(variant, 3, []).agrees


def test_a_record_judges_the_slowest_percent_and_counts_all_time() -> None:
    subject = latency_runs.make_subject("hopper", None, None, {"layers": 1, "heads": 2, "width": 16}, {})
    run = latency_runs.Run(subject, latency_runs.Variant("reference", "window"), threads=1, wanted=100)
    run.seconds = [0.002] * 90 + [0.004] * 8 + [0.009] * 2
    run.work.update({"flops": 100 * 5_000_000, "physical_rows": 300})
    naive = latency_report.NaiveTime(4.0, "made up")
    record = latency_report.make_record(run, naive, machine_gflops=10.0)
    assert (record["p50_s"], record["p90_s"], record["p99_s"]) == (0.002, 0.002, 0.009)
    assert (record["meets_control_rate"], record["speedup_vs_naive"]) == (False, 2000)
    assert (record["gflop"], record["physical_rows"]) == (0.005, 3)
    assert record["gflops"] == pytest.approx(0.5 / 0.23, rel=1e-3)
    assert record["utilisation"] == pytest.approx(0.5 / 0.23 / 10, rel=1e-3)
    run.seconds[-2:] = [0.008, 0.009]  # the 99th of a hundred is just in time
    assert latency_report.make_record(run, None, 10.0)["meets_control_rate"] is True


# --- the whole bench ---


def run_to_json(tmp_path: Path, *options: str) -> dict[str, Any]:
    assert bench(*options, "--json", str(tmp_path / "out.json")) == 0
    content: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
    return content


def test_each_row_is_one_record_with_consistent_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENGINES, "cpp", ReferenceEngine)  # the bench's own arithmetic, whatever the machine can build
    plot = tmp_path / "rows.png"
    content = run_to_json(tmp_path, *QUICK, "--plans", "7", "--dedup", "on", "off", "--plot", str(plot))
    rows = content["rows"]
    assert [(r["engine"], r["context"], r["dedup"], r["plans"]) for r in rows] == [
        ("cpp", "window", True, 7),
        ("cpp", "window", False, 7),
        ("cpp", "rolling", True, 7),
        ("cpp", "rolling", False, 7),
        ("reference", "window", None, 3),
        ("reference", "rolling", None, 3),
    ]
    for r in rows:
        assert list(r) == KEYS
        assert (r["preset"], r["weights"], r["observations"]) == (TOY_LABEL, "random", "synthetic random walk")
        assert 0 < r["p50_s"] <= r["p90_s"] <= r["p99_s"]
        assert r["speedup_vs_naive"] == pytest.approx(r["naive_s"] / r["p50_s"], rel=1e-3)
        assert r["control_period_s"] == 0.008
        assert r["meets_control_rate"] == (r["p99_s"] <= 0.008)
        # hopper: N = 11, M = 3; H = 2, C = 8, W = 4; 1 + 2 x (M + 1) + (N + 1) steps
        assert r["token_steps"] == 21
        full = 4 * 16 + 11 if r["context"] == "window" else 5 * 16 + 11
        again = 4 * 16 + 11 if r["context"] == "window" else 1 + 11
        assert r["logical_rows"] == r["physical_rows"] == full + 2 * 8 * 4 + 4 * again
        assert (r["gflop"], r["gflops"], r["utilisation"], r["memory_mb"]) == (None, None, None, None)
        assert r["machine_gflops"] == PEAK
        assert "extrapolated from 1 of 2 rounds" in r["naive_basis"]
        assert r["versions"]["torch"] == torch.__version__
    assert "--plans 7" in content["command"]
    assert [v["equal_plans"] for v in content["verification"]] == [2] * 4
    assert plot.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert f"{TOY_LABEL}: random weights, observations synthetic random walk" in printed
    assert "extrapolated from 1 of 2 rounds" in printed
    assert "cpp, dedup off" in printed


def test_work_is_averaged_over_the_timed_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(ReferenceEngine):
        plans = 0

        def prefill(self, *arguments: Any) -> None:
            super().prefill(*arguments)
            Counting.plans += 1
            self.counters.flops = 1_000_000 * Counting.plans

    monkeypatch.setitem(ENGINES, "cpp", Counting)
    options = ["--engine", "cpp", "--context", "window", "--verify", "0", "--naive-rounds", "0", "--plans", "5"]
    (row,) = run_to_json(tmp_path, *QUICK, *options)["rows"]
    # the episode's first plan and the warm-up are plans 1 and 2; the timed ones are 3 to 7, on average 5
    assert row["gflop"] == pytest.approx(0.005)
    assert row["gflops"] == pytest.approx(0.005 / row["p50_s"], rel=0.5)
    assert row["utilisation"] == pytest.approx(row["gflops"] / PEAK, rel=1e-3)
    assert (row["naive_s"], row["naive_basis"], row["speedup_vs_naive"]) == (None, None, None)


def test_memory_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    options = [*TOY, "--engine", "reference", "--context", "rolling", "--slow-plans", "1", "--naive-rounds", "0"]
    (row,) = run_to_json(tmp_path, *options, "--verify", "0")["rows"]
    assert 0.5 < row["memory_mb"] < 150


def test_a_model_file_and_recorded_episodes_are_named_in_the_record(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(11, 3, layers=1, heads=2, width=16)
    checkpoint.save(tmp_path / "mine.safetensors")
    log = synthetic_log(checkpoint.discretizer, 3, length=30)
    none = np.zeros(30, np.bool_)
    save_dataset(Trajectories(log.observations, log.actions, log.rewards, none, none), tmp_path / "episodes.npz")
    files = ["--model", str(tmp_path / "mine.safetensors"), "--data", str(tmp_path / "episodes.npz")]
    options = [
        "--engine",
        "reference",
        "--context",
        "window",
        "--slow-plans",
        "2",
        "--horizon",
        "2",
        "--beam-width",
        "4",
    ]
    (row,) = run_to_json(tmp_path, *files, *options, "--threads", "1", "--no-memory")["rows"]
    assert (row["weights"], row["observations"]) == ("mine.safetensors", "replayed from episodes.npz")
    assert row["preset"] == "hopper (horizon=2, beam_width=4)"


@pytest.mark.parametrize("engine", [StubbornEngine, DistortedEngine])
def test_an_engine_that_disagrees_ends_the_bench_with_1_before_anything_is_timed(
    engine: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(ENGINES, "cpp", engine)
    assert bench(*QUICK, "--engine", "cpp", "--context", "window", "--json", str(tmp_path / "out.json")) == 1
    assert "cpp window disagrees with the reference engine" in capsys.readouterr().err
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["rows"] == []
    assert max(content["verification"][0]["relative_score_differences"]) > 1e-3


def test_a_naive_planner_that_disagrees_ends_the_bench_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan_latency, "naive_equals_reference", lambda: False)
    assert bench(*QUICK, "--engine", "reference") == 1
    captured = capsys.readouterr()
    assert "the naive planner disagrees" in captured.err
    assert "nothing was timed" in captured.out


def test_ctrl_c_prints_and_writes_what_was_timed_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, calls = latency_runs.Run.plan, []

    def interrupted(self: latency_runs.Run, timed: bool = True) -> None:
        calls.append(1)
        if len(calls) > 5:  # a warm-up of each, then window, rolling, window
            raise KeyboardInterrupt
        plan(self, timed)

    monkeypatch.setattr(latency_runs.Run, "plan", interrupted)
    options = [*QUICK, "--engine", "reference", "--slow-plans", "3", "--json", str(tmp_path / "out.json")]
    assert bench(*options) == 130
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["interrupted"] is True
    assert [(row["context"], row["plans"]) for row in content["rows"]] == [("window", 2), ("rolling", 1)]
    assert "  reference" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "cartpole"], "preset 'cartpole' is of no known body"),
        (["--data", "nothing.npz"], "nothing.npz"),
        (["--model", "MODEL", "--layers", "1"], "layers can be chosen for random weights only"),
        (["--model", "MODEL"], "the model has 3 observation and 1 action dims, hopper has 11 and 3"),
    ],
)
def test_wrong_arguments_end_the_bench_with_2_and_say_why(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "small.safetensors"
    random_checkpoint(3, 1, layers=1, heads=2, width=16).save(model)
    options = [str(model) if option == "MODEL" else option for option in options]
    assert bench("--engine", "reference", *options) == 2
    assert message in capsys.readouterr().err


def test_a_sweep_fits_a_line_to_the_medians_and_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*TOY[:6], "--threads", "1", "--engine", "reference", "--slow-plans", "2", "--horizon", "2"]
    values = ["--beam-width", "4", "--horizons", "1", "2", "4", "--beam-widths", "2", "4", "8", "16"]
    plot = tmp_path / "sweep.png"
    sweeps = run_to_json(tmp_path, *options, *values, "--sweep", "--plot", str(plot))["sweeps"]
    assert [(s["context"], s["varied"], s["held"]) for s in sweeps] == [
        ("window", "horizon", "beam width 4"),
        ("window", "beam_width", "horizon 2"),
        ("rolling", "horizon", "beam width 4"),
        ("rolling", "beam_width", "horizon 2"),
    ]
    for sweep in sweeps:
        values_of = [point["value"] for point in sweep["points"]]
        assert values_of == ([1, 2, 4] if sweep["varied"] == "horizon" else [2, 4, 8, 16])
        slope, intercept, r2 = harness.linear_fit(values_of, [point["p50_s"] for point in sweep["points"]])
        assert (sweep["slope_s"], sweep["r2"]) == (pytest.approx(slope, rel=0.02), pytest.approx(r2, abs=0.01))
        assert sweep["intercept_s"] == pytest.approx(intercept, abs=1e-3)
        rows = [point["physical_rows"] for point in sweep["points"]]
        assert rows == sorted(rows) and rows[0] < rows[-1]
        assert sweep["weights"] == "random"
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "random weights" in capsys.readouterr().out


@pytest.mark.parametrize(("growth_mb", "status"), [(0.0, 0), (0.5, 0), (0.7, 1)])
def test_endurance_ends_with_1_when_memory_grows(
    growth_mb: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = itertools.count()
    monkeypatch.setattr(latency_runs, "resident_mb", lambda: 100 + growth_mb * next(sizes))
    assert bench(*TOY[:6], "--engine", "reference", "--context", "rolling", "--endurance", "20") == status
    printed = capsys.readouterr().out
    assert printed.count("\n  1") == 10
    assert "20 plans" in printed
    assert "random weights" in printed
