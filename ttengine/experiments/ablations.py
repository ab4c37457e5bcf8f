"""Ablations: how return and latency depend on horizon, beam width, filter, context and bins."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from ttengine.config import DataConfig, PlanConfig, Sampling
from ttengine.experiments.ingredients import (
    PAPER,
    SMALL,
    Recipe,
    logged_episodes,
    mean_and_spread,
    planned_episodes,
    trained,
)
from ttengine.experiments.report import Report, Table
from ttengine.experiments.run import Arm, Rows, Run
from ttengine.experiments.sources import Source, check_unique, dataset_name, sources
from ttengine.viz.bars import Bars, plot_bars

PLAN = PlanConfig(horizon=3, beam_width=16)


@dataclass(frozen=True)
class Config:
    """Change one setting of the search at a time; return and latency of each in one table."""

    datasets: tuple[str, ...] = ("hopper-medium-expert",)
    """recipes, D4RL ids, Minari ids or files"""
    environment: str | None = None
    """of datasets that do not say theirs"""
    transitions: int = 300_000
    """collected for a recipe; files are taken whole"""
    action_noise: float | None = None
    """of recipes' policies, which act by their means then, a share of half the action range; None: they draw actions"""
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

    AFTERWARDS: ClassVar[tuple[str, ...]] = (
        "datasets", "seeds", "episodes", "workers", "plan", "horizons", "beam_widths", "bins",
    )  # fmt: skip
    """settings that neither data nor models depend on"""

    def __post_init__(self) -> None:
        check_unique([dataset_name(each) for each in self.datasets])

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
    arms = []
    given = sources(run, config.datasets, config.transitions, config.environment, action_noise=config.action_noise)
    for source in given:
        arms.append(Arm(f"{source.name} logged data", partial(logged_episodes, source.trajectories), quick=True))
        for name, (changes, binning) in settings(config).items():
            for seed in config.seeds:
                measure = partial(_measure, run, config, source, changes, binning, seed)
                arms.append(Arm(f"{source.name} {name}, seed {seed}", measure))
    return _report(run, config, run.measure(arms, timed=True))


def _measure(run: Run, config: Config, source: Source, changes: dict[str, Any], binning: str, seed: int) -> Rows:
    bins = DataConfig(binning=binning)  # type: ignore[arg-type]
    model = trained(run, f"{source.name}-{binning}", source.trajectories, config.recipe, seed, bins)
    plan = dataclasses.replace(config.plan, **changes)
    return planned_episodes(model, source.env_id, plan, config.episodes, 1000 * seed, config.workers)


def _report(run: Run, config: Config, found: dict[str, Rows]) -> Report:
    tables, pictures = [], []
    for dataset in map(dataset_name, config.datasets):
        rows, returns, latencies = [], {}, {}
        for name in ("logged data", *settings(config)):
            arms = [f"{dataset} {name}", *(f"{dataset} {name}, seed {seed}" for seed in config.seeds)]
            episodes = [row for arm in arms for row in found.get(arm, [])]
            if not episodes:
                continue
            mean, spread = returns[name] = mean_and_spread(episodes)
            latency = ""
            if name != "logged data":
                first, second = mean_and_spread(episodes, "latency_s")
                latencies[name] = 1e3 * first, 1e3 * second
                latency = f"{1e3 * first:.1f} ms"
            rows.append([name, f"{mean:,.0f} +- {spread:,.0f}", latency, f"{len(episodes)}"])
        picture = f"ablations-{dataset}.png"
        plot_bars(run.out / picture, Bars(returns, f"{dataset}: return"), Bars(latencies, "a plan's latency", "ms"))
        tables.append(Table(f"{dataset}: return and latency", ["setting", "return", "latency", "episodes"], rows))
        pictures.append(picture)
    return Report(
        "Ablations",
        f"{', '.join(config.datasets)}; recipes have {config.transitions:,} transitions. The search as it is has "
        f"H = {config.plan.horizon}, W = {config.plan.beam_width}. Mean and standard deviation over episodes and "
        f"{len(config.seeds)} seeds of training; the latency is the median plan of an episode.",
        tables,
        pictures,
    )
