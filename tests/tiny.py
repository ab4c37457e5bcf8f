"""A tiny model for Pendulum-v1, shared by the tests of everything above the planner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ttengine.checkpoint import Checkpoint
from ttengine.config import DataConfig, ModelConfig, PlanConfig
from ttengine.discretizer import fit_discretizer
from ttengine.model import TrajectoryTransformer

PENDULUM = (3, 1)
"""Observation and action dims of Pendulum-v1."""

FAST = PlanConfig(horizon=2, beam_width=3, expand=2)


def tiny_checkpoint(
    observation_dim: int = PENDULUM[0],
    action_dim: int = PENDULUM[1],
    dataset: str = "pendulum-tiny",
    seed: int = 0,
    dataset_metadata: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Return an untrained model with a discretizer that covers [-8, 8]; weights large enough that plans differ."""
    torch.manual_seed(seed)
    config = ModelConfig(observation_dim, action_dim, n_bins=12, layers=1, heads=2, width=8, dropout=0.0, window=3)
    model = TrajectoryTransformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        # near-uniform actions, so that another seed draws others whatever the model's structure comes to be
        model.head.weight[observation_dim - 1 : observation_dim - 1 + action_dim] *= 0.1
    columns = np.random.default_rng(seed).uniform(-8, 8, (400, config.transition_dim)).astype(np.float32)
    return Checkpoint(
        model.eval(),
        fit_discretizer(columns, 12, "uniform"),
        DataConfig(),
        dataset,
        {"dataset": dict(dataset_metadata or {})},
    )
