"""Ablations: how return and latency depend on horizon, beam width, filter, context and bins."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

from ttengine.config import DataConfig, PlanConfig, Sampling
from ttengine.data.trajectories import Trajectories
from ttengine.experiments.ingredients import (
    BODIES,
    PAPER,
    SMALL,
    Recipe,
    collected,
    logged_episodes,
    mean_and_spread,
    planned_episodes,
    trained,
)
from ttengine.experiments.report import Report, Table
from ttengine.experiments.run import Arm, Rows, Run
from ttengine.viz.bars import plot_bars

PLAN = PlanConfig(horizon=3, beam_width=16)


@dataclass(frozen=True)
class Config:
    """Change one setting of the search at a time; return and latency of each in one table."""

    body: str = "hopper"
    tier: str = "medium-expert"
    transitions: int = 100_000
    seeds: tuple[int, ...] = (0,)
    """of training"""
    episodes: int = 5
    """evaluated, a setting and seed"""
    workers: int = 1
    """processes that evaluate; latencies are those of one thread then"""
    recipe: Recipe = SMALL
    plan: PlanConfig = PLAN
    """that every setting changes in one place"""
    horizons: tuple[int, ...] = (1, 2, 5)
    beam_widths: tuple[int, ...] = (4, 64)
    bins: tuple[str, ...] = ("uniform",)
    """of models beside the one with quantile bins"""

    @classmethod
    def full(cls) -> Config:
        """The paper's model and search; a day on a few cores."""
        return cls(
            transitions=1_000_000, seeds=(0, 1, 2), episodes=20, recipe=PAPER, plan=PlanConfig(),
            horizons=(1, 2, 5, 10, 20), beam_widths=(8, 32, 256),
        )  # fmt: skip


def settings(config: Config) -> dict[str, tuple[dict[str, Any], str]]:
    """Name of a setting -> changes of the search, and the bins of its model."""
    found: dict[str, tuple[dict[str, Any], str]] = {"as is": ({}, "quantile")}
    found |= {f"H = {h}": ({"horizon": h}, "quantile") for h in config.horizons}
    found |= {f"W = {w}": ({"beam_width": w}, "quantile") for w in config.beam_widths}
    found["window context"] = ({"context_kind": "window"}, "quantile")
    found["actions: all drawn"] = ({"action": Sampling()}, "quantile")
    found["actions: cdf 0.9"] = ({"action": Sampling(cdf=0.9)}, "quantile")
    found["actions: top 5"] = ({"action": Sampling(k=5)}, "quantile")
    found |= {f"{binning} bins": ({}, binning) for binning in config.bins}
    return found


def run(run: Run, config: Config) -> Report:
    """Run the experiment and say what it found."""
    data = collected(run, f"{config.body}-{config.tier}", config.transitions)
    arms = [Arm("logged data", partial(logged_episodes, data))]
    for name, (changes, binning) in settings(config).items():
        for seed in config.seeds:
            arms.append(Arm(f"{name}, seed {seed}", partial(_measure, run, config, data, changes, binning, seed)))
    return _report(run, config, run.measure(arms))


def _measure(run: Run, config: Config, data: Trajectories, changes: dict[str, Any], binning: str, seed: int) -> Rows:
    model = trained(run, binning, data, config.recipe, seed, DataConfig(binning=binning))  # type: ignore[arg-type]
    plan = dataclasses.replace(config.plan, **changes)
    return planned_episodes(model, BODIES[config.body], plan, config.episodes, 1000 * seed, config.workers)


def _report(run: Run, config: Config, found: dict[str, Rows]) -> Report:
    mean, spread = mean_and_spread(found["logged data"])
    rows = [["logged data", f"{mean:,.0f} +- {spread:,.0f}", "", f"{len(found['logged data'])}"]]
    bars = {"logged data": (mean, spread)}
    for name in settings(config):
        episodes = [row for seed in config.seeds for row in found.get(f"{name}, seed {seed}", [])]
        if not episodes:
            continue
        mean, spread = mean_and_spread(episodes)
        latency_ms = 1e3 * mean_and_spread(episodes, "latency_s")[0]
        rows.append([name, f"{mean:,.0f} +- {spread:,.0f}", f"{latency_ms:.1f} ms", f"{len(episodes)}"])
        bars[name] = (mean, spread)
    environment, plan = BODIES[config.body], config.plan
    plot_bars(run.out / "ablations.png", bars, title=f"{environment}: return", unit="")
    return Report(
        "Ablations",
        f"{environment}, {config.transitions:,} transitions of the recipe {config.body}-{config.tier}; the search as "
        f"is has H = {plan.horizon}, W = {plan.beam_width}. Mean and standard deviation over episodes and "
        f"{len(config.seeds)} seeds of training; the latency is the median plan of an episode.",
        [Table("Return and latency", ["setting", "return", "latency", "episodes"], rows)],
        ["ablations.png"],
    )
