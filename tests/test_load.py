"""The front door: what a name or a path is taken for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ttengine.data import load_dataset, preprocessing
from ttengine.errors import ConfigError, DataError, DatasetNotFoundError, MissingExtraError, ShapeError


@pytest.fixture(autouse=True)
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("D4RL_DATASET_DIR", "MINARI_DATASETS_PATH"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("hoper-medium-v2", "hopper-medium-v2"),
        ("hopper-medium", "hopper-medium-v2"),
        ("Hopper-Medium-V2", "hopper-medium-v2"),
        ("antmaze-umaze", "antmaze-umaze-v2"),
        ("pen-humans-v1", "pen-human-v1"),
    ],
)
def test_an_unknown_id_lists_near_ones_and_what_is_accepted(name: str, near: str) -> None:
    with pytest.raises(DatasetNotFoundError, match=f"near it: .*{near}") as error:
        load_dataset(name)
    assert all(kind in str(error.value) for kind in ("D4RL id", "Minari id", ".npz", "folder"))


@pytest.mark.parametrize("name", ["", "zzzzzzzz", "a b c", "??"])
def test_nonsense_is_refused_without_a_guess(name: str) -> None:
    with pytest.raises((DatasetNotFoundError, DataError), match=r"there is no dataset|Minari datasets"):
        load_dataset(name)


@pytest.mark.parametrize("path", [Path("runs/log"), "runs/log.npz", "log.HDF5", Path("hopper-medium")])
def test_a_path_that_is_not_there_is_called_a_missing_file(path: str | Path) -> None:
    with pytest.raises(DatasetNotFoundError, match="there is no file"):
        load_dataset(path)


def test_a_minari_id_that_is_not_here_says_where_it_belongs(tmp_path: Path) -> None:
    pytest.importorskip("minari")
    with pytest.raises(DatasetNotFoundError, match="download=False") as error:
        load_dataset("mujoco/hopper/medium-v0", download=False)
    assert str(tmp_path / "mujoco" / "hopper" / "medium-v0") in str(error.value)


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.hdf5").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"ttengine\[data\]"):
        load_dataset(tmp_path / "a.hdf5")


def test_importing_the_data_package_needs_no_optional_package() -> None:
    code = (
        "import sys, ttengine.data, ttengine.environments\n"
        "extras = {'h5py', 'minari', 'gymnasium', 'gym', 'mujoco', 'd4rl', 'stable_baselines3'}\n"
        "assert not extras & set(sys.modules), extras & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class TestPreprocessing:
    """Columns kept at loading time and at control time."""

    @pytest.mark.parametrize(
        ("name", "columns", "kept"),
        [
            ("ant-medium-v2", 111, 27),
            ("ant-medium-v2", 27, 27),
            ("antmaze-umaze-v2", 111, 111),
            ("kitchen-mixed-v0", 60, 30),
            ("hopper-medium-v2", 111, 111),
            ("", 111, 111),
        ],
    )
    def test_only_ant_and_kitchen_are_cut(self, name: str, columns: int, kept: int) -> None:
        assert preprocessing.kept_columns(name, columns) == kept

    def test_an_observation_is_cut_like_the_data(self) -> None:
        import numpy as np

        observation = np.arange(222).reshape(2, 111)
        np.testing.assert_array_equal(preprocessing.crop_observation(observation, 27), observation[:, :27])
        assert preprocessing.crop_observation(observation, None) is observation

    def test_an_observation_that_is_too_short_is_refused(self) -> None:
        import numpy as np

        with pytest.raises(ShapeError, match=r"17 dims.*first 27"):
            preprocessing.crop_observation(np.zeros(17), 27)

    @pytest.mark.parametrize("wanted", [0, 112, "some", False])
    def test_a_wrong_number_of_columns_is_refused(self, wanted: Any) -> None:
        with pytest.raises(ConfigError, match="observation_columns"):
            preprocessing.kept_columns("ant-medium-v2", 111, wanted)
