"""The demo, at toy size: what it leaves, what it reuses, what it says."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import FAST, tiny_checkpoint

from ttengine import demo, demo_real_time
from ttengine.config import DataConfig, PlanConfig, TrainConfig, plan_preset
from ttengine.data.collect import CollectConfig
from ttengine.data.policy_spec import PolicySpec, load_behaviour
from ttengine.demo import DemoConfig, run_demo
from ttengine.demo_real_time import RealTimeConfig, describe_real_time, run_real_time
from ttengine.environments import control_period_s, make_environment
from ttengine.errors import CheckpointError, ConfigError, MissingExtraError, RenderError
from ttengine.evaluation import EvaluateConfig
from ttengine.stages import Stages, write_json

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


RETURNS = [-400.0, -200.0]


@pytest.fixture
def toy(tmp_path: Path) -> DemoConfig:
    """The demo at toy size; the model that plans in real time is one for Pendulum, whose control period is 50 ms."""
    path = tmp_path / "toy.safetensors"
    tiny_checkpoint(dataset_metadata={"episodes": {"return": RETURNS}}).save(path)
    real_time = RealTimeConfig(str(path), "Pendulum-v1", FAST, EvaluateConfig(episodes=1, max_steps=4))
    return dataclasses.replace(TOY, real_time=real_time)


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that cannot render: no test of the demo waits for graphics."""

    def refuse() -> str:
        raise RenderError("nothing can be rendered here: install something")

    monkeypatch.setattr(demo, "choose_renderer", refuse)


def run(out: Path, config: DemoConfig, fresh: bool = False) -> tuple[dict[str, Any], str]:
    text = io.StringIO()
    report = run_demo(out, fresh=fresh, config=config, console=Console(file=text, width=120))
    return report, text.getvalue()


@pytest.mark.usefixtures("blind")
def test_the_demo_leaves_its_results_and_reuses_them(
    tmp_path: Path, toy: DemoConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, text = run(tmp_path, toy)
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
        "4  Real time",
        "logged data, mean",
        "planner / logged mean",
        "control period is 8 ms",
        "Pendulum-v1 in real time",
    ):
        assert part in text
    assert "no video" in text
    assert "install something" in text
    assert report["no_video"] == "nothing can be rendered here: install something"

    done = count_stages(monkeypatch)
    again, text = run(tmp_path, toy)
    assert done == []
    assert text.count("unchanged, kept") == 4
    assert again["planner"] == report["planner"]
    assert again["real_time"] == report["real_time"] == json.loads((tmp_path / "real_time.json").read_text())

    (tmp_path / "dataset.hdf5").unlink()
    run(tmp_path, toy)
    assert done == ["collect_to"]  # the same data came back, so the model is still of that data
    tiny_checkpoint(seed=1).save(tmp_path / "toy.safetensors")
    run(tmp_path, toy)
    assert done == ["collect_to", "demo_real_time.evaluate"]
    run(tmp_path, dataclasses.replace(toy, plan=PlanConfig(horizon=2, beam_width=3)))
    assert done[2:] == ["evaluate", "demo_real_time.evaluate"]  # whatever comes before a stage, the stage follows


def count_stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    done: list[str] = []
    stages = {name: (demo, name) for name in ("collect_to", "train", "evaluate")}
    for label, (module, name) in (stages | {"demo_real_time.evaluate": (demo_real_time, "evaluate")}).items():
        original = getattr(module, name)

        def spy(*args: Any, _label: str = label, _original: Any = original, **kwargs: Any) -> Any:
            done.append(_label)
            return _original(*args, **kwargs)

        monkeypatch.setattr(module, name, spy)
    return done


# --- real time -----------------------------------------------------------------------------------------------------


def test_the_control_period_is_the_deadline_and_the_data_stands_beside_the_return(
    tmp_path: Path, toy: DemoConfig
) -> None:
    result = run_real_time(Stages(tmp_path, fresh=False), tmp_path / "real_time.json", toy.real_time)
    assert result["config"]["deadline_s"] == result["control_period_s"] == 0.05
    assert result["behaviour"] == {"mean": -300.0, "episodes": 2}
    assert result["plans"] == 4
    assert {"p50_s", "p99_s"} <= result["latency"].keys()
    assert f"(its data: -300), plan p50 {result['latency']['p50_s'] * 1e3:.0f} ms" in describe_real_time(result)


def test_a_plan_later_than_the_deadline_is_counted(tmp_path: Path, toy: DemoConfig) -> None:
    hasty = dataclasses.replace(toy.real_time, evaluate=EvaluateConfig(episodes=1, max_steps=4, deadline_s=1e-6))
    result = run_real_time(Stages(tmp_path, fresh=False), tmp_path / "real_time.json", hasty)
    assert result["missed_deadlines"] == 4
    assert result["rounds_mean"] == 1.0
    assert "4 of 4 deadlines (0 ms) missed" in describe_real_time(result)


def test_real_time_is_told_in_a_sentence() -> None:
    result = {
        "environment": "HalfCheetah-v4",
        "engine": "cpp",
        "return": {"mean": 2310.4},
        "behaviour": {"mean": 2253.6, "episodes": 400},
        "latency": {"p50_s": 0.0312, "p99_s": 0.0379},
        "missed_deadlines": 0,
        "plans": 1000,
        "rounds_mean": 4.96,
        "plan": {"horizon": 5},
        "config": {"deadline_s": 0.05},
    }
    assert describe_real_time(result) == (
        "HalfCheetah-v4 in real time: return 2,310 (its data: 2,254), plan p50 31 ms, p99 38 ms, 0 of 1,000 deadlines "
        "(50 ms) missed; cpp engine, 4.96 of 5 transitions ahead in the mean."
    )
    assert "return 2,310, plan" in describe_real_time(result | {"behaviour": None})


def test_without_a_control_period_a_deadline_is_asked_for(
    tmp_path: Path, toy: DemoConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_real_time, "control_period_s", lambda env: None)
    with pytest.raises(ConfigError, match=r"Pendulum-v1 has no control period.*set evaluate\.deadline_s"):
        run_real_time(Stages(tmp_path, fresh=False), tmp_path / "real_time.json", toy.real_time)


def test_the_shipped_real_time_stage_is_halfcheetah_with_the_papers_search_in_one_process() -> None:
    config = DemoConfig().real_time
    assert config.plan == plan_preset("halfcheetah-medium")
    assert (config.evaluate.workers, config.evaluate.batch) == (1, 1)  # so that one plan has all cores
    env = make_environment(config.environment)
    assert control_period_s(env) == pytest.approx(0.05)
    env.close()


def test_a_model_that_is_not_there_is_named_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model 'no-such-model'"):
        run(tmp_path / "out", dataclasses.replace(TOY, real_time=RealTimeConfig("no-such-model")))
    assert not (tmp_path / "out").exists()


# --- stages --------------------------------------------------------------------------------------------------------


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
        run(tmp_path / "out", TOY)
    assert not (tmp_path / "out").exists()
