"""Shipped models: found by name, whole, small, and of known origin."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import FAST, tiny_checkpoint

import ttengine
from ttengine import checkpoint, cli
from ttengine.checkpoint import load, shipped_models
from ttengine.cli.common import subject_preset
from ttengine.config import plan_preset
from ttengine.errors import CheckpointError

LARGEST_BYTES = 6_000_000
OBSERVATION = np.array([0.5, 0.5, -1.0], np.float32)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped models with a `cheetah` and a `hopper`; the working folder is an empty one beside it."""
    folder, here = tmp_path / "models", tmp_path / "here"
    here.mkdir()
    tiny_checkpoint(dataset="halfcheetah-medium-tiny").save(folder / "cheetah.safetensors")
    tiny_checkpoint(dataset="hopper-tiny", seed=1).save(folder / "hopper.safetensors")
    (folder / "notes.txt").write_text("no model")
    monkeypatch.setattr(checkpoint, "MODELS", folder)
    monkeypatch.chdir(here)
    return folder


# --- names and paths -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("models")
def test_a_shipped_model_is_loaded_by_its_name() -> None:
    assert shipped_models() == ("cheetah", "hopper")
    assert [load(name).dataset for name in shipped_models()] == ["halfcheetah-medium-tiny", "hopper-tiny"]


def test_a_shipped_name_wins_over_a_file_of_that_name_which_a_path_still_reaches(models: Path) -> None:
    shutil.copy(models / "hopper.safetensors", "cheetah")
    assert load("cheetah").dataset == "halfcheetah-medium-tiny"
    for path in ("./cheetah", Path("cheetah"), str(Path.cwd() / "cheetah")):
        assert load(path).dataset == "hopper-tiny"


def test_a_file_of_a_name_that_is_not_shipped_is_loaded(models: Path) -> None:
    shutil.copy(models / "hopper.safetensors", "mine")
    shutil.copy(models / "hopper.safetensors", "mine.safetensors")
    assert load("mine").dataset == load("mine.safetensors").dataset == "hopper-tiny"


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("name", ["cheeta", "Cheetah", "notes", ""])
def test_an_unknown_name_lists_the_shipped_ones(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"no model '{name}': shipped are cheetah, hopper, and there is no file"):
        load(name)


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    "path", ["./cheetah", "cheetah.safetensors", "../models/cheetah", Path("cheetah"), Path("cheetah.safetensors")]
)
def test_a_path_is_never_taken_for_a_name(path: str | Path) -> None:
    with pytest.raises(CheckpointError, match="no model file at"):
        load(path)


@pytest.mark.parametrize("made", [True, False])
def test_a_package_without_models_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: bool) -> None:
    if made:
        (tmp_path / "models").mkdir()
    monkeypatch.setattr(checkpoint, "MODELS", tmp_path / "models")
    assert shipped_models() == ()
    with pytest.raises(CheckpointError, match="none are shipped"):
        load("halfcheetah")


# --- everything that takes a model ---------------------------------------------------------------------------------


def test_planning_takes_a_name_or_its_file_alike(models: Path) -> None:
    named = ttengine.plan("cheetah", OBSERVATION, config=FAST)
    np.testing.assert_array_equal(
        named.actions, ttengine.plan(models / "cheetah.safetensors", OBSERVATION, config=FAST).actions
    )
    np.testing.assert_array_equal(named.actions, ttengine.Planner("cheetah", FAST).plan(OBSERVATION).actions)
    assert not np.array_equal(named.actions, ttengine.plan("hopper", OBSERVATION, config=FAST).actions)


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Run a command that is to print one JSON document."""
    assert cli.main([*arguments, "--json"]) == cli.DONE
    return json.loads(capsys.readouterr().out)


def test_every_command_that_reads_a_model_takes_a_name(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gymnasium")
    search = ["--plan.horizon", "2", "--plan.beam-width", "3"]
    planned = command(capsys, "plan", "cheetah", "--observation", json.dumps(OBSERVATION.tolist()), *search)
    np.testing.assert_array_equal(planned["actions"], ttengine.plan("cheetah", OBSERVATION, config=FAST).actions)
    flags = ["--environment", "Pendulum-v1", "--episodes", "1", "--max-steps", "2", *search]
    assert command(capsys, "evaluate", "cheetah", *flags)["dataset"] == "halfcheetah-medium-tiny"
    about = command(capsys, "info", "cheetah")
    assert (about["kind"], about["dataset"]) == ("model", "halfcheetah-medium-tiny")
    assert about["bytes"] == (models / "cheetah.safetensors").stat().st_size


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("arguments", [["plan", "cheeta", "--observation", "[1, 2, 3]"], ["evaluate", "cheeta"]])
def test_a_command_names_the_shipped_models(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == cli.WRONG_INPUT
    assert "shipped are cheetah, hopper" in capsys.readouterr().err


@pytest.mark.usefixtures("models")
def test_help_shows_the_settings_that_go_with_the_named_model() -> None:
    assert subject_preset(["cheetah", "--help"]) == plan_preset("halfcheetah-medium-tiny")
    assert subject_preset(["--help"]) == subject_preset(["absent"]) == plan_preset("default")
    assert subject_preset(["cheetah"]) != plan_preset("default")


# --- the shipped files ---------------------------------------------------------------------------------------------


def test_models_are_shipped() -> None:
    assert shipped_models() == ("ant", "four-rooms", "halfcheetah", "halfcheetah-medium-expert", "hopper", "walker2d")


def test_the_shipped_goal_model_walks_through_a_door() -> None:
    pytest.importorskip("mujoco", reason="needs the mujoco extra")
    from ttengine.experiments.four_rooms import FourRooms, room

    env, goal = FourRooms(max_steps=40), np.array([2.5, -2.0, 0.0, 0.0], np.float32)
    planner = ttengine.Planner("four-rooms")
    controller = ttengine.Controller(planner, bounds=(-1.0, 1.0), goal=goal)
    observation, _ = env.reset(options={"start": (-2.5, -2.5)})
    nearest, over = np.inf, False
    while not over and nearest > 0.3:
        observation, reward, _, over, _ = env.step(controller.act(observation))
        controller.observe(reward)
        nearest = float(np.linalg.norm(observation[:2] - goal[:2]))
    assert nearest <= 0.3 and room(observation[:2]) == 1  # from room 0, through the door between them


@pytest.mark.parametrize("name", shipped_models())
def test_a_shipped_model_is_whole_small_and_of_known_origin(name: str) -> None:
    model = load(name)
    with checkpoint.model_file(name) as path:
        assert path.stat().st_size <= LARGEST_BYTES
    for tensor in (*model.model.state_dict().values(), model.discretizer.edges):
        assert bool(tensor.isfinite().all())
    about = model.provenance
    assert about["step"] == about["steps"], "the training was not finished"
    command = about["command"].split()
    assert command[0].endswith("ttengine") and command[1] in ("train", "experiment")
    assert not any(word.startswith("/") for word in command), "the command names a folder of its machine"
    dataset = about["dataset"]
    if dataset["made_by"] == "ttengine collect":
        assert dataset["config"]["env_id"] and dataset["policies"]
        assert len(dataset["episodes"]["return"]) == len(dataset["episodes"]["length"]) > 0
    else:  # four rooms' wanderer has no policy of the collection's kind
        assert dataset["made_by"] == "ttengine experiment goals" and dataset["episodes_tried"] > 0
    assert model.dataset.startswith(name)
