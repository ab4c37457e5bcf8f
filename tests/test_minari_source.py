"""Minari: written, read back by id and by folder, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ttengine.data import Trajectories, load_dataset
from ttengine.errors import DataError, DatasetNotFoundError, EnvironmentNotFoundError, NonFiniteError, ShapeError

minari = pytest.importorskip("minari")
pytest.importorskip("h5py")
gymnasium = pytest.importorskip("gymnasium")

from minari.data_collector import EpisodeBuffer  # noqa: E402

from ttengine.data.minari_source import dataset_ids, save_minari  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*is set to None:UserWarning", "ignore:env_spec is None:UserWarning")

ID = "arm/push-v0"
ENV = "Pendulum-v1"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Minari root in place of the user's."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def trajectories() -> Trajectories:
    """Three episodes of 4, 3 and 5 transitions: a terminal, a time-out, a cut log."""
    rng = np.random.default_rng(0)
    rows = np.arange(12)
    return Trajectories(
        rng.normal(size=(12, 3)).cumsum(axis=0), rng.uniform(-1, 1, (12, 1)), rows, rows == 3, rows == 6, "logged",
        {"env_id": ENV, "policy": {"noise": 0.1}},
    )  # fmt: skip


def create(
    root: Path, observations: Any, actions: Any, space: Any, *, steps: int = 3, action_space: Any = None
) -> None:
    """Write one episode through Minari's own interface."""
    buffer = EpisodeBuffer(
        id=0,
        observations=observations,
        actions=actions,
        rewards=[0.0] * steps,
        terminations=[False] * steps,
        truncations=[False] * (steps - 1) + [True],
    )
    box = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    minari.create_dataset_from_buffers(
        ID, [buffer], observation_space=space, action_space=action_space or box, data_format="hdf5"
    )


def vector(size: int = 3) -> Any:
    return gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float64)


@pytest.mark.parametrize("how", ["id", "folder", "data folder", "root"])
def test_what_was_saved_comes_back_bit_for_bit(root: Path, how: str) -> None:
    saved = trajectories()
    save_minari(saved, ID, ENV)
    place = {"id": ID, "folder": root / ID, "data folder": root / ID / "data", "root": root}[how]
    loaded = load_dataset(place, download=False)
    for field in ("observations", "actions", "rewards", "terminals", "timeouts"):
        np.testing.assert_array_equal(getattr(loaded, field), getattr(saved, field))
    assert loaded.name == ID
    assert loaded.metadata["env_id"] == ENV
    assert loaded.metadata["policy"] == {"noise": 0.1}
    assert dataset_ids() == [ID]


def test_the_saved_set_is_a_proper_minari_dataset_with_one_observation_more(root: Path) -> None:
    final = np.full((3, 3), 7, np.float32)
    save_minari(trajectories(), ID, ENV, final)
    episodes = list(minari.load_dataset(ID).iterate_episodes())
    assert [len(episode.observations) for episode in episodes] == [5, 4, 6]
    assert all((episode.observations[-1] == 7).all() for episode in episodes)
    assert [bool(episode.terminations[-1]) for episode in episodes] == [True, False, False]
    assert minari.load_dataset(ID).env_spec.id == ENV
    assert not any((row == 7).all() for row in load_dataset(ID).observations)


def test_an_unknown_last_observation_is_repeated_and_the_description_says_so(root: Path) -> None:
    save_minari(trajectories(), ID, ENV)
    episode = next(iter(minari.load_dataset(ID).iterate_episodes()))
    np.testing.assert_array_equal(episode.observations[-1], episode.observations[-2])
    assert "repeated" in load_dataset(ID).metadata["description"]


def test_saving_over_a_dataset_or_under_a_bad_id_is_refused(root: Path) -> None:
    save_minari(trajectories(), ID, ENV)
    with pytest.raises(DataError, match="is there already"):
        save_minari(trajectories(), ID, ENV)
    with pytest.raises(DataError, match="not a Minari id"):
        save_minari(trajectories(), "no version", ENV)
    with pytest.raises(EnvironmentNotFoundError, match="NoSuch-v0"):
        save_minari(trajectories(), "arm/other-v0", "NoSuch-v0")
    with pytest.raises(ShapeError, match="final_observations"):
        save_minari(trajectories(), "arm/other-v0", ENV, np.zeros((2, 3), np.float32))
    assert dataset_ids() == [ID]


def test_a_failed_save_leaves_no_dataset(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minari.dataset._storages.hdf5_storage import HDF5Storage

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(HDF5Storage, "update_episodes", fail)
    with pytest.raises(OSError, match="disk full"):
        save_minari(trajectories(), ID, ENV)
    assert dataset_ids() == []
    assert not (root / ID).exists()


def test_a_goal_environments_observation_part_is_taken(root: Path) -> None:
    part = np.arange(12.0).reshape(4, 3)
    space = gymnasium.spaces.Dict({"observation": vector(), "desired_goal": vector(2)})
    create(root, {"observation": part, "desired_goal": np.ones((4, 2))}, np.zeros((3, 1)), space)
    np.testing.assert_array_equal(load_dataset(ID).observations, part[:-1])


def test_dictionaries_without_an_observation_are_refused(root: Path) -> None:
    space = gymnasium.spaces.Dict({"left": vector(), "right": vector()})
    create(root, {"left": np.zeros((4, 3)), "right": np.zeros((4, 3))}, np.zeros((3, 1)), space)
    with pytest.raises(DataError, match="dictionaries with left, right"):
        load_dataset(ID)


def test_images_are_refused(root: Path) -> None:
    space = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)
    create(root, np.zeros((4, 8, 8, 3), np.uint8), np.zeros((3, 1)), space)
    with pytest.raises(DataError, match="expected vectors"):
        load_dataset(ID)


def test_scalar_actions_become_a_column(root: Path) -> None:
    create(root, np.zeros((4, 3)), np.arange(3), vector(), action_space=gymnasium.spaces.Discrete(3))
    assert load_dataset(ID).actions.tolist() == [[0], [1], [2]]


def test_as_many_observations_as_actions_is_refused(root: Path) -> None:
    create(root, np.zeros((3, 3)), np.zeros((3, 1)), vector())
    with pytest.raises(ShapeError, match=r"T\+1"):
        load_dataset(ID)


def test_nan_is_refused(root: Path) -> None:
    observations = np.zeros((4, 3))
    observations[1, 2] = np.nan
    create(root, observations, np.zeros((3, 1)), vector())
    with pytest.raises(NonFiniteError, match=r"observations\[1, 2\]"):
        load_dataset(ID)


def test_fewer_columns_can_be_asked_for(root: Path) -> None:
    save_minari(trajectories(), ID, ENV)
    loaded = load_dataset(ID, observation_columns=2)
    np.testing.assert_array_equal(loaded.observations, trajectories().observations[:, :2])
    assert loaded.metadata["observation_columns"] == 2


def test_a_folder_without_exactly_one_dataset_is_refused(root: Path) -> None:
    with pytest.raises(DataError, match="holds 0"):
        load_dataset(root)
    save_minari(trajectories(), ID, ENV)
    save_minari(trajectories(), "arm/pull-v0", ENV)
    with pytest.raises(DataError, match=r"holds 2 .*arm/pull-v0, arm/push-v0"):
        load_dataset(root)


@pytest.mark.parametrize("damage", ["truncate", "metadata", "missing"])
def test_a_damaged_dataset_is_refused(root: Path, damage: str) -> None:
    save_minari(trajectories(), ID, ENV)
    data = root / ID / "data"
    if damage == "truncate":
        content = (data / "main_data.hdf5").read_bytes()
        (data / "main_data.hdf5").write_bytes(content[: len(content) // 2])
    elif damage == "metadata":
        metadata = json.loads((data / "metadata.json").read_text())
        del metadata["dataset_id"]
        (data / "metadata.json").write_text(json.dumps(metadata))
    else:
        (data / "main_data.hdf5").unlink()
    with pytest.raises(DataError, match="push-v0"):
        load_dataset(ID, download=False)


def test_a_hub_that_refuses_says_where_to_put_the_dataset(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise ConnectionError("no network\nmore lines")

    monkeypatch.setattr(minari, "download_dataset", refuse)
    with pytest.raises(DatasetNotFoundError, match=r"\(no network\)") as error:
        load_dataset("mujoco/hopper/medium-v0")
    assert str(root / "mujoco" / "hopper" / "medium-v0") in str(error.value)


def test_a_set_that_is_not_here_is_fetched_from_the_hub(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minari, "download_dataset", lambda name: save_minari(trajectories(), name, ENV))
    assert len(load_dataset("hub/set-v0")) == 12
