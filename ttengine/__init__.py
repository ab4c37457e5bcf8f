"""Train the Trajectory Transformer on logged trajectories and plan with it inside a control loop.

    trajectories = ttengine.load_dataset("hopper-medium-v2")
    ttengine.train(trajectories, "runs/hopper")
    plan = ttengine.plan("runs/hopper/model.safetensors", observation)

Every name here is imported when it is first used, so that `import ttengine` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttengine import errors
    from ttengine.checkpoint import Checkpoint, load
    from ttengine.config import DataConfig, ModelConfig, PlanConfig, Sampling, TrainConfig, plan_preset, train_preset
    from ttengine.context import Context
    from ttengine.controller import Controller, act_together
    from ttengine.data.files import save_dataset
    from ttengine.data.load import load_dataset
    from ttengine.data.trajectories import Trajectories
    from ttengine.evaluation import EvaluateConfig, Evaluation, evaluate
    from ttengine.model import TrajectoryTransformer
    from ttengine.planner import Plan, Planner, plan
    from ttengine.training import train

_HOME = {
    "Checkpoint": "checkpoint",
    "Context": "context",
    "Controller": "controller",
    "DataConfig": "config",
    "EvaluateConfig": "evaluation",
    "Evaluation": "evaluation",
    "ModelConfig": "config",
    "Plan": "planner",
    "PlanConfig": "config",
    "Planner": "planner",
    "Sampling": "config",
    "TrainConfig": "config",
    "Trajectories": "data.trajectories",
    "TrajectoryTransformer": "model",
    "act_together": "controller",
    "errors": "",
    "evaluate": "evaluation",
    "load": "checkpoint",
    "load_dataset": "data.load",
    "plan": "planner",
    "plan_preset": "config",
    "save_dataset": "data.files",
    "train": "training",
    "train_preset": "config",
}
"""Public name -> the module that it stands in."""

__all__ = [
    "Checkpoint",
    "Context",
    "Controller",
    "DataConfig",
    "EvaluateConfig",
    "Evaluation",
    "ModelConfig",
    "Plan",
    "PlanConfig",
    "Planner",
    "Sampling",
    "TrainConfig",
    "Trajectories",
    "TrajectoryTransformer",
    "act_together",
    "errors",
    "evaluate",
    "load",
    "load_dataset",
    "plan",
    "plan_preset",
    "save_dataset",
    "train",
    "train_preset",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name == "__version__":
        from importlib.metadata import version

        return version("ttengine")
    if name not in _HOME:
        raise AttributeError(f"module 'ttengine' has no attribute {name!r}")
    if name == "errors":
        return importlib.import_module("ttengine.errors")
    value = getattr(importlib.import_module(f"ttengine.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
