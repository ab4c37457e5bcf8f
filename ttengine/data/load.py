"""One front door to logged trajectories: an id or a path in, `Trajectories` out."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Literal

from ttengine.data import d4rl, files
from ttengine.data.catalogue import d4rl_catalogue
from ttengine.data.trajectories import Trajectories
from ttengine.errors import DatasetNotFoundError

_MINARI_ID = re.compile(r"(?:[-\w]+/)+[-\w]+-v\d+")


def load_dataset(
    name_or_path: str | Path,
    *,
    download: bool = True,
    observation_columns: int | Literal["auto"] | None = "auto",
) -> Trajectories:
    """Read logged trajectories, whatever they are in.

    Args:
        name_or_path: one of
            a D4RL id, `hopper-medium-v2`: its HDF5 in D4RL_DATASET_DIR or `~/.d4rl/datasets`, else fetched;
            a Minari id, `mujoco/hopper/medium-v0`: in MINARI_DATASETS_PATH or `~/.minari/datasets`, else fetched;
            a file, `.hdf5`, `.h5` or `.npz`, with the fields that `ttengine.data.files` describes;
            the folder of a Minari dataset.
        download: whether the network may be used.
        observation_columns: how many leading observation columns to keep. "auto" follows the paper (D4RL's Ant
            111 -> 27, Kitchen 60 -> 30), None keeps all. A cut is recorded in `metadata["observation_columns"]`.
    Returns:
        Validated Trajectories, float32; what was repaired or looks wrong is in `metadata["notes"]`.
    Raises:
        DatasetNotFoundError: unknown, or not here and not to be had; the message lists near ids, or says where the
            file belongs.
        DataError, ShapeError, NonFiniteError: the data cannot be used; the message says what is wrong.
        ConfigError: `observation_columns` is out of range.
        MissingExtraError: h5py or minari is needed and not installed.
    """
    name, path, catalogue = str(name_or_path), Path(name_or_path).expanduser(), d4rl_catalogue()
    if path.is_file():
        return d4rl.read_file(path, d4rl.identify(path), observation_columns)
    if name in catalogue:  # before folders: a run's output folder is often named after its dataset
        return d4rl.read_file(d4rl.locate(name, fetch=download), catalogue[name], observation_columns)
    if path.is_dir():
        from ttengine.data.minari_source import load_minari_folder

        return load_minari_folder(path, observation_columns)
    if path.suffix.lower() in files.SUFFIXES or isinstance(name_or_path, Path):
        raise DatasetNotFoundError(f"there is no file {path} (looked in {Path.cwd()})")
    if _MINARI_ID.fullmatch(name):
        from ttengine.data.minari_source import load_minari

        return load_minari(name, fetch=download, observation_columns=observation_columns)
    near = difflib.get_close_matches(name.lower(), catalogue, n=5, cutoff=0.5)
    raise DatasetNotFoundError(
        f"there is no dataset {name!r}"
        + (f"; near it: {', '.join(near)}" if near else "")
        + "; accepted are a D4RL id (hopper-medium-v2), a Minari id (mujoco/hopper/medium-v0), a .hdf5, .h5 or .npz "
        "file, and the folder of a Minari dataset"
    )
