"""Who computes a round: one protocol, several engines."""

from __future__ import annotations

import torch

from ttengine.config import PlanConfig
from ttengine.discretizer import Discretizer
from ttengine.engines.cpp import CppEngine
from ttengine.engines.protocol import Candidates, Counters, EagerEngine, Engine, NoiseKey
from ttengine.engines.reference import ReferenceEngine
from ttengine.engines.triton import TritonEngine
from ttengine.model import TrajectoryTransformer

__all__ = [
    "ENGINES",
    "Candidates",
    "Counters",
    "CppEngine",
    "EagerEngine",
    "Engine",
    "NoiseKey",
    "ReferenceEngine",
    "TritonEngine",
    "default_device",
    "make_engine",
]

ENGINES = {"cpp": CppEngine, "triton": TritonEngine, "reference": ReferenceEngine}
"""Engine name -> class."""


def default_device(config: PlanConfig) -> torch.device:
    """Where a model goes for the engine that a config names: a GPU for triton if there is one, else the CPU."""
    return torch.device("cuda" if config.engine == "triton" and torch.cuda.is_available() else "cpu")


def make_engine(model: TrajectoryTransformer, discretizer: Discretizer, config: PlanConfig) -> tuple[str, Engine]:
    """Return the name and the engine that `config.engine` asks for.

    `auto` is cpp for a float32 model on the CPU, and reference for any other; what was chosen is in `Plan.engine`. A
    core that is not built, or a model that cpp cannot take, is an error and never another engine.

    Raises:
        EngineError: cpp was asked for, by name or by `auto`, and the native core is not built.
        ConfigError: cpp was named, and the model is not float32 on the CPU.
        NonFiniteError: cpp was chosen, and a weight is NaN or infinite.
    """
    name = config.engine
    if name == "auto":
        weight = next(model.parameters())
        name = "cpp" if weight.device.type == "cpu" and weight.dtype == torch.float32 else "reference"
    return name, ENGINES[name](model, discretizer, config)
