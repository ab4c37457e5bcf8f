"""Model files: whole or refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file
from synthetic import tiny_model
from tiny import tiny_checkpoint

from ttengine.checkpoint import FORMAT, Checkpoint, load, read_tensors, write_tensors
from ttengine.config import DataConfig
from ttengine.discretizer import Discretizer
from ttengine.errors import CheckpointError
from ttengine.model import TrajectoryTransformer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A whole model file."""
    tiny_checkpoint(dataset_metadata={"env_id": "Pendulum-v1"}).save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def rewritten(
    path: Path,
    tensors: Callable[[dict[str, Any]], object] | None = None,
    about: Callable[[dict[str, Any]], object] | None = None,
) -> None:
    """Write the file again after changing its tensors or its JSON in place."""
    held, described = read_tensors(path, FORMAT)
    if tensors is not None:
        tensors(held)
    if about is not None:
        about(described)
    write_tensors(path, held, FORMAT, described)


def test_a_file_that_is_replaced_while_it_is_read_is_read_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors and description are of the same file: training replaces models that others are reading."""
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"a": torch.zeros(3)}, FORMAT, {"step": 1})

    def replace_first(content: bytes) -> dict[str, torch.Tensor]:
        write_tensors(path, {"a": torch.ones(2)}, FORMAT, {"step": 2})
        return parse(content)

    parse = safetensors.torch.load
    monkeypatch.setattr(safetensors.torch, "load", replace_first)
    tensors, about = read_tensors(path, FORMAT)
    assert torch.equal(tensors["a"], torch.zeros(3))
    assert about == {"step": 1}


@pytest.mark.parametrize("changes", [{}, {"goal": True}, {"positions": "absolute", "layers": 2}])
def test_a_checkpoint_comes_back_to_the_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = tiny_model(**changes)
    model = TrajectoryTransformer(config).eval()
    edges = torch.randn(config.transition_dim, config.n_bins + 1).sort(dim=1).values
    made = Checkpoint(
        model, Discretizer(edges, True), DataConfig(0.9), "made-up", {"seed": 3, "metrics": {"loss": 0.1}}
    )
    made.save(tmp_path / "folder" / "model.safetensors")
    loaded = load(str(tmp_path / "folder" / "model.safetensors"))
    assert loaded.model.config == config
    assert (loaded.data, loaded.dataset, loaded.provenance) == (made.data, "made-up", made.provenance)
    assert loaded.discretizer.last_duplicate and torch.equal(loaded.discretizer.edges, edges)
    assert not loaded.model.training
    tokens = torch.randint(0, config.n_bins + 1, (2, config.max_tokens))
    goal = torch.randint(0, config.n_bins, (2, 2)) if config.goal else None
    assert torch.equal(loaded.model(tokens, goal), model(tokens, goal))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no model file at .*absent"):
        load(tmp_path / "absent.safetensors")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model file"):
        load(tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, -1])
def test_a_truncated_file_is_refused(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        load(path)


@pytest.mark.parametrize("content", [b"\x80\x04\x95 a pickle, say", b"PK\x03\x04" * 50, b"\xff" * 200])
def test_a_foreign_file_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        load(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "ttengine.resume/1", "about": "{}"}])
def test_a_safetensors_file_of_another_kind_is_refused(path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"weight": torch.zeros(2)}, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"expected 'ttengine\.checkpoint/1'"):
        load(path)


@pytest.mark.parametrize("about", [None, "{", "[]", json.dumps({"model": 3})])
def test_a_header_without_the_settings_is_refused(path: Path, about: str | None) -> None:
    metadata = {"format": FORMAT} if about is None else {"format": FORMAT, "about": about}
    save_file({"weight": torch.zeros(2)}, path, metadata=metadata)
    with pytest.raises(CheckpointError):
        load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about["model"].update(depth=3), "ModelConfig has no depth; it has observation_dim"),
        (lambda about: about["data"].update(gamma=0.9), "DataConfig has no gamma"),
        (lambda about: about["model"].update(layers=0), "layers is 0"),
        (lambda about: about["model"].update(width=16), "size mismatch"),
        (lambda about: about["model"].pop("action_dim"), "action_dim"),
        (lambda about: about.pop("provenance"), "provenance"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    rewritten(path, about=change)
    with pytest.raises(CheckpointError, match=message):
        load(path)


def _first_edge_is_nan(tensors: dict[str, Any]) -> None:
    tensors["discretizer.edges"][0, 0] = float("nan")


def _edges_fall(tensors: dict[str, Any]) -> None:
    tensors["discretizer.edges"] = tensors["discretizer.edges"].flip(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.head.weight"), "head.weight"),
        (lambda tensors: tensors.pop("discretizer.edges"), "discretizer.edges"),
        (lambda tensors: tensors.update({"model.extra": torch.zeros(1)}), "extra"),
        (lambda tensors: tensors.update({"discretizer.edges": torch.arange(10.0)[None]}), "the model expects 6 of 12"),
        (_first_edge_is_nan, "edges hold NaN"),
        (_edges_fall, "not ascending"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    rewritten(path, tensors=change)
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_a_discretizer_of_another_size_is_refused() -> None:
    model = TrajectoryTransformer(tiny_model())
    with pytest.raises(CheckpointError, match="has 3 columns of 8 bins, the model expects 5 of 8"):
        Checkpoint(model, Discretizer(torch.arange(9.0).repeat(3, 1)), DataConfig(), "made-up")


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_litter(
    path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    before = path.read_bytes()

    def full_disk(*arguments: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, failing, full_disk)
    with pytest.raises(OSError, match="no space left"):
        tiny_checkpoint(seed=1).save(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
