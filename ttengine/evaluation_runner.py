"""The processes of an evaluation: each runs groups of episodes, one process here or several beside it."""

from __future__ import annotations

import dataclasses
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

import torch

from ttengine.checkpoint import Checkpoint
from ttengine.closed_loop import EpisodeResult, check_environment, run_episodes
from ttengine.config import PlanConfig, check_range
from ttengine.environments import adapt, control_period_s, make_environment
from ttengine.errors import ConfigError, EngineError
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
    """processes; with more than one, each computes with one thread, unless the plan's `threads` says otherwise"""
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


# --- one process ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Setup:
    """What a process needs to run episodes."""

    model: Checkpoint | Path
    environment: Environment
    plan: PlanConfig | None
    config: EvaluateConfig
    objective: Objective | None
    video: Path | None


class Runner:
    """Runs groups of episodes in this process."""

    def __init__(self, setup: Setup) -> None:
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
    """The parent does not want the rest, or is gone."""


class _QueueBar:
    """Sends a worker's progress to the parent, not more often than a bar is drawn, and stops when the parent does."""

    def __init__(self, queue: Any, stop: Any) -> None:
        self.queue, self.stop = queue, stop
        self.steps, self.sent = 0, time.monotonic()

    def step(self, steps: int) -> None:
        """Count environment steps."""
        self.steps += steps
        if time.monotonic() - self.sent >= POLL_S:
            parent = multiprocessing.parent_process()
            if self.stop.is_set() or (parent is not None and not parent.is_alive()):
                raise _Stopped
            self.queue.put((self.steps, []))
            self.steps, self.sent = 0, time.monotonic()

    def finish(self, returns: list[float]) -> None:
        """Report finished episodes."""
        self.queue.put((self.steps, returns))
        self.steps = 0


_worker: tuple[Runner, _QueueBar] | None = None
"""This process's; set once by `_start_worker` in every process of a pool."""


def _start_worker(setup: Setup, queue: Any, stop: Any) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent alone answers it
    torch.set_num_threads(1)
    _worker = Runner(setup), _QueueBar(queue, stop)


def _run_in_worker(group: Sequence[int]) -> list[EpisodeResult]:
    assert _worker is not None  # the pool's initializer ran
    runner, bar = _worker
    return runner.run(group, bar)


def run_in_processes(setup: Setup, groups: list[range], bar: EvaluationBar) -> list[EpisodeResult]:
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
