"""The demo: collect mediocre data, train a small model on it, plan closed-loop, and show what that brought.

The planner sees nothing but the logged transitions. At the end a shipped model plans against the clock. Sizes are
chosen for less than ten minutes on two cores.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ttengine.checkpoint import load
from ttengine.closed_loop import Foresight
from ttengine.config import DataConfig, ModelConfig, PlanConfig, TrainConfig, to_dict
from ttengine.data.collect import CollectConfig, collect_to
from ttengine.data.load import load_dataset
from ttengine.data.trajectories import Trajectories
from ttengine.demo_real_time import RealTimeConfig, run_real_time
from ttengine.demo_report import announce, finish, print_report
from ttengine.errors import RenderError, require
from ttengine.evaluation import EvaluateConfig, evaluate
from ttengine.stages import Stages, read_json, write_json
from ttengine.training import train
from ttengine.training_state import CADENCE
from ttengine.viz.plots import plot_foresight, plot_returns, plot_training
from ttengine.viz.videos import choose_renderer

MIXTURE = (
    "random,share=0.3",
    "hopper/26624,share=0.35",
    "hopper/51200,share=0.2",
    "hopper/100352,share=0.05",
    "hopper/100352,share=0.1,deterministic=true",
)
"""Shares count episodes. Most fall within a second; one in twenty hops on for a while, one in ten mostly to the end."""

NEEDED = {
    "gymnasium": "mujoco",
    "mujoco": "mujoco",
    "imageio_ffmpeg": "mujoco",
    "h5py": "data",
    "accelerate": "train",
    "matplotlib": "viz",
}
"""Optional package -> the extra that brings it; asked for at the start, so that none is missed half-way."""

COLLECT = CollectConfig("Hopper-v4", MIXTURE, episodes=400, action_noise=0.1, processes=2, name="hopper-mixed-demo-tt")
TRAIN = TrainConfig(
    batch_size=32,
    steps=4500,
    learning_rate=2e-3,
    final_learning_rate_share=0.05,
    warmup_share=0.05,
    log_every=100,
    save_every_s=30.0,
)
DATA, PLAN, EVALUATE = DataConfig(), PlanConfig(horizon=3, beam_width=16), EvaluateConfig(8, seed=1000, workers=2)
REAL_TIME = RealTimeConfig()


@dataclass(frozen=True)
class DemoConfig:
    """What the demo does at each stage."""

    collect: CollectConfig = COLLECT
    layers: int = 2
    heads: int = 4
    width: int = 64
    window: int = 6
    context: int = 3
    data: DataConfig = DATA
    train: TrainConfig = TRAIN
    plan: PlanConfig = PLAN
    evaluate: EvaluateConfig = EVALUATE
    real_time: RealTimeConfig = REAL_TIME

    def model(self, trajectories: Trajectories) -> ModelConfig:
        """Return the sizes of the model for the collected data."""
        return ModelConfig(
            trajectories.observation_dim,
            trajectories.action_dim,
            layers=self.layers,
            heads=self.heads,
            width=self.width,
            window=self.window,
            context=self.context,
            dropout=0.0,  # a run of a few minutes sees each window about once: nothing to overfit
        )


@dataclass(frozen=True)
class DemoFiles:
    """Where the demo leaves its results."""

    out: Path

    @property
    def dataset(self) -> Path:
        """The collected transitions."""
        return self.out / "dataset.hdf5"

    @property
    def run(self) -> Path:
        """The folder of the training run."""
        return self.out / "model"

    @property
    def model(self) -> Path:
        """The trained model."""
        return self.run / "model.safetensors"

    @property
    def evaluation(self) -> Path:
        """What the evaluation measured."""
        return self.out / "evaluation.json"

    @property
    def real_time(self) -> Path:
        """What the shipped model did in real time."""
        return self.out / "real_time.json"

    @property
    def foresight(self) -> Path:
        """Predictions and what happened, as arrays."""
        return self.out / "foresight.npz"

    @property
    def video(self) -> Path:
        """The first episode."""
        return self.out / "episode.mp4"

    @property
    def plots(self) -> dict[str, Path]:
        """Plot -> file."""
        return {name: self.out / f"{name}.png" for name in ("returns", "predictions", "training")}

    @property
    def report(self) -> Path:
        """All numbers."""
        return self.out / "report.json"


def run_demo(
    out: Path, *, fresh: bool = False, config: DemoConfig | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Run the demo and return its report, which is also in `out/report.json`.

    A stage is done again only when its inputs have changed, its result is gone, or `fresh` is set.

    Args:
        out: folder of the results.
        fresh: do every stage again.
        config: what to do; None: the demo as shipped.
        console: where to write.
    Raises:
        MissingExtraError: an optional package is not installed; the message names the `pip install`.
        CheckpointError: the model that is to plan in real time is not there.
        What the stages raise.
    """
    for module, extra in NEEDED.items():
        require(module, extra)
    began = time.perf_counter()
    config, console, files = config or DemoConfig(), console or Console(), DemoFiles(out)
    load(config.real_time.model)  # a model that cannot be read is an error now, not after the other stages
    stages, no_video = Stages(out, fresh), _why_no_video()
    env_id = config.collect.env_id
    report: dict[str, Any] = {"environment": env_id, "config": to_dict(config), "stages_s": stages.seconds}
    console.print(f"\n[bold]ttengine demo[/]   {env_id}, results in {out}", highlight=False)
    report |= _run_stages(stages, files, config, console, video=no_video is None)
    report |= {
        "no_video": no_video,
        "files": {name: str(path) for name, path in _results(files, no_video is None).items()},
        "wall_s": time.perf_counter() - began,
    }
    write_json(files.report, report)
    report = read_json(files.report)  # as a reader of the file sees it
    print_report(console, report)
    return report


def _run_stages(stages: Stages, files: DemoFiles, config: DemoConfig, console: Console, video: bool) -> dict[str, Any]:
    """Run the four stages, draw, and return what they found."""
    announce(console, 1, "Collect", f"{len(config.collect.policies)} policies, most of them poor, leave their logs")
    trajectories = _collect(stages, files, config)
    returns = trajectories.episode_returns
    finish(console, stages, f"{len(trajectories):,} transitions; mean return {returns.mean():,.0f}")

    announce(console, 2, "Train", "a small Trajectory Transformer on those logs alone")
    about = _train(stages, files, config, trajectories)
    finish(
        console,
        stages,
        f"{about['parameters']:,} parameters, {about['step']:,} steps, loss {about['metrics']['loss']:.3f}",
    )

    announce(console, 3, "Plan", f"{config.evaluate.episodes} episodes, a beam search at every control step")
    evaluation = _evaluate(stages, files, config, video)
    finish(console, stages, f"mean return {evaluation['return']['mean']:,.0f}")

    announce(console, 4, "Real time", f"the model {config.real_time.model} plans within the control period")
    real_time = run_real_time(stages, files.real_time, config.real_time)
    finish(console, stages, f"return {real_time['return']['mean']:,.0f}")

    _draw(files, evaluation, returns)
    behaviour = _behaviour(trajectories)
    ratio = evaluation["return"]["mean"] / behaviour["mean"]
    return {"behaviour": behaviour, "planner": evaluation, "ratio": ratio, "real_time": real_time, "training": about}


def _collect(stages: Stages, files: DemoFiles, config: DemoConfig) -> Trajectories:
    settings = to_dict(config.collect)
    del settings["processes"]  # the data do not depend on it
    with stages.stage("collect", settings, [files.dataset]) as todo:
        if todo:
            collect_to(config.collect, files.dataset, overwrite=True)
    return load_dataset(files.dataset)


def _train(stages: Stages, files: DemoFiles, config: DemoConfig, trajectories: Trajectories) -> dict[str, Any]:
    model = config.model(trajectories)
    settings = {name: value for name, value in to_dict(config.train).items() if name not in CADENCE}
    inputs = {"model": to_dict(model), "data": to_dict(config.data), "train": settings}
    metrics = files.run / "metrics.csv"
    with stages.stage("train", inputs, [files.model, metrics]) as todo:
        if todo:
            # an interrupted run with these very inputs goes on; any other is replaced
            trained = train(
                trajectories, files.run, model, config.data, config.train, resume=stages.was_begun, tensorboard=False
            )
            write_json(files.run / "provenance.json", dict(trained.provenance))
    about: dict[str, Any] = read_json(files.run / "provenance.json")
    return {name: about[name] for name in ("parameters", "step", "steps", "metrics", "wall_s")}


def _evaluate(stages: Stages, files: DemoFiles, config: DemoConfig, video: bool) -> dict[str, Any]:
    inputs = {"plan": to_dict(config.plan), "evaluate": to_dict(config.evaluate), "video": video}
    outputs = [files.evaluation, files.foresight, *([files.video] if video else [])]
    with stages.stage("plan", inputs, outputs) as todo:
        if todo:
            files.video.unlink(missing_ok=True)  # an old film beside new numbers would mislead
            found = evaluate(
                files.model, config.collect.env_id, config.plan, config.evaluate, video=files.video if video else None
            )
            np.savez(
                files.foresight, **{f.name: getattr(found.foresight, f.name) for f in dataclasses.fields(Foresight)}
            )
            write_json(files.evaluation, found.to_dict())
    evaluation: dict[str, Any] = read_json(files.evaluation)
    return evaluation


def _draw(files: DemoFiles, evaluation: dict[str, Any], behaviour: Any) -> None:
    """Draw the plots; quick, so always done."""
    with np.load(files.foresight, allow_pickle=False) as file:
        foresight = Foresight(**dict(file))
    env_id = evaluation["environment"]
    plot_returns(
        files.plots["returns"], behaviour, evaluation["return"]["all"],
        title=f"{env_id}: the logged episodes and the planner's", behaviour_label="logged data",
    )  # fmt: skip
    plot_foresight(
        files.plots["predictions"], foresight, environment=env_id, control_period_s=evaluation["control_period_s"],
        title=f"{env_id}: predicted and real",
    )  # fmt: skip
    plot_training(files.plots["training"], files.run / "metrics.csv", title="Training")


def _behaviour(trajectories: Trajectories) -> dict[str, Any]:
    returns = trajectories.episode_returns
    return {
        "mean": float(returns.mean()),
        "std": float(returns.std()),
        "median": float(np.median(returns)),
        "best": float(returns.max()),
        "episodes": trajectories.n_episodes,
        "transitions": len(trajectories),
    }


def _results(files: DemoFiles, video: bool) -> dict[str, Path]:
    return {
        **({"video": files.video} if video else {}),
        **files.plots,
        "dataset": files.dataset,
        "model": files.model,
        "report": files.report,
    }


def _why_no_video() -> str | None:
    """Return why nothing can be rendered here, None if something can."""
    try:
        choose_renderer()
    except RenderError as error:
        return str(error)
    return None
