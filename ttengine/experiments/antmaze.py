"""AntMaze's medium maze with a Q-function: an IQL critic as the search's heuristic, the model as it is.

With one reward at the goal, returns within the horizon are nothing, and the values that a model has learned are those
of the walks that were logged, none of which leads from the start to the goal. A critic that was trained by dynamic
programming knows better: the search for returns becomes one for rewards, then the critic's value of the last action.

This is the version for small machines: the maze is AntMaze's, the body a ball. The ant itself needs
Gymnasium-Robotics and days of training, and is not part of this yet.

Source: Janner et al. 2021, section 4.2, "TT (+Q)"; its code was never released. Kostrikov et al. 2022 for IQL.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ttengine.config import DataConfig, PlanConfig
from ttengine.data.trajectories import Trajectories
from ttengine.engines import Candidates
from ttengine.errors import require
from ttengine.experiments.baselines import fit_baseline, require_d3rlpy
from ttengine.experiments.ingredients import (
    PAPER,
    SMALL,
    Recipe,
    mean_and_spread,
    planned_episodes,
    policy_episodes,
    trained,
)
from ttengine.experiments.report import Report, Table
from ttengine.experiments.run import Arm, Rows, Run
from ttengine.viz.bars import plot_bars

PLAN = PlanConfig(horizon=10, beam_width=32)
METHODS = {"return": "TT, return", "Q": "TT, IQL's Q", "IQL": "IQL's policy"}


@dataclass(frozen=True)
class Config:
    """Find the way through the medium maze, by return search, by search with a critic, and by the critic's policy."""

    transitions: int = 100_000
    """logged"""
    episode_steps: int = 30
    """of a logged episode: too few from start to goal"""
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
    expectile: float = 0.9
    """of IQL; the authors' for mazes"""
    temperature: float = 10.0
    """inverse, of IQL's policy; the authors' for mazes"""

    @classmethod
    def full(cls) -> Config:
        """More data, seeds and episodes, the paper's model; hours on a few cores."""
        return cls(transitions=1_000_000, seeds=(0, 1, 2), episodes=100, recipe=PAPER, critic_steps=300_000)


class Critic:
    """Scores candidates by their discounted rewards up to the last action, plus the critic's value of that action."""

    def __init__(self, learner: Any, discount: float) -> None:
        self.learner, self.discount = learner, discount

    def __call__(self, candidates: Candidates) -> Tensor:
        """Return [B, C] scores."""
        powers = self.discount ** torch.arange(candidates.rounds)
        gained = (candidates.rewards[..., :-1] * powers[:-1]).sum(dim=-1)
        last = [each[:, :, -1].flatten(0, 1).numpy() for each in (candidates.observations, candidates.actions)]
        value = torch.from_numpy(np.asarray(self.learner.predict_value(*last), np.float32))
        return gained + powers[-1] * value.view_as(gained)


def run(run: Run, config: Config) -> Report:
    """Run the experiment and say what it found."""
    require_d3rlpy()
    require("mujoco", "mujoco")
    from ttengine.experiments.maze import Maze, wander

    data = wander(config.transitions, config.episode_steps, seed=0)
    arms = []
    for seed in config.seeds:
        critic = _Once(partial(_critic, config, data, seed))
        arms += [
            Arm(f"return {seed}", partial(_search, run, config, Maze, data, seed, None)),
            Arm(f"Q {seed}", partial(_search, run, config, Maze, data, seed, critic)),
            Arm(f"IQL {seed}", partial(_policy, config, Maze, critic, seed)),
        ]
    return _report(run, config, data, run.measure(arms))


class _Once:
    """Makes something when it is first asked for."""

    def __init__(self, make: Any) -> None:
        self.make, self.made = make, None

    def __call__(self) -> Any:
        self.made = self.made or self.make()
        return self.made


def _critic(config: Config, data: Trajectories, seed: int) -> Any:
    settings = {"expectile": config.expectile, "weight_temp": config.temperature}
    return fit_baseline("IQL", data, config.critic_steps, seed, **settings)


def _policy(config: Config, maze: Any, critic: _Once, seed: int) -> Rows:
    return policy_episodes(critic(), maze, config.episodes, 1000 * seed)


def _search(run: Run, config: Config, maze: Any, data: Trajectories, seed: int, critic: _Once | None) -> Rows:
    model = trained(
        run,
        "maze",
        data,
        config.recipe,
        seed,
        DataConfig(terminal_penalty=None, max_episode_steps=config.episode_steps),
    )
    objective = None if critic is None else Critic(critic().learner, config.plan.discount)
    return planned_episodes(
        model, maze, config.plan, config.episodes, 1000 * seed, config.workers, objective, maze().max_steps
    )


def _report(run: Run, config: Config, data: Trajectories, found: dict[str, Rows]) -> Report:
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
    plot_bars(run.out / "antmaze.png", bars, title="Medium maze, ball: episodes that reach the goal", unit="%")
    logged = data.episode_returns
    return Report(
        "AntMaze's medium maze, with a ball",
        f"{len(data):,} logged transitions in {len(logged):,} episodes of at most {config.episode_steps} steps; "
        f"{int(logged.sum())} come by the goal, none leads there from the start. H = {config.plan.horizon}, "
        f"W = {config.plan.beam_width}. An episode has 300 steps; the spread is over seeds of training.",
        [Table("Success", ["method", "success", "by seed", "episodes", "mean steps"], rows)],
        ["antmaze.png"],
        checks,
    )
