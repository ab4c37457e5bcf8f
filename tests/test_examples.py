"""The examples run, on tiny models, and stay as short as the README says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from tiny import tiny_checkpoint


def example(repository: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, repository / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_controller_loop_runs(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mujoco")
    tiny_checkpoint(11, 3).save(tmp_path / "model.safetensors")
    example(repository, "controller_loop").main(str(tmp_path / "model.safetensors"), steps=3)
    assert " in 3 steps; plans: p50_s " in capsys.readouterr().out


def test_the_controller_loop_is_less_than_40_lines(repository: Path) -> None:
    assert len((repository / "examples" / "controller_loop.py").read_text().splitlines()) < 40


def test_own_data_leads_to_a_plan(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("tensorboard")
    example(repository, "own_data").main(str(tmp_path), steps=2)
    assert "at 0.8, standing still, push " in capsys.readouterr().out
    assert (tmp_path / "log.npz").is_file()
    assert (tmp_path / "run" / "model.safetensors").is_file()
