"""How much memory a million transitions of Ant's size need, from an HDF5 file to training steps.

    python bench/train_memory.py --observation-dim 111

Writes a synthetic D4RL-layout file, then loads it and trains on it in a fresh process with the paper's settings for Ant
(batch 128, the full model), and prints that process's peak resident memory. Exits with 1 above --limit-gb.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np

ACTION_DIM, EPISODE = 8, 1000


def write_file(path: Path, transitions: int, observation_dim: int) -> None:
    """Write a D4RL-layout file, some episodes at a time."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        observations = file.create_dataset("observations", (transitions, observation_dim), np.float32)
        for start in range(0, transitions, 50 * EPISODE):
            rows = min(50 * EPISODE, transitions - start)
            observations[start : start + rows] = rng.standard_normal((rows, observation_dim), np.float32)
        file["actions"] = np.tanh(rng.standard_normal((transitions, ACTION_DIM), np.float32))
        file["rewards"] = rng.standard_normal(transitions).astype(np.float32)
        file["terminals"] = np.zeros(transitions, np.bool_)
        file["timeouts"] = np.arange(1, transitions + 1) % EPISODE == 0


def load_and_train(path: Path, steps: int) -> None:
    """Load the file, train some steps, print the peak."""
    from ttengine.config import TrainConfig
    from ttengine.data import load_dataset
    from ttengine.training import train

    trajectories = load_dataset(path)
    print(f"loaded {len(trajectories):,} transitions of {trajectories.observation_dim} dims: {peak_gb():.2f} GB")
    config = TrainConfig(batch_size=128, steps=steps, log_every=1, validation_batches=1)
    train(trajectories, path.parent / "run", config=config, progress=False, tensorboard=False)
    print(f"peak {peak_gb():.2f} GB")


def peak_gb() -> float:
    """Peak resident memory of this process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> int:
    """Write the file, run the child, judge its peak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transitions", type=int, default=1_000_000)
    parser.add_argument("--observation-dim", type=int, default=27)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--limit-gb", type=float, default=8.0)
    parser.add_argument("--child", type=Path, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        load_and_train(arguments.child, arguments.steps)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ant-sized.hdf5"
        write_file(path, arguments.transitions, arguments.observation_dim)
        command = [sys.executable, __file__, "--child", str(path), "--steps", str(arguments.steps)]
        output = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
    print(output, end="")
    return 0 if float(output.split()[-2]) <= arguments.limit_gb else 1


if __name__ == "__main__":
    sys.exit(main())
