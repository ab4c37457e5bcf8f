"""D4RL files: finding them, and the traps that are in them."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ttengine.data import Trajectories, load_dataset, save_dataset
from ttengine.data.catalogue import BUILT_IN
from ttengine.errors import ConfigError, DataError, DatasetNotFoundError, DataWarning, NonFiniteError, ShapeError

h5py = pytest.importorskip("h5py")

HOPPER = "hopper-medium-v2"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder in place of the user's."""
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    return tmp_path


def write(folder: Path, name: str = HOPPER, rows: int = 2500, dtype: Any = np.float32, **changes: Any) -> Path:
    """Write a D4RL-layout file of the right width for `name`; a field given as None is left out."""
    entry = BUILT_IN[name]
    assert entry.dims is not None
    observations, actions = entry.dims
    fields: dict[str, Any] = {
        "observations": np.tile(np.sin(np.arange(rows) / 50)[:, None], observations).astype(dtype),
        "actions": np.full((rows, actions), 0.5, dtype),
        "rewards": np.arange(rows, dtype=dtype),
        "terminals": np.zeros(rows, np.bool_),
        "timeouts": np.arange(rows) % 1000 == 999,
        "next_observations": np.zeros((rows, observations), dtype),
        "infos/qpos": np.zeros((rows, 6)),
        "infos/action_log_probs": np.zeros(rows),
        "metadata/algorithm": np.bytes_("SAC"),
        "metadata/iteration": 7,
        "metadata/policy/fc0/weight": np.zeros((256, observations)),
    }
    fields |= changes
    path = folder / entry.file_name
    with h5py.File(path, "w") as file:
        for field, value in fields.items():
            if value is not None:
                file[field] = value
    return path


def load_quietly(name: str | Path, **options: Any) -> Trajectories:
    """Load, and fail on any warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        return load_dataset(name, **options)


def load_with_note(name: str | Path, note: str) -> Trajectories:
    """Load, and fail unless exactly one warning came and is recorded too."""
    with pytest.warns(DataWarning, match=note) as caught:
        trajectories = load_dataset(name)
    assert len(caught) == len(trajectories.metadata["notes"]) == 1
    return trajectories


def test_an_id_is_found_in_the_cache_folder(folder: Path) -> None:
    write(folder)
    trajectories = load_quietly(HOPPER, download=False)
    assert trajectories.name == HOPPER
    assert trajectories.metadata == {"algorithm": "SAC", "iteration": 7, "dataset": HOPPER, "env_id": "Hopper-v4"}
    assert (trajectories.observation_dim, trajectories.action_dim) == (11, 3)


def test_a_path_with_a_d4rl_file_name_is_known_by_it(folder: Path) -> None:
    assert load_quietly(write(folder)).name == HOPPER


def test_a_cut_last_episode_ends_in_a_timeout(folder: Path) -> None:
    write(folder)
    trajectories = load_quietly(HOPPER)
    assert trajectories.episode_lengths.tolist() == [1000, 1000, 500]
    assert not trajectories.terminals.any()


def test_a_float64_replay_file_with_rewards_in_a_column_loads(folder: Path) -> None:
    name = "hopper-medium-replay-v2"
    write(folder, name, dtype=np.float64, rewards=np.arange(2500.0)[:, None], terminals=np.zeros((2500, 1)))
    trajectories = load_quietly(name)
    assert trajectories.rewards.dtype == np.float32
    assert trajectories.rewards.tolist() == list(range(2500))


def test_a_file_without_metadata_loads(folder: Path) -> None:
    none = dict.fromkeys(["metadata/algorithm", "metadata/iteration", "metadata/policy/fc0/weight"])
    write(folder, "hopper-random-v2", **none)
    assert load_quietly("hopper-random-v2").metadata == {"dataset": "hopper-random-v2", "env_id": "Hopper-v4"}


@pytest.mark.parametrize(
    ("name", "width", "kept"), [("ant-medium-v2", 111, 27), ("kitchen-mixed-v0", 60, 30), (HOPPER, 11, 11)]
)
def test_ant_and_kitchen_keep_the_papers_columns(folder: Path, name: str, width: int, kept: int) -> None:
    ramp = np.arange(width) + np.sin(np.arange(2500) / 50)[:, None]
    flat = {"infos/qpos": None, "infos/action_log_probs": None, "infos": np.zeros(2500)}  # Kitchen's infos is flat
    write(folder, name, observations=ramp, timeouts=np.arange(2500) % 250 == 249, **flat)
    trajectories = load_quietly(name)
    np.testing.assert_allclose(trajectories.observations, ramp[:, :kept], rtol=1e-6)
    assert trajectories.metadata.get("observation_columns") == (None if kept == width else kept)
    assert load_quietly(name, observation_columns=None).observation_dim == width
    assert load_quietly(name, observation_columns=5).metadata["observation_columns"] == 5


@pytest.mark.parametrize("columns", [0, 12, -1, True, "all", 2.0])
def test_a_number_of_columns_that_is_not_there_is_refused(folder: Path, columns: Any) -> None:
    write(folder)
    with pytest.raises(ConfigError, match="1 to 11"):
        load_dataset(HOPPER, observation_columns=columns)


def test_a_transition_that_is_terminal_and_timeout_is_a_timeout(folder: Path) -> None:
    write(folder, terminals=np.isin(np.arange(2500), [400, 1300]), timeouts=np.isin(np.arange(2500), [400]))
    trajectories = load_with_note(HOPPER, "1 transitions are both")
    assert np.flatnonzero(trajectories.terminals).tolist() == [1300]
    assert np.flatnonzero(trajectories.timeouts).tolist() == [400, 2499]


def test_a_terminal_on_the_last_step_of_the_time_limit_is_a_timeout(folder: Path) -> None:
    # rows 0-999 reach the limit; 1000-1499 fall; 1500-2499 reach it again
    write(folder, terminals=np.isin(np.arange(2500), [999, 1499, 2499]), timeouts=np.zeros(2500))
    trajectories = load_with_note(HOPPER, "2 terminals fall on the last of 1000 steps")
    assert np.flatnonzero(trajectories.terminals).tolist() == [1499]
    assert np.flatnonzero(trajectories.timeouts).tolist() == [999, 2499]


def test_maze2d_without_timeouts_is_cut_where_the_goal_changes(folder: Path) -> None:
    goals = np.repeat([[1.0, 1.0], [1.0, 3.0], [2.0, 3.0]], [100, 50, 2350], axis=0)
    write(folder, "maze2d-umaze-v1", timeouts=None, **{"infos/goal": goals})
    trajectories = load_with_note("maze2d-umaze-v1", "infos/goal changes")
    assert trajectories.episode_lengths.tolist() == [100, 50, 2350]
    assert not trajectories.terminals.any()


def test_a_terminal_where_the_goal_changes_stays_a_terminal(folder: Path) -> None:
    goals = np.repeat([[1.0, 1.0], [1.0, 3.0]], [100, 2400], axis=0)
    write(folder, "maze2d-umaze-v1", timeouts=None, terminals=np.arange(2500) == 99, **{"infos/goal": goals})
    trajectories = load_with_note("maze2d-umaze-v1", "infos/goal changes")
    assert np.flatnonzero(trajectories.terminals).tolist() == [99]


def test_maze2d_without_timeouts_or_goals_is_cut_at_the_time_limit(folder: Path) -> None:
    write(folder, "maze2d-umaze-v1", rows=1000, timeouts=None, terminals=np.arange(1000) == 349)
    trajectories = load_with_note("maze2d-umaze-v1", "time limit of 300 steps")
    assert trajectories.episode_lengths.tolist() == [300, 50, 300, 300, 50]


def test_goals_of_another_length_are_refused(folder: Path) -> None:
    write(folder, "maze2d-umaze-v1", timeouts=None, **{"infos/goal": np.zeros((7, 2))})
    with pytest.raises(ShapeError, match="infos/goal has 7 rows"):
        load_dataset("maze2d-umaze-v1")


def test_a_file_without_terminals_says_what_to_add(folder: Path) -> None:
    write(folder, terminals=None)
    with pytest.raises(DataError, match=r"no terminals; it has .*add terminals \[L\]: 1 where"):
        load_dataset(HOPPER)


def test_actions_out_of_range_are_warned_of(folder: Path) -> None:
    write(folder, actions=np.full((2500, 3), -1.5))
    assert load_with_note(HOPPER, "actions reach from -1.5").actions.min() == -1.5


def test_noise_under_a_d4rl_name_is_warned_of(folder: Path) -> None:
    write(folder, observations=np.random.default_rng(0).normal(size=(2500, 11)))
    load_with_note(HOPPER, "white noise")


@pytest.mark.parametrize("change", [{"observations": np.zeros((2500, 17))}, {"actions": np.zeros((2500, 6))}])
def test_another_bodys_columns_are_refused(folder: Path, change: dict[str, Any]) -> None:
    write(folder, **change)
    with pytest.raises(ShapeError, match="another file"):
        load_dataset(HOPPER)


def test_nan_in_the_columns_that_are_kept_is_refused_and_elsewhere_ignored(folder: Path) -> None:
    observations = np.tile(np.sin(np.arange(2500) / 50)[:, None], 111)
    observations[7, 100] = np.nan
    write(folder, "ant-medium-v2", observations=observations)
    load_quietly("ant-medium-v2")
    observations[7, 20] = np.nan
    write(folder, "ant-medium-v2", observations=observations)
    with pytest.raises(NonFiniteError, match=r"observations\[7, 20\]"):
        load_dataset("ant-medium-v2")


def test_a_file_saved_by_ttengine_keeps_its_own_name_whatever_it_is_called(folder: Path) -> None:
    rows = 50
    own = Trajectories(
        np.sin(np.arange(rows * 4).reshape(rows, 4) / 50), np.full((rows, 2), 3.0), np.ones(rows), np.zeros(rows),
        np.zeros(rows), "my-arm", {"notes": ["an old one"]},
    )  # fmt: skip
    save_dataset(own, folder / "hopper_medium-v2.hdf5")
    loaded = load_quietly(folder / "hopper_medium-v2.hdf5")
    assert (loaded.name, loaded.metadata) == ("my-arm", {"notes": ["an old one"]})


def test_an_id_that_is_not_here_says_where_the_file_belongs(folder: Path) -> None:
    with pytest.raises(DatasetNotFoundError) as error:
        load_dataset(HOPPER, download=False)
    assert BUILT_IN[HOPPER].url in str(error.value)
    assert str(folder / "hopper_medium-v2.hdf5") in str(error.value)


def test_a_file_named_after_the_id_is_found_too(folder: Path) -> None:
    write(folder, "hopper-medium-replay-v0").rename(folder / "hopper-medium-replay-v0.hdf5")
    assert load_quietly("hopper-medium-replay-v0", download=False).name == "hopper-medium-replay-v0"


def test_a_file_that_changed_since_it_was_fetched_is_refused(folder: Path) -> None:
    path = write(folder)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(f"{path.name}.sha256").write_text(f"{digest}  {path.name}\n")
    load_quietly(HOPPER)
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match="SHA-256"):
        load_dataset(HOPPER)


def test_a_folder_named_like_an_id_does_not_hide_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder)
    (folder / HOPPER).mkdir()
    monkeypatch.chdir(folder)
    assert load_quietly(HOPPER).name == HOPPER
