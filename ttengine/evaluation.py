"""Evaluation: how well a model controls an environment, and how fast it plans.

Episode e resets its environment with seed + e and plans with that seed, so its actions depend neither on the episodes
beside it nor on the process that runs it (deadlines aside: what fits before one depends on the machine's load).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ttengine.checkpoint import Checkpoint, load
from ttengine.closed_loop import EpisodeResult, Foresight
from ttengine.config import PlanConfig, to_dict
from ttengine.controller import latency_summary
from ttengine.data.scores import normalized_score
from ttengine.environments import environment_for_dataset
from ttengine.errors import DatasetNotFoundError
from ttengine.evaluation_bar import EvaluationBar
from ttengine.evaluation_runner import Environment, EvaluateConfig, Runner, Setup, run_in_processes
from ttengine.objectives import Objective

__all__ = ["Environment", "EvaluateConfig", "Evaluation", "environment_of", "evaluate"]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What an evaluation measured.

    Attributes:
        environment: id, or the name of the function that made it.
        dataset: that the model was trained on.
        engine: who computed the plans.
        plan: settings of the search, `auto` resolved.
        config: settings of the evaluation.
        episodes: in the order of their seeds.
        control_period_s: the environment's; None when it has no clock.
        normalized: [episodes] float64, D4RL's normalised scores in per cent; None where no reference is known.
        wall_s: of the whole evaluation.
        video: the file that shows the first episode.
    """

    environment: str
    dataset: str
    engine: str
    plan: PlanConfig
    config: EvaluateConfig
    episodes: tuple[EpisodeResult, ...]
    control_period_s: float | None
    normalized: npt.NDArray[np.float64] | None
    wall_s: float
    video: Path | None

    @property
    def returns(self) -> npt.NDArray[np.float64]:
        """[episodes] float64, undiscounted, reward units."""
        return np.array([episode.total_reward for episode in self.episodes])

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """[episodes] int64, control steps."""
        return np.array([episode.length for episode in self.episodes])

    @property
    def latencies_s(self) -> list[float]:
        """Latency of every plan, seconds."""
        return [latency for episode in self.episodes for latency in episode.latencies_s]

    @property
    def missed_deadlines(self) -> int:
        """Plans that came after the deadline."""
        return sum(episode.missed_deadlines for episode in self.episodes)

    @property
    def foresight(self) -> Foresight:
        """Predictions against reality in the first episode."""
        foresight = self.episodes[0].foresight
        assert foresight is not None
        return foresight

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the foresight's arrays as plain JSON values."""
        spread = float(self.returns.std())
        result: dict[str, Any] = {
            "environment": self.environment,
            "dataset": self.dataset,
            "engine": self.engine,
            "return": {"mean": float(self.returns.mean()), "std": spread, "all": self.returns.tolist()},
            "length": {"mean": float(self.lengths.mean()), "all": self.lengths.tolist()},
            "terminated": [episode.terminated for episode in self.episodes],
            "seeds": [episode.seed for episode in self.episodes],
            "normalized_score": None,
            "latency": latency_summary(self.latencies_s),
            "plans": len(self.latencies_s),
            "rounds_mean": float(np.mean([episode.rounds for episode in self.episodes])),
            "missed_deadlines": self.missed_deadlines,
            "control_period_s": self.control_period_s,
            "prediction_error": [_null_for_nan(self.foresight.error(h)) for h in range(1, self.foresight.horizon)],
            "wall_s": self.wall_s,
            "video": None if self.video is None else str(self.video),
            "plan": to_dict(self.plan),
            "config": to_dict(self.config),
        }
        if self.normalized is not None:
            result["normalized_score"] = {
                "mean": float(self.normalized.mean()),
                "std": float(self.normalized.std()),
                "all": self.normalized.tolist(),
            }
        return result


def evaluate(
    model: Checkpoint | str | Path,
    environment: Environment | None = None,
    plan: PlanConfig | None = None,
    config: EvaluateConfig | None = None,
    *,
    objective: Objective | None = None,
    video: str | Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Let a model control an environment for some episodes.

    Args:
        model: a checkpoint, the path of one, or the name of a shipped model.
        environment: where; None: the environment that the model's data came from.
        plan: the search; None: the paper's settings for the model's dataset.
        config: episodes, seeds, processes; None: ten episodes in this process.
        objective: scores candidates in place of the discounted return; with several workers, one that can be pickled.
        video: file, .mp4 or .gif, that is to show the first episode.
        progress: show a progress bar on standard error, or a line an episode where that is no terminal.
    Raises:
        CheckpointError: there is no such model, or its file is none.
        EnvironmentNotFoundError, DatasetNotFoundError: no such environment, or the dataset does not say which.
        ConfigError, ShapeError: settings, environment and model do not fit one another; before any episode is run.
        RenderError: a video was asked for and cannot be made; before any episode is run.
        NonFiniteError: the environment or the model gave NaN or infinity.
        EngineError: a worker process died.
    """
    began = time.perf_counter()
    config = config or EvaluateConfig()
    checkpoint = model if isinstance(model, Checkpoint) else load(model)
    environment = environment or environment_of(checkpoint)
    setup = Setup(checkpoint, environment, plan, config, objective, None if video is None else Path(video))
    runner = Runner(setup)
    period_s = runner.check()
    groups = [range(e, min(e + config.batch, config.episodes)) for e in range(0, config.episodes, config.batch)]
    with EvaluationBar(config.episodes, runner.longest, shown=progress) as bar:
        if config.workers == 1:
            results = [episode for group in groups for episode in runner.run(group, bar)]
        else:
            results = run_in_processes(setup, groups, bar)
    name = environment if isinstance(environment, str) else getattr(environment, "__name__", repr(environment))
    return Evaluation(
        environment=name,
        dataset=checkpoint.dataset,
        engine=runner.planner.engine_name,
        plan=runner.planner.config,
        config=config,
        episodes=tuple(results),
        control_period_s=period_s,
        normalized=_normalized((checkpoint.dataset, name), results),
        wall_s=time.perf_counter() - began,
        video=setup.video,
    )


def environment_of(checkpoint: Checkpoint) -> str:
    """Return the id of the environment that a model's data came from: as collected, or as the dataset's name says.

    Raises:
        DatasetNotFoundError: neither is known.
    """
    collected = checkpoint.provenance.get("dataset", {}).get("config", {}).get("env_id")
    return str(collected) if collected is not None else environment_for_dataset(checkpoint.dataset)


def _normalized(names: Sequence[str], results: Sequence[EpisodeResult]) -> npt.NDArray[np.float64] | None:
    for name in names:
        try:
            return normalized_score(name, [result.total_reward for result in results])
        except DatasetNotFoundError:
            continue  # many environments have no reference scores
    return None


def _null_for_nan(number: float) -> float | None:
    return None if math.isnan(number) else number
