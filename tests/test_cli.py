"""The command line: exit codes, one JSON document, presets, help, and what wrong input says."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_checkpoint

from ttengine import cli
from ttengine.checkpoint import Checkpoint
from ttengine.data.collect import CollectConfig
from ttengine.data.files import save_dataset
from ttengine.data.policy_spec import PolicySpec
from ttengine.data.trajectories import Trajectories
from ttengine.errors import DataWarning

FAST = ["--plan.horizon", "2", "--plan.beam-width", "3"]
SMALL = [
    "--model.layers",
    "1",
    "--model.heads",
    "2",
    "--model.width",
    "8",
    "--model.n-bins",
    "8",
    "--model.window",
    "3",
]


class Ran:
    """What one command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def ttengine(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command line in this process."""

    def run(*arguments: str | Path) -> Ran:
        code = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    tiny_checkpoint().save(path)
    return path


def trajectories(**changes: Any) -> Trajectories:
    rng = np.random.default_rng(0)
    arrays = {
        "observations": rng.normal(size=(60, 3)),
        "actions": rng.uniform(-1, 1, (60, 1)),
        "rewards": rng.normal(size=60),
        "terminals": np.zeros(60, bool),
        "timeouts": np.arange(60) % 20 == 19,
    }
    return Trajectories(**(arrays | changes), name="pendulum-tiny", metadata={"config": {"env_id": "Pendulum-v1"}})


def assert_refused(ran: Ran, *parts: str) -> None:
    """Exit code 1, one line on standard error that says what came, nothing on standard output."""
    assert ran.code == cli.WRONG_INPUT
    assert ran.out == ""
    assert len(ran.err.strip().splitlines()) == 1
    for part in parts:
        assert part in ran.err


# --- the program ---------------------------------------------------------------------------------------------------


def test_help_lists_every_command_and_version_is_printed(ttengine: Any) -> None:
    ran = ttengine("--help")
    assert ran.code == 0
    assert all(command in ran.out for command in cli.COMMANDS)
    assert ttengine("--version").out.startswith("ttengine ")
    assert ttengine().code == cli.WRONG_USAGE


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help_with_an_example(ttengine: Any, command: str) -> None:
    ran = ttengine(command, "--help")
    assert ran.code == 0
    assert f"ttengine {command} " in ran.out.split("options", 1)[-1] or f"ttengine {command} " in ran.out
    assert ran.out.count(f"ttengine {command}") >= 2


def test_wrong_usage_exits_with_2(ttengine: Any) -> None:
    ran = ttengine("trian")
    assert (ran.code, ran.out) == (2, "")
    assert "did you mean train?" in ran.err
    assert ttengine("train").code == 2
    assert ttengine("info", "a.npz", "--no-such-flag").code == 2


def test_an_interrupt_exits_with_130(ttengine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(arguments: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ttengine.cli.info.run", interrupt)
    ran = ttengine("info", "x.npz")
    assert ran.code == 130
    assert ran.err == "ttengine info: interrupted\n"


def test_an_error_of_the_program_itself_is_not_hidden(ttengine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttengine.cli.info.run", lambda arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ttengine("info", "x.npz")


def test_the_module_and_the_script_are_the_same_program() -> None:
    ran = subprocess.run([sys.executable, "-m", "ttengine", "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("ttengine ")


def test_help_does_not_import_torch() -> None:
    code = "import sys, ttengine.cli; ttengine.cli.main(['--help']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# --- collect -------------------------------------------------------------------------------------------------------


def test_collect_writes_a_dataset_and_one_json_document(ttengine: Any, tmp_path: Path) -> None:
    pytest.importorskip("gymnasium")
    out = tmp_path / "pendulum.npz"
    ran = ttengine("collect", "Pendulum-v1", "--policies", "random", "--transitions", "300", "--out", out, "--json")
    assert ran.code == 0
    assert ran.document["transitions"] == 300
    assert ttengine("info", out, "--json").document["transitions"] == 300
    again = ttengine("collect", "Pendulum-v1", "--policies", "random", "--transitions", "300", "--out", out)
    assert_refused(again, "exists", "--overwrite")


def test_collect_takes_recipes_and_lets_flags_override_them() -> None:
    from ttengine.cli.collect import CollectCommand, collection

    config = collection(CollectCommand("hopper-random", transitions=500, seed=3, epsilon=0.5))
    assert config.mixture() == (PolicySpec("random"),)
    assert dataclasses.replace(config, policies=("random",)) == CollectConfig(
        "Hopper-v4", transitions=500, seed=3, epsilon=0.5, name="hopper-random-tt"
    )
    assert collection(CollectCommand("hopper-random", episodes=7)).transitions is None


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["hopper-random", "--policies", "random"], ["has its own policies"]),
        (["Pendulum-v1", "--transitions", "9"], ["needs --policies"]),
        (["Pendulum-v1", "--policies", "random", "--transitions", "9", "--deterministic"], ["is for recipes"]),
        (["Pendulumm-v1", "--policies", "random", "--transitions", "9", "--out", "x.npz"], ["Pendulum-v1"]),
        (["Pendulum-v1", "--policies", "random", "--out", "x.npz"], ["exactly one"]),
        (["Pendulum-v1", "--policies", "random", "--transitions", "9"], ["nowhere to write"]),
    ],
)
def test_collect_refuses(
    ttengine: Any, tmp_path: Path, monkeypatch: Any, arguments: list[str], parts: list[str]
) -> None:
    pytest.importorskip("gymnasium")
    monkeypatch.chdir(tmp_path)
    assert_refused(ttengine("collect", *arguments), *parts)
    assert not list(tmp_path.iterdir())


# --- train ---------------------------------------------------------------------------------------------------------


def test_train_then_evaluate_then_info(ttengine: Any, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("gymnasium")
    save_dataset(trajectories(), tmp_path / "mine.npz")
    out = tmp_path / "run"
    flags = ["--train.steps", "3", "--train.batch-size", "4", "--json"]
    trained = ttengine("train", tmp_path / "mine.npz", "--out", out, *SMALL, *flags)
    assert trained.code == 0
    assert trained.document["provenance"]["step"] == 3
    path = trained.document["model"]
    ran = ttengine("evaluate", path, "--episodes", "2", "--max-steps", "3", "--seed", "4", *FAST, "--json")
    assert ran.code == 0
    assert ran.document["environment"] == "Pendulum-v1"
    assert ran.document["seeds"] == [4, 5]
    assert ran.document["plan"]["beam_width"] == 3
    assert ttengine("info", path, "--json").document["finite"] is True


def test_train_shows_the_preset_of_its_dataset_and_flags_override_it() -> None:
    from ttengine.cli.train import _parse

    arguments = ["d", "--out", "o"]
    assert _parse(arguments, "hopper-medium-replay-v2").train.epochs_reference == 80.0
    assert _parse(arguments, "hopper-medium-v2").train.epochs_reference == 50.0
    assert (
        _parse([*arguments, "--train.epochs-reference", "7"], "hopper-medium-replay-v2").train.epochs_reference == 7.0
    )


def test_a_file_is_trained_with_the_preset_of_the_name_in_it(
    ttengine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("accelerate")
    batch_sizes: list[int] = []
    named = trajectories()
    object.__setattr__(named, "name", "ant-medium-v2")
    save_dataset(named, tmp_path / "mine.npz")

    def train(data: Any, out: Any, model: Any, settings: Any, config: Any, **_: Any) -> Checkpoint:
        batch_sizes.append(config.batch_size)
        metrics = {"step": 1, "metrics": {"loss": 1.0}, "parameters": 1, "wall_s": 1.0}
        return Checkpoint(tiny_checkpoint().model, tiny_checkpoint().discretizer, settings, data.name, metrics)

    monkeypatch.setattr("ttengine.training.train", train)
    assert ttengine("train", tmp_path / "mine.npz", "--out", tmp_path).code == 0
    assert batch_sizes == [128]


def broken_hdf5(path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name in ("observations", "actions"):
            file[name] = np.zeros((9, 2))
        file["rewards"] = np.zeros(9)


def test_train_refuses_bad_data_before_any_work(ttengine: Any, tmp_path: Path) -> None:
    run = ["--out", tmp_path / "run"]
    assert_refused(ttengine("train", "hopper-mediun-v2", *run), "hopper-medium-v2")
    assert_refused(ttengine("train", tmp_path / "none.npz", *run), "no file")
    broken_hdf5(tmp_path / "no_terminals.hdf5")
    assert_refused(ttengine("train", tmp_path / "no_terminals.hdf5", *run), "terminals")
    good = {
        name: getattr(trajectories(), name) for name in ("observations", "actions", "rewards", "terminals", "timeouts")
    }
    observations = good["observations"].copy()
    observations[3, 1] = np.nan
    cases = {
        "nan": (good | {"observations": observations}, "observations[3, 1] is nan"),
        "lengths": (good | {"rewards": good["rewards"][:-1]}, "59"),
        "empty": ({name: array[:0] for name, array in good.items()}, "empty"),
        "one_step": ({name: array[:1] for name, array in good.items()}, "one transition"),
    }
    for name, (arrays, message) in cases.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        assert_refused(ttengine("train", tmp_path / f"{name}.npz", *run), message)
    assert not (tmp_path / "run").exists()


def test_train_refuses_settings_out_of_range(ttengine: Any, tmp_path: Path) -> None:
    save_dataset(trajectories(), tmp_path / "mine.npz")
    ran = ttengine("train", tmp_path / "mine.npz", "--out", tmp_path / "run", "--model.heads", "3")
    assert ran.code in (cli.WRONG_INPUT, cli.WRONG_USAGE)
    assert "not a multiple of heads 3" in " ".join(ran.err.split())


# --- plan ----------------------------------------------------------------------------------------------------------


def test_plan_prints_the_action_as_json_and_as_a_table(ttengine: Any, model: Path, tmp_path: Path) -> None:
    ran = ttengine("plan", model, "--observation", "[0.5, 0.5, -1]", *FAST, "--json")
    assert ran.code == 0
    assert np.shape(ran.document["actions"]) == (2, 1)
    assert ran.document["action"] == ran.document["actions"][0]
    np.save(tmp_path / "now.npy", np.array([0.5, 0.5, -1.0]))
    (tmp_path / "now.json").write_text("[0.5, 0.5, -1]")
    for name in ("now.npy", "now.json"):
        same = ttengine("plan", model, "--observation", tmp_path / name, *FAST, "--json")
        assert same.document["actions"] == ran.document["actions"]
    shown = ttengine("plan", model, "--observation", "[0.5, 0.5, -1]", *FAST)
    assert f"{ran.document['action'][0]:.4g}" in shown.out


def test_a_context_changes_the_plan(ttengine: Any, model: Path, tmp_path: Path) -> None:
    past = {"observations": [[4.0, -4.0, 2.0]] * 3, "actions": [[6.0]] * 3, "rewards": [-7.0] * 3}
    (tmp_path / "past.json").write_text(json.dumps(past))
    np.savez(tmp_path / "past.npz", **{name: np.array(values) for name, values in past.items()})
    now = ["plan", model, "--observation", "[0.5, 0.5, -1]", *FAST, "--json"]
    given = [ttengine(*now, "--context", tmp_path / name).document for name in ("past.json", "past.npz")]
    assert given[0]["rewards"] == given[1]["rewards"]
    assert given[0]["rewards"] != ttengine(*now).document["rewards"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--observation", "[1, 2]"], ["observation has 2 dims, the model was trained on 3"]),
        (["--observation", "[1, NaN, 2]"], ["only finite numbers"]),
        (["--observation", "[1, Infinity, 2]"], ["only finite numbers"]),
        (["--observation", "[1, [2], 3]"], ["no JSON list of numbers"]),
        (["--observation", "nothing.npy"], ["no JSON list and no file"]),
        (["--observation", "[1, 2, 3]", "--context", "none.npz"], ["there is no file none.npz"]),
        (["--observation", "[1, 2, 3]", "--goal", "[1, 2, 3]"], ["without goals, and one was given"]),
    ],
)
def test_plan_refuses(ttengine: Any, model: Path, arguments: list[str], parts: list[str]) -> None:
    assert_refused(ttengine("plan", model, *arguments, *FAST), *parts)


@pytest.mark.parametrize("command", ["plan", "evaluate", "info"])
def test_truncated_and_foreign_checkpoints_are_refused(
    ttengine: Any, model: Path, tmp_path: Path, command: str
) -> None:
    from safetensors.torch import save_file

    flags = ["--observation", "[1, 2, 3]"] if command == "plan" else []
    truncated, foreign = tmp_path / "truncated.safetensors", tmp_path / "foreign.safetensors"
    truncated.write_bytes(model.read_bytes()[:-100])
    save_file({"weight": torch.zeros(3)}, foreign)
    assert_refused(ttengine(command, truncated, *flags), "truncated")
    assert_refused(ttengine(command, foreign, *flags), "expected 'ttengine.checkpoint/1'")
    assert_refused(ttengine(command, tmp_path / "none.safetensors", *flags), "no model file")


# --- evaluate ------------------------------------------------------------------------------------------------------


def test_evaluate_uses_the_preset_of_the_models_dataset(
    ttengine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cheetah.safetensors"
    tiny_checkpoint(17, 6, "halfcheetah-medium-v2").save(path)
    seen: list[Any] = []

    def stop(model: Any, environment: Any, plan: Any, config: Any, **_: Any) -> None:
        seen.append(plan)
        raise KeyboardInterrupt

    monkeypatch.setattr("ttengine.cli.evaluate.evaluate", stop)
    assert ttengine("evaluate", path).code == 130
    ttengine("evaluate", "--plan.beam-width", "7", path)
    assert [(plan.horizon, plan.beam_width) for plan in seen] == [(5, 32), (5, 7)]


def test_evaluate_prints_a_table(ttengine: Any, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("gymnasium")
    pytest.importorskip("matplotlib")
    flags = ["--environment", "Pendulum-v1", "--episodes", "1", "--max-steps", "4", "--deadline-s", "100", *FAST]
    ran = ttengine("evaluate", model, *flags, "--foresight", tmp_path / "foresight.png")
    assert ran.code == 0
    for part in ("return", "plan latency p50", "control period 50 ms", "missed deadlines 0 of 4 plans"):
        assert part in " ".join(ran.out.split())
    assert (tmp_path / "foresight.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ([], ["'pendulum-tiny' is not known", "name the environment yourself"]),
        (["--environment", "Nowhere-v4"], ["no environment 'Nowhere-v4'"]),
        (["--environment", "Hopper-v4"], ["11 observation and 3 action dims, the model was trained on 3 and 1"]),
        (["--environment", "Pendulum-v1", "--video", "a.avi"], ["allowed are .mp4, .gif"]),
        (["--environment", "Pendulum-v1", "--foresight", "a.bmp"], ["allowed are .png, .pdf, .svg"]),
    ],
)
def test_evaluate_refuses(ttengine: Any, model: Path, flags: list[str], parts: list[str]) -> None:
    pytest.importorskip("gymnasium")
    assert_refused(ttengine("evaluate", model, *flags, *FAST), *parts)


# --- info ----------------------------------------------------------------------------------------------------------


def test_info_names_the_first_tensor_that_is_not_finite(ttengine: Any, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    with torch.no_grad():
        checkpoint.model.blocks[0].qkv.bias[2] = float("nan")  # type: ignore[index,union-attr]
    checkpoint.save(tmp_path / "bad.safetensors")
    ran = ttengine("info", tmp_path / "bad.safetensors")
    assert ran.code == 0
    assert "NaN or infinity in blocks.0.qkv.bias" in ran.out
    document = ttengine("info", tmp_path / "bad.safetensors", "--json").document
    assert (document["finite"], document["first_bad_tensor"]) == (False, "blocks.0.qkv.bias")


def test_info_describes_a_dataset_and_warns(ttengine: Any, tmp_path: Path) -> None:
    observations = trajectories().observations.copy()
    observations[:, 1] = 0.25
    save_dataset(trajectories(observations=observations), tmp_path / "mine.npz")
    ran = ttengine("info", tmp_path / "mine.npz", "--json")
    assert ran.code == 0
    assert ran.document["episodes"] == 3
    assert ran.document["timeouts"] == 3
    assert ran.document["observation"][1] == {"mean": 0.25, "std": 0.0, "min": 0.25, "max": 0.25}
    assert any("constant" in warning for warning in ran.document["warnings"])
    assert "constant" in ttengine("info", tmp_path / "mine.npz").out


def test_a_warning_about_data_is_a_sentence(ttengine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    monkeypatch.setattr("ttengine.cli.info.run", lambda _: warnings.warn("rewards look odd", DataWarning, stacklevel=1))
    ran = ttengine("info", "x.npz")
    assert ran.err == "warning: rewards look odd\n"
