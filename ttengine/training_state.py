"""The files of a training run: what a killed run needs to go on as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ttengine.checkpoint import read_tensors, write_tensors
from ttengine.config import DataConfig, ModelConfig, TrainConfig, to_dict
from ttengine.data.trajectories import Trajectories
from ttengine.errors import CheckpointError, ConfigError, DataError
from ttengine.optimisation import optimised_names

FORMAT = "ttengine.resume/1"

CADENCE = ("log_every", "validate_every", "validation_batches", "save_every_s", "save_every")
"""Training settings that leave the weights as they are and so may change between a run and its continuation."""


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its files."""

    path: Path

    @property
    def model(self) -> Path:
        """The checkpoint to plan with."""
        return self.path / "model.safetensors"

    @property
    def resume(self) -> Path:
        """Weights, optimiser moments and step."""
        return self.path / "resume.safetensors"

    @property
    def metrics(self) -> Path:
        """One row of numbers every few steps."""
        return self.path / "metrics.csv"

    @property
    def tensorboard(self) -> Path:
        """The same numbers for TensorBoard."""
        return self.path / "tensorboard"

    def prepare(self, resume: bool) -> None:
        """Make the folder, drop what a killed write left, and, without `resume`, the old run's state.

        Raises:
            ConfigError: the folder holds a model whose run cannot be resumed, and would lose it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for name in (self.model.name, self.resume.name, self.metrics.name):
            for part in self.path.glob(f".{name}.*.part"):
                part.unlink()
        if not resume:
            for file in (self.resume, self.metrics, *self.tensorboard.glob("events.out.tfevents.*")):
                file.unlink(missing_ok=True)
        elif self.model.exists() and not self.resume.exists():
            raise ConfigError(
                f"{self.path} holds {self.model.name} but no {self.resume.name}: nothing can be resumed, and training "
                "here would replace that model; choose another folder, or pass resume=False"
            )


def run_identity(
    trajectories: Trajectories, model: ModelConfig, data: DataConfig, config: TrainConfig
) -> dict[str, dict[str, Any]]:
    """Return what a run and its continuation must share, as JSON values: settings, and a digest of each data array."""
    training = {name: value for name, value in to_dict(config).items() if name not in CADENCE}
    arrays = {
        name: getattr(trajectories, name) for name in ("observations", "actions", "rewards", "terminals", "timeouts")
    }
    dataset = {name: [list(array.shape), _digest(array)] for name, array in arrays.items()}
    identity = {"model": to_dict(model), "data": to_dict(data), "training": training, "dataset": dataset}
    plain: dict[str, dict[str, Any]] = json.loads(
        json.dumps(identity)
    )  # tuples to lists, as they come back from a file
    return plain


def _digest(array: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()


def check_identity(path: Path, saved: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to go on with other settings or other data.

    Raises:
        ConfigError: a setting differs; the message names it and both values.
        DataError: an array of the dataset differs.
        CheckpointError: the saved identity is incomplete.
    """
    way_out = "take the old settings and data again, choose another folder, or pass resume=False to start over"
    if set(saved) != set(now):
        raise CheckpointError(f"{path} describes {sorted(saved)}, expected {sorted(now)}: another version wrote it")
    for part in ("model", "data", "training"):
        for name in sorted({*saved[part], *now[part]}):
            before, after = saved[part].get(name), now[part].get(name)
            if before != after:
                raise ConfigError(f"{path} was made with {part}.{name} = {before!r}, now it is {after!r}; {way_out}")
    differing = [name for name, about in now["dataset"].items() if saved["dataset"].get(name) != about]
    if differing:
        shapes = ", ".join(
            f"{name} {saved['dataset'].get(name, [None])[0]} -> {now['dataset'][name][0]}" for name in differing
        )
        raise DataError(f"{path} was made with another dataset ({shapes}; same shape: other numbers); {way_out}")


@dataclass(eq=False)
class Progress:
    """How far a run has come.

    Attributes:
        step: optimiser steps done.
        sums: [9] float32 since the last row: total loss, 4 summed segment losses, 4 counts.
        summed_steps: steps in `sums`.
        metrics: the last row.
        wall_s: training time so far, all continuations together.
        scaler: state of the fp16 gradient scaler, None for other precisions.
    """

    step: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(9))
    summed_steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    wall_s: float = 0.0
    scaler: dict[str, Any] | None = None


def write_resume(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress, identity: Mapping[str, Any]
) -> None:
    """Write the resume file, atomically.

    There is no generator state in it: order, goals and dropout are pure functions of (seed, step).
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state = optimiser.state_dict()["state"]
    for index, name in enumerate(optimised_names(model)):
        for moment, tensor in state.get(index, {}).items():
            tensors[f"optimiser.{name}.{moment}"] = tensor
    tensors["progress.sums"] = progress.sums
    about = {
        "identity": identity,
        "step": progress.step,
        "summed_steps": progress.summed_steps,
        "metrics": progress.metrics,
        "wall_s": progress.wall_s,
        "scaler": progress.scaler,
    }
    write_tensors(path, tensors, FORMAT, about)


def read_resume(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, identity: Mapping[str, Any], steps: int
) -> Progress:
    """Load a resume file into the model and the optimiser.

    Raises:
        CheckpointError: the file is truncated, foreign, or incomplete.
        ConfigError, DataError: it belongs to another run; see `check_identity`.
    """
    tensors, about = read_tensors(path, FORMAT)
    try:
        check_identity(path, about["identity"], identity)
        model.load_state_dict(
            {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
        )
        moments = {
            index: {moment: tensors[f"optimiser.{name}.{moment}"] for moment in ("step", "exp_avg", "exp_avg_sq")}
            for index, name in enumerate(optimised_names(model))
        }
        optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
        progress = Progress(
            int(about["step"]),
            tensors["progress.sums"],
            int(about["summed_steps"]),
            dict(about["metrics"]),
            float(about["wall_s"]),
            about["scaler"],
        )
    except (KeyError, RuntimeError, TypeError, AttributeError) as error:  # names, shapes or JSON types are not ours
        raise CheckpointError(f"{path} is not a complete resume file: {error}") from error
    if not 0 < progress.step <= steps:
        raise CheckpointError(f"{path} says step {progress.step}, this run has {steps}")
    return progress
