"""The demo's last stage: a shipped model controls its robot within the robot's own control period."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ttengine.checkpoint import Checkpoint, load, model_file
from ttengine.config import PlanConfig, plan_preset, to_dict
from ttengine.environments import control_period_s, make_environment
from ttengine.errors import ConfigError
from ttengine.evaluation import EvaluateConfig, evaluate
from ttengine.stages import Stages, read_json, write_json

PLAN = plan_preset("halfcheetah-medium")
EVALUATE = EvaluateConfig(episodes=1, seed=1000, max_steps=1000)


@dataclass(frozen=True)
class RealTimeConfig:
    """A model against the clock."""

    model: str = "halfcheetah"
    """shipped model, or the path of another"""
    environment: str = "HalfCheetah-v4"
    plan: PlanConfig = PLAN
    evaluate: EvaluateConfig = EVALUATE
    """without a deadline, the environment's control period is the deadline; one worker, so that a plan may use every
    core"""


def run_real_time(stages: Stages, path: Path, config: RealTimeConfig) -> dict[str, Any]:
    """Let the model control the environment, every plan with the control period as its deadline.

    Args:
        stages: of the demo; the stage is called real_time.
        path: the JSON file that is to hold the result.
        config: what to do.
    Returns:
        The evaluation as `Evaluation.to_dict` says, with the model's name and, under `behaviour`, the mean return of
        the data that it was trained on, None where the model does not say.
    Raises:
        ConfigError: neither a deadline nor a control period is known.
        What `evaluate` raises.
    """
    deadline_s = config.evaluate.deadline_s or _period_s(config.environment)
    settings = dataclasses.replace(config.evaluate, deadline_s=deadline_s)
    with model_file(config.model) as file:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    inputs = to_dict(dataclasses.replace(config, evaluate=settings)) | {"model": digest}
    with stages.stage("real_time", inputs, [path]) as todo:
        if todo:
            checkpoint = load(config.model)
            # no progress bar: the thread that draws it would compete with the planner's
            found = evaluate(checkpoint, config.environment, config.plan, settings, progress=False)
            write_json(path, found.to_dict() | {"model": config.model, "behaviour": _behaviour(checkpoint)})
    result: dict[str, Any] = read_json(path)
    return result


def describe_real_time(result: Mapping[str, Any]) -> str:
    """Return the result as a sentence."""
    latency, behaviour, deadline_s = result["latency"], result["behaviour"], result["config"]["deadline_s"]
    data = "" if behaviour is None else f" (its data: {behaviour['mean']:,.0f})"
    return (
        f"{result['environment']} in real time: return {result['return']['mean']:,.0f}{data}, plan p50 "
        f"{latency['p50_s'] * 1e3:,.0f} ms, p99 {latency['p99_s'] * 1e3:,.0f} ms, {result['missed_deadlines']:,} of "
        f"{result['plans']:,} deadlines ({deadline_s * 1e3:,.0f} ms) missed; {result['engine']} engine, "
        f"{result['rounds_mean']:.2f} of {result['plan']['horizon']} transitions ahead in the mean."
    )


def _period_s(environment: str) -> float:
    env = make_environment(environment)
    try:
        period_s = control_period_s(env)
    finally:
        env.close()
    if period_s is None:
        raise ConfigError(f"{environment} has no control period to plan within; set evaluate.deadline_s")
    return period_s


def _behaviour(checkpoint: Checkpoint) -> dict[str, float] | None:
    """Return what the model's provenance says of its data: mean return and number of episodes."""
    returns = checkpoint.provenance.get("dataset", {}).get("episodes", {}).get("return")
    return {"mean": float(np.mean(returns)), "episodes": len(returns)} if returns else None
