"""`ttengine info`: say what is in a model file or a dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from tyro.conf import Positional, arg

from ttengine.checkpoint import SUFFIX, Checkpoint, load, model_file, shipped_models
from ttengine.cli.common import parse, print_json, print_table
from ttengine.config import DataConfig, to_dict
from ttengine.data.check import inspect_trajectories
from ttengine.data.load import load_dataset
from ttengine.data.scores import normalized_score
from ttengine.data.trajectories import Trajectories
from ttengine.errors import DatasetNotFoundError

LONG_METADATA = 2_000
"""Metadata longer than this, as JSON, are summed up by their keys; --json prints them whole."""


@dataclass(frozen=True)
class InfoCommand:
    """Say what is in a model file or a dataset, and what looks wrong with it.

    ttengine info halfcheetah
    ttengine info runs/hopper/model.safetensors
    ttengine info hopper-medium-v2 --json
    """

    what: Annotated[Positional[str], arg(metavar="MODEL|DATASET")]
    """model file, shipped model, dataset file, D4RL or Minari id, or the folder of a Minari dataset"""
    json: bool = False
    """print everything as one JSON document"""


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    command = parse(InfoCommand, arguments, "info")
    if command.what in shipped_models() or Path(command.what).suffix == SUFFIX:
        with model_file(command.what) as path:
            about = model_info(load(path), path)
        rows = _model_rows(about)
    else:
        about = dataset_info(load_dataset(command.what, download=False))
        rows = _dataset_rows(about)
    if command.json:
        print_json(about)
    else:
        print_table(command.what, rows)


def model_info(checkpoint: Checkpoint, path: Path) -> dict[str, Any]:
    """Return everything about a model as JSON values."""
    model = checkpoint.model
    tensors = {**model.state_dict(), "discretizer.edges": checkpoint.discretizer.edges}
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    return {
        "kind": "model",
        "bytes": path.stat().st_size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "finite": not bad,
        "first_bad_tensor": bad[0] if bad else None,
        "model": to_dict(model.config),
        "data": to_dict(checkpoint.data),
        "dataset": checkpoint.dataset,
        "provenance": dict(checkpoint.provenance),
        "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
    }


def dataset_info(trajectories: Trajectories) -> dict[str, Any]:
    """Return everything about a dataset, but its rows, as JSON values."""
    lengths, returns = trajectories.episode_lengths, trajectories.episode_returns
    return {
        "kind": "dataset",
        "name": trajectories.name,
        "transitions": len(trajectories),
        "episodes": trajectories.n_episodes,
        "terminals": int(trajectories.terminals.sum()),
        "timeouts": int(trajectories.timeouts.sum()),
        "length": _summary(lengths),
        "return": _summary(returns),
        "normalized_score": _score(trajectories),
        "observation": _columns(trajectories.observations),
        "action": _columns(trajectories.actions),
        "reward": _columns(trajectories.rewards[:, None])[0],
        "warnings": list(inspect_trajectories(trajectories, DataConfig()).warnings),
        "metadata": dict(trajectories.metadata),
    }


def _summary(numbers: Any) -> dict[str, float]:
    return {"mean": float(numbers.mean()), "min": float(numbers.min()), "median": float(np.median(numbers))} | {
        "max": float(numbers.max())
    }


def _columns(array: Any) -> list[dict[str, float]]:
    moments = array.mean(axis=0, dtype=np.float64), array.std(axis=0, dtype=np.float64)
    names = ("mean", "std", "min", "max")
    columns = zip(*moments, array.min(axis=0), array.max(axis=0), strict=True)
    return [dict(zip(names, map(float, column), strict=True)) for column in columns]


def _score(trajectories: Trajectories) -> dict[str, float] | None:
    collected = trajectories.metadata.get("config")
    env_id = collected.get("env_id", "") if isinstance(collected, Mapping) else ""
    for name in (trajectories.name, env_id):
        try:
            return _summary(normalized_score(name, trajectories.episode_returns))
        except DatasetNotFoundError:
            continue  # most environments have no reference scores
    return None


def _model_rows(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    model, provenance = about["model"], dict(about["provenance"])
    dataset = provenance.pop("dataset", {})
    weights = "finite" if about["finite"] else f"NaN or infinity in {about['first_bad_tensor']}"
    return [
        ("size", f"{about['parameters']:,} parameters, {about['bytes'] / 1e6:,.2f} MB"),
        ("weights", weights),
        ("dims", f"{model['observation_dim']} observation, {model['action_dim']} action, {model['n_bins']} bins"),
        ("model", _pairs({k: v for k, v in model.items() if not k.endswith("_dim") and k != "n_bins"})),
        ("data", _pairs(about["data"])),
        ("dataset", about["dataset"]),
        *[(name, _shown(value)) for name, value in provenance.items()],
        *([("dataset's own", _shown(dataset))] if dataset else []),
    ]


def _dataset_rows(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    ends = f"{about['terminals']:,} ended by a terminal, {about['timeouts']:,} by a time-out"
    rows = [
        ("name", about["name"]),
        ("transitions", f"{about['transitions']:,}"),
        ("episodes", f"{about['episodes']:,}: {ends}"),
        ("length", _pairs(about["length"])),
        ("return", _pairs(about["return"])),
        ("reward", _pairs(about["reward"])),
    ]
    if about["normalized_score"] is not None:
        rows.insert(5, ("normalised score", _pairs(about["normalized_score"])))
    for name in ("observation", "action"):
        rows += [(f"{name} {i}", _pairs(column)) for i, column in enumerate(about[name])]
    rows += [("warning", warning) for warning in about["warnings"]]
    return [*rows, *[(name, _shown(value)) for name, value in about["metadata"].items()]]


def _pairs(values: Mapping[str, Any]) -> str:
    return "  ".join(
        f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) <= LONG_METADATA:
        return text
    return f"({', '.join(value)})" if isinstance(value, dict) else f"{text[:LONG_METADATA]} ..."
