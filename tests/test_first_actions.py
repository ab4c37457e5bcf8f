"""The command that compares first actions of two precisions; test_gpu_suite.py holds what it compares."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
import first_actions
from gpu_checks import Case
from plan_inputs import Moment, replay, synthetic_log

from ttengine.checkpoint import load


def test_moments_are_a_stride_apart_and_the_record_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def compare(case: Case, moments: Iterable[Moment]) -> dict[str, Any]:
        seen.extend(moment.observation for moment in moments)
        assert case.config.context_kind == "window"
        return {"plans": len(seen)}

    monkeypatch.setattr(first_actions, "compare_precisions", compare)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    out = tmp_path / "record.json"
    options = "--model hopper --preset hopper-demonstrator --context window --plans 3 --stride 7 --json"
    monkeypatch.setattr(sys, "argv", ["first_actions.py", *options.split(), str(out)])
    first_actions.main()
    record = json.loads(out.read_text())
    assert (record["plans"], record["stride"], record["gpu"], record["weights"]) == (3, 7, "a GPU", "hopper")
    model = load("hopper")
    steps = replay(synthetic_log(model.discretizer, model.model.config.action_dim), 6, 6)
    rows = [moment.observation for moment, _ in (next(steps) for _ in range(15))]
    np.testing.assert_array_equal(seen, rows[::7])


def test_without_a_gpu_it_says_what_to_add(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["first_actions.py", "--model", "hopper", "--preset", "hopper"])
    with pytest.raises(SystemExit):
        first_actions.main()
    assert "add --virtual-gpu" in capsys.readouterr().err
