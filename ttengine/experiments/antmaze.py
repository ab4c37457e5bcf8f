"""AntMaze's medium maze with a Q-function: an IQL critic as the search's heuristic, the model as it is.

With one reward at the goal, returns within the horizon are nothing, and the values that a model has learned are those
of the walks that were logged, none of which leads from the start to the goal. A critic that was trained by dynamic
programming knows better: the search for returns becomes one for rewards, then the critic's value of the plan's end.

The mazes are Gymnasium-Robotics'. The small version moves a point through the layout of AntMaze's medium maze, and none
of its logged walks leads from the start to the goal; the full one moves the ant.

Source: Janner et al. 2021, section 4.2, "TT (+Q)"; its code was never released. Kostrikov et al. 2022 for IQL.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ttengine.config import DataConfig, PlanConfig, Sampling, check_choice, check_range
from ttengine.data.files import save_dataset
from ttengine.data.load import load_dataset
from ttengine.data.trajectories import Trajectories
from ttengine.engines import Candidates
from ttengine.errors import DataError, require
from ttengine.experiments.baselines import fit_baseline, require_d3rlpy, state_values
from ttengine.experiments.ingredients import (
    PAPER,
    SMALL,
    WORTH_PROCESSES,
    Recipe,
    mean_and_spread,
    planned_episodes,
    policy_episodes,
    trained,
)
from ttengine.experiments.maze_map import FRAMES, FREE, GOAL, MINARI, REACHED_M, Frame
from ttengine.experiments.report import Report, Table
from ttengine.experiments.run import Arm, Rows, Run, cores
from ttengine.viz.bars import Bars, plot_bars
from ttengine.viz.maps import Paths, plot_paths

if TYPE_CHECKING:
    from ttengine.experiments.maze import Body

FloatArray = npt.NDArray[np.float32]

PLAN = PlanConfig(horizon=10, beam_width=32)
ANT_PLAN = PlanConfig(horizon=10, beam_width=8, discount=0.998, action=Sampling())
"""Actions are drawn as they were logged. Any sharper choice among quantile bins, which are all as likely over all
states, goes further from the usual action than the logs did, and tips the ant over; so does a choice among many beams.
The paper's discount of 0.99 looks 100 steps ahead; the way is 900 long."""
STEP_COST = 1.0
"""Taken off every reward for IQL, as its authors do in these mazes."""
ANT_DIMS = 29
"""Of an observation in the maze: x, y, then Ant-v4's 27."""
METHODS = {"return": "TT, return", "Q": "TT, IQL's critic", "IQL": "IQL's policy"}


@dataclass(frozen=True)
class Config:
    """Find the way through the medium maze, by return search, by search with a critic, and by the critic's policy."""

    body: Literal["point", "ant"] = "point"
    """what moves"""
    dataset: str | None = None
    """a file or id such as antmaze-medium-play-v2 or D4RL/antmaze/medium-play-v1, in place of collected walks; the body
    is then the ant"""
    transitions: int = 100_000
    """logged"""
    episode_steps: int = 100
    """of a logged episode; 100 are too few for the point from start to goal"""
    max_steps: int = 500
    """of an evaluated episode: about 2.5 times the way at the pace of who left the logs, for the ant 2000 (D4RL's
    have 1000)"""
    seeds: tuple[int, ...] = (0,)
    """of training; data and environments have seed 0 onwards"""
    episodes: int = 20
    """evaluated, a seed and method"""
    workers: int = 1
    """processes that evaluate"""
    recipe: Recipe = SMALL
    plan: PlanConfig = PLAN
    critic_steps: int = 30_000
    """of IQL's optimiser"""
    critic_n_step: int = 1
    """rewards that IQL's target sums up before it trusts the values; they spread so many times as fast"""
    heuristic: Literal["Q", "V"] = "Q"
    """what the critic says of a plan's end: Q of its last action, or V of its last observation, which the search cannot
    drive up by odd actions"""
    expectile: float = 0.9
    """of IQL; the authors' for mazes"""
    temperature: float = 10.0
    """inverse, of IQL's policy; the authors' for mazes"""

    AFTERWARDS: ClassVar[tuple[str, ...]] = ("max_steps", "seeds", "episodes", "workers", "plan", "heuristic")
    """settings that neither data nor models depend on"""

    def __post_init__(self) -> None:
        check_choice(self, "body", ("point", "ant"))
        check_choice(self, "heuristic", ("Q", "V"))
        check_range(self, "critic_n_step", 1, 1000)

    @classmethod
    def full(cls) -> Config:
        """The ant, more data, seeds and episodes, the paper's model; many hours on a few cores."""
        return cls(
            body="ant", transitions=1_000_000, episode_steps=500, max_steps=2000, seeds=(0, 1, 2), episodes=100,
            recipe=PAPER, critic_steps=300_000, critic_n_step=10, heuristic="V", plan=ANT_PLAN,
        )  # fmt: skip


class Critic:
    """Scores candidates by their discounted rewards up to the last action, plus what a critic says of the end.

    Every reward is lowered by STEP_COST, as it was for the critic; after a planned goal nothing is added any more.

    Args:
        worth: the last observations [n, N] and actions [n, M] -> values [n], environment units.
        discount: of the search.
    """

    def __init__(self, worth: Callable[[FloatArray, FloatArray], FloatArray], discount: float) -> None:
        self.worth, self.discount = worth, discount

    def __call__(self, candidates: Candidates) -> Tensor:
        """Return [B, C] scores."""
        last = [each[:, :, -1].flatten(0, 1).numpy() for each in (candidates.observations, candidates.actions)]
        value = torch.from_numpy(np.asarray(self.worth(*last), np.float32))
        before = candidates.rewards[..., :-1].clamp(0.0, 1.0)  # expected rewards: chances of the goal
        under_way = torch.cat([torch.ones_like(candidates.rewards[..., :1]), (1.0 - before).cumprod(dim=-1)], dim=-1)
        weight = under_way * self.discount ** torch.arange(candidates.rounds)
        gained = (weight[..., :-1] * (before - STEP_COST)).sum(dim=-1)
        return gained + weight[..., -1] * value.view_as(gained)


def run(run: Run, config: Config) -> Report:
    """Run the experiment and say what it found."""
    require("gymnasium_robotics", "maze")
    require_d3rlpy()
    from ttengine.experiments.maze import Maze

    body: Body = config.body if config.dataset is None else "ant"
    data, frame = _load(config.dataset) if config.dataset else (_collected(run, config), FRAMES[body])
    arms = []
    for seed in config.seeds:
        critic = _Once(partial(_critic, run, config, data, seed))
        mazes = {
            method: partial(Maze, body, config.max_steps, paths=run.out / "paths" / f"{method} {seed}", frame=frame)
            for method in METHODS
        }
        arms += [
            Arm(f"return {seed}", partial(_search, run, config, mazes["return"], data, seed, None)),
            Arm(f"IQL {seed}", partial(_policy, config, mazes["IQL"], critic, seed), group=f"critic {seed}"),
            Arm(f"Q {seed}", partial(_search, run, config, mazes["Q"], data, seed, critic), group=f"critic {seed}"),
        ]
    return _report(run, config, data, frame, run.measure(arms))


class _Once:
    """Makes something when it is first asked for."""

    def __init__(self, make: Any) -> None:
        self.make, self.made = make, None

    def __call__(self) -> Any:
        self.made = self.made or self.make()
        return self.made


def _collected(run: Run, config: Config) -> Trajectories:
    """Return walks, logged once for a run."""
    from ttengine.experiments.maze_walks import wander

    path = run.out / "data" / f"{config.body}.npz"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        processes = cores() if config.transitions >= WORTH_PROCESSES else 1
        save_dataset(wander(config.body, config.transitions, config.episode_steps, 0, processes), path)
    return load_dataset(path)


def _load(dataset: str) -> tuple[Trajectories, Frame]:
    """Read a user's data, see that they are of this maze and this ant, and where its cells lie.

    Raises:
        DataError: another environment, other dims, positions in walls, or no reward at all.
    """
    data = load_dataset(dataset)
    env_id = str(data.metadata.get("env_id", ""))
    minaris = "minari_version" in data.metadata  # D4RL's ids lead to the same environment
    if env_id.startswith("AntMaze") and not env_id.startswith("AntMaze_Medium"):
        raise DataError(f"{dataset} is of {env_id}, the experiment's maze is AntMaze_Medium")
    if minaris and data.observation_dim > ANT_DIMS:  # a later Ant observes contact forces too
        data = dataclasses.replace(data, observations=data.observations[:, :ANT_DIMS])
    if (data.observation_dim, data.action_dim) != (ANT_DIMS, 8):
        raise DataError(
            f"{dataset} has {data.observation_dim} observation and {data.action_dim} action dims; the ant in the maze "
            f"has {ANT_DIMS} (x, y, then Ant-v4's 27) and 8"
        )
    frame = MINARI if minaris else FRAMES["ant"]
    some = data.observations[:: max(1, len(data) // 10_000), :2] + frame.zero
    outside = float(np.mean([frame.cell_of(position) not in FREE for position in some]))
    if outside > 0.05:
        raise DataError(f"{dataset}: {100 * outside:.0f} % of its positions lie in walls of the medium maze")
    if minaris:
        data = _rewarded_at(data, frame.middle(GOAL) - frame.zero)
    if not (data.rewards > 0).any():
        raise DataError(f"{dataset} has no reward above 0: it never comes by the goal")
    return data, frame


def _rewarded_at(data: Trajectories, goal: npt.NDArray[np.float64]) -> Trajectories:
    """Return data that are rewarded for coming by a goal, [2] as observed, which ends an episode.

    Minari's rewards are for a goal of each episode's own, and its episodes go on there. What follows on the goal begins
    another episode.
    """
    there = np.linalg.norm(data.observations[:, :2] - goal, axis=1) <= REACHED_M
    ends = data.terminals | data.timeouts
    comes = np.append(there[1:] & ~ends[:-1], False)
    kept = {"rewards": comes.astype(np.float32), "terminals": comes, "timeouts": ends & ~comes}
    kept |= {"observations": data.observations, "actions": data.actions}
    return dataclasses.replace(data, **{name: array[~there] for name, array in kept.items()})


def _critic(run: Run, config: Config, data: Trajectories, seed: int) -> Any:
    # without layer norms the ant's values, none of which can be above 0, grew to 480; tau: they spread twice as fast
    settings: dict[str, Any] = {"layer_norm": True, "n_step": config.critic_n_step, "tau": 0.01}
    settings |= {"expectile": config.expectile, "weight_temp": config.temperature, "gamma": config.plan.discount}
    costly = dataclasses.replace(data, rewards=data.rewards - np.float32(STEP_COST))
    kept = run.out / "models" / f"critic-seed{seed}.safetensors"
    return fit_baseline("IQL", costly, config.critic_steps, seed, kept, **settings)


def _worth(learner: Any, heuristic: str) -> Callable[[FloatArray, FloatArray], FloatArray]:
    """Return what says how good it is to end in observations [n, N] with actions [n, M]: [n]."""
    if heuristic == "Q":
        return learner.predict_value  # type: ignore[no-any-return]
    return lambda observations, _: state_values(learner, observations)


def _policy(config: Config, maze: Callable[[], Any], critic: _Once, seed: int) -> Rows:
    return policy_episodes(critic(), maze, config.episodes, 1000 * seed)


def _search(
    run: Run, config: Config, maze: Callable[[], Any], data: Trajectories, seed: int, critic: _Once | None
) -> Rows:
    longest = int(data.episode_lengths.max())
    model = trained(
        run, "maze", data, config.recipe, seed, DataConfig(terminal_penalty=None, max_episode_steps=longest)
    )
    objective = None if critic is None else Critic(_worth(critic().learner, config.heuristic), config.plan.discount)
    return planned_episodes(
        model, maze, config.plan, config.episodes, 1000 * seed, config.workers, objective, config.max_steps
    )


def _draw(run: Run, data: Trajectories, frame: Frame) -> None:
    """Draw what was logged and the way of every method's episodes over the map."""
    from ttengine.experiments.maze import reached

    origin = frame.zero.astype(np.float32)
    logs = [data.observations[rows, :2] + origin for rows in list(data.episodes())[:100]]
    panels = {f"{len(logs)} of {data.n_episodes:,} logged": Paths(logs)}
    for method, label in METHODS.items():
        files = sorted((run.out / "paths").glob(f"{method} */*.npy"))
        ways = [np.load(file, allow_pickle=False) for file in files]
        if ways:
            panels[label] = Paths([way + origin for way in ways], [reached(way, frame) for way in ways])
    plot_paths(run.out / "paths.png", panels, frame.walls(), title="Ways from the start; coloured: reached")


def _report(run: Run, config: Config, data: Trajectories, frame: Frame, found: dict[str, Rows]) -> Report:
    rows, bars, rates = [], {}, {}
    for method, label in METHODS.items():
        names = [name for name in found if name.startswith(f"{method} ")]
        if not names:
            continue
        episodes = [row for name in names for row in found[name]]
        rates[method] = 100 * mean_and_spread(episodes)[0]
        each = [100 * mean_and_spread(found[name])[0] for name in names]
        steps = [float(row["length"]) for row in episodes if row["return"]]
        rows.append([
            label, f"{rates[method]:.0f} %", ", ".join(f"{rate:.0f}" for rate in each), f"{len(episodes)}",
            f"{np.mean(steps):.0f}" if steps else "",
        ])  # fmt: skip
        bars[label] = (rates[method], float(np.std(each)))
    checks = {}
    if rates.keys() == METHODS.keys():
        checks["with the critic at least 20 points above return search"] = rates["Q"] >= rates["return"] + 20
        checks["with the critic above IQL's policy"] = rates["Q"] > rates["IQL"]
    body: Body = config.body if config.dataset is None else "ant"
    plot_bars(run.out / "antmaze.png", Bars(bars, f"Medium maze, {body}: episodes that reach the goal", "%"))
    _draw(run, data, frame)
    facts = "".join(
        f"; {data.metadata[key]} {what}"
        for key, what in (("targets_reached", "targets reached"), ("tipped", "end with the ant on its back"))
        if data.metadata.get(key)
    )
    return Report(
        f"AntMaze's medium maze, {body}",
        f"{config.dataset or 'Collected'}: {len(data):,} logged transitions in {data.n_episodes:,} episodes of at most "
        f"{data.episode_lengths.max()} steps; {int(data.terminals.sum())} end at the goal{facts}. "
        f"H = {config.plan.horizon}, W = {config.plan.beam_width}; of the critic, {config.heuristic} counts. "
        f"An evaluated episode has {config.max_steps} steps; the spread is over seeds of training.",
        [Table("Success", ["method", "success", "by seed", "episodes", "mean steps"], rows)],
        ["antmaze.png", "paths.png"],
        checks,
    )
