"""The one in-memory form of logged trajectories, whatever file they came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ttengine.errors import DataError, NonFiniteError, ShapeError

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Transitions of whole episodes, laid end to end; validated on construction.

    Attributes:
        observations: [L, N] float32, environment units, the observation *before* the action.
        actions: [L, M] float32, environment units.
        rewards: [L] float32.
        terminals: [L] bool, the environment ended the episode here (a fall, a goal).
        timeouts: [L] bool, something else ended it here (a time limit, the end of the log).
        name: dataset id or file name, for messages and provenance.
        metadata: whatever the source said about itself; JSON types only. `take_episodes` carries it over unchanged.
    Raises:
        DataError: no episode has two transitions, a transition is both terminal and time-out, a flag is neither 0 nor
            1, or an array does not hold numbers.
        ShapeError: lengths disagree or an array has the wrong number of axes.
        NonFiniteError: NaN or infinity in observations, actions or rewards.
    """

    observations: FloatArray
    actions: FloatArray
    rewards: FloatArray
    terminals: BoolArray
    timeouts: BoolArray
    name: str = "trajectories"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for attribute, axes in (("observations", 2), ("actions", 2), ("rewards", 1), ("terminals", 1), ("timeouts", 1)):
            flags = attribute in ("terminals", "timeouts")
            array = _as_array(getattr(self, attribute), attribute, self.name, np.bool_ if flags else np.float32)
            if array.ndim != axes:
                raise ShapeError(f"{self.name}: {attribute} has shape {array.shape}, expected {axes} axes")
            object.__setattr__(self, attribute, array)
        self._check_lengths()
        for attribute in ("observations", "actions", "rewards"):
            _check_finite(getattr(self, attribute), attribute, self.name)
        if (self.terminals & self.timeouts).any():
            row = int(np.argmax(self.terminals & self.timeouts))
            raise DataError(
                f"{self.name}: transition {row} is both terminal and time-out; a time limit is not a terminal: "
                "clear `terminals` where `timeouts` is set"
            )
        ends = self.terminals | self.timeouts
        if not ends[-1]:  # a log that stops in the middle of an episode: the cut is a time-out
            timeouts = self.timeouts.copy()
            timeouts[-1] = True
            object.__setattr__(self, "timeouts", timeouts)
        if self.episode_lengths.max() < 2:
            raise DataError(
                f"{self.name}: all {self.n_episodes} episodes have one transition; training needs at least one "
                "episode of two or more. Are `terminals` or `timeouts` set on every row?"
            )

    def _check_lengths(self) -> None:
        lengths = {
            name: len(getattr(self, name)) for name in ("observations", "actions", "rewards", "terminals", "timeouts")
        }
        if len(set(lengths.values())) != 1:
            listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise ShapeError(f"{self.name}: lengths disagree: {listed}; every array needs one row per transition")
        if lengths["observations"] == 0:
            raise DataError(f"{self.name}: the dataset is empty (0 transitions)")
        if self.observation_dim == 0 or self.action_dim == 0:
            raise ShapeError(
                f"{self.name}: observations {self.observations.shape} and actions {self.actions.shape} "
                "need at least one column each"
            )

    def __len__(self) -> int:
        """Number of transitions L."""
        return len(self.observations)

    @property
    def observation_dim(self) -> int:
        """N."""
        return int(self.observations.shape[1])

    @property
    def action_dim(self) -> int:
        """M."""
        return int(self.actions.shape[1])

    @property
    def episode_ends(self) -> IntArray:
        """[episodes] int64, the row after each episode's last."""
        return np.flatnonzero(self.terminals | self.timeouts) + 1

    @property
    def episode_starts(self) -> IntArray:
        """[episodes] int64, each episode's first row."""
        return np.concatenate([np.zeros(1, np.int64), self.episode_ends[:-1]])

    @property
    def episode_lengths(self) -> IntArray:
        """[episodes] int64, transitions in each episode."""
        return self.episode_ends - self.episode_starts

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return len(self.episode_ends)

    @property
    def episode_returns(self) -> npt.NDArray[np.float64]:
        """[episodes] float64, undiscounted sum of the logged rewards."""
        return np.add.reduceat(self.rewards.astype(np.float64), self.episode_starts)

    def episodes(self) -> Iterator[slice]:
        """Yield the rows of each episode as a slice."""
        for start, end in zip(self.episode_starts, self.episode_ends, strict=True):
            yield slice(int(start), int(end))

    def take_episodes(self, which: IntArray) -> Trajectories:
        """Return the given episodes, in the given order, as trajectories of their own.

        Args:
            which: [n] int64, indices into the episodes; n >= 1.
        Raises:
            DataError: no episode was asked for, one that does not exist, or only episodes of one transition.
        """
        which = np.asarray(which, dtype=np.int64).reshape(-1)
        if not len(which) or which.min() < 0 or which.max() >= self.n_episodes:
            asked = f"{which.min()} to {which.max()}" if len(which) else "none"
            raise DataError(f"{self.name}: asked for episodes {asked}, there are 0 to {self.n_episodes - 1}")
        starts, ends = self.episode_starts, self.episode_ends
        rows = np.concatenate([np.arange(starts[i], ends[i]) for i in which])
        return Trajectories(
            self.observations[rows],
            self.actions[rows],
            self.rewards[rows],
            self.terminals[rows],
            self.timeouts[rows],
            name=self.name,
            metadata=self.metadata,
        )


def _as_array(value: Any, attribute: str, name: str, dtype: type[np.generic]) -> npt.NDArray[Any]:
    """Return a contiguous array of `dtype`; it shares memory with `value` where it can."""
    try:
        given = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise ShapeError(f"{name}: {attribute} is not a rectangular array: {error}") from error
    if given.dtype.kind not in "biuf":
        raise DataError(f"{name}: {attribute} holds {given.dtype}, expected numbers")
    if dtype is np.bool_ and given.dtype.kind != "b" and not ((given == 0) | (given == 1)).all():
        raise DataError(f"{name}: {attribute} holds other numbers than 0 and 1")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, which the finiteness check names
        return np.ascontiguousarray(given, dtype=dtype)


def _check_finite(array: FloatArray, attribute: str, name: str) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        where = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise NonFiniteError(
            f"{name}: {attribute}{list(where)} is {array[where]} ({int((~finite).sum())} non-finite numbers in all); "
            "remove or repair those episodes first"
        )
