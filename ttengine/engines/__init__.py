"""Who computes a round: one protocol, several engines."""

from __future__ import annotations

import torch

from ttengine.config import PlanConfig
from ttengine.discretizer import Discretizer
from ttengine.engines.cpp import CppEngine
from ttengine.engines.protocol import Candidates, Counters, EagerEngine, Engine, NoiseKey
from ttengine.engines.reference import ReferenceEngine
from ttengine.engines.triton import TritonEngine
from ttengine.engines.triton_limits import takes, why_no_gpu
from ttengine.errors import ConfigError
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
    "why_no_gpu",
]

ENGINES = {"cpp": CppEngine, "triton": TritonEngine, "reference": ReferenceEngine}
"""Engine name -> class."""


def default_device(config: PlanConfig) -> torch.device:
    """Where a model goes for the engine that a config names: a GPU for triton if there is one, else the CPU."""
    return torch.device("cuda" if config.engine == "triton" and torch.cuda.is_available() else "cpu")


def make_engine(model: TrajectoryTransformer, discretizer: Discretizer, config: PlanConfig) -> tuple[str, Engine]:
    """Return the name and the engine that `config.engine` asks for.

    `auto` is cpp for a float32 model on the CPU; triton for one on an NVIDIA GPU under Linux, if the GPU is new enough
    and the sizes are such that the kernels take them; and reference for any other. What was chosen is in `Plan.engine`.
    A core that is not built, Triton that is missing, or kernels that fail, are errors and never another engine.

    Raises:
        EngineError: cpp was asked for, by name or by `auto`, and the native core is not built; or triton, and it does
            not run on the model's device.
        MissingExtraError: triton was asked for, and is not installed.
        ConfigError: an engine was named, and does not take the model or the search; or a precision was, and the engine
            is not triton.
        NonFiniteError: cpp or triton was chosen, and a weight is NaN or infinite.
    """
    name = _choose(model, config) if config.engine == "auto" else config.engine
    if name != "triton" and config.precision != "fp32":
        chosen = ", which engine='auto' chose here," if config.engine == "auto" else ""
        raise ConfigError(
            f"precision={config.precision!r} is for engine='triton'; {name!r}{chosen} computes in the model's own: "
            "leave precision out, or name engine='triton' where there is an NVIDIA GPU"
        )
    return name, ENGINES[name](model, discretizer, config)


def _choose(model: TrajectoryTransformer, config: PlanConfig) -> str:
    weight = next(model.parameters())
    if weight.dtype != torch.float32:
        return "reference"
    if weight.device.type == "cpu":
        return "cpp"
    return "triton" if takes(model.config, config, weight.device) else "reference"
