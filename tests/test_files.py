"""The user's own files: HDF5 and npz, read, written, refused."""

from __future__ import annotations

import gc
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ttengine.data import Trajectories, load_dataset, save_dataset
from ttengine.data.files import BLOCK_BYTES, read_rows
from ttengine.errors import DataError, DatasetNotFoundError, DataWarning, NonFiniteError, ShapeError

h5py = pytest.importorskip("h5py")

L = 12
SUFFIXES = (".hdf5", ".h5", ".npz")


def arrays(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "observations": np.cumsum(np.ones((L, 3)), axis=0),
        "actions": np.linspace(-2, 2, L * 2).reshape(L, 2),
        "rewards": np.arange(L, dtype=np.float64),
        "terminals": np.arange(L) == 4,
        "timeouts": np.arange(L) == L - 1,
    }
    return {name: value for name, value in (fields | changes).items() if value is not None}


def write(path: Path, fields: dict[str, Any]) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **fields)
    else:
        with h5py.File(path, "w") as file:
            for name, value in fields.items():
                file[name] = value
    return path


def trajectories(**changes: Any) -> Trajectories:
    return Trajectories(**arrays(), **{"name": "mine", "metadata": {"seeds": [1, 2], "é": None}} | changes)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_with_the_five_fields_loads(tmp_path: Path, suffix: str) -> None:
    loaded = load_dataset(write(tmp_path / f"arm{suffix}", arrays()))
    assert loaded.name == "arm"
    assert loaded.observations.dtype == np.float32
    np.testing.assert_array_equal(loaded.observations, arrays()["observations"])
    np.testing.assert_allclose(loaded.actions, arrays()["actions"], rtol=1e-6)  # -2 to 2: any range is the user's own
    assert loaded.episode_lengths.tolist() == [5, 7]
    assert "notes" not in loaded.metadata


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_save_then_load_gives_the_same_bits_name_and_metadata(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"other{suffix}"
    saved = trajectories()
    save_dataset(saved, path)
    loaded = load_dataset(str(path))
    for field in ("observations", "actions", "rewards", "terminals", "timeouts"):
        assert getattr(loaded, field).tobytes() == getattr(saved, field).tobytes()
    assert (loaded.name, loaded.metadata) == ("mine", saved.metadata)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_metadata_larger_than_an_hdf5_attribute_survives(tmp_path: Path) -> None:
    saved = trajectories(metadata={"episodes": ["x" * 100] * 2000})
    save_dataset(saved, tmp_path / "a.hdf5")
    assert load_dataset(tmp_path / "a.hdf5").metadata == saved.metadata


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("field", ["observations", "actions", "rewards", "terminals", "timeouts"])
def test_a_missing_field_is_named_and_the_rest_listed(tmp_path: Path, suffix: str, field: str) -> None:
    path = write(tmp_path / f"a{suffix}", arrays(**{field: None}))
    with pytest.raises(DataError, match=rf"a has no {field}; it has .*add {field}"):
        load_dataset(path)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"terminals": np.full(L, 3)}, DataError, r"terminals\[0\] is 3.0, allowed are 0 and 1"),
        ({"timeouts": np.full(L, np.nan)}, DataError, r"timeouts\[0\] is nan"),
        ({"rewards": np.zeros((L, 2))}, ShapeError, r"rewards has shape \(12, 2\)"),
        ({"observations": np.zeros((L, 4, 4))}, ShapeError, "flatten"),
        ({"actions": np.zeros(L)}, ShapeError, "actions has shape"),
        ({"actions": np.array([b"up"] * L)}, DataError, "expected numbers"),
        ({"rewards": np.zeros(L - 1)}, ShapeError, "lengths disagree.*rewards 11"),
        ({"timeouts": np.zeros(L - 1)}, ShapeError, "lengths disagree.*timeouts 11"),
        ({"observations": np.full((L, 3), 1e200)}, NonFiniteError, r"observations\[0, 0\]"),
    ],
)
@pytest.mark.parametrize("suffix", [".hdf5", ".npz"])
def test_a_wrong_field_is_refused(
    tmp_path: Path, suffix: str, change: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        load_dataset(write(tmp_path / f"a{suffix}", arrays(**change)))


@pytest.mark.parametrize("suffix", [".hdf5", ".npz"])
def test_an_empty_file_of_zero_transitions_is_refused(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(DataError, match="empty"):
        load_dataset(write(tmp_path / f"a{suffix}", {name: value[:0] for name, value in arrays().items()}))


@pytest.mark.parametrize("suffix", [".hdf5", ".npz"])
def test_rewards_and_flags_of_one_column_are_accepted(tmp_path: Path, suffix: str) -> None:
    columns = {name: arrays()[name].reshape(L, 1) for name in ("rewards", "terminals", "timeouts")}
    assert load_dataset(write(tmp_path / f"a{suffix}", arrays(**columns))).rewards.tolist() == list(range(L))


def test_a_group_in_place_of_an_array_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5", arrays(observations=None))
    with h5py.File(path, "a") as file:
        file["observations/camera"] = np.zeros((L, 3))
    with pytest.raises(DataError, match="observations holds a group"):
        load_dataset(path)


def test_the_inside_of_a_minari_dataset_is_recognised(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "main_data.hdf5", "w") as file:
        file["episode_0/observations"] = np.zeros((3, 3))
    with pytest.raises(DataError, match="Minari"):
        load_dataset(tmp_path / "main_data.hdf5")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"not this format", b"PK\x03\x04 half a zip"])
def test_a_foreign_file_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.\w+ is not a readable"):
        load_dataset(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    save_dataset(trajectories(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"a\.\w+ is not a readable"):
        load_dataset(path)


def test_a_bit_flipped_in_compressed_data_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save_dataset(trajectories(), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz"):
        load_dataset(path)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Bomb()))
    np.savez(tmp_path / "inside.npz", **arrays(rewards=np.array([Bomb()] * L, object)))
    for name in ("raw.npz", "inside.npz"):
        with pytest.raises(DataError):
            load_dataset(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_a_bare_npy_array_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, np.zeros((L, 3)))
    with pytest.raises(DataError, match="bare array"):
        load_dataset(tmp_path / "a.npz")


def test_another_suffix_is_refused_on_reading_and_writing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2")
    for act in (lambda: load_dataset(tmp_path / "a.csv"), lambda: save_dataset(trajectories(), tmp_path / "b.csv")):
        with pytest.raises(DataError, match=r"\.hdf5, \.h5, \.npz"):
            act()


def test_metadata_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="JSON"):
        save_dataset(trajectories(metadata={"policy": object()}), tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    save_dataset(trajectories(), path)
    before = path.read_bytes()

    def half(file: Path, **_: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", half)
    with pytest.raises(OSError, match="disk full"):
        save_dataset(trajectories(name="new"), path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["a.npz"]


def test_a_path_without_a_file_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match="there is no file"):
        load_dataset(tmp_path / "nowhere.hdf5")


def test_white_noise_is_warned_of_and_a_smooth_walk_is_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = 400
    fields = {
        "actions": rng.uniform(-1, 1, (rows, 2)),
        "rewards": np.zeros(rows),
        "terminals": np.zeros(rows),
        "timeouts": np.zeros(rows),
    }
    noise = rng.normal(size=(rows, 3))
    with pytest.warns(DataWarning, match="white noise"):
        doubtful = load_dataset(write(tmp_path / "noise.npz", fields | {"observations": noise}))
    assert len(doubtful.metadata["notes"]) == 1
    walk = load_dataset(write(tmp_path / "walk.npz", fields | {"observations": noise.cumsum(axis=0)}))
    assert "notes" not in walk.metadata


def test_rows_are_read_in_blocks_that_join_up() -> None:
    whole = np.arange(2 * BLOCK_BYTES // 8 + 3, dtype=np.float64).reshape(-1, 1)
    rows = read_rows(whole)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, whole.astype(np.float32))
    np.testing.assert_array_equal(read_rows(np.tile(whole, 3)[:, ::-1], 2), np.tile(whole, 2).astype(np.float32))


@pytest.mark.parametrize("chunks", [None, (977, 5)])
def test_a_float64_file_of_ant_width_is_never_whole_in_memory(
    tmp_path: Path, chunks: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, width, kept, block = 60_000, 111, 27, 1 << 20
    monkeypatch.setattr("ttengine.data.files.BLOCK_BYTES", block)
    path = tmp_path / "ant_medium-v2.hdf5"
    walk = np.cumsum(np.ones((rows, 1)), axis=0)
    with h5py.File(path, "w") as file:
        file.create_dataset("observations", data=np.tile(walk, width), chunks=chunks)
        file["actions"] = np.zeros((rows, 8))
        file["rewards"] = np.zeros((rows, 1))
        file["terminals"] = np.zeros(rows, np.bool_)
        file["timeouts"] = np.arange(rows) % 1000 == 999
    gc.collect()
    tracemalloc.start()
    try:
        loaded = load_dataset(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    result = loaded.observations.nbytes + loaded.actions.nbytes
    assert loaded.observations.shape == (rows, kept)
    assert loaded.observations[-1, -1] == rows
    bound = result + 4 * block + rows * 40  # float32 arrays, blocks in flight, vectors of flags and row numbers
    assert peak < bound < rows * kept * 8 + rows * 8 * 8, f"peak {peak / 1e6:.1f} MB, bound {bound / 1e6:.1f} MB"
