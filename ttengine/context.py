"""The last executed transitions of an episode, which condition the next plan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ttengine.errors import NonFiniteError, ShapeError

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Context:
    """Executed transitions, oldest first, environment units.

    Attributes:
        observations: [T, N] float32, each before its action.
        actions: [T, M] float32, as executed.
        rewards: [T] float32, as received.
        capacity: the most transitions kept; older ones fall out.
    """

    observations: FloatArray
    actions: FloatArray
    rewards: FloatArray
    capacity: int

    def __post_init__(self) -> None:
        for name, axes in (("observations", 2), ("actions", 2), ("rewards", 1)):
            array = np.asarray(getattr(self, name), np.float32)
            if array.ndim != axes:
                raise ShapeError(f"context {name} have shape {array.shape}, expected {axes} axes")
            if not np.isfinite(array).all():
                raise NonFiniteError(f"context {name} hold NaN or infinity")
            object.__setattr__(self, name, array[max(0, len(array) - self.capacity) :])
        lengths = (len(self.observations), len(self.actions), len(self.rewards))
        if len(set(lengths)) != 1:
            raise ShapeError(f"context lengths disagree: observations, actions, rewards have {lengths} rows")

    @classmethod
    def empty(cls, observation_dim: int, action_dim: int, capacity: int) -> Context:
        """Return the context at the start of an episode."""
        zeros = np.zeros
        return cls(
            zeros((0, observation_dim), np.float32), zeros((0, action_dim), np.float32), zeros(0, np.float32), capacity
        )

    def __len__(self) -> int:
        """Transitions held."""
        return len(self.rewards)

    def append(self, observation: npt.ArrayLike, action: npt.ArrayLike, reward: float) -> Context:
        """Return the context with one more executed transition.

        Args:
            observation: [N], what the action was chosen on.
            action: [M], what was executed.
            reward: what the environment gave for it.
        Raises:
            ShapeError: N or M differs.
            NonFiniteError: NaN or infinity.
        """
        rows = []
        for name, value, held in (
            ("observation", observation, self.observations),
            ("action", action, self.actions),
        ):
            row = np.asarray(value, np.float32)
            if row.shape != held.shape[1:]:
                raise ShapeError(f"{name} has shape {row.shape}, this context holds {held.shape[1:]}")
            rows.append(np.concatenate([held, row[None]]))
        rewards = np.append(self.rewards, np.float32(reward))
        return Context(rows[0], rows[1], rewards, self.capacity)
