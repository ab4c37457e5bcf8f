"""Trajectories in one file: D4RL-layout HDF5 (`.hdf5`, `.h5`) or NumPy's `.npz`, the same fields in both.

    observations [L, N]   what was seen before each action
    actions      [L, M]
    rewards      [L]      of each action
    terminals    [L]      1 where the environment itself ended the episode (a fall, a goal), else 0
    timeouts     [L]      1 where something else ended it (a time limit, a reset, the end of the log), else 0

Any numeric type; kept as float32. `[L, 1]` is taken for `[L]`. An episode begins on row 0 and after each end; an
unfinished last episode is closed by a time-out. Nothing is unpickled.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ttengine.data.download import atomic_file
from ttengine.data.trajectories import BoolArray, FloatArray, Trajectories
from ttengine.errors import DataError, ShapeError, require

FIELDS = ("observations", "actions", "rewards", "terminals", "timeouts")
GOAL_FIELD = "infos/goal"
"""Where D4RL's mazes log the goal that the agent is heading for."""
HDF5_SUFFIXES = (".hdf5", ".h5")
SUFFIXES = (*HDF5_SUFFIXES, ".npz")

BLOCK_BYTES = 16 << 20
"""Rows are converted to float32 in blocks of about this size, so a float64 file is never whole in memory."""
SMALL_METADATA = 16
"""Arrays of D4RL's `metadata` group longer than this (policy weights) are left in the file."""


@dataclass(frozen=True)
class Header:
    """What a file says about itself besides its arrays."""

    name: str
    metadata: dict[str, Any] = field(default_factory=dict)
    ours: bool = False
    """whether `save_dataset` wrote the file, so that its name and columns are final"""


@contextmanager
def open_fields(path: Path) -> Iterator[tuple[Mapping[str, Any], Header]]:
    """Open a file; yield its arrays by name (sliceable, read when sliced) and its header.

    Raises:
        DataError: the file is not of the format that its suffix names, or is damaged.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path} ends in {suffix or 'nothing'}; trajectories are read from {', '.join(SUFFIXES)}")
    opened: Any = _open_npz(path) if suffix == ".npz" else _open_hdf5(path)
    with opened as arrays:
        try:
            yield arrays, _header(path, arrays)
        except OSError as error:  # h5py's, when a block cannot be read or decompressed
            raise DataError(f"{path.name} cannot be read: {error}; it is damaged, fetch or write it again") from error


def read_rows(array: Any, columns: int | None = None) -> FloatArray:
    """Read an array block by block into float32, its first `columns` columns only.

    Args:
        array: [L] or [L, any] of any numeric type, in memory or in an HDF5 file.
        columns: how many leading columns to keep; None keeps the shape.
    """
    width = array.shape[1:] if columns is None else (columns,)
    rows = np.empty((len(array), *width), np.float32)
    row_bytes = max(1, array.dtype.itemsize * int(np.prod(array.shape[1:])))
    chunk = (getattr(array, "chunks", None) or (1,))[0]
    step = max(chunk, BLOCK_BYTES // row_bytes // chunk * chunk)  # whole chunks: none is decompressed twice
    for start in range(0, len(array), step):
        block = array[start : start + step] if columns is None else array[start : start + step, :columns]
        with np.errstate(over="ignore"):  # becomes infinity, which Trajectories refuses by row and column
            rows[start : start + step] = block
    return rows


def read_vector(array: Any, field_name: str, name: str) -> FloatArray:
    """Read an [L] array; [L, 1] counts as [L], as in D4RL's replay files."""
    if len(array.shape) == 1 or (len(array.shape) == 2 and array.shape[1] == 1):
        return read_rows(array).reshape(-1)
    raise ShapeError(f"{name}: {field_name} has shape {tuple(array.shape)}, expected [L]")


def read_flags(array: Any, field_name: str, name: str) -> BoolArray:
    """Read an [L] array of zeros and ones of any numeric type."""
    numbers = read_vector(array, field_name, name)
    wrong = (numbers != 0) & (numbers != 1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(f"{name}: {field_name}[{row}] is {numbers[row]}, allowed are 0 and 1 (or False and True)")
    return numbers.astype(np.bool_)


def check_fields(arrays: Mapping[str, Any], needed: tuple[str, ...], name: str) -> None:
    """Raise unless every needed field is there, numeric, and a matrix where it must be one.

    Raises:
        DataError: a field is missing or holds no numbers; the message lists what is there.
        ShapeError: observations or actions are not [L, columns].
    """
    missing = [each for each in needed if each not in arrays]
    if missing:
        present = ", ".join(sorted(arrays)[:12]) or "nothing"
        hints = {
            "terminals": "terminals [L]: 1 where the environment itself ended the episode, else 0",
            "timeouts": "timeouts [L]: 1 where an episode was cut without ending, else 0 (all 0 if none was)",
        }
        advice = "; add " + " and ".join(hints.get(each, f"{each} with one row per transition") for each in missing)
        if "episode_0" in arrays:
            advice = "; this is the inside of a Minari dataset: give its folder or its id"
        raise DataError(f"{name} has no {', '.join(missing)}; it has {present}{advice}")
    for each in needed:
        kind = getattr(getattr(arrays[each], "dtype", None), "kind", None)
        if kind not in ("b", "i", "u", "f"):
            raise DataError(f"{name}: {each} holds {getattr(arrays[each], 'dtype', 'a group')}, expected numbers")
    for each in ("observations", "actions"):
        shape = tuple(arrays[each].shape)
        if len(shape) != 2:
            raise ShapeError(f"{name}: {each} has shape {shape}, expected [L, columns]; flatten or stack it first")


def save_dataset(trajectories: Trajectories, path: Path) -> None:
    """Write trajectories as D4RL-layout HDF5 or as `.npz`, by the suffix; `load_dataset` gives them back bit for bit.

    The file appears whole or not at all. Name and metadata travel as JSON (`metadata/json` in HDF5).

    Raises:
        DataError: another suffix, or metadata that JSON cannot hold.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path} ends in {suffix or 'nothing'}; trajectories are written as {', '.join(SUFFIXES)}")
    try:
        header = json.dumps({"name": trajectories.name, "metadata": dict(trajectories.metadata)})
    except TypeError as error:
        raise DataError(f"{trajectories.name}: metadata must be plain JSON values: {error}") from error
    arrays = {each: getattr(trajectories, each) for each in FIELDS}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        if suffix == ".npz":
            np.savez_compressed(temporary, metadata=np.array(header), **arrays)
            return
        h5py = require("h5py", "data")
        with h5py.File(temporary, "w") as file:
            for each, array in arrays.items():
                file.create_dataset(each, data=array, compression="gzip", compression_opts=1, shuffle=True)
            file["metadata/json"] = header


@contextmanager
def _open_hdf5(path: Path) -> Iterator[Mapping[str, Any]]:
    h5py = require("h5py", "data")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path} is not a readable HDF5 file ({error}); it may be truncated") from error
    with file:
        yield file


@contextmanager
def _open_npz(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        file = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a readable .npz file ({error})") from error
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise DataError(f"{path} holds one bare array; write np.savez(path, observations=..., actions=..., ...)")
    with file:
        try:  # each array is read once, here: an NpzFile would decompress it again on every slice
            arrays = {each: file[each] if each in (*FIELDS, GOAL_FIELD, "metadata") else None for each in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{path.name} cannot be read: {error}") from error
    yield arrays


def _header(path: Path, arrays: Mapping[str, Any]) -> Header:
    """Return what `save_dataset` or D4RL wrote beside the arrays."""
    if "metadata" not in arrays:
        return Header(path.stem)
    group = arrays["metadata"]
    if path.suffix.lower() == ".npz":
        text = str(group) if group is not None and group.shape == () else None
    elif "json" in getattr(group, "keys", dict)():
        text = group["json"].asstr()[()]
    else:
        return Header(path.stem, _small_values(group))
    try:
        saved = json.loads(text or "")
        return Header(str(saved["name"]), dict(saved["metadata"]), ours=True)
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path.name}: its metadata is not what save_dataset writes: {error!r}") from error


def _small_values(group: Any) -> dict[str, Any]:
    """Return the scalars, short arrays and strings of D4RL's metadata group as JSON values."""
    values: dict[str, Any] = {}

    def visit(key: str, item: Any) -> None:
        if not hasattr(item, "dtype") or item.size is None or item.size > SMALL_METADATA:
            return
        value = item[()]
        if isinstance(value, bytes):
            values[key] = value.decode("utf-8", errors="replace")
        elif getattr(value, "dtype", np.dtype(object)).kind in "biuf":
            values[key] = value.tolist()

    if hasattr(group, "visititems"):
        group.visititems(visit)
    return values
