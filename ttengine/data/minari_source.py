"""Minari datasets: read one by id or by folder, and write trajectories as one.

Minari keeps T+1 observations an episode; the last, seen after the last action, has no transition of its own and is not
read. Of a dictionary observation the key `observation` is read (goal environments); the goals stay behind. The ant's
mazes do not observe there where the ant is: the achieved goal, (x, y), is put in front, as D4RL has it.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ttengine.data.d4rl import with_notes
from ttengine.data.preprocessing import kept_columns
from ttengine.data.trajectories import FloatArray, Trajectories
from ttengine.errors import (
    DataError,
    DatasetNotFoundError,
    EnvironmentNotFoundError,
    ShapeError,
    TTEngineError,
    require,
)

KEPT_METADATA = ("description", "algorithm_name", "minari_version", "ref_min_score", "ref_max_score", "total_episodes")
OUR_METADATA = "ttengine"
POSITION_APART = "AntMaze"
"""Environments whose ids begin so observe a position only as the goal that is achieved."""


def dataset_ids() -> list[str]:
    """Return the ids of the Minari datasets in the local root (MINARI_DATASETS_PATH, else `~/.minari/datasets`)."""
    root = _root()
    folders = (metadata.parent.parent for metadata in root.glob("**/data/metadata.json"))
    return sorted(folder.relative_to(root).as_posix() for folder in folders)


def load_minari(dataset_id: str, fetch: bool = True, observation_columns: int | str | None = "auto") -> Trajectories:
    """Read a Minari dataset by id, fetched from the hub when it is not in the local root.

    Args:
        dataset_id: `mujoco/hopper/medium-v0`.
        fetch: whether the network may be used.
        observation_columns: see `load_dataset`.
    Raises:
        DatasetNotFoundError: it is neither here nor on the hub, or the hub cannot be reached.
        DataError, ShapeError, NonFiniteError: it cannot be used; the message says why.
    """
    minari = require("minari", "data")
    folder = _root() / dataset_id
    if not (folder / "data").is_dir():
        where = f"put its folder at {folder}, or point the environment variable MINARI_DATASETS_PATH at its root"
        if not fetch:
            raise DatasetNotFoundError(f"{dataset_id} is not here and download=False; {where}")
        try:
            minari.download_dataset(dataset_id)
        except Exception as error:  # the hub's client raises what it likes, down to bare Exception
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise DatasetNotFoundError(
                f"{dataset_id} is not here and could not be fetched from Minari's hub ({reason}); {where}"
            ) from error
    return load_minari_folder(folder, observation_columns)


def load_minari_folder(folder: Path, observation_columns: int | str | None = "auto") -> Trajectories:
    """Read a Minari dataset's folder (`<root>/<namespace>/<name-vN>`), or a root that holds exactly one dataset.

    Raises:
        DataError: no dataset, several, or one whose spaces are not plain numbers.
    """
    minari = require("minari", "data")
    found = sorted(metadata.parent for metadata in folder.glob("**/data/metadata.json"))
    if folder.name == "data" and (folder / "metadata.json").is_file():
        found = [folder]
    if len(found) != 1:
        listed = ", ".join(path.parent.relative_to(folder).as_posix() for path in found[:10])
        raise DataError(
            f"{folder} holds {len(found)} Minari datasets{f' ({listed})' if found else ''}; give the folder of one, "
            "which has data/metadata.json inside"
        )
    try:
        dataset = minari.MinariDataset(found[0])
        return _read(dataset, observation_columns)
    except TTEngineError:
        raise
    except (OSError, AssertionError, KeyError, ValueError) as error:  # what Minari raises on damaged or foreign files
        raise DataError(f"{found[0].parent} is not a Minari dataset that can be read: {error!r}") from error


def _read(dataset: Any, observation_columns: int | str | None) -> Trajectories:
    name, steps = str(dataset.id), int(dataset.total_steps)
    if steps == 0:
        raise DataError(f"{name}: the dataset is empty (0 transitions)")
    rows: dict[str, npt.NDArray[Any]] = {}
    start, width = 0, 0
    placed = dataset.env_spec is not None and dataset.env_spec.id.startswith(POSITION_APART)
    for episode in _episodes(dataset):
        observations = _numbers(episode.observations, "observations", name)
        if placed and isinstance(episode.observations, dict):
            observations = np.hstack([_numbers(episode.observations["achieved_goal"], "positions", name), observations])
        actions = _numbers(episode.actions, "actions", name)
        length = len(episode.rewards)
        if len(observations) != length + 1 or len(actions) != length or start + length > steps:
            raise ShapeError(
                f"{name}: episode {episode.id} has {len(observations)} observations, {len(actions)} actions and "
                f"{length} rewards; Minari keeps T+1, T and T"
            )
        if not rows:
            width = observations.shape[1]
            columns = kept_columns("", width, observation_columns)
            rows = {
                "observations": np.empty((steps, columns), np.float32),
                "actions": np.empty((steps, actions.shape[1]), np.float32),
                "rewards": np.empty(steps, np.float32),
                "terminals": np.zeros(steps, np.bool_),
                "timeouts": np.zeros(steps, np.bool_),
            }
        here = slice(start, start + length)
        with np.errstate(over="ignore"):  # infinity is refused by Trajectories
            rows["observations"][here] = observations[:-1, : rows["observations"].shape[1]]
            rows["actions"][here] = actions
            rows["rewards"][here] = np.reshape(episode.rewards, length)
        if length:
            rows["terminals"][here.stop - 1] = bool(episode.terminations[-1])
            rows["timeouts"][here.stop - 1] = not episode.terminations[-1]  # every recorded episode ends here
        start += length
    return _assemble(dataset, {each: array[:start] for each, array in rows.items()}, width)


def _assemble(dataset: Any, rows: dict[str, npt.NDArray[Any]], width: int) -> Trajectories:
    name, about = str(dataset.id), dataset.storage.metadata
    metadata: dict[str, Any] = dict(json.loads(about.get(OUR_METADATA, "{}")))
    metadata |= {key: about[key] for key in KEPT_METADATA if key in about}
    metadata["dataset"] = name
    if dataset.env_spec is not None:
        metadata["env_id"] = dataset.env_spec.id
    if rows["observations"].shape[1] != width:
        metadata["observation_columns"] = rows["observations"].shape[1]
    return with_notes(Trajectories(**rows, name=name, metadata=metadata), [])


def _episodes(dataset: Any) -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from dataset.iterate_episodes()


def _numbers(value: Any, field: str, name: str) -> npt.NDArray[Any]:
    """Return one episode's numbers as [T, columns]: a dictionary's `observation`, vectors, scalars as a column."""
    if isinstance(value, dict):
        if "observation" not in value:
            raise DataError(
                f"{name}: {field} are dictionaries with {', '.join(sorted(value))}; only vectors, and dictionaries "
                "with the key observation, can be tokenised: flatten them and save them as .npz"
            )
        value = value["observation"]
    array = np.asarray(value) if not isinstance(value, tuple) else np.empty(0, object)
    if array.dtype.kind not in "biuf" or array.ndim not in (1, 2):
        raise DataError(f"{name}: {field} hold {array.dtype} of shape {array.shape}, expected vectors of numbers")
    return array.reshape(len(array), -1)


def save_minari(
    trajectories: Trajectories, dataset_id: str, env_id: str, final_observations: FloatArray | None = None
) -> None:
    """Write trajectories as a Minari dataset into the local root (MINARI_DATASETS_PATH).

    Args:
        trajectories: what to write.
        dataset_id: `namespace/name-v0`; must not exist yet.
        env_id: Gymnasium environment that the data came from.
        final_observations: [episodes, N] float32, seen after each episode's last action. None: the last observation is
            repeated in its place, and the description says so.
    Raises:
        DataError: the id is malformed or taken, or the metadata cannot be written.
        EnvironmentNotFoundError: Gymnasium does not know the environment.
        ShapeError: `final_observations` has not one row per episode.
    """
    minari, gymnasium = require("minari", "data"), require("gymnasium", "mujoco")
    check_new_dataset(dataset_id)
    wanted = (trajectories.n_episodes, trajectories.observation_dim)
    if final_observations is not None and final_observations.shape != wanted:
        raise ShapeError(f"final_observations has shape {final_observations.shape}, expected {wanted}")
    if env_id not in gymnasium.registry:
        raise EnvironmentNotFoundError(f"Gymnasium does not know the environment {env_id!r}; is its package imported?")
    description = f"{trajectories.name}, written by ttengine."
    if final_observations is None:
        description += " The observation after an episode's last action is not known; the one before it is repeated."
    box = gymnasium.spaces.Box(-np.inf, np.inf, (trajectories.observation_dim,), np.float32)
    folder = _root() / dataset_id
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Minari's reminders of optional fields, Gymnasium's of newer versions
            dataset = minari.create_dataset_from_buffers(
                dataset_id,
                _buffers(trajectories, final_observations),
                env=env_id,
                observation_space=box,
                description=description,
                data_format="hdf5",
            )
        dataset.storage.update_metadata({OUR_METADATA: json.dumps(dict(trajectories.metadata))})
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # a half-written dataset would be taken for a whole one
        raise


def _buffers(trajectories: Trajectories, final_observations: FloatArray | None) -> list[Any]:
    """Return one Minari buffer per episode; its arrays are views but for the T+1 observations."""
    from minari.data_collector import EpisodeBuffer

    buffers = []
    for i, rows in enumerate(trajectories.episodes()):
        observations = trajectories.observations[rows]
        last = observations[-1:] if final_observations is None else final_observations[i : i + 1]
        buffers.append(
            EpisodeBuffer(
                id=i,
                observations=np.concatenate([observations, last]).astype(np.float32),
                actions=trajectories.actions[rows],
                rewards=trajectories.rewards[rows],
                terminations=trajectories.terminals[rows],
                truncations=trajectories.timeouts[rows],
            )
        )
    return buffers


def check_new_dataset(dataset_id: str) -> None:
    """Raise DataError unless the id is well-formed and free; a writer calls it before it begins the work."""
    require("minari", "data")
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:
        raise DataError(f"{dataset_id!r} is not a Minari id; allowed are namespace/name-v0 and name-v0") from error
    if (_root() / dataset_id).exists():
        raise DataError(f"Minari dataset {dataset_id} is there already: {_root() / dataset_id}; delete it or raise -vN")


def _root() -> Path:
    from minari.storage import get_dataset_path

    return Path(get_dataset_path())
