"""Offline RL: the planner's return on data of several tiers and bodies, beside other ways to learn from the same data.

Baselines are d3rlpy's BC, CQL, IQL and Decision Transformer. MBOP has no maintained implementation, and is left out.

Source: Janner et al. 2021, section 4.2, "Offline reinforcement learning", and table 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ttengine.config import DataConfig, PlanConfig
from ttengine.data.scores import normalized_score
from ttengine.data.trajectories import Trajectories
from ttengine.errors import ConfigError
from ttengine.experiments.baselines import ALGORITHMS, fit_baseline
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

PLAN = PlanConfig(horizon=5, beam_width=32)


@dataclass(frozen=True)
class Config:
    """Plan for returns on logged data; compare with BC, CQL, IQL and the Decision Transformer on the same data."""

    bodies: tuple[str, ...] = ("hopper", "halfcheetah")
    tiers: tuple[str, ...] = ("medium-replay", "medium-expert")
    """recipes of `ttengine collect`, mixed from the shipped policies"""
    transitions: int = 100_000
    """logged, a body and tier"""
    binnings: tuple[str, ...] = ("quantile",)
    baselines: tuple[str, ...] = ("BC", "IQL", "DT")
    seeds: tuple[int, ...] = (0,)
    """of training"""
    episodes: int = 3
    """evaluated, a model"""
    workers: int = 1
    """processes that evaluate a planner"""
    recipe: Recipe = SMALL
    plan: PlanConfig = PLAN
    baseline_steps: int = 5_000

    def __post_init__(self) -> None:
        for name, given, known in (("bodies", self.bodies, BODIES), ("baselines", self.baselines, ALGORITHMS)):
            unknown = [each for each in given if each not in known]
            if unknown:
                raise ConfigError(f"{name}: {', '.join(unknown)} unknown; there are {', '.join(known)}")

    @classmethod
    def full(cls) -> Config:
        """All bodies and tiers, both binnings, the paper's model; days on a few cores."""
        return cls(
            bodies=tuple(BODIES), tiers=("random", "medium", "medium-replay", "medium-expert"), transitions=1_000_000,
            binnings=("quantile", "uniform"), baselines=tuple(ALGORITHMS), seeds=(0, 1, 2), episodes=15, recipe=PAPER,
            plan=PlanConfig(), baseline_steps=100_000,
        )  # fmt: skip


def run(run: Run, config: Config) -> Report:
    """Run the experiment and say what it found."""
    arms = []
    for body in config.bodies:
        for tier in config.tiers:
            name, data = f"{body} {tier}", collected(run, f"{body}-{tier}", config.transitions)
            arms.append(Arm(f"{name} data", partial(logged_episodes, data)))
            for seed in config.seeds:
                arms += [
                    Arm(f"{name} TT {binning} {seed}", partial(_plan, run, config, body, tier, data, binning, seed))
                    for binning in config.binnings
                ]
                arms += [
                    Arm(f"{name} {baseline} {seed}", partial(_baseline, config, body, data, baseline, seed))
                    for baseline in config.baselines
                ]
    return _report(run, config, run.measure(arms))


def _plan(run: Run, config: Config, body: str, tier: str, data: Trajectories, binning: str, seed: int) -> Rows:
    bins = DataConfig(binning=binning)  # type: ignore[arg-type]
    model = trained(run, f"{body}-{tier}-{binning}", data, config.recipe, seed, bins)
    return planned_episodes(model, BODIES[body], config.plan, config.episodes, 1000 * seed, config.workers)


def _baseline(config: Config, body: str, data: Trajectories, baseline: str, seed: int) -> Rows:
    policy = fit_baseline(baseline, data, config.baseline_steps, seed)
    return policy_episodes(policy, BODIES[body], config.episodes, 1000 * seed)


def _report(run: Run, config: Config, found: dict[str, Rows]) -> Report:
    methods = ["data", *(f"TT {binning}" for binning in config.binnings), *config.baselines]
    rows, checks, bars = [], {}, {}
    for body in config.bodies:
        for tier in config.tiers:
            means = {}
            for method in methods:
                names = [name for name in found if name.startswith(f"{body} {tier} {method}")]
                episodes = [row for name in names for row in found[name]]
                if not episodes:
                    continue
                mean, spread = mean_and_spread(episodes)
                score, upper = normalized_score(BODIES[body], [mean, mean + spread])
                scored = f"{score:.1f} +- {upper - score:.1f}"
                means[method] = mean
                rows.append([
                    f"{body} {tier}", method, f"{mean:,.0f} +- {spread:,.0f}", scored, f"{len(episodes)}",
                    "" if method == "data" else f"{len(names)}",
                ])  # fmt: skip
                bars[f"{body} {tier}: {method}"] = (float(score), float(upper - score))
            planner = means.get("TT quantile")
            if planner is None:
                continue
            if "data" in means:
                checks[f"{body} {tier}: above the data's mean"] = planner > means["data"]
            if tier == "medium-replay" and "BC" in means:
                checks[f"{body} {tier}: above BC"] = planner > means["BC"]
    plot_bars(run.out / "offline_rl.png", bars, title="Normalised score (0 random, 100 expert)", unit="")
    columns = ["data", "method", "return", "normalised score", "episodes", "seeds of training"]
    return Report(
        "Offline RL",
        f"{config.transitions:,} transitions a set, mixed from this package's shipped policies: shaped like D4RL's "
        f"tiers, not D4RL's. The planner has H = {config.plan.horizon}, W = {config.plan.beam_width}. Mean and "
        "standard deviation over episodes and seeds. MBOP is left out: it has no maintained implementation.",
        [Table("Returns", columns, rows)],
        ["offline_rl.png"],
        checks,
    )
