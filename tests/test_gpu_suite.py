"""The suite for machines with a GPU, its stages run small and interpreted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engine_cpp import make_checkpoint

from ttengine.config import PlanConfig

pytest.importorskip("triton")
sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
import gpu_suite
import token_equality
from gpu_suite import Suite

SMALL = PlanConfig(horizon=2, beam_width=2)


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Suite:
    """A suite whose presets are tiny models and searches."""

    def tiny(observation_dim: int, action_dim: int, **_: Any) -> Any:
        return make_checkpoint(observation_dim=3, action_dim=1, layers=2, heads=1, width=16, context=1)

    monkeypatch.setattr(gpu_suite, "random_checkpoint", tiny)
    monkeypatch.setattr(gpu_suite, "plan_preset", lambda name: SMALL)
    monkeypatch.setattr(gpu_suite, "WARM_UP", 0)
    monkeypatch.setattr(gpu_suite, "BATCHES", (1, 2))
    return Suite(1e6, None)


def test_plans_and_paths_pass_on_a_right_engine(suite: Suite) -> None:
    found = gpu_suite.check_plans(suite, "hopper", "window", 1)
    assert (found["plans"], found["equal"], found["mismatches"]) == (1, 1, 0)
    paths = gpu_suite.check_paths(suite, "hopper")
    assert paths["ok"]
    assert paths["observation_tokens_a_tile"] > 1
    assert set(paths["graph"].values()) <= {torch.cuda.is_available(), False}


def test_a_plan_that_differs_is_a_mismatch(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    from ttengine.engines import TritonEngine

    expand = TritonEngine.expand

    def wrong(self: TritonEngine, copies: int) -> Any:
        candidates = expand(self, copies)
        candidates.tokens[0, 0, 0] = (candidates.tokens[0, 0, 0] + 5) % 10
        return candidates

    monkeypatch.setattr(TritonEngine, "expand", wrong)
    monkeypatch.setattr(token_equality, "NEAR", 1e-9)
    assert gpu_suite.check_plans(suite, "hopper", "rolling", 1)["mismatches"] == 1


def test_latency_and_batches_time_every_engine(suite: Suite) -> None:
    rows = gpu_suite.latency(suite, "hopper", 1, 1)["rows"]
    assert {"triton bf16 rolling", "triton fp32 window", "PyTorch eager rolling", "naive"} <= set(rows)
    assert all(row["p50_ms"] > 0 for row in rows.values())
    assert rows["naive"]["x_naive"] == 1
    found = gpu_suite.batches(suite, "hopper", 1)
    assert found["2"]["plans_per_s"] > 0


def test_a_stage_without_time_is_named_and_an_error_ends_only_its_stage(capsys: pytest.CaptureFixture[str]) -> None:
    short = Suite(5.0, None)
    short.stage("long", 60, lambda: 1 / 0)
    assert short.report["left_out"] == ["long"]
    short.stage("broken", 0, lambda: torch.zeros(2) @ torch.zeros(3))
    assert "error" in short.report["broken"]
    assert "left out, no time" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, the suite would run")
def test_without_a_gpu_the_suite_says_so_and_fails() -> None:
    done = subprocess.run([sys.executable, gpu_suite.__file__, "--quick"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "sees none here" in done.stderr
