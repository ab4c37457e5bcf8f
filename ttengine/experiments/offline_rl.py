"""Offline RL: the planner's return on data of several tiers and bodies, beside other ways to learn from the same data.

Baselines are d3rlpy's BC, CQL, IQL and Decision Transformer. MBOP has no maintained implementation, and is left out.

Source: Janner et al. 2021, section 4.2, "Offline reinforcement learning", and table 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from ttengine.config import EVERY_TOKEN, PAPER_ACTION, DataConfig, PlanConfig
from ttengine.data.scores import normalized_score
from ttengine.errors import ConfigError, DatasetNotFoundError
from ttengine.experiments.baselines import ALGORITHMS, fit_baseline, require_d3rlpy
from ttengine.experiments.ingredients import (
    BODIES,
    PAPER,
    SMALL,
    Recipe,
    arms_of,
    logged_episodes,
    mean_and_spread,
    planned_episodes,
    policy_episodes,
    trained,
)
from ttengine.experiments.report import Report, Table
from ttengine.experiments.run import Arm, Rows, Run
from ttengine.experiments.sources import (
    Source,
    body_and_tier,
    check_unique,
    dataset_name,
    expert_episodes,
    is_recipe,
    sources,
)
from ttengine.viz.bars import Bars, plot_bars

RECIPE = dataclasses.replace(SMALL, steps=8_000)
PLAN = PlanConfig(horizon=5, beam_width=32)
ACTIONS = {"ant-medium-replay": EVERY_TOKEN}
"""Recipe -> actions that the search tries, where the paper's (without a tail of 60 %) do badly. The ant's early
policies draw so widely that a sixth of their actions is clipped: the likeliest bin is often a bound, the costliest."""
EXPERT_SHARE = 0.95
TIERS = ("medium-replay", "medium-expert")
EXPERT_BODIES = ("hopper", "halfcheetah")
"""Whose planner is held to EXPERT_SHARE of the expert's mean return, on medium-expert data."""


@dataclass(frozen=True)
class Config:
    """Plan for returns on logged data; compare with BC, CQL, IQL and the Decision Transformer on the same data."""

    datasets: tuple[str, ...] = tuple(f"{body}-{tier}" for body in EXPERT_BODIES for tier in TIERS)
    """recipes of `ttengine collect`, D4RL ids, Minari ids or files"""
    environment: str | None = None
    """of datasets that do not say theirs"""
    transitions: int = 300_000
    """collected for a recipe; files are taken whole"""
    action_noise: float | None = None
    """of recipes' policies, which act by their means then, a share of half the action range; None: they draw actions,
    as they did in training"""
    binnings: tuple[str, ...] = ("quantile",)
    """quantile, uniform: a model each; claims are about the first"""
    baselines: tuple[str, ...] = ("BC", "IQL")
    """of BC, CQL, IQL, DT; on a core a step of CQL takes a tenth of a second and one of DT a second"""
    seeds: tuple[int, ...] = (0,)
    """of training"""
    episodes: int = 5
    """evaluated, a model"""
    workers: int = 1
    """processes that evaluate a planner"""
    recipe: Recipe = RECIPE
    plan: PlanConfig = PLAN
    actions: Literal["recipe", "plan"] = "recipe"
    """which ones the search tries. recipe: what suits a recipe's data, where it is known, else as plan says; plan: as
    plan.action says, for all"""
    baseline_steps: int = 5_000

    AFTERWARDS: ClassVar[tuple[str, ...]] = (
        "datasets", "binnings", "baselines", "seeds", "episodes", "workers", "plan", "actions", "baseline_steps",
    )  # fmt: skip
    """settings that neither data nor models depend on"""

    def __post_init__(self) -> None:
        for name, given, known in (
            ("binnings", self.binnings, ("quantile", "uniform")),
            ("baselines", self.baselines, tuple(ALGORITHMS)),
        ):
            unknown = [each for each in given if each not in known]
            if unknown:
                raise ConfigError(f"{name}: {', '.join(unknown)} unknown; there are {', '.join(known)}")
        if not self.binnings:
            raise ConfigError("binnings is empty; allowed are quantile, uniform or both")
        overruled = [each for each in self.datasets if self.plan_for(each) != self.plan]
        if overruled and self.plan.action != PAPER_ACTION:
            raise ConfigError(f"plan.action is set, and {', '.join(overruled)} would overrule it; add --actions plan")
        check_unique([dataset_name(each) for each in self.datasets])

    def plan_for(self, dataset: str) -> PlanConfig:
        """Return the search on a model of this dataset."""
        own = ACTIONS.get(dataset_name(dataset)) if is_recipe(dataset) and self.action_noise is None else None
        return self.plan if own is None or self.actions == "plan" else dataclasses.replace(self.plan, action=own)

    @classmethod
    def full(cls) -> Config:
        """All bodies and tiers, both binnings, the paper's model; days on a few cores."""
        tiers = ("random", "medium", "medium-replay", "medium-expert")
        return cls(
            datasets=tuple(f"{body}-{tier}" for body in BODIES for tier in tiers), transitions=1_000_000,
            binnings=("quantile", "uniform"), baselines=tuple(ALGORITHMS), seeds=(0, 1, 2), episodes=15, recipe=PAPER,
            plan=PlanConfig(), baseline_steps=100_000,
        )  # fmt: skip


def run(run: Run, config: Config) -> Report:
    """Run the experiment and say what it found."""
    if config.baselines:
        require_d3rlpy()
    given = sources(run, config.datasets, config.transitions, config.environment, action_noise=config.action_noise)
    arms = []
    for dataset, source in zip(config.datasets, given, strict=True):
        name, plan = source.name, config.plan_for(dataset)
        arms.append(Arm(f"{name} data", partial(logged_episodes, source.trajectories), quick=True))
        expert = expert_episodes(source.trajectories) if _tier(name)[1] == "medium-expert" else None
        if expert is not None:
            arms.append(Arm(f"{name} expert", partial(list, expert), quick=True))
        for seed in config.seeds:
            arms += [
                Arm(f"{name} TT {binning} {seed}", partial(_plan, run, config, source, plan, binning, seed))
                for binning in config.binnings
            ]
            arms += [
                Arm(f"{name} {baseline} {seed}", partial(_baseline, config, source, baseline, seed))
                for baseline in config.baselines
            ]
    return _report(run, config, run.measure(arms), {source.name: source.environment for source in given})


def _tier(name: str) -> tuple[str, str]:
    return body_and_tier(name) or ("", "")


def _plan(run: Run, config: Config, source: Source, plan: PlanConfig, binning: str, seed: int) -> Rows:
    bins = DataConfig(binning=binning)  # type: ignore[arg-type]
    model = trained(run, f"{source.name}-{binning}", source.trajectories, config.recipe, seed, bins)
    return planned_episodes(model, source.env_id, plan, config.episodes, 1000 * seed, config.workers)


def _baseline(config: Config, source: Source, baseline: str, seed: int) -> Rows:
    policy = fit_baseline(baseline, source.trajectories, config.baseline_steps, seed)
    return policy_episodes(policy, source.env_id, config.episodes, 1000 * seed, source.observation_columns)


def _report(run: Run, config: Config, found: dict[str, Rows], environments: Mapping[str, str | None]) -> Report:
    learned = [*(f"TT {binning}" for binning in config.binnings), *config.baselines]
    rows, bars = [], {}
    checks: dict[str, bool] = {}
    for dataset in config.datasets:
        name, means = dataset_name(dataset), {}
        for method in ("data", "expert", *learned):
            names = arms_of(found, f"{name} {method}", config.seeds if method in learned else ())
            episodes = [row for each in names for row in found[each]]
            if not episodes:
                continue
            mean, spread = mean_and_spread(episodes)
            means[method] = mean
            scores = _scores(dataset, environments.get(name), mean, spread)
            if scores is not None:
                bars[f"{name}: {method}"] = scores
            rows.append([
                name, method, f"{mean:,.0f} +- {spread:,.0f}",
                f"{scores[0]:.1f} +- {scores[1]:.1f}" if scores is not None else "", f"{len(episodes)}",
                f"{len(names)}" if method in learned else "",
            ])  # fmt: skip
        checks |= _claims(config, name, means)
    plot_bars(run.out / "offline_rl.png", Bars(bars, "Normalised score (0 random, 100 expert)"))
    columns = ["data", "method", "return", "normalised score", "episodes", "seeds of training"]
    return Report(
        "Offline RL",
        f"{_said(config)}The planner has H = {config.plan.horizon}, W = {config.plan.beam_width}, and tries actions "
        f"{_tried(config)}. Mean and standard deviation over episodes and seeds; `expert` is the logged episodes of "
        "the mixture's best policy. MBOP is left out: it has no maintained implementation.",
        [Table("Returns", columns, rows)],
        ["offline_rl.png"],
        checks,
    )


def _scores(dataset: str, environment: str | None, mean: float, spread: float) -> tuple[float, float] | None:
    """Normalised score and its spread, where reference scores of the dataset or the environment are known."""
    for known in (dataset, environment):
        try:
            if known is not None:
                score, upper = normalized_score(known, [mean, mean + spread])
                return float(score), float(upper - score)
        except DatasetNotFoundError:
            continue
    return None


def _claims(config: Config, name: str, means: dict[str, float]) -> dict[str, bool]:
    """What the planner is held to on data of this tier, as far as it was measured."""
    planner, (body, tier) = means.get(f"TT {config.binnings[0]}"), _tier(name)
    claims: dict[str, bool] = {}
    if planner is None:
        return claims
    if "data" in means:
        claims[f"{name}: above the data's mean"] = planner > means["data"]
    if tier == "medium-replay" and "BC" in means:
        claims[f"{name}: above BC"] = planner > means["BC"]
    if tier == "medium-expert" and body in EXPERT_BODIES and "expert" in means:
        claims[f"{name}: at least 95 % of the expert's mean return"] = planner >= EXPERT_SHARE * means["expert"]
    return claims


def _tried(config: Config) -> str:
    """Which actions the search tries, data by data."""
    by_filter: dict[str, list[str]] = {}
    for dataset in config.datasets:
        action = config.plan_for(dataset).action
        kept = [f"of the top {action.k}"] if action.k is not None else []
        kept += [f"without the tail of {100 * action.cdf:g} %"] if action.cdf is not None else []
        kept += [f"at temperature {action.temperature:g}"] if action.temperature != 1 else []
        by_filter.setdefault(", ".join(kept) or "of any bin", []).append(dataset_name(dataset))
    return "; ".join(f"{shown} ({', '.join(names)})" for shown, names in by_filter.items())


def _said(config: Config) -> str:
    """Where the data come from."""
    if not any(is_recipe(each) for each in config.datasets):
        return ""
    noise = config.action_noise
    acting = "draw their actions" if noise is None else f"act by their means, with noise of {noise:g} of half the range"
    return (
        f"Recipes have {config.transitions:,} transitions each, mixed from this package's shipped policies, which "
        f"{acting}: shaped like D4RL's tiers, not D4RL's. "
    )
