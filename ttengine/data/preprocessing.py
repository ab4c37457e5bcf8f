"""The columns of an observation that are kept, the same when data are loaded and when a controller acts.

D4RL's Ant observes 111 numbers of which the last 84 are always zero, its Kitchen 60 of which the last 30 are the
constant goal. Both are cut as the released code cuts them, and `metadata["observation_columns"]` says so.
"""

from __future__ import annotations

from typing import Any

from ttengine.errors import ConfigError, ShapeError

_CUTS = {"ant": (111, 27), "kitchen": (60, 30)}
"""First word of the D4RL id -> columns in the file, columns kept. Source: Janner et al. 2021, released code."""


def kept_columns(dataset: str, columns: int, wanted: int | str | None = "auto") -> int:
    """Return how many leading observation columns of a dataset are kept.

    Args:
        dataset: D4RL id, or any other name, for which "auto" keeps everything.
        columns: observation columns that the source has.
        wanted: "auto" for the paper's rule, None to keep all, or a number of columns.
    Raises:
        ConfigError: `wanted` is none of these, or more than there are.
    """
    if wanted is None:
        return columns
    if wanted == "auto":
        source, kept = _CUTS.get(dataset.partition("-")[0], (columns, columns))
        return kept if columns == source else columns
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 1 <= wanted <= columns:
        raise ConfigError(f'observation_columns is {wanted!r}, allowed are "auto", None, or 1 to {columns} ({dataset})')
    return wanted


def crop_observation(observation: Any, columns: int | None) -> Any:
    """Keep the first `columns` numbers of an observation, as was done with the training data.

    Args:
        observation: [..., N] array or tensor; N is the number of columns kept, or of the environment before the cut.
        columns: `metadata["observation_columns"]` of the training data, None when nothing was cut.
    Returns:
        [..., columns], a view.
    Raises:
        ShapeError: the observation is shorter than `columns`.
    """
    if columns is None:
        return observation
    if observation.shape[-1] < columns:
        raise ShapeError(
            f"observation has {observation.shape[-1]} dims, the training data kept the first {columns}; "
            "is this the environment that the data came from?"
        )
    return observation[..., :columns]
