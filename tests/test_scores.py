"""Reference scores: every D4RL id, the Gymnasium bodies, Minari names."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from ttengine.data import normalized_score, reference_score
from ttengine.data.catalogue import BUILT_IN, d4rl_catalogue
from ttengine.errors import DataError, DatasetNotFoundError, NonFiniteError

FACTS = {
    "hopper-medium-v2": (-20.272305, 3234.3),
    "halfcheetah-full-replay-v2": (-280.178953, 12135.0),
    "walker2d-medium-expert-v0": (1.629008, 4592.3),
    "ant-random-expert-v0": (-325.6, 3879.7),
    "antmaze-large-diverse-v2": (0.0, 1.0),
    "maze2d-umaze-v1": (23.85, 161.86),
    "maze2d-medium-v1": (13.13, 277.39),
    "maze2d-large-v1": (6.7, 273.99),
    "maze2d-large-dense-v1": (30.569041, 303.4857382709002),
    "pen-human-v1": (96.262799, 3076.8331017826877),
    "hammer-cloned-v0": (-274.856578, 12794.134825156867),
    "door-expert-v1": (-56.512833, 2880.5693087298737),
    "relocate-human-longhorizon-v1": (-6.425911, 4233.877797728884),
    "kitchen-mixed-v0": (0.0, 4.0),
    "Hopper-v4": (-20.272305, 3234.3),
    "HalfCheetah-v5": (-280.178953, 12135.0),
    "Walker2d-v4": (1.629008, 4592.3),
    "Ant-v5": (-325.6, 3879.7),
    "mujoco/walker2d/expert-v0": (1.629008, 4592.3),
    "D4RL/pen/human-v2": (96.262799, 3076.8331017826877),
    "D4RL/antmaze/medium-play-v1": (0.0, 1.0),
    "D4RL/kitchen/complete-v2": (0.0, 4.0),
}


@pytest.mark.parametrize("name", FACTS)
def test_reference_scores_are_d4rls(name: str) -> None:
    assert reference_score(name) == FACTS[name]


def test_random_is_0_and_expert_100_for_every_built_in_id() -> None:
    assert len(BUILT_IN) == 148
    for name, entry in BUILT_IN.items():
        assert entry.scores is not None
        np.testing.assert_allclose(normalized_score(name, entry.scores), [0, 100], atol=1e-9)


def test_normalized_score_keeps_the_shape_of_the_returns() -> None:
    assert normalized_score("hopper-medium-v2", 3234.3).shape == ()
    np.testing.assert_allclose(normalized_score("kitchen-mixed-v0", [[1, 2], [3, 4]]), [[25, 50], [75, 100]])


def test_an_unknown_name_lists_near_ones() -> None:
    with pytest.raises(DatasetNotFoundError, match="hopper-medium-v2"):
        normalized_score("hoper-medium-v2", 1.0)
    with pytest.raises(DatasetNotFoundError, match="no reference scores"):
        reference_score("CartPole-v1")


def test_a_return_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="1 NaN"):
        normalized_score("hopper-medium-v2", [1.0, np.nan])


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("hopper-medium-v2", "gym_mujoco_v2/hopper_medium-v2.hdf5"),
        ("halfcheetah-medium-replay-v1", "gym_mujoco_v1/halfcheetah_medium_replay-v1.hdf5"),
        ("hopper-medium-replay-v0", "gym_mujoco/hopper_mixed.hdf5"),
        ("walker2d-medium-replay-v0", "gym_mujoco/walker_mixed.hdf5"),
        (
            "antmaze-medium-play-v2",
            "ant_maze_v2/Ant_maze_big-maze_noisy_multistart_True_multigoal_False_sparse_fixed.hdf5",
        ),
        ("maze2d-open-v0", "maze2d/maze2d-open-sparse.hdf5"),
        ("maze2d-large-dense-v1", "maze2d/maze2d-large-dense-v1.hdf5"),
        ("pen-cloned-v0", "hand_dapg/pen-demos-v0-bc-combined.hdf5"),
        ("door-expert-v1", "hand_dapg_v1/door-expert-v1.hdf5"),
        ("kitchen-complete-v0", "kitchen/mini_kitchen_microwave_kettle_light_slider-v0.hdf5"),
    ],
)
def test_file_names_are_d4rls(name: str, file: str) -> None:
    assert BUILT_IN[name].url.endswith(f"/offline_rl/{file}")


def test_a_file_name_stands_for_one_dataset() -> None:
    seen: dict[str, str] = {}
    for name, entry in BUILT_IN.items():
        if "longhorizon" not in name:  # shares the file of the human demonstrations, by design
            assert seen.setdefault(entry.file_name, name) == name


def install_d4rl(folder: Path, infos: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "d4rl").mkdir()
    (folder / "d4rl" / "__init__.py").write_text("raise ImportError('mujoco_py cannot be imported here')")
    (folder / "d4rl" / "infos.py").write_text(infos)
    monkeypatch.delitem(sys.modules, "d4rl.infos", raising=False)
    monkeypatch.syspath_prepend(folder)


def test_the_installed_d4rl_package_wins_without_being_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infos = (
        "DATASET_URLS = {'hopper-medium-v2': 'http://mirror/h.hdf5', 'flow-ring-random-v0': 'http://mirror/f.hdf5'}\n"
        "REF_MIN_SCORE = {'hopper-medium-v2': 1.0, 'flow-ring-random-v0': 2.0}\n"
        "REF_MAX_SCORE = {'hopper-medium-v2': 11.0, 'flow-ring-random-v0': 4.0}\n"
    )
    install_d4rl(tmp_path, infos, monkeypatch)
    assert d4rl_catalogue()["hopper-medium-v2"].url == "http://mirror/h.hdf5"
    assert d4rl_catalogue()["hopper-medium-v2"].env_id == "Hopper-v4"
    assert normalized_score("hopper-medium-v2", 6.0) == pytest.approx(50.0)
    assert normalized_score("flow-ring-random-v0", 3.0) == pytest.approx(50.0)
    assert reference_score("walker2d-medium-v2") == (1.629008, 4592.3)
    assert "d4rl" not in sys.modules


def test_a_foreign_d4rl_package_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_d4rl(tmp_path, "TABLES = {}", monkeypatch)
    with pytest.raises(DataError, match="DATASET_URLS"):
        d4rl_catalogue()
