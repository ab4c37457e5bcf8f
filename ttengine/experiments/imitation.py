"""Imitation: plain likelihood beam search on an expert's logs, beside behaviour cloning with the same data.

No reward is looked at: the search keeps the likeliest sequences, the first action is executed, and all begins anew.

Source: Janner et al. 2021, section 4.2, "Imitation learning".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from ttengine.config import DataConfig, PlanConfig
from ttengine.data.trajectories import Trajectories
from ttengine.experiments.baselines import fit_baseline
from ttengine.experiments.ingredients import (
    BODIES,
    PAPER,
    SMALL,
    Recipe,
    collected,
    logged_episodes,
    mean_and_spread,
    planned_episodes,
    policy_episodes,
    trained,
)
from ttengine.experiments.report import Report, Table
from ttengine.experiments.run import Arm, Rows, Run
from ttengine.viz.bars import plot_bars

PLAN = PlanConfig(horizon=2, beam_width=8, objective="likelihood")


@dataclass(frozen=True)
class Config:
    """Imitate an expert by plain likelihood beam search; compare with behaviour cloning on the same logs."""

    bodies: tuple[str, ...] = ("hopper", "walker2d")
    """whose shipped expert leaves the logs"""
    transitions: int = 50_000
    """logged, a body"""
    seeds: tuple[int, ...] = (0,)
    """of training; data, environments and noise have seed 0 onwards"""
    episodes: int = 5
    """evaluated, a model"""
    workers: int = 1
    """processes that evaluate"""
    recipe: Recipe = SMALL
    binning: Literal["uniform", "quantile"] = "uniform"
    """an action is likely among uniform bins where its density is high; among quantile bins where it is high for this
    state, compared with all states"""
    plan: PlanConfig = PLAN
    cloning_steps: int = 5_000
    """of behaviour cloning's optimiser"""

    @classmethod
    def full(cls) -> Config:
        """The paper's model, more data, seeds and episodes; hours on a few cores."""
        return cls(
            transitions=300_000, seeds=(0, 1, 2), episodes=20, recipe=PAPER, cloning_steps=50_000,
            plan=PlanConfig(horizon=5, beam_width=32, objective="likelihood"),
        )  # fmt: skip


def run(run: Run, config: Config) -> Report:
    """Run the experiment and say what it found."""
    data = {body: collected(run, f"{body}-expert", config.transitions) for body in config.bodies}
    arms = []
    for body in config.bodies:
        arms.append(Arm(f"{body} demonstrator", partial(logged_episodes, data[body])))
        for seed in config.seeds:
            arms.append(Arm(f"{body} TT {seed}", partial(_imitate, run, config, body, data[body], seed)))
            arms.append(Arm(f"{body} BC {seed}", partial(_clone, config, body, data[body], seed)))
    return _report(run, config, run.measure(arms))


def _imitate(run: Run, config: Config, body: str, data: Trajectories, seed: int) -> Rows:
    model = trained(run, body, data, config.recipe, seed, DataConfig(binning=config.binning))
    return planned_episodes(model, BODIES[body], config.plan, config.episodes, 1000 * seed, config.workers)


def _clone(config: Config, body: str, data: Trajectories, seed: int) -> Rows:
    policy = fit_baseline("BC", data, config.cloning_steps, seed)
    return policy_episodes(policy, BODIES[body], config.episodes, 1000 * seed)


def _report(run: Run, config: Config, found: dict[str, Rows]) -> Report:
    rows, checks, bars = [], {}, {}
    for body in config.bodies:
        demonstrator = mean_and_spread(found[f"{body} demonstrator"])[0]
        for method, label in (("demonstrator", "demonstrator"), ("TT", "likelihood beam search"), ("BC", "cloning")):
            names = [name for name in found if name.startswith(f"{body} {method}")]
            if not names:
                continue
            episodes = [row for name in names for row in found[name]]
            mean, spread = mean_and_spread(episodes)
            share = mean / demonstrator
            seeds = "" if method == "demonstrator" else str(len(names))
            rows.append(
                [body, label, f"{mean:,.0f} +- {spread:,.0f}", f"{100 * share:.0f} %", f"{len(episodes)}", seeds]
            )
            bars[f"{body}\n{label}"] = (100 * share, 100 * spread / demonstrator)
            if method == "TT":
                checks[f"{body}: at least 95 % of the demonstrator's return"] = share >= 0.95
    plot_bars(run.out / "imitation.png", bars, title="Return as a share of the demonstrator's", unit="%", line=100)
    columns = ["body", "method", "return", "of the demonstrator's", "episodes", "seeds of training"]
    return Report(
        "Imitation",
        f"Episodes under plain likelihood beam search (H = {config.plan.horizon}, W = {config.plan.beam_width}), on "
        f"{config.transitions:,} logged transitions of each body's shipped expert; mean and standard deviation over "
        "episodes and seeds. The demonstrator's are its logged episodes.",
        [Table("Returns", columns, rows)],
        ["imitation.png"],
        checks,
    )
