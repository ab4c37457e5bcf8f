"""Does the rotary, sliding-window model learn as well as the paper's absolute one? Both validation curves, equal steps.

    python bench/positions.py --out runs/positions

Collects one dataset by a recipe, trains both models on it with the same seed, batches and steps, and writes
positions.json (every validation) and positions.png (the curves). A stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import sys
from pathlib import Path

import torch

from ttengine.config import DataConfig, ModelConfig, Positions, TrainConfig
from ttengine.data import load_dataset, save_dataset
from ttengine.data.collect import collect
from ttengine.data.recipes import recipe_config
from ttengine.errors import require
from ttengine.training import train

KINDS: tuple[Positions, ...] = ("absolute", "rotary")


def main() -> int:
    """Collect, train twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="hopper-full-replay")
    parser.add_argument("--transitions", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    arguments = parser.parse_args()

    data_file = arguments.out / "data.hdf5"
    if not data_file.exists():
        arguments.out.mkdir(parents=True, exist_ok=True)
        save_dataset(collect(recipe_config(arguments.recipe, arguments.transitions)), data_file)
    trajectories = load_dataset(data_file)
    config = TrainConfig(batch_size=arguments.batch, steps=arguments.steps, validate_every=100)
    curves = {}
    for positions in KINDS:
        model = ModelConfig(
            trajectories.observation_dim,
            trajectories.action_dim,
            layers=arguments.layers,
            width=arguments.width,
            positions=positions,
        )
        train(trajectories, arguments.out / positions, model, DataConfig(), config)
        curves[positions] = _validations(arguments.out / positions / "metrics.csv")
    last = {name: curve[-1]["validation_loss"] for name, curve in curves.items()}
    record = {
        "dataset": trajectories.name,
        "command": f"python bench/positions.py {' '.join(sys.argv[1:])}",
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "curves": curves,
        "final_validation_loss": last,
    }
    (arguments.out / "positions.json").write_text(json.dumps(record, indent=1) + "\n")
    _plot(curves, trajectories.name, arguments.out / "positions.png")
    for name, loss in last.items():
        print(f"{name:10s} validation loss {loss:.4f} after {arguments.steps} steps")
    return 0 if last["rotary"] <= last["absolute"] else 1


def _validations(path: Path) -> list[dict[str, float]]:
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["validation_loss"]]
    return [{name: float(row[name]) for name in row if name == "step" or name.startswith("valid")} for row in rows]


def _plot(curves: dict[str, list[dict[str, float]]], dataset: str, path: Path) -> None:
    require("matplotlib", "viz")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, curve in curves.items():
        axes.plot([row["step"] for row in curve], [row["validation_loss"] for row in curve], label=name)
    axes.set(xlabel="optimiser steps", ylabel="validation loss", title=dataset)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
