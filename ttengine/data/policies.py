"""Policies that collect data: observation in, action out, in plain NumPy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

OBSERVATION_CLIP = 10.0
"""Normalised observations are clipped to this many standard deviations, as Stable-Baselines3's VecNormalize does."""


@dataclass(frozen=True, eq=False)
class MLPPolicy:
    """A Gaussian multi-layer perceptron with folded-in observation normalisation.

    Attributes:
        weights: one [inputs, outputs] float32 matrix a layer; tanh between layers, none after the last.
        biases: one [outputs] float32 vector a layer.
        log_std: [M] float32, the logarithm of the action noise.
        observation_mean: [N] float32.
        observation_std: [N] float32.
    """

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    log_std: Array
    observation_mean: Array
    observation_std: Array

    def __call__(self, observation: Array, rng: np.random.Generator | None = None) -> Array:
        """Return an action in [-1, 1]: sampled with `rng`, the mean without. observation [N] -> [M] float32."""
        x = (observation - self.observation_mean) / self.observation_std
        x = np.clip(x, -OBSERVATION_CLIP, OBSERVATION_CLIP)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = np.tanh(x @ weight + bias)
        action = x @ self.weights[-1] + self.biases[-1]
        if rng is not None:
            action = action + np.exp(self.log_std) * rng.standard_normal(action.shape)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def tensors(self, prefix: str = "") -> dict[str, Array]:
        """Flatten to named arrays, each name starting with `prefix`."""
        named = {f"weights.{i}": w for i, w in enumerate(self.weights)}
        named |= {f"biases.{i}": b for i, b in enumerate(self.biases)}
        named |= {name: getattr(self, name) for name in ("log_std", "observation_mean", "observation_std")}
        return {prefix + name: np.ascontiguousarray(array, dtype=np.float32) for name, array in named.items()}

    @classmethod
    def from_tensors(cls, named: Mapping[str, Array], prefix: str = "") -> MLPPolicy:
        """Rebuild a policy from the arrays that `tensors(prefix)` gave."""
        layers = sum(name.startswith(f"{prefix}weights.") for name in named)
        return cls(
            tuple(named[f"{prefix}weights.{i}"] for i in range(layers)),
            tuple(named[f"{prefix}biases.{i}"] for i in range(layers)),
            named[f"{prefix}log_std"],
            named[f"{prefix}observation_mean"],
            named[f"{prefix}observation_std"],
        )


@dataclass(frozen=True, eq=False)
class Behaviour:
    """The policies met along one training run, and how that run was made.

    Attributes:
        snapshots: environment steps trained -> policy.
        metadata: environment id, algorithm, hyperparameters, command, versions, curve.
    """

    snapshots: dict[int, MLPPolicy]
    metadata: dict[str, Any]

    @property
    def curve(self) -> dict[int, float]:
        """Mean return of the *sampled* policy by environment steps trained."""
        return {int(row["steps"]): float(row["return_mean"]) for row in self.metadata["curve"]}

    def save(self, path: Path) -> None:
        """Write one safetensors file: `<steps>/<tensor>` for each snapshot, the metadata as JSON in its header."""
        from safetensors.numpy import save_file

        arrays: dict[str, Array] = {}
        for steps, policy in self.snapshots.items():
            arrays |= policy.tensors(f"{steps}/")
        save_file(arrays, path, metadata={"behaviour": json.dumps(self.metadata)})

    @classmethod
    def load(cls, path: Path) -> Behaviour:
        """Read what `save` wrote."""
        from safetensors import safe_open

        with safe_open(path, framework="numpy") as file:
            metadata = json.loads(file.metadata()["behaviour"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        steps = sorted({int(name.partition("/")[0]) for name in arrays})
        return cls({s: MLPPolicy.from_tensors(arrays, f"{s}/") for s in steps}, metadata)
