"""Imitation: plain likelihood beam search on an expert's logs, beside behaviour cloning with the same data.

No reward is looked at: the search keeps the likeliest sequences of tokens, whatever the tokens, the first action is
executed, and all begins anew.

Source: Janner et al. 2021, section 4.2, "Imitation learning".
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from ttengine.config import LIKELIHOOD, DataConfig, PlanConfig
from ttengine.data.collect import CollectConfig
from ttengine.errors import ConfigError
from ttengine.experiments.baselines import fit_baseline, require_d3rlpy
from ttengine.experiments.ingredients import (
    BODIES,
    PAPER,
    SMALL,
    Recipe,
    arms_of,
    collected,
    logged_episodes,
    mean_and_spread,
    planned_episodes,
    policy_episodes,
    trained,
)
from ttengine.experiments.report import Report, Table
from ttengine.experiments.run import Arm, Rows, Run
from ttengine.experiments.sources import Source, check_unique, dataset_name, sources
from ttengine.viz.bars import Bars, plot_bars

RECIPE = dataclasses.replace(SMALL, steps=20_000)
PLAN = dataclasses.replace(LIKELIHOOD, horizon=2, beam_width=8)


@dataclass(frozen=True)
class Config:
    """Imitate an expert by plain likelihood beam search; compare with behaviour cloning on the same logs."""

    bodies: tuple[str, ...] = ("hopper", "walker2d")
    """whose shipped expert leaves the logs"""
    datasets: tuple[str, ...] = ()
    """demonstrations of your own besides: recipes, D4RL ids, Minari ids or files"""
    environment: str | None = None
    """of datasets that do not say theirs"""
    demonstrator: str = "expert,deterministic=true"
    """policy of each body that leaves the logs: its mean actions, for the likeliest bin of a clipped Gaussian is a
    bound, wherever its mean is"""
    action_noise: float = 0.05
    """of the demonstrator, a share of half the action range: without any, the logs hold no recovery from mistakes"""
    transitions: int = 500_000
    """logged, a body: of 100,000 hopper's model overfits, and acts far worse"""
    seeds: tuple[int, ...] = (0,)
    """of training; data, environments and noise have seed 0 onwards"""
    episodes: int = 10
    """evaluated, a model"""
    workers: int = 1
    """processes that evaluate"""
    recipe: Recipe = RECIPE
    binning: Literal["uniform", "quantile"] = "uniform"
    """an action is likely among uniform bins where its density is high; among quantile bins where it is high for this
    state, compared with all states"""
    plan: PlanConfig = PLAN
    cloning_steps: int = 5_000
    """of behaviour cloning's optimiser; 0: no cloning"""

    AFTERWARDS: ClassVar[tuple[str, ...]] = (
        "bodies", "datasets", "seeds", "episodes", "workers", "plan", "cloning_steps",
    )  # fmt: skip
    """settings that neither data nor models depend on"""

    def __post_init__(self) -> None:
        unknown = [body for body in self.bodies if body not in BODIES]
        if unknown:
            raise ConfigError(f"bodies: {', '.join(unknown)} unknown; there are {', '.join(BODIES)}")
        check_unique([*self.bodies, *map(dataset_name, self.datasets)])

    @classmethod
    def full(cls) -> Config:
        """The paper's model, more data, seeds and episodes; hours on a few cores."""
        return cls(
            transitions=1_000_000, seeds=(0, 1, 2), episodes=20, recipe=PAPER, cloning_steps=50_000,
            plan=dataclasses.replace(LIKELIHOOD, horizon=5, beam_width=32),
        )  # fmt: skip


def run(run: Run, config: Config) -> Report:
    """Run the experiment and say what it found."""
    if config.cloning_steps:
        require_d3rlpy()
    given = sources(run, config.datasets, config.transitions, config.environment) if config.datasets else []
    shown = [_demonstrations(run, config, body) for body in config.bodies] + given
    arms = []
    for source in shown:
        arms.append(Arm(f"{source.name} demonstrator", partial(logged_episodes, source.trajectories), quick=True))
        for seed in config.seeds:
            arms.append(Arm(f"{source.name} TT {seed}", partial(_imitate, run, config, source, seed)))
            if config.cloning_steps:
                arms.append(Arm(f"{source.name} BC {seed}", partial(_clone, config, source, seed)))
    return _report(run, config, run.measure(arms))


def _demonstrations(run: Run, config: Config, body: str) -> Source:
    made = CollectConfig(
        BODIES[body], (f"{body}/{config.demonstrator}",), config.transitions, action_noise=config.action_noise,
        name=f"{body}-demonstrator-tt",
    )  # fmt: skip
    return Source(body, collected(run, f"{body}-demonstrator", made), BODIES[body])


def _imitate(run: Run, config: Config, source: Source, seed: int) -> Rows:
    bins = DataConfig(binning=config.binning)
    model = trained(run, source.name, source.trajectories, config.recipe, seed, bins)
    return planned_episodes(model, source.env_id, config.plan, config.episodes, 1000 * seed, config.workers)


def _clone(config: Config, source: Source, seed: int) -> Rows:
    policy = fit_baseline("BC", source.trajectories, config.cloning_steps, seed)
    return policy_episodes(policy, source.env_id, config.episodes, 1000 * seed, source.observation_columns)


def _report(run: Run, config: Config, found: dict[str, Rows]) -> Report:
    rows, checks, bars = [], {}, {}
    for name in [*config.bodies, *map(dataset_name, config.datasets)]:
        logged = found.get(f"{name} demonstrator")
        demonstrator = mean_and_spread(logged)[0] if logged else None
        for method, label in (("demonstrator", "demonstrator"), ("TT", "likelihood beam search"), ("BC", "cloning")):
            names = arms_of(found, f"{name} {method}", () if method == "demonstrator" else config.seeds)
            if not names:
                continue
            episodes = [row for each in names for row in found[each]]
            mean, spread = mean_and_spread(episodes)
            seeds = "" if method == "demonstrator" else str(len(names))
            share = mean / demonstrator if demonstrator is not None and demonstrator > 0 else None
            shown = f"{100 * share:.0f} %" if share is not None else ""
            rows.append([name, label, f"{mean:,.0f} +- {spread:,.0f}", shown, f"{len(episodes)}", seeds])
            if share is None or demonstrator is None:
                continue  # its row has the return; a share of nothing, or of a negative return, says nothing
            bars[f"{name}\n{label}"] = (100 * share, 100 * spread / demonstrator)
            if method == "TT":
                checks[f"{name}: at least 95 % of the demonstrator's return"] = share >= 0.95
    plot_bars(run.out / "imitation.png", Bars(bars, "Return as a share of the demonstrator's", "%", line=100))
    columns = ["data", "method", "return", "of the demonstrator's", "episodes", "seeds of training"]
    return Report(
        "Imitation",
        f"Episodes under plain likelihood beam search (H = {config.plan.horizon}, W = {config.plan.beam_width}), on "
        f"{config.transitions:,} logged transitions of each body's shipped policy ({config.demonstrator}), with noise "
        f"of {config.action_noise:g} of half the action range, and on datasets that were given; mean and standard "
        "deviation over episodes and seeds. The demonstrator's are its logged episodes.",
        [Table("Returns", columns, rows)],
        ["imitation.png"],
        checks,
    )
