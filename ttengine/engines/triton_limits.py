"""What the triton engine asks of a machine, a model and a search, and what it says where it does not get it."""

from __future__ import annotations

import os
import sys

import torch

from ttengine.config import ModelConfig, PlanConfig
from ttengine.errors import ConfigError, EngineError, require

CAPABILITY = (8, 0)
"""Least compute capability: bfloat16 matrix units."""

OLDEST_TRITON = (3, 6)
"""Least version whose language the kernels are written in."""


def why_no_gpu() -> str:
    """Return why PyTorch can use no GPU here, such as a driver that is too old; empty if it can."""
    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"PyTorch {torch.__version__} is built without CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().splitlines()[0]
    return "PyTorch sees no CUDA device"


def takes(model: ModelConfig, config: PlanConfig, device: torch.device) -> bool:
    """Return whether this engine is made for such a GPU, model and search; `engine="auto"` asks.

    Raises:
        MissingExtraError: it is, and Triton is not installed.
    """
    if device.type != "cuda" or torch.version.hip is not None or sys.platform != "linux":
        return False
    if torch.cuda.get_device_capability(device) < CAPABILITY:
        return False
    require("triton", "triton")
    try:
        check_sizes(model, config)
    except ConfigError:
        return False
    return True


def describe(device: torch.device) -> str:
    """A GPU, and the versions that have to fit it."""
    major, minor = torch.cuda.get_device_capability(device)
    return (
        f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor}) with Triton "
        f"{require('triton', 'triton').__version__} and PyTorch {torch.__version__}"
    )


def check_machine(device: torch.device) -> None:
    """Raise unless the kernels can run."""
    version = require("triton", "triton").__version__
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TRITON:
        raise EngineError(
            f"Triton {version} is installed, engine='triton' needs {'.'.join(map(str, OLDEST_TRITON))} or newer: "
            "pip install 'ttengine[triton]'; or use engine='cpp' with the model on the CPU"
        )
    if os.environ.get("TRITON_INTERPRET") == "1":
        return
    if device.type != "cuda" or torch.version.hip is not None:
        why = why_no_gpu()
        raise EngineError(
            f"engine='triton' needs an NVIDIA GPU, and the model is on {device}"
            + (f": {why}" if why else "")
            + "; on this machine use engine='cpp' with the model on the CPU"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        raise EngineError(
            f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}, "
            f"engine='triton' needs {CAPABILITY[0]}.{CAPABILITY[1]}; use engine='reference' there, or 'cpp' on the CPU"
        )


def captures(device: torch.device) -> bool:
    """Whether what is launched on a device can be captured in a CUDA graph; what the interpreter runs cannot."""
    return device.type == "cuda"


def check_sizes(model: ModelConfig, config: PlanConfig) -> None:
    """Raise for a model or a search that the kernels do not take."""
    head = model.width // model.heads
    for name, size, least, most in (("width", model.width, 16, 512), ("head width", head, 16, 128)):
        if size & (size - 1) or not least <= size <= most:
            raise ConfigError(
                f"engine='triton' takes models whose {name} is a power of two from {least} to {most}, this one's is "
                f"{size}; use engine='reference', or 'cpp' on the CPU"
            )
    parts = 2 if config.precision == "fp32" else 1
    most = 512 // parts
    if model.width > most:
        raise ConfigError(
            f"in {config.precision} engine='triton' takes widths up to {most}, not {model.width}: "
            "use precision='fp16' or 'bf16'"
        )
    numbers, most = model.width * (1 << model.n_bins.bit_length()), 65_536 // parts
    if numbers > most:
        raise ConfigError(
            f"a head of {model.width} by {model.n_bins + 1} is more than a program of engine='triton' can hold in "
            f"{config.precision} ({most:,} numbers, bins rounded up to a power of two); use engine='reference'"
        )
    from ttengine.kernels.select import MOST

    if config.objective == "return" and config.beam_width * config.expand > MOST:
        raise ConfigError(f"engine='triton' ranks at most {MOST} candidates, not {config.beam_width} * {config.expand}")
