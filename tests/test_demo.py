"""The demo, at toy size: what it leaves, what it reuses, what it says."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ttengine import demo
from ttengine.config import DataConfig, PlanConfig, TrainConfig
from ttengine.data.collect import CollectConfig
from ttengine.data.policy_spec import PolicySpec, load_behaviour
from ttengine.demo import DemoConfig, run_demo
from ttengine.demo_stages import Stages, write_json
from ttengine.errors import MissingExtraError, RenderError
from ttengine.evaluation import EvaluateConfig

for module in ("gymnasium", "mujoco", "accelerate", "matplotlib", "h5py"):
    pytest.importorskip(module)

TOY = DemoConfig(
    collect=CollectConfig("Hopper-v4", ("random",), episodes=8, name="toy-tt"),
    layers=1,
    heads=2,
    width=8,
    window=3,
    data=DataConfig(validation_share=0.2),
    train=TrainConfig(batch_size=4, steps=4, log_every=2),
    plan=PlanConfig(horizon=2, beam_width=2),
    evaluate=EvaluateConfig(episodes=2, max_steps=4, seed=3),
)


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that cannot render: no test of the demo waits for graphics."""

    def refuse() -> str:
        raise RenderError("nothing can be rendered here: install something")

    monkeypatch.setattr(demo, "choose_renderer", refuse)


def run(out: Path, config: DemoConfig = TOY, fresh: bool = False) -> tuple[dict[str, Any], str]:
    text = io.StringIO()
    report = run_demo(out, fresh=fresh, config=config, console=Console(file=text, width=120))
    return report, text.getvalue()


@pytest.mark.usefixtures("blind")
def test_the_demo_leaves_its_results_and_reuses_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report, text = run(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    for name in ("returns.png", "predictions.png", "training.png", "dataset.hdf5", "model/model.safetensors"):
        assert (tmp_path / name).stat().st_size > 0
    planner = report["planner"]["return"]
    assert report["ratio"] == pytest.approx(planner["mean"] / report["behaviour"]["mean"])
    assert len(planner["all"]) == 2
    for part in (
        "1  Collect",
        "2  Train",
        "3  Plan",
        "logged data, mean",
        "planner / logged mean",
        "control period is 8 ms",
    ):
        assert part in text
    assert "no video" in text
    assert "install something" in text
    assert report["no_video"] == "nothing can be rendered here: install something"

    done = count_stages(monkeypatch)
    again, text = run(tmp_path)
    assert done == []
    assert text.count("unchanged, kept") == 3
    assert again["planner"] == report["planner"]

    wider = dataclasses.replace(TOY, plan=PlanConfig(horizon=2, beam_width=3))
    run(tmp_path, wider)
    assert done == ["evaluate"]
    (tmp_path / "dataset.hdf5").unlink()
    run(tmp_path, wider)
    assert done == ["evaluate", "collect_to"]  # the same data came back, so the model is still of that data


def count_stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    done: list[str] = []
    for name in ("collect_to", "train", "evaluate"):
        original = getattr(demo, name)

        def spy(*args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
            done.append(_name)
            return _original(*args, **kwargs)

        monkeypatch.setattr(demo, name, spy)
    return done


def test_a_stage_is_redone_when_its_inputs_or_what_came_before_changed(tmp_path: Path) -> None:
    def go(first: int, second: int, fresh: bool = False) -> list[bool]:
        stages, done = Stages(tmp_path, fresh), []
        for name, value in (("a", first), ("b", second)):
            path = tmp_path / name
            with stages.stage(name, {"value": value}, [path]) as todo:
                done.append(todo)
                if todo:
                    path.write_text(f"{first} {value}")
        return done

    assert go(1, 1) == [True, True]
    assert go(1, 1) == [False, False]
    assert go(1, 2) == [False, True]
    assert go(2, 2) == [True, True]
    assert go(2, 2, fresh=True) == [True, True]
    (tmp_path / "b").write_text("tampered with")
    assert go(2, 2) == [False, True]


def test_a_stage_that_was_interrupted_is_begun_again_and_knows_it(tmp_path: Path) -> None:
    def go(value: int, fail: bool) -> bool:
        stages = Stages(tmp_path, fresh=False)
        with stages.stage("a", {"value": value}, [tmp_path / "a"]) as todo:
            assert todo
            if fail:
                raise KeyboardInterrupt
            (tmp_path / "a").write_text("x")
        return stages.was_begun

    with pytest.raises(KeyboardInterrupt):
        go(1, fail=True)
    assert go(1, fail=False) is True
    with pytest.raises(KeyboardInterrupt):
        go(2, fail=True)
    assert go(3, fail=False) is False


def test_a_document_is_written_whole(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_the_shipped_mixture_is_of_policies_that_are_shipped() -> None:
    specs = DemoConfig().collect.mixture()
    assert sum(spec.share for spec in specs) == pytest.approx(1.0)
    snapshots = load_behaviour("hopper").snapshots
    for spec in specs:
        assert isinstance(spec, PolicySpec)
        assert spec.policy == "random" or int(spec.policy.partition("/")[2]) in snapshots


def test_a_missing_package_is_named_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "NEEDED", demo.NEEDED | {"no_such_package": "viz"})
    with pytest.raises(MissingExtraError, match=r"pip install 'ttengine\[viz\]'"):
        run(tmp_path / "out")
    assert not (tmp_path / "out").exists()
