"""Collect trajectories: roll a mixture of policies out in an environment, over several processes, reproducibly.

Every episode has its own seed, fixed by the collection's seed, its policy and its number, and the finished set is laid
out policy by policy in that order. So the data are the same, byte for byte, for any number of processes. (The exception
is a script that keeps state of its own between calls.)
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import multiprocessing
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ttengine.config import check_range
from ttengine.data.policies import Array
from ttengine.data.policy_spec import PolicySpec, load_policy
from ttengine.data.rollout import Episode, Noise, action_bounds, roll_out
from ttengine.data.schedule import Part, first_seed, split_collection
from ttengine.data.trajectories import Trajectories
from ttengine.errors import ConfigError, DataError

SHARE_TOLERANCE = 1e-6
"""Shares that are given must sum to 1 up to this."""


@dataclass(frozen=True)
class CollectConfig:
    """One collection. Exactly one of `transitions` and `episodes` sets its size."""

    env_id: str
    """Gymnasium environment id, such as HalfCheetah-v4"""
    policies: tuple[str, ...] = ("random",)
    """what acts, each `policy[,share=0.5][,deterministic=true][,normalizer=file][,activation=relu]`, where policy is
    random, hopper/medium, model.zip, actor.npz, path.py:callable or module:callable"""
    transitions: int | None = None
    """transitions to collect; shares count transitions, and each policy's last episode is cut to fit (a time-out)"""
    episodes: int | None = None
    """whole episodes to collect; shares count episodes"""
    action_noise: float = 0.0
    """standard deviation of Gaussian noise added to every action, as a share of half the action range"""
    epsilon: float = 0.0
    """share of actions replaced by uniform ones"""
    max_episode_steps: int | None = None
    """end episodes, by a time-out, after so many transitions, if the environment does not end them sooner"""
    processes: int = 1
    """processes that roll out; the data do not depend on it"""
    seed: int = 0
    """equal seeds give equal data"""
    name: str | None = None
    """name of the dataset; None: the environment's id and `-tt`"""

    def __post_init__(self) -> None:
        if (self.transitions is None) == (self.episodes is None):
            raise ConfigError(
                f"transitions is {self.transitions} and episodes is {self.episodes}; exactly one of them sets the size"
            )
        if self.transitions is not None:
            check_range(self, "transitions", 2, 10**10)
        if self.episodes is not None:
            check_range(self, "episodes", 1, 10**9)
        check_range(self, "action_noise", 0.0, 100.0)
        check_range(self, "epsilon", 0.0, 1.0)
        if self.max_episode_steps is not None:
            check_range(self, "max_episode_steps", 1, 10**9)
        check_range(self, "processes", 1, 1024)
        check_range(self, "seed", 0, 2**63 - 1)
        self.mixture()  # raises where a policy or the shares make no sense

    def mixture(self) -> tuple[PolicySpec, ...]:
        """Return the policies, their shares summing to 1.

        Raises:
            ConfigError: no policy; or shares are given and do not sum to 1. When none is given, all get the same.
        """
        specs = tuple(PolicySpec.parse(text) for text in self.policies)
        if not specs:
            raise ConfigError("policies is empty; name at least one, such as random")
        if all(spec.share == 1.0 for spec in specs):
            return tuple(dataclasses.replace(spec, share=1.0 / len(specs)) for spec in specs)
        total = sum(spec.share for spec in specs)
        if abs(total - 1.0) > SHARE_TOLERANCE:
            listed = ", ".join(f"{spec.policy} {spec.share:g}" for spec in specs)
            raise ConfigError(f"the shares sum to {total:g}, not 1: {listed}")
        return specs


def collect(config: CollectConfig, *, progress: bool = True) -> Trajectories:
    """Roll the mixture out and return what was logged.

    Args:
        config: what to collect.
        progress: show a progress bar on the console.
    Returns:
        Trajectories; `metadata` records, as JSON types, what made each episode: its policy, seed, length and return,
        and the policies with their training steps and file hashes, the noise and the versions.
    Raises:
        EnvironmentNotFoundError: the environment id is unknown.
        ConfigError, CheckpointError, ShapeError: a policy cannot be loaded or does not fit the environment.
        NonFiniteError: a policy or the environment gave NaN or infinity; the message names the step.
        DataError: a worker process died.
    """
    return _collect(config, progress)[0]


def _collect(config: CollectConfig, progress: bool) -> tuple[Trajectories, Array]:
    """Return the trajectories, and [episodes, N] what was seen after each episode's last action."""
    worker = _Worker(config)
    worker.check(config)
    total = config.transitions or config.episodes or 0
    shares = [spec.share for spec in config.mixture()]
    parts = split_collection(shares, total, config.episodes is not None, config.max_episode_steps, config.seed)
    bar = _Bar(total, config) if progress else nullcontext()
    executor: Any = _Inline(worker)
    if config.processes > 1:
        worker.env.close()
        # spawn: a forked copy of a process that runs Torch's threads or holds a rendering context may hang
        context = multiprocessing.get_context("spawn")
        executor = ProcessPoolExecutor(config.processes, context, _start_worker, (config,))
    with bar as shown, executor:
        try:
            _run(executor, parts, config.processes, shown)
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process of the collection died (out of memory?). A script that calls collect() with several "
                'processes must do so under `if __name__ == "__main__":`'
            ) from error
        except BaseException:
            executor.shutdown(wait=True, cancel_futures=True)  # do not finish what nobody will see
            raise
    made = [(part.policy, episode) for part in parts for episode in part.episodes()]
    finals = np.stack([episode.final_observation for _, episode in made])
    return _join(config, made, worker.facts), finals


def collect_to(
    config: CollectConfig,
    path: Path | None = None,
    minari_id: str | None = None,
    *,
    overwrite: bool = False,
    progress: bool = True,
) -> Trajectories:
    """Collect, and write D4RL-layout HDF5 (or .npz, by the suffix), a Minari dataset, or both.

    Args:
        config: what to collect.
        path: the file; it appears whole or not at all.
        minari_id: such as `halfcheetah/mixed-v0`, written under Minari's dataset folder.
        overwrite: replace the file if it is there. A Minari dataset is never replaced.
        progress: show a progress bar.
    Raises:
        ConfigError: nowhere to write, or the file exists and `overwrite` is False.
        DataError: the Minari id is malformed or taken.
        All that `collect` raises; everything that can be is checked before anything is rolled out.
    """
    from ttengine.data.files import SUFFIXES, save_dataset
    from ttengine.data.minari_source import check_new_dataset, save_minari

    if path is None and minari_id is None:
        raise ConfigError("nowhere to write: give a path, a Minari id, or both")
    if path is not None and path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path} ends in {path.suffix or 'nothing'}, allowed are {', '.join(SUFFIXES)}")
    if path is not None and path.exists() and not overwrite:
        raise ConfigError(f"{path} exists; choose another name, or overwrite it (overwrite=True, --overwrite)")
    if minari_id is not None:
        check_new_dataset(minari_id)
    trajectories, final_observations = _collect(config, progress)
    if path is not None:
        save_dataset(trajectories, path)
    if minari_id is not None:
        save_minari(trajectories, minari_id, config.env_id, final_observations)
    return trajectories


# --- one worker ----------------------------------------------------------------------------------------------------


class _Worker:
    """An environment and the mixture's policies, in one process."""

    def __init__(self, config: CollectConfig) -> None:
        from ttengine.environments import make_environment

        self.env = make_environment(config.env_id)
        dims = action_bounds(self.env)
        specs = config.mixture()
        self.policies, self.facts = zip(*(load_policy(spec, *dims) for spec in specs), strict=True)
        self.noises = [Noise(config.action_noise, config.epsilon, spec.deterministic) for spec in specs]
        if (config.action_noise or config.epsilon) and not np.isfinite(dims[1:]).all():
            raise ConfigError(f"{config.env_id} has unbounded actions; action_noise and epsilon need bounded ones")

    def check(self, config: CollectConfig) -> None:
        """Take one step with every policy, so that mistakes show before any work is done."""
        if config.episodes is not None and _time_limit(self.env, config) is None:
            raise ConfigError(f"{config.env_id} has no time limit; give max_episode_steps, or transitions not episodes")
        for policy in range(len(self.policies)):
            self.run(policy, first_seed(config.seed), limit=1)

    def run(self, policy: int, seed: int, limit: int) -> Episode:
        """Roll one episode out."""
        return roll_out(self.env, self.policies[policy], self.noises[policy], seed, limit)


_worker: _Worker | None = None
"""This process's worker; set once by `_start_worker` in every process of a pool."""


def _start_worker(config: CollectConfig) -> None:
    global _worker
    _worker = _Worker(config)


def _run_in_worker(policy: int, seed: int, limit: int) -> Episode:
    assert _worker is not None  # the pool's initializer ran
    return _worker.run(policy, seed, limit)


class _Inline(AbstractContextManager["_Inline"]):
    """The executor of one process: runs each call at once, here."""

    def __init__(self, worker: _Worker) -> None:
        self.worker = worker

    def submit(self, _: Any, policy: int, seed: int, limit: int) -> Future[Episode]:
        """Run the episode and return it as a finished future."""
        future: Future[Episode] = Future()
        future.set_result(self.worker.run(policy, seed, limit))
        return future

    def shutdown(self, **_: bool) -> None:
        """Do nothing: nothing is under way."""

    def __exit__(self, *_: object) -> None:
        self.worker.env.close()


def _time_limit(env: Any, config: CollectConfig) -> int | None:
    limits = [config.max_episode_steps, env.spec.max_episode_steps if env.spec is not None else None]
    return min((limit for limit in limits if limit is not None), default=None)


def _run(executor: Any, parts: list[Part], processes: int, bar: _Bar | None) -> None:
    """Keep the executor busy until every part's budget is filled."""
    slots = 1 if processes == 1 else 2 * processes  # a second episode waits for each process, so that none idles
    under_way: dict[Future[Episode], tuple[Part, int]] = {}
    while True:
        for part in parts:
            while len(under_way) < slots and part.wants_more():
                seed = part.seeds[0] + part.submitted * part.seeds[1]
                future = executor.submit(_run_in_worker, part.policy, seed, part.limit)
                under_way[future] = part, part.submitted
                part.submitted += 1
        if not under_way:
            return
        for future in wait(under_way, return_when=FIRST_COMPLETED).done:
            part, number = under_way.pop(future)
            part.finish(number, future.result())
        if bar is not None:
            bar.show(sum(min(part.covered, part.budget) for part in parts), sum(len(part.finished) for part in parts))


# --- the set -------------------------------------------------------------------------------------------------------


def _join(config: CollectConfig, made: list[tuple[int, Episode]], facts: tuple[dict[str, Any], ...]) -> Trajectories:
    """Lay the episodes, each with the index of its policy, end to end and record what made them."""
    episodes = [episode for _, episode in made]
    ends = np.cumsum([len(episode) for episode in episodes]) - 1
    terminals = np.zeros(ends[-1] + 1, np.bool_)
    timeouts = np.zeros(ends[-1] + 1, np.bool_)
    terminals[ends] = [episode.terminated for episode in episodes]
    timeouts[ends] = [not episode.terminated for episode in episodes]
    settings = dataclasses.asdict(config) | {"policies": list(config.policies)}
    del settings["processes"]  # the data do not depend on it
    specs = config.mixture()
    metadata = {
        "made_by": "ttengine collect",
        "env_id": config.env_id,
        "config": settings,
        "policies": [
            {"policy": str(spec), "share": spec.share} | fact for spec, fact in zip(specs, facts, strict=True)
        ],
        "episodes": {  # columns, not rows: a set may have tens of thousands
            "policy": [policy for policy, _ in made],
            "seed": [episode.seed for episode in episodes],
            "length": [len(episode) for episode in episodes],
            "return": [round(float(episode.rewards.sum(dtype=np.float64)), 3) for episode in episodes],
        },
        "versions": _versions(),
    }
    return Trajectories(
        np.concatenate([episode.observations for episode in episodes]),
        np.concatenate([episode.actions for episode in episodes]),
        np.concatenate([episode.rewards for episode in episodes]),
        terminals,
        timeouts,
        name=config.name or f"{config.env_id.lower()}-tt",
        metadata=metadata,
    )


def _versions() -> dict[str, str]:
    versions = {}
    for package in ("gymnasium", "mujoco", "numpy", "ttengine"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # mujoco is not needed for every environment
    return versions


class _Bar(AbstractContextManager["_Bar"]):
    """A progress bar: transitions (or episodes), episodes a second, time left."""

    def __init__(self, total: int, config: CollectConfig) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        unit = "episodes" if config.episodes is not None else "transitions"
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(f"{unit}, {{task.fields[rate]}} left"),
            TimeRemainingColumn(),
        )
        self.task = self.progress.add_task(f"collect {config.name or config.env_id}", total=total, rate="")

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, done: int, episodes: int) -> None:
        """Update the bar. Args: transitions or episodes done; episodes rolled out."""
        elapsed = self.progress.tasks[0].elapsed or 1e-9
        self.progress.update(self.task, completed=done, rate=f"{episodes / elapsed:.1f} episodes/s,")
