"""Other ways to learn from the same data, through d3rlpy: behaviour cloning, CQL, IQL."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ttengine.data.trajectories import Trajectories
from ttengine.errors import MissingExtraError

ALGORITHMS = {"BC": "BCConfig", "CQL": "CQLConfig", "IQL": "IQLConfig"}
"""Name -> d3rlpy's configuration, with that library's default settings but for the scalers and the batch."""

Policy = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


def require_d3rlpy() -> Any:
    """Import d3rlpy.

    Raises:
        MissingExtraError: it is not installed; the message says how, for its own pins contradict today's packages.
    """
    try:
        import d3rlpy
    except ImportError as error:
        raise MissingExtraError(
            f"baselines are trained by d3rlpy, which cannot be imported ({error}): "
            "pip install --no-deps --requirement requirements/baselines.txt"
        ) from error
    return d3rlpy


def fit_baseline(algorithm: str, data: Trajectories, steps: int, seed: int) -> Policy:
    """Train a baseline on the data and return its policy, observation [N] -> action [M], environment units.

    Args:
        algorithm: one of ALGORITHMS.
        data: to learn from; true terminals end an episode, time-outs cut it.
        steps: of the optimiser, 256 transitions each.
        seed: of weights and batches.
    Raises:
        MissingExtraError: d3rlpy is not installed.
    """
    d3rlpy = require_d3rlpy()
    quieten = importlib.import_module("structlog")
    quieten.configure(wrapper_class=quieten.make_filtering_bound_logger(logging.WARNING))
    d3rlpy.seed(seed)
    dataset = d3rlpy.dataset.MDPDataset(
        data.observations,
        data.actions,
        data.rewards[:, None],
        data.terminals.astype(np.float32),
        data.timeouts.astype(np.float32),
    )
    scalers = d3rlpy.preprocessing
    config = getattr(d3rlpy.algos, ALGORITHMS[algorithm])(
        batch_size=256,
        observation_scaler=scalers.StandardObservationScaler(),
        action_scaler=scalers.MinMaxActionScaler(),
    )
    learner = config.create(device=None)
    quiet = d3rlpy.logging.NoopAdapterFactory()
    learner.fit(dataset, n_steps=steps, n_steps_per_epoch=steps, show_progress=False, logger_adapter=quiet)
    return lambda observation: np.asarray(learner.predict(observation[None])[0], np.float32)
