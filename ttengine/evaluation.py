"""Evaluation: how well a model controls an environment, and how fast it plans.

Episode e resets its environment with seed + e and plans with that seed, so its actions depend neither on the episodes
beside it nor on the process that runs it (deadlines aside: what fits before one depends on the machine's load).
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import pickle
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ttengine.checkpoint import Checkpoint, load
from ttengine.closed_loop import EpisodeResult, Foresight, check_environment, run_episodes
from ttengine.config import PlanConfig, check_range, to_dict
from ttengine.controller import latency_summary
from ttengine.data.scores import normalized_score
from ttengine.environments import adapt, control_period_s, environment_for_dataset, make_environment
from ttengine.errors import ConfigError, DatasetNotFoundError, EngineError
from ttengine.evaluation_bar import EvaluationBar
from ttengine.objectives import Objective
from ttengine.planner import Planner
from ttengine.viz.videos import Video, check_rendering, check_video_path, follow

Environment = str | Callable[[], Any]
"""A Gymnasium id, or a function that makes an environment (of Gymnasium or old Gym); for videos it renders arrays."""

POLL_S = 0.25


@dataclass(frozen=True)
class EvaluateConfig:
    """One evaluation."""

    episodes: int = 10
    seed: int = 0
    """of the first episode; episode e has seed + e"""
    max_steps: int | None = None
    """longest episode, beside the environment's own limit"""
    batch: int = 1
    """episodes that one process runs side by side, planned for in one call, whose latency is then the whole call's"""
    workers: int = 1
    """processes; with more than one, each computes with one thread"""
    deadline_s: float | None = None
    """time for one plan; what does not fit is cut, and a plan that comes later is counted"""

    def __post_init__(self) -> None:
        check_range(self, "episodes", 1, 10**6)
        check_range(self, "seed", 0, 2**31 - 1)
        if self.max_steps is not None:
            check_range(self, "max_steps", 1, 10**9)
        check_range(self, "batch", 1, 10**4)
        check_range(self, "workers", 1, 1024)
        if self.deadline_s is not None:
            check_range(self, "deadline_s", 1e-6, 1e9)


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
        model: a checkpoint, or the path of one.
        environment: where; None: the environment that the model's data came from.
        plan: the search; None: the paper's settings for the model's dataset.
        config: episodes, seeds, processes; None: ten episodes in this process.
        objective: scores candidates in place of the discounted return; with several workers, one that can be pickled.
        video: file, .mp4 or .gif, that is to show the first episode.
        progress: show a progress bar on standard error, or a line an episode where that is no terminal.
    Raises:
        CheckpointError: the file is not a model.
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
    setup = _Setup(checkpoint, environment, plan, config, objective, None if video is None else Path(video))
    runner = _Runner(setup)
    period_s = runner.check()
    groups = [range(e, min(e + config.batch, config.episodes)) for e in range(0, config.episodes, config.batch)]
    with EvaluationBar(config.episodes, runner.longest, shown=progress) as bar:
        if config.workers == 1:
            results = [episode for group in groups for episode in runner.run(group, bar)]
        else:
            results = _run_in_processes(setup, groups, bar)
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


# --- one process ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Setup:
    """What a process needs to run episodes."""

    model: Checkpoint | Path
    environment: Environment
    plan: PlanConfig | None
    config: EvaluateConfig
    objective: Objective | None
    video: Path | None


class _Runner:
    """Runs groups of episodes in this process."""

    def __init__(self, setup: _Setup) -> None:
        self.setup = setup
        self.planner = Planner(setup.model, setup.plan, objective=setup.objective)
        self.longest = setup.config.max_steps or 0
        """Control steps that an episode can have"""

    def make(self, render: bool = False) -> Any:
        """Make an environment."""
        if callable(self.setup.environment):
            return adapt(self.setup.environment())
        if not render:
            return make_environment(self.setup.environment)
        env = make_environment(self.setup.environment, render_mode="rgb_array")
        follow(env)
        return env

    def check(self) -> float | None:
        """Refuse what cannot work before any episode is run. Returns the control period in seconds, if there is one."""
        env = self.make()
        try:
            check_environment(env, self.planner, self.setup.config.max_steps)
            limits = (getattr(env.spec, "max_episode_steps", None), self.setup.config.max_steps)
            self.longest = min(limit for limit in limits if limit is not None)
            period_s = control_period_s(env)
        finally:
            env.close()
        if self.setup.video is not None:
            check_video_path(self.setup.video)
            check_rendering(lambda: self.make(render=True))
        return period_s

    def run(self, group: Sequence[int], bar: Any) -> list[EpisodeResult]:
        """Run the episodes of a group side by side; `bar` is told of steps and of finished episodes."""
        config, first = self.setup.config, 0 in group
        filmed = first and self.setup.video is not None
        made = 0

        def make() -> Any:
            nonlocal made
            made += 1
            return self.make(render=filmed and made == 1)

        with self._video(filmed) as frames:
            results = run_episodes(
                self.planner,
                make,
                [config.seed + e for e in group],
                max_steps=config.max_steps,
                deadline_s=config.deadline_s,
                foresight=first,
                frames=frames,
                on_step=bar.step,
            )
        bar.finish([result.total_reward for result in results])
        return results

    @contextmanager
    def _video(self, filmed: bool) -> Iterator[Video | None]:
        if not filmed or self.setup.video is None:
            yield None
            return
        env = self.make()
        period_s = control_period_s(env)
        env.close()
        with Video(self.setup.video, period_s) as video:
            yield video


# --- several processes ---------------------------------------------------------------------------------------------


class _Stopped(Exception):
    """The parent does not want the rest."""


class _QueueBar:
    """Sends a worker's progress to the parent, not more often than a bar is drawn, and stops when the parent does."""

    def __init__(self, queue: Any, stop: Any) -> None:
        self.queue, self.stop = queue, stop
        self.steps, self.sent = 0, time.monotonic()

    def step(self, steps: int) -> None:
        """Count environment steps."""
        if self.stop.is_set():
            raise _Stopped
        self.steps += steps
        if time.monotonic() - self.sent >= POLL_S:
            self.queue.put((self.steps, []))
            self.steps, self.sent = 0, time.monotonic()

    def finish(self, returns: list[float]) -> None:
        """Report finished episodes."""
        self.queue.put((self.steps, returns))
        self.steps = 0


_worker: tuple[_Runner, _QueueBar] | None = None
"""This process's; set once by `_start_worker` in every process of a pool."""


def _start_worker(setup: _Setup, queue: Any, stop: Any) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent alone answers it
    torch.set_num_threads(1)
    _worker = _Runner(setup), _QueueBar(queue, stop)


def _run_in_worker(group: Sequence[int]) -> list[EpisodeResult]:
    assert _worker is not None  # the pool's initializer ran
    runner, bar = _worker
    return runner.run(group, bar)


def _run_in_processes(setup: _Setup, groups: list[range], bar: EvaluationBar) -> list[EpisodeResult]:
    """Run groups wherever a process is free; return the episodes in order."""
    try:
        pickle.dumps((setup.environment, setup.objective))
    except Exception as error:  # pickle raises what the object's own code raises
        raise ConfigError(
            "with several workers the environment and the objective must be importable: a Gymnasium id, or functions "
            f"at the top of a module ({error})"
        ) from error
    context = multiprocessing.get_context("spawn")  # a forked copy of a process that runs Torch's threads may hang
    queue, stop = context.SimpleQueue(), context.Event()
    with tempfile.TemporaryDirectory() as folder:
        assert isinstance(setup.model, Checkpoint)
        path = Path(folder) / "model.safetensors"
        setup.model.save(path)
        arguments = (dataclasses.replace(setup, model=path), queue, stop)
        workers = min(setup.config.workers, len(groups))
        with ProcessPoolExecutor(workers, context, _start_worker, arguments) as pool:
            futures = [pool.submit(_run_in_worker, group) for group in groups]
            try:
                _watch(futures, queue, bar)
                return [episode for future in futures for episode in future.result()]
            except BrokenProcessPool as error:
                raise EngineError(
                    "a worker process of the evaluation died (out of memory?). A script that uses several workers must "
                    'call evaluate() under `if __name__ == "__main__":`'
                ) from error
            except BaseException:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _watch(futures: list[Future[list[EpisodeResult]]], queue: Any, bar: EvaluationBar) -> None:
    """Show progress until all are done or one has failed."""
    left = set(futures)
    while left:
        done, left = wait(left, POLL_S, FIRST_COMPLETED)
        while not queue.empty():
            steps, returns = queue.get()
            bar.step(steps)
            if returns:
                bar.finish(returns)
        for future in done:
            future.result()  # raises what the worker raised


def _normalized(names: Sequence[str], results: Sequence[EpisodeResult]) -> npt.NDArray[np.float64] | None:
    for name in names:
        try:
            return normalized_score(name, [result.total_reward for result in results])
        except DatasetNotFoundError:
            continue  # many environments have no reference scores
    return None


def _null_for_nan(number: float) -> float | None:
    return None if math.isnan(number) else number
