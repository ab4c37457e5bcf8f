"""Made-up trajectories, shared by the tests of everything that trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ttengine.config import ModelConfig
from ttengine.data.trajectories import Trajectories


def synthetic_trajectories(
    lengths: Sequence[int], terminal: Sequence[int] = (), dims: tuple[int, int] = (2, 1), seed: int = 0, **about: Any
) -> Trajectories:
    """Return episodes of the given lengths that can be learned: the action follows the observation, rewards follow it.

    Args:
        lengths: transitions of each episode.
        terminal: episodes that end in a terminal; the others end in a time-out.
        dims: N and M.
        seed: of the numbers.
        about: name and metadata.
    """
    rng = np.random.default_rng(seed)
    total, ends = sum(lengths), np.cumsum(lengths) - 1
    observations = rng.normal(size=(total, dims[0])).astype(np.float32)
    actions = np.tanh(observations[:, :1] + 0.1 * rng.normal(size=(total, dims[1]))).astype(np.float32)
    terminals, timeouts = np.zeros(total, np.bool_), np.zeros(total, np.bool_)
    terminals[ends[list(terminal)]] = True
    timeouts[ends] = ~terminals[ends]
    return Trajectories(observations, actions, actions[:, 0] + 1, terminals, timeouts, **about)


def tiny_model(**changes: Any) -> ModelConfig:
    """Return the smallest model worth training: N = 2, M = 1, 8 bins, one layer of width 16, windows of 3."""
    sizes = {"n_bins": 8, "layers": 1, "heads": 2, "width": 16, "window": 3, "dropout": 0.1}
    return ModelConfig(2, 1, **{**sizes, **changes})
