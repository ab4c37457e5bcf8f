"""`ttengine train`: train a model on a dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, Suppress, arg

from ttengine.checkpoint import Checkpoint
from ttengine.cli.common import parse, print_json, print_table, quiet_stdout, subject
from ttengine.config import DataConfig, ModelConfig, TrainConfig, to_dict, train_preset
from ttengine.data.load import load_dataset


@dataclass(frozen=True)
class ModelSizes(ModelConfig):
    """The Transformer's sizes; the dataset says how many observation and action dims there are."""

    observation_dim: Suppress[int] = 1
    action_dim: Suppress[int] = 1


@dataclass(frozen=True)
class TrainCommand:
    """Train a Trajectory Transformer on logged trajectories; go on where a stopped run in the same folder stood.

    The defaults are the paper's settings for the dataset; `ttengine train hopper-medium-replay-v2 --help` shows them.

        ttengine train hopper-medium-v2 --out runs/hopper
        ttengine train mine.npz --out runs/mine --train.steps 2000 --model.layers 2 --model.width 64
        accelerate launch --num_processes 2 -m ttengine train hopper-medium-v2 --out runs/hopper
    """

    dataset: Annotated[Positional[str], arg(metavar="DATASET")]
    """D4RL id, Minari id, .hdf5, .h5 or .npz file, or the folder of a Minari dataset"""
    out: Path
    """folder of the run: model.safetensors, resume.safetensors, metrics.csv, tensorboard/"""
    model: ModelSizes = field(default_factory=ModelSizes)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    fresh: bool = False
    """start over, though the folder holds a run"""
    json: bool = False
    """print the result as one JSON document; progress goes to standard error"""


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    from ttengine.training import train

    command = _parse(arguments, subject(arguments))
    trajectories = load_dataset(command.dataset)
    command = _parse(arguments, trajectories.name)  # a file says its name only now
    dims = {"observation_dim": trajectories.observation_dim, "action_dim": trajectories.action_dim}
    model = ModelConfig(**(to_dict(command.model) | dims))
    with quiet_stdout(command.json):
        trained = train(trajectories, command.out, model, command.data, command.train, resume=not command.fresh)
    path = command.out / "model.safetensors"
    if command.json:
        print_json({"model": str(path), "dataset": trained.dataset, "provenance": dict(trained.provenance)})
    else:
        print_table(str(path), _rows(trained, path))


def _parse(arguments: Sequence[str], dataset: str) -> TrainCommand:
    # the positional and `out` stay required: a default of MISSING is tyro's word for that
    from tyro import MISSING

    default = TrainCommand(MISSING, MISSING, train=train_preset(dataset))
    return parse(TrainCommand, arguments, "train", default)


def _rows(trained: Checkpoint, path: Path) -> list[tuple[str, str]]:
    metrics = trained.provenance["metrics"]
    rows = [
        ("steps", f"{trained.provenance['step']:,}"),
        ("loss", f"{metrics['loss']:.4f}"),
        ("parameters", f"{trained.provenance['parameters']:,}"),
        ("time", f"{trained.provenance['wall_s']:,.0f} s"),
    ]
    if "validation_loss" in metrics:
        rows.insert(2, ("validation loss", f"{metrics['validation_loss']:.4f}"))
    return [*rows, ("next", f"ttengine evaluate {path}")]


assert {f.name for f in dataclasses.fields(ModelSizes)} == {f.name for f in dataclasses.fields(ModelConfig)}
