"""D4RL: find or fetch the file of an id, read any D4RL-layout file, and repair what is known to be wrong in them.

Repairs and doubts are warned of (`DataWarning`) and listed in `metadata["notes"]`:

* A transition that is both terminal and time-out is a time-out: recorders on old Gym set `done` on every time limit,
  so there only `timeouts` tells the two apart; D4RL's own recorder lets the time limit win as well.
* A terminal on the very last step that the dataset's time limit allows is a time-out, for the same reason.
* Where `timeouts` is missing, an episode of a known D4RL id ends where `infos/goal` changes (what D4RL's Maze2D means
  by a time-out), else at the time limit. Any other file must bring its own `timeouts`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ttengine.data import download, files
from ttengine.data.catalogue import D4RLDataset, d4rl_catalogue
from ttengine.data.preprocessing import kept_columns
from ttengine.data.trajectories import BoolArray, FloatArray, IntArray, Trajectories
from ttengine.errors import DatasetNotFoundError, DataWarning, ShapeError

ACTION_LIMIT = 1.0
"""Every D4RL environment takes actions in [-1, 1]."""
NOISE_ROWS = 5_000
NOISE_RATIO = 0.8
"""Mean squared step over twice the variance: 1 for white noise, far below for a body that moves."""


def dataset_folder() -> Path:
    """Return D4RL's cache folder: the environment variable D4RL_DATASET_DIR, else `~/.d4rl/datasets`."""
    return Path(os.environ.get("D4RL_DATASET_DIR") or Path.home() / ".d4rl" / "datasets")


def locate(name: str, fetch: bool = True) -> Path:
    """Return the file of a D4RL id, fetched when it is not in the cache folder.

    Args:
        name: a known D4RL id.
        fetch: whether the network may be used.
    Raises:
        DatasetNotFoundError: the file is not here and cannot be fetched; the message says where to put it.
        DataError: the file has changed since it was fetched.
    """
    entry = d4rl_catalogue()[name]
    for file_name in (entry.file_name, f"{name}.hdf5"):
        path = dataset_folder() / file_name
        if path.is_file():
            download.verify(path)
            return path
    path = dataset_folder() / entry.file_name
    if not fetch:
        raise DatasetNotFoundError(
            f"{name} is not here and download=False; put {entry.url} at {path}, or point D4RL_DATASET_DIR at its folder"
        )
    download.fetch(entry.url, path)
    return path


def identify(path: Path) -> D4RLDataset | None:
    """Return what D4RL knows about a file of this name, None when the name is not one of D4RL's."""
    catalogue = d4rl_catalogue()
    by_file = {entry.file_name: entry for entry in reversed(catalogue.values())}
    return by_file.get(path.name) or catalogue.get(path.stem)


def read_file(path: Path, entry: D4RLDataset | None, observation_columns: int | str | None = "auto") -> Trajectories:
    """Read a D4RL-layout HDF5 or an `.npz` of the same fields.

    Args:
        path: the file.
        entry: what D4RL knows about it, None for the user's own data.
        observation_columns: "auto" for the paper's rule (Ant 111 -> 27, Kitchen 60 -> 30), None for all, or a number.
    Raises:
        DataError, ShapeError, NonFiniteError: the data are not what the module `files` describes.
        ConfigError: `observation_columns` is out of range.
    """
    with files.open_fields(path) as (arrays, header):
        if header.ours:  # the file's own name counts, not what its path looks like, and its columns are cut already
            entry = None
        name = entry.name if entry is not None else header.name
        files.check_fields(arrays, _needed(arrays, entry), name)
        width = int(arrays["observations"].shape[1])
        columns = kept_columns(entry.name if entry is not None else "", width, observation_columns)
        if entry is not None:
            _check_dims(arrays, entry)
        notes: list[str] = []
        terminals = files.read_flags(arrays["terminals"], "terminals", name)
        timeouts = _timeouts(arrays, terminals, entry, name, notes)
        if len(terminals) == len(timeouts):  # Trajectories refuses it otherwise
            terminals, timeouts = _resolve_ends(terminals, timeouts, entry, notes)
        observations = files.read_rows(arrays["observations"], columns)
        actions = files.read_rows(arrays["actions"])
        rewards = files.read_vector(arrays["rewards"], "rewards", name)
    metadata = dict(header.metadata)
    if entry is not None:
        metadata |= {"dataset": entry.name, "env_id": entry.env_id}
        _doubt_actions(actions, notes)
    if columns != width:
        metadata["observation_columns"] = columns
    return with_notes(Trajectories(observations, actions, rewards, terminals, timeouts, name, metadata), notes)


def with_notes(trajectories: Trajectories, notes: list[str]) -> Trajectories:
    """Warn of each note, and of observations that look like noise; return the trajectories with all notes recorded."""
    notes = [*notes, *_doubt_noise(trajectories)]
    for note in notes:
        warnings.warn(f"{trajectories.name}: {note}", DataWarning, stacklevel=2)
    kept = list(dict.fromkeys([*trajectories.metadata.get("notes", []), *notes]))
    return replace(trajectories, metadata={**trajectories.metadata, "notes": kept}) if notes else trajectories


# --- where episodes end -----------------------------------------------------------------------------------------------


def _needed(arrays: Mapping[str, Any], entry: D4RLDataset | None) -> tuple[str, ...]:
    """Return the fields that a file must have: `timeouts` is not one where it can be derived."""
    derivable = entry is not None and (files.GOAL_FIELD in arrays or entry.max_episode_steps is not None)
    return tuple(each for each in files.FIELDS if each != "timeouts" or not derivable)


def _timeouts(
    arrays: Mapping[str, Any], terminals: BoolArray, entry: D4RLDataset | None, name: str, notes: list[str]
) -> BoolArray:
    """Read the time-outs, or derive them for a D4RL id whose file has none."""
    if "timeouts" in arrays:
        return files.read_flags(arrays["timeouts"], "timeouts", name)
    assert entry is not None  # _needed asked for timeouts otherwise
    if files.GOAL_FIELD in arrays:
        goals = files.read_rows(arrays[files.GOAL_FIELD])
        if len(goals) != len(terminals):
            raise ShapeError(f"{name}: {files.GOAL_FIELD} has {len(goals)} rows, terminals {len(terminals)}")
        timeouts = np.zeros(len(terminals), np.bool_)
        timeouts[:-1] = (goals[1:] != goals[:-1]).any(axis=tuple(range(1, goals.ndim)))
        notes.append(f"the file has no timeouts; episodes were cut where {files.GOAL_FIELD} changes")
    else:
        assert entry.max_episode_steps is not None
        limit = entry.max_episode_steps
        timeouts = _age(terminals) % limit == limit - 1
        notes.append(f"the file has no timeouts; episodes were cut at the time limit of {limit} steps")
    return timeouts & ~terminals


def _resolve_ends(
    terminals: BoolArray, timeouts: BoolArray, entry: D4RLDataset | None, notes: list[str]
) -> tuple[BoolArray, BoolArray]:
    """Decide what is a time-out where the file leaves it open; see the module's first lines."""
    both = terminals & timeouts
    if both.any():
        notes.append(f"{int(both.sum())} transitions are both terminal and time-out; they count as time-outs")
        terminals = terminals & ~both
    limit = entry.max_episode_steps if entry is not None else None
    if limit is not None:
        late = terminals & (_age(terminals | timeouts) == limit - 1)
        if late.any():
            notes.append(f"{int(late.sum())} terminals fall on the last of {limit} steps; they count as time-outs")
            terminals, timeouts = terminals & ~late, timeouts | late
    return terminals, timeouts


def _age(ends: BoolArray) -> IntArray:
    """[L] int64, steps since the episode's first row; an episode begins on row 0 and after each end."""
    rows = np.arange(len(ends))
    starts = np.where(np.concatenate([[True], ends[:-1]]), rows, 0) if len(ends) else rows
    return rows - np.maximum.accumulate(starts)


# --- doubts -----------------------------------------------------------------------------------------------------------


def _check_dims(arrays: Mapping[str, Any], entry: D4RLDataset) -> None:
    """Refuse a file whose columns are not those of its D4RL id (observations that were cut already count too)."""
    if entry.dims is None:
        return
    kept = kept_columns(entry.name, entry.dims[0])
    for each, allowed in (("observations", {entry.dims[0], kept}), ("actions", {entry.dims[1]})):
        width = int(arrays[each].shape[1])
        if width not in allowed:
            listed = " or ".join(str(number) for number in sorted(allowed))
            raise ShapeError(f"{entry.name}: {each} has {width} columns, that dataset has {listed}: another file?")


def _doubt_actions(actions: FloatArray, notes: list[str]) -> None:
    if not actions.size:
        return
    low, high = float(actions.min()), float(actions.max())
    if low < -ACTION_LIMIT - 1e-4 or high > ACTION_LIMIT + 1e-4:
        notes.append(f"actions reach from {low:.4g} to {high:.4g}, the environment takes -1 to 1")


def _doubt_noise(trajectories: Trajectories) -> list[str]:
    """Return a note when successive observations are unrelated in every column."""
    observations = trajectories.observations[:NOISE_ROWS].astype(np.float64)
    inside = ~(trajectories.terminals | trajectories.timeouts)[: len(observations) - 1]
    variance = observations.var(axis=0)
    moving = variance > 0
    if inside.sum() < 200 or not moving.any():
        return []
    steps = np.square(np.diff(observations, axis=0)[inside]).mean(axis=0)
    if (steps[moving] / (2 * variance[moving])).min() < NOISE_RATIO:
        return []
    return ["successive observations are unrelated in every column, as in white noise; are the rows in time order?"]
