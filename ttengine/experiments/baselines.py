"""Other ways to learn from the same data, through d3rlpy: behaviour cloning, CQL, IQL, Decision Transformer."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ttengine.checkpoint import read_tensors, write_tensors
from ttengine.data.trajectories import Trajectories
from ttengine.errors import ConfigError, MissingExtraError

FloatArray = npt.NDArray[np.float32]

ALGORITHMS = {"BC": "BCConfig", "CQL": "CQLConfig", "IQL": "IQLConfig", "DT": "DecisionTransformerConfig"}
"""Name -> d3rlpy's configuration. Its default settings are kept, but for scaled observations and actions."""

REWARD_SCALE = 1e-3
"""Of the Decision Transformer, which reads returns as inputs."""

FORMAT = "ttengine.baseline/1"


class Policy(Protocol):
    """Acts in one episode after the other."""

    learner: Any
    """d3rlpy's"""

    def reset(self) -> None:
        """Begin an episode."""
        ...

    def act(self, observation: FloatArray, reward: float) -> FloatArray:
        """Return an action. observation [N], the reward that led to it -> [M]; environment units."""
        ...


class _Reactive:
    """A policy of the observation alone."""

    def __init__(self, learner: Any) -> None:
        self.learner = learner

    def reset(self) -> None:
        """Nothing is remembered."""

    def act(self, observation: FloatArray, reward: float) -> FloatArray:
        return np.asarray(self.learner.predict(observation[None])[0], np.float32)


class _Conditioned:
    """A Decision Transformer that is asked for a return."""

    def __init__(self, learner: Any, target: float) -> None:
        self.learner = learner
        self.wrapper = learner.as_stateful_wrapper(target)

    def reset(self) -> None:
        self.wrapper.reset()

    def act(self, observation: FloatArray, reward: float) -> FloatArray:
        return np.asarray(self.wrapper.predict(observation, reward), np.float32)


def require_d3rlpy() -> Any:
    """Import d3rlpy.

    Raises:
        MissingExtraError: it is not installed; the message says how, for its own pins contradict today's packages.
    """
    try:
        d3rlpy = importlib.import_module("d3rlpy")
        structlog = importlib.import_module("structlog")
    except ImportError as error:
        raise MissingExtraError(
            f"baselines are trained by d3rlpy, which cannot be imported ({error}): "
            "pip install --no-deps --requirement requirements/baselines.txt"
        ) from error
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    return d3rlpy


def fit_baseline(
    algorithm: str,
    data: Trajectories,
    steps: int,
    seed: int,
    kept: Path | None = None,
    layer_norm: bool = False,
    n_step: int = 1,
    **changes: Any,
) -> Policy:
    """Train a baseline on the data and return its policy.

    Args:
        algorithm: one of ALGORITHMS. The Decision Transformer is asked for the data's best return.
        data: to learn from; true terminals end an episode, time-outs cut it.
        steps: of the optimiser: 256 transitions each, of the Decision Transformer 64 sequences of 20.
        seed: of weights and batches.
        kept: file (.safetensors) of its networks: read if it is there, else written. The data are taken to be the same.
        layer_norm: in IQL's critic and value networks.
        n_step: rewards that a critic's target sums up before it trusts the values.
        changes: of d3rlpy's settings; JSON values.
    Raises:
        MissingExtraError: d3rlpy is not installed.
        ConfigError: `kept` was trained with other settings.
        CheckpointError: `kept` is damaged.
    """
    d3rlpy = require_d3rlpy()
    d3rlpy.seed(seed)
    dataset = d3rlpy.dataset.MDPDataset(
        data.observations,
        data.actions,
        data.rewards[:, None],
        data.terminals.astype(np.float32),
        data.timeouts.astype(np.float32),
        d3rlpy.dataset.MultiStepTransitionPicker(n_step, changes.get("gamma", 0.99)) if n_step > 1 else None,
    )
    scalers = d3rlpy.preprocessing
    mean, std = (getattr(data.observations, each)(axis=0, dtype=np.float64) for each in ("mean", "std"))
    low, high = data.actions.min(axis=0), data.actions.max(axis=0)
    settings: dict[str, Any] = {
        "observation_scaler": scalers.StandardObservationScaler(mean=mean, std=std),
        "action_scaler": scalers.MinMaxActionScaler(minimum=low, maximum=np.maximum(high, low + 1e-6)),
        "batch_size": 256,
    }
    if algorithm == "DT":
        settings |= {"batch_size": 64, "reward_scaler": scalers.MultiplyRewardScaler(REWARD_SCALE)}
    if layer_norm:
        normed = d3rlpy.models.VectorEncoderFactory(use_layer_norm=True)
        settings |= {"critic_encoder_factory": normed, "value_encoder_factory": normed}
    learner = getattr(d3rlpy.algos, ALGORITHMS[algorithm])(**settings | changes).create(device=None)
    about = {"algorithm": algorithm, "steps": steps, "seed": seed, **changes}
    about |= {"layer_norm": layer_norm, "n_step": n_step}
    if kept is not None and kept.is_file():
        learner.build_with_dataset(dataset)
        _read(learner, kept, about)
    else:
        quiet = d3rlpy.logging.NoopAdapterFactory()
        learner.fit(dataset, n_steps=steps, n_steps_per_epoch=steps, show_progress=False, logger_adapter=quiet)
        if kept is not None:
            write_tensors(kept, _weights(learner), FORMAT, about)
    if algorithm == "DT":
        return _Conditioned(learner, float(data.episode_returns.max()))
    return _Reactive(learner)


def state_values(learner: Any, observations: FloatArray) -> FloatArray:
    """Return IQL's V of observations [n, N], environment units, as [n]; d3rlpy itself tells Q only."""
    with torch.no_grad():
        seen = learner.observation_scaler.transform(torch.from_numpy(np.ascontiguousarray(observations)))
        return np.asarray(learner.impl.modules.value_func(seen)[:, 0].numpy(), np.float32)


def _weights(learner: Any) -> dict[str, Tensor]:
    """The networks' own tensors, by name: what is copied into them is theirs."""
    networks = learner.impl.modules.get_torch_modules()
    return {f"{net}.{name}": tensor for net, each in networks.items() for name, tensor in each.state_dict().items()}


def _read(learner: Any, kept: Path, about: dict[str, Any]) -> None:
    found, made_with = read_tensors(kept, FORMAT)
    differing = [f"{key} is {made_with.get(key)} there, {value} now" for key, value in about.items()
                 if made_with.get(key) != value]  # fmt: skip
    weights = _weights(learner)
    if differing or found.keys() != weights.keys():
        found_there = ", ".join(differing) or "other networks"
        raise ConfigError(f"{kept} holds another critic or policy: {found_there}; delete it, and one is trained anew")
    for name, tensor in weights.items():
        tensor.copy_(found[name])
