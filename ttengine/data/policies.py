"""Policies that collect data: observation in, action out, in plain NumPy."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ttengine.errors import CheckpointError, ConfigError, NonFiniteError, ShapeError

Array = npt.NDArray[np.float32]

OBSERVATION_CLIP = 10.0
"""Normalised observations are clipped to this many standard deviations, as Stable-Baselines3's VecNormalize does."""

LOG_STD_RANGE = (-20.0, 2.0)
"""A log-std that depends on the state is clipped to this range, as in SAC and TQC."""

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
    "elu": lambda x: np.where(x > 0.0, x, np.expm1(np.minimum(x, 0.0))),
    "leaky_relu": lambda x: np.maximum(x, 0.01 * x),
}

TIERS: dict[str, float] = {"early": 1 / 6, "medium": 1 / 3, "good": 2 / 3, "expert": 1.0}
"""Tier -> the share of the best snapshot's return that the tier's snapshot comes nearest to."""


class Policy(Protocol):
    """What a rollout calls."""

    def __call__(self, observation: Array, rng: np.random.Generator | None = None) -> Array:
        """Return an action: sampled with `rng`, the mean without. observation [N] float32 -> [M] float32."""
        ...


@dataclass(frozen=True, eq=False)
class MLPPolicy:
    """A multi-layer perceptron with folded-in observation normalisation and, mostly, Gaussian noise.

    Attributes:
        weights: one [inputs, outputs] float32 matrix a layer, the last one's outputs being the action's mean.
        biases: one [outputs] float32 vector a layer.
        log_std: [M] float32, the logarithm of the action noise; None: the policy has no noise of its own.
        observation_mean: [N] float32.
        observation_std: [N] float32.
        observation_clip: bound on normalised observations, in standard deviations.
        activation: between layers, one of ACTIVATIONS; none after the last layer.
        log_std_weight: [last hidden width, M] float32; when given, log-std = hidden @ log_std_weight + log_std.
        squash: tanh then stretch to [low, high]; otherwise clip to [low, high].
        low: [M] float32 or a number, smallest action in environment units.
        high: likewise, largest.
    Raises:
        ShapeError: the layers do not fit one another.
        NonFiniteError: NaN or infinity in a parameter.
        ConfigError: the activation is unknown.
    """

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    log_std: Array | None
    observation_mean: Array
    observation_std: Array
    observation_clip: float = OBSERVATION_CLIP
    activation: str = "tanh"
    log_std_weight: Array | None = None
    squash: bool = False
    low: Array | float = -1.0
    high: Array | float = 1.0

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"activation is {self.activation!r}, allowed are {', '.join(ACTIVATIONS)}")
        sizes = [self.observation_dim, *(len(bias) for bias in self.biases)]
        expected: dict[str, tuple[int, ...]] = {name: (sizes[0],) for name in ("observation_mean", "observation_std")}
        found: dict[str, Array] = {"observation_mean": self.observation_mean, "observation_std": self.observation_std}
        if len(self.weights) != len(self.biases):
            raise ShapeError(
                f"a policy has {len(self.weights)} weights and {len(self.biases)} biases; one of each a layer"
            )
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            expected |= {f"weights.{i}": tuple(sizes[i : i + 2]), f"biases.{i}": (sizes[i + 1],)}
            found |= {f"weights.{i}": weight, f"biases.{i}": bias}
        if self.log_std is not None:
            expected["log_std"], found["log_std"] = (sizes[-1],), self.log_std
        if self.log_std_weight is not None:
            expected["log_std_weight"], found["log_std_weight"] = tuple(sizes[-2:]), self.log_std_weight
        for name, array in found.items():
            if array.shape != expected[name]:
                raise ShapeError(f"policy parameter {name} is {array.shape}, the other layers ask for {expected[name]}")
            if not np.isfinite(array).all():
                raise NonFiniteError(f"policy parameter {name} holds NaN or infinity: its training diverged")

    @property
    def observation_dim(self) -> int:
        """N."""
        return len(self.weights[0])

    @property
    def action_dim(self) -> int:
        """M."""
        return len(self.biases[-1])

    @cached_property
    def _fixed_std(self) -> Array:
        assert self.log_std is not None  # only asked for where there is noise
        return np.exp(self.log_std)

    def __call__(self, observation: Array, rng: np.random.Generator | None = None) -> Array:
        """Return an action in [low, high]: sampled with `rng`, the mean without. observation [N] -> [M] float32."""
        # minimum(maximum()) is np.clip without 4 us of argument handling, and this runs once a control step
        x = (observation - self.observation_mean) / self.observation_std
        x = np.minimum(np.maximum(x, -self.observation_clip), self.observation_clip)
        activate = ACTIVATIONS[self.activation]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = activate(x @ weight + bias)
        action = x @ self.weights[-1] + self.biases[-1]
        if rng is not None and self.log_std is not None:
            std = self._fixed_std
            if self.log_std_weight is not None:
                std = np.exp(np.clip(x @ self.log_std_weight + self.log_std, *LOG_STD_RANGE))
            action = action + std * rng.standard_normal(action.shape, dtype=np.float32)
        if self.squash:
            action = self.low + (np.tanh(action) + 1.0) * 0.5 * (self.high - self.low)
        clipped: Array = np.minimum(np.maximum(action, self.low), self.high)
        return clipped.astype(np.float32, copy=False)

    def tensors(self, prefix: str = "") -> dict[str, Array]:
        """Flatten to named arrays, each name starting with `prefix`; only for what `from_tensors` can rebuild.

        Raises:
            ConfigError: the policy differs from the tanh, clipped, state-independent kind that behaviour files hold.
        """
        plain = (self.activation, self.squash, self.observation_clip) == ("tanh", False, OBSERVATION_CLIP)
        plain &= self.log_std is not None and self.log_std_weight is None
        if not plain or np.any(np.not_equal(self.low, -1.0)) or np.any(np.not_equal(self.high, 1.0)):
            raise ConfigError(
                "a behaviour file holds tanh policies of fixed log-std, clipped to [-1, 1]; this is another"
            )
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
class RandomPolicy:
    """Uniform over the action space, whatever the observation.

    Attributes:
        low: [M] float32, finite.
        high: [M] float32, finite.
    """

    low: Array
    high: Array

    def __call__(self, observation: Array, rng: np.random.Generator | None = None) -> Array:
        """Return a uniform action. Raises ConfigError without `rng`: a uniform draw has no meaningful mean here."""
        if rng is None:
            raise ConfigError("the random policy cannot be deterministic; leave `deterministic` out")
        return self.low + (self.high - self.low) * rng.random(self.low.shape, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class ScriptedPolicy:
    """A user's function from observation to action, its answers checked.

    Attributes:
        function: called with [N] float32; returns M numbers.
        name: what the user calls it, for messages.
        action_dim: M.
    """

    function: Callable[[Array], Any]
    name: str
    action_dim: int

    def __call__(self, observation: Array, rng: np.random.Generator | None = None) -> Array:
        """Return the function's answer as [M] float32; `rng` is unused: a script is as random as it is written.

        Raises:
            ShapeError: the answer is not M numbers.
        """
        answer = self.function(observation.copy())  # a script that writes into its input must not touch the log
        wanted = f"the environment takes ({self.action_dim},)"
        try:
            action = np.asarray(answer, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ShapeError(f"policy {self.name} returned {answer!r:.80}, no action; {wanted}") from error
        if action.shape != (self.action_dim,):
            raise ShapeError(f"policy {self.name} returned an action of shape {action.shape}, {wanted}")
        return action


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

    def tier(self, tier: str) -> int:
        """Return the steps of the snapshot that stands for a tier of TIERS.

        `expert` is the best snapshot by the curve; any other tier is the snapshot, up to the expert, whose return is
        nearest to that tier's share of the expert's; equal distances keep the earlier one.
        """
        curve = self.curve
        expert = max(self.snapshots, key=lambda steps: (curve[steps], -steps))
        target = TIERS[tier] * curve[expert]
        return min((s for s in self.snapshots if s <= expert), key=lambda steps: (abs(curve[steps] - target), steps))

    def save(self, path: Path) -> None:
        """Write one safetensors file: `<steps>/<tensor>` for each snapshot, the metadata as JSON in its header."""
        arrays: dict[str, Array] = {}
        for steps, policy in self.snapshots.items():
            arrays |= policy.tensors(f"{steps}/")
        partial = path.with_name(f".{path.name}.partial")
        save_file(arrays, partial, metadata={"behaviour": json.dumps(self.metadata)})
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> Behaviour:
        """Read what `save` wrote.

        Raises:
            CheckpointError: the file is truncated or was not written by `save`.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = json.loads((file.metadata() or {})["behaviour"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise CheckpointError(f"{path} is no behaviour file ({error}); make it again with its command") from error
        steps = sorted({int(name.partition("/")[0]) for name in arrays})
        return cls({s: MLPPolicy.from_tensors(arrays, f"{s}/") for s in steps}, metadata)
