"""Long-horizon dynamics: how likely models find held-out trajectories, against how many steps they look ahead.

Held-out episodes give start states and actions, and particles are rolled forward under them. `rollouts` says what
exactly is measured.

Source: Janner et al. 2021, section 4.1 and appendix E; Chua et al. 2018 for the ensemble.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import numpy as np
import torch

from ttengine.config import DataConfig, ModelConfig, check_range
from ttengine.data.trajectories import FloatArray
from ttengine.data.windows import split_episodes
from ttengine.errors import ConfigError, DataError
from ttengine.experiments.ensemble import EnsembleConfig, saved_ensemble
from ttengine.experiments.ingredients import PAPER, SMALL, Recipe, arms_of, trained
from ttengine.experiments.report import Report, Table
from ttengine.experiments.rollouts import Forecast, Ruler, draw_pieces, roll_transformer
from ttengine.experiments.run import Arm, Rows, Run
from ttengine.experiments.sources import Source, check_unique, dataset_name, sources
from ttengine.viz.curves import Curve, Panel, draw_side_by_side, plot_curves

METHODS = ("TT", "Markovian", "ensemble")
LABELS = {"TT": "Trajectory Transformer", "Markovian": "Markovian transformer", "ensemble": "feed-forward ensemble"}
LIKELIHOODS = {
    "log_likelihood": "log-likelihood, of the particles' mean density",
    "fitted": "log-likelihood of the particles' cloud",
    "mean_log": "mean of the particles' log-densities",
}
SHOWN_STEPS = (1, 5, 10, 20, 30, 50, 75, 100)
"""In the tables."""
FIRST_CLAIMED_STEP = 10


@dataclass(frozen=True)
class Config:
    """Roll models forward under true actions; compare how likely they find what then happened."""

    datasets: tuple[str, ...] = ("hopper-medium", "halfcheetah-medium")
    """recipes, D4RL ids, Minari ids or files"""
    environment: str | None = None
    """of datasets that do not say theirs; only the film needs it"""
    transitions: int = 100_000
    """collected for a recipe; files are taken whole"""
    seeds: tuple[int, ...] = (0,)
    """of training and of the split; data have seed 0"""
    starts: int = 64
    """held-out start states, a dataset and seed"""
    particles: int = 10
    """rolled from each start; a multiple of the ensemble's members"""
    steps: int = 100
    """of a rollout"""
    recipe: Recipe = SMALL
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    film: bool = True
    """also render the first start's true and imagined rollouts side by side"""

    AFTERWARDS: ClassVar[tuple[str, ...]] = ("seeds", "starts", "particles", "steps", "film")
    """settings that neither data nor models depend on"""

    def __post_init__(self) -> None:
        check_unique([dataset_name(each) for each in self.datasets])
        check_range(self, "particles", 2, 10**6)
        for name in ("starts", "steps"):
            check_range(self, name, 1, 10**6)
        if self.particles % self.ensemble.members:
            raise ConfigError(
                f"particles is {self.particles}, allowed is a multiple of the {self.ensemble.members} ensemble members"
            )

    @classmethod
    def full(cls) -> Config:
        """The paper's model, more bodies, data, seeds and particles; hours on a few cores."""
        return cls(
            datasets=("hopper-medium", "halfcheetah-medium", "walker2d-medium"), transitions=400_000, seeds=(0, 1, 2),
            starts=200,
            particles=21, recipe=PAPER, ensemble=EnsembleConfig(members=7, layers=4, steps=100_000),
        )  # fmt: skip


def run(run: Run, config: Config) -> Report:
    """Run the experiment and say what it found."""
    arms = []
    found = sources(run, config.datasets, config.transitions, config.environment, needs_environment=False)
    for source in found:
        for seed in config.seeds:
            subject = _Subject(run, config, source, seed)
            arms += [Arm(f"{source.name} {method} {seed}", partial(subject.measure, method)) for method in METHODS]
    return _report(run, config, run.measure(arms), {source.name: source.environment for source in found})


@dataclass(frozen=True, eq=False)
class _Subject:
    """One dataset and seed: its data, split, models and measurements."""

    run: Run
    config: Config
    source: Source
    seed: int

    def measure(self, method: str) -> Rows:
        """Train a method's model and measure it; what the first start's first particle saw is kept for the film."""
        config, name, data = self.config, self.source.name, self.source.trajectories
        training, held_out = split_episodes(data.episode_lengths, DataConfig().validation_share, self.seed)
        if not len(held_out):
            raise DataError(f"{data.name}: no episode is held out, there are {data.n_episodes}; collect more")
        past, seed = config.recipe.window - 1, self.seed
        pieces = draw_pieces(data, held_out, past, config.steps, config.starts, seed)
        generator = torch.Generator().manual_seed(seed)
        if method == "ensemble":
            path = self.run.out / "models" / f"{name}-ensemble-seed{seed}.safetensors"
            ensemble = saved_ensemble(path, data.take_episodes(training), config.ensemble, seed)
            forced = pieces.actions[:, past:]
            forecast = Forecast(*ensemble.roll(pieces.start, forced, pieces.truth, config.particles, generator))
        else:
            markovian = method == "Markovian"
            recipe = markovian_recipe(config.recipe) if markovian else config.recipe
            found = trained(self.run, f"{name}-{method}", data, recipe, seed)
            model, discretizer, particles = found.model, found.discretizer, config.particles
            forecast = roll_transformer(model, discretizer, pieces, particles, generator, markovian=markovian)
        tracks = self.run.out / "rollouts"
        tracks.mkdir(exist_ok=True)
        track = torch.cat([pieces.start[:1], forecast.predicted[0, :, 0]]).numpy()
        np.savez(tracks / f"{name} {method} {seed}.npz", truth=pieces.observations[0, past:], imagined=track)
        return Ruler.of(data, training).rows(forecast, pieces)


def markovian_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe of the Markovian transformer: windows of two transitions, as many tokens a step."""
    return dataclasses.replace(recipe, window=2, context=1, batch_size=recipe.batch_size * recipe.window // 2)


def _report(run: Run, config: Config, found: dict[str, Rows], environments: Mapping[str, str | None]) -> Report:
    tables, pictures, notes = [], [], []
    checks: dict[str, bool] = {}
    shown = sorted({step for step in SHOWN_STEPS if step <= config.steps} | {config.steps})
    for name in map(dataset_name, config.datasets):
        arms = {m: [found[each] for each in arms_of(found, f"{name} {m}", config.seeds)] for m in METHODS}
        arms = {method: parts for method, parts in arms.items() if parts}
        if not arms:
            continue
        likelihoods = {key: {LABELS[m]: _curve(parts, key) for m, parts in arms.items()} for key in LIKELIHOODS}
        limit = _curve(next(iter(arms.values())), "limit").mean
        lines = {"the right bin, surely": limit, "all bins alike": limit - math.log(_bins())}
        errors = {LABELS[m]: _error(parts, "squared_error") for m, parts in arms.items()}
        still = {"nothing moves": _error(next(iter(arms.values())), "standstill").mean}
        for key, title in LIKELIHOODS.items():
            tables.append(_table(f"{name}: {title}, nats a dimension", likelihoods[key], lines, shown))
        tables.append(_table(f"{name}: error of the particles' mean, standard deviations", errors, still, shown))
        low = float(lines["all bins alike"].min()) - 4.0
        panels = [
            Panel(f"{name}: log-likelihood", "nats a dimension", likelihoods["log_likelihood"], lines, low),
            Panel(f"{name}: of the particles' cloud", "nats a dimension", likelihoods["fitted"], lines, low),
            Panel(f"{name}: error of their mean", "standard deviations", errors, still),
        ]
        plot_curves(run.out / f"dynamics-{name}.png", panels, axis="steps ahead")
        pictures.append(f"dynamics-{name}.png")
        checks |= _claims(name, arms)
        notes.append(_film(run, config, name, environments.get(name), pictures))
    text = (
        f"Held-out episodes of {', '.join(config.datasets)} (recipes: {config.transitions:,} transitions), up to "
        f"{config.starts} starts, {config.particles} particles each, rolled {config.steps} steps under the episode's "
        "own actions. The "
        "log-likelihood is the logarithm of the particles' mean density (beside it the mean of their logarithms), of "
        "standardised observations; +- is two standard errors over starts and seeds. "
    )
    return Report("Long-horizon dynamics", text + " ".join(notes), tables, pictures, checks)


def _table(title: str, curves: dict[str, Curve], lines: dict[str, FloatArray], shown: list[int]) -> Table:
    rows = [[n, *(f"{_short(c.mean[s - 1])} +- {_short(c.error[s - 1])}" for s in shown)] for n, c in curves.items()]
    rows += [[name, *(_short(line[s - 1]) for s in shown)] for name, line in lines.items()]
    return Table(title, ["steps ahead", *map(str, shown)], rows)


def _short(number: float) -> str:
    return f"{number:.2f}" if abs(number) < 100 else f"{number:,.0f}"


def _bins() -> int:
    return ModelConfig(1, 1).n_bins


def _steps(parts: list[Rows], key: str) -> FloatArray:
    """Numbers of all arms by step: [starts of all seeds, T]."""
    blocks = []
    for rows in parts:
        steps = max(int(float(row["step"])) for row in rows)
        blocks.append(np.array([float(row[key]) for row in rows], np.float32).reshape(-1, steps))
    return np.concatenate(blocks)


def _curve(parts: list[Rows], key: str) -> Curve:
    numbers = _steps(parts, key)
    return Curve(numbers.mean(axis=0), 2.0 * numbers.std(axis=0) / len(numbers) ** 0.5)


def _error(parts: list[Rows], key: str) -> Curve:
    """Root of the mean square, and what two standard errors of the mean square make of it."""
    square = _curve(parts, key)
    root = np.sqrt(square.mean)
    return Curve(root, square.error / np.maximum(2.0 * root, 1e-9))


def _claims(name: str, arms: dict[str, list[Rows]]) -> dict[str, bool]:
    """What the paper finds: the transformer above the ensemble, here from step 10 on."""
    if not {"TT", "ensemble"} <= set(arms):
        return {}
    claims = {}
    for key in ("log_likelihood", "fitted"):
        ahead = _steps(arms["TT"], key).mean(axis=0) - _steps(arms["ensemble"], key).mean(axis=0)
        first = min(FIRST_CLAIMED_STEP, len(ahead))
        below = np.flatnonzero(ahead <= 0.0)
        since = int(below[-1]) + 2 if len(below) else 1
        found = f"from step {since} on" if since <= len(ahead) else "not at the last step"
        what = f"{name}: {LIKELIHOODS[key]}: the transformer is above the ensemble from step {first} on"
        claims[f"{what} (found: {found})"] = bool((ahead[first - 1 :] > 0.0).all())
    return claims


def _film(run: Run, config: Config, name: str, environment: str | None, pictures: list[str]) -> str:
    """Render the first start's rollouts side by side; return a sentence about it."""
    tracks: dict[str, FloatArray] = {}
    for method in METHODS:
        path = run.out / "rollouts" / f"{name} {method} {config.seeds[0]}.npz"
        if path.is_file():
            with np.load(path) as arrays:
                tracks |= {"true": arrays["truth"], LABELS[method]: arrays["imagined"]}
    if config.film and environment is None:
        return f"There is no film of {name}: its environment is not known."
    if environment is None or not config.film or len(tracks) < 2:
        return f"There is no film of {name}."
    film, strip = run.out / f"dynamics-{name}.mp4", run.out / f"dynamics-{name}-film.png"
    try:
        draw_side_by_side(environment, tracks, film, strip)
    except Exception as error:  # whatever a film dies of, the numbers are there
        return f"There is no film of {name}: {error}."
    pictures.append(strip.name)
    return (
        f"{film.name} shows {name}'s first start, true and as one particle of each method imagined it; observations do "
        "not hold where on the ground the body is, so that is integrated from its velocity."
    )
