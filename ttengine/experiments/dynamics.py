"""Long-horizon dynamics: how likely models find held-out trajectories, against how many steps they look ahead.

What is measured. Episodes that no model was trained on (the split that training itself makes) give start states; from
each, the episode's own actions are executed, and a model rolls the observations forward by itself: it sees nothing of
the episode after the start but the actions. P particles a start are rolled; at step h each looks at the true
observation o_(t+h) given its own, sampled step h-1, and its density is taken. The log-likelihood at step h is the
logarithm of the *mean density over particles* (log-mean-exp): the particles stand for the model's predictive
distribution p(o_(t+h) | start, actions), and this is its Monte-Carlo estimate, the same for every method. The mean of
the logarithms, a lower bound of it, is kept beside it (`mean_log`); it punishes being sure and wrong far more. Both
punish an ensemble without end: its Gaussians stay narrow around particles that have gone astray. So a third number
looks at the cloud of particles alone, the same way for all methods: `fitted` is the density of Student's t with the
particles' mean and spread, dimension by dimension, which is the predictive distribution of a Gaussian known by P draws.

Densities are of standardised observations (standard deviations of the training data), joint over the dimensions,
divided by their number: nats a dimension. A transformer's density of a number is its token's probability over the
width of its bin, by the chain rule: while it looks at o_(t+h), the true dimensions before it are fed, and after that
the particle goes on with dimensions that it draws itself. Rewards and values are drawn too, since the true ones would
give away what is to be predicted. The stop token is left out: where an episode is measured it goes on, and an ensemble
has no such token. An ensemble's density is its member's Gaussian. A dimension with a bin of width zero (a number so
frequent that it fills whole bins, such as a velocity that the environment clips) has no density: it is fed and rolled
forward like the others and counts for no method.

Two lines to compare with: all probability in the right bin, which no transformer with these bins can exceed, and all
bins alike, which knows the data's distribution and nothing of the moment. The bins are fitted to all data, held-out
episodes included, as in the released code. Starts are drawn from those with enough episode before and after.

The Markovian transformer is trained on windows of two transitions and sees, when it rolls forward, one past transition
in all: its input is cropped to that before every step. (`context=1` alone does not do: keys of a layer hold what the
layer below saw, and with L layers a token hears of L transitions.)

Source: Janner et al. 2021, section 4.1 and appendix E; Chua et al. 2018 for the ensemble.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ttengine.config import DataConfig, ModelConfig, check_range
from ttengine.data.trajectories import FloatArray, IntArray, Trajectories
from ttengine.data.windows import split_episodes
from ttengine.discretizer import Discretizer, fit_discretizer
from ttengine.errors import ConfigError, DataError
from ttengine.experiments.ensemble import EnsembleConfig, saved_ensemble
from ttengine.experiments.ingredients import PAPER, SMALL, Recipe, arms_of, trained
from ttengine.experiments.report import Report, Table
from ttengine.experiments.run import Arm, Rows, Run
from ttengine.experiments.sources import Source, check_unique, dataset_name, sources
from ttengine.model import KeyValueCache, TrajectoryTransformer
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
NARROWEST = 0.01
"""Standard deviations: a cloud of particles is taken to be no narrower; drawn bins may all be the same."""
ROWS_AT_A_TIME = 640
"""Particles rolled together: their keys and values stay small."""
START_STREAM = 13
"""Key of the generator that draws starts, beside the streams of ttengine.data.windows."""


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


@dataclass(frozen=True, eq=False)
class Pieces:
    """Held-out pieces of episodes around S starts; float32, environment units.

    Attributes:
        observations: [S, C+T+1, N]; row C is the start.
        actions: [S, C+T, M].
        rewards: [S, C+T].
        past: C, transitions before the start.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    past: int

    @property
    def truth(self) -> Tensor:
        """[S, T, N], what is to be predicted."""
        return self.observations[:, self.past + 1 :]

    @property
    def start(self) -> Tensor:
        """[S, N]."""
        return self.observations[:, self.past]

    def part(self, rows: slice) -> Pieces:
        """Return some of the starts."""
        return Pieces(self.observations[rows], self.actions[rows], self.rewards[rows], self.past)


@dataclass(frozen=True, eq=False)
class Forecast:
    """What P particles of each start found.

    Attributes:
        log_density: [S, T, P, N], of the true number of each dimension, environment units.
        predicted: [S, T, P, N], what the particles became, environment units.
    """

    log_density: Tensor
    predicted: Tensor


def draw_pieces(
    trajectories: Trajectories, episodes: IntArray, past: int, steps: int, starts: int, seed: int
) -> Pieces:
    """Draw start states from some episodes, without repeats, and cut out what lies around them.

    Args:
        trajectories: all data.
        episodes: [n] int64, the held-out ones.
        past: transitions before a start.
        steps: observations after a start.
        starts: at most so many; fewer where there are not enough.
        seed: of the draw.
    Raises:
        DataError: no held-out episode is long enough.
    """
    begin, end = trajectories.episode_starts[episodes], trajectories.episode_ends[episodes]
    possible = np.concatenate([np.arange(b + past, e - steps) for b, e in zip(begin, end, strict=True)])
    if not len(possible):
        longest = int((end - begin).max(initial=0))
        raise DataError(
            f"{trajectories.name}: a rollout of {steps} steps after {past} transitions needs a held-out episode of "
            f"{past + steps + 1}, the longest of {len(episodes)} has {longest}; take fewer steps"
        )
    chosen = np.random.default_rng([seed, START_STREAM]).permutation(possible)[:starts]
    rows = chosen[:, None] + np.arange(-past, steps + 1)
    before = rows[:, :-1]
    return Pieces(
        torch.from_numpy(trajectories.observations[rows]),
        torch.from_numpy(trajectories.actions[before]),
        torch.from_numpy(trajectories.rewards[before]),
        past,
    )


@torch.no_grad()
def roll_transformer(
    model: TrajectoryTransformer,
    discretizer: Discretizer,
    pieces: Pieces,
    particles: int,
    generator: torch.Generator,
    *,
    markovian: bool = False,
) -> Forecast:
    """Roll particles forward under the true actions; look at each step how likely they find the truth.

    Args:
        model: with rotary positions, without goals.
        discretizer: its tokens.
        pieces: where to start, what is executed and what happened.
        particles: P, of each start.
        generator: of what is drawn.
        markovian: crop the input to one past transition before every step; the pieces' past is not looked at.
    Raises:
        ConfigError: the model has absolute positions or goals.
    """
    config = model.config
    if config.positions != "rotary" or config.goal:
        raise ConfigError("rollouts need a model with rotary positions and without goals")
    size = max(1, ROWS_AT_A_TIME // particles)
    parts = [
        _roll(model, discretizer, pieces.part(slice(i, i + size)), particles, generator, markovian)
        for i in range(0, len(pieces.start), size)
    ]
    return Forecast(torch.cat([p.log_density for p in parts]), torch.cat([p.predicted for p in parts]))


def _roll(
    model: TrajectoryTransformer,
    discretizer: Discretizer,
    pieces: Pieces,
    particles: int,
    generator: torch.Generator,
    markovian: bool,
) -> Forecast:
    config, (S, T, N), C = model.config, pieces.truth.shape, pieces.past
    K, A = config.transition_dim, N + config.action_dim  # A: column of the reward
    like, R = discretizer.edges, S * particles
    seen = discretizer.encode(pieces.observations)
    forced = discretizer.encode(pieces.actions, N).repeat_interleave(particles, dim=0)
    truth = seen[:, C + 1 :].repeat_interleave(particles, dim=0)
    current = seen[:, C].repeat_interleave(particles, dim=0)
    cache = None
    if C and not markovian:
        rewards = discretizer.encode(pieces.rewards[..., None], A)
        # true values know the future; nothing but its successor, which is known here, reads a value token
        context = torch.cat([seen[:, :C], forced[::particles, :C], rewards[:, :C], torch.zeros_like(rewards)[:, :C]], 2)
        cache = KeyValueCache(config, S, 0, like)
        model.hidden(torch.cat([context.flatten(1), seen[:, C, :-1]], dim=1), None, cache)
        cache.select(torch.arange(R) // particles)
    probabilities, tokens = torch.empty(R, T, N), torch.empty(R, T, N, dtype=torch.int64)
    for t in range(T):
        unseen = current[:, -1:]
        if cache is None or markovian:
            cache, unseen = KeyValueCache(config, R, 0, like), current
        hidden = model.hidden(torch.cat([unseen, forced[:, C + t]], dim=1), None, cache)
        reward = _draw(model.head(hidden[:, -1:], A - 1)[:, 0], config, generator)
        value = _draw(model.head(model.hidden(reward[:, None], None, cache), A)[:, 0], config, generator)
        hidden = model.hidden(torch.cat([value[:, None], truth[:, t, :-1]], dim=1), None, cache)
        logits = model.head(hidden, K - 1)
        likely = logits[..., : config.n_bins].log_softmax(dim=-1)
        probabilities[:, t] = likely.gather(-1, truth[:, t, :, None])[..., 0]
        cache.length -= N - 1  # unsee the truth: the particle goes on from its own value token
        drawn = [_draw(logits[:, 0], config, generator)]
        for column in range(N - 1):
            hidden = model.hidden(drawn[-1][:, None], None, cache)
            drawn.append(_draw(model.head(hidden, column)[:, 0], config, generator))
        current = tokens[:, t] = torch.stack(drawn, dim=1)
        cache.forget((cache.tokens // K - config.context) * K)
    width = bin_widths(discretizer.edges[:N], truth)
    shape = (S, particles, T, N)
    density, predicted = (probabilities - width.log()).view(shape), discretizer.decode(tokens).view(shape)
    return Forecast(density.transpose(1, 2), predicted.transpose(1, 2))


def _draw(logits: Tensor, config: ModelConfig, generator: torch.Generator) -> Tensor:
    """Draw a bin for each row, never the stop token. logits [R, V+1] -> [R] int64."""
    return torch.multinomial(logits[:, : config.n_bins].softmax(dim=-1), 1, generator=generator)[:, 0]


def bin_widths(edges: Tensor, tokens: Tensor) -> Tensor:
    """Width of each token's bin. edges [N, V+1], tokens [..., N] -> [..., N], environment units."""
    return edges.diff(dim=1)[torch.arange(len(edges)), tokens]


@dataclass(frozen=True, eq=False)
class Ruler:
    """What forecasts of one body are measured with, the same for every method.

    Attributes:
        spread: [N], standard deviation of the training data.
        counted: [N] bool, dimensions whose bins all have a width.
        discretizer: of the observations, the transformers' own.
    """

    spread: Tensor
    counted: Tensor
    discretizer: Discretizer

    @classmethod
    def of(cls, trajectories: Trajectories, training: IntArray) -> Ruler:
        """Make the ruler of some data and training episodes.

        Raises:
            DataError: no dimension has bins that all have a width.
        """
        config = DataConfig()
        bins = ModelConfig(trajectories.observation_dim, trajectories.action_dim).n_bins
        discretizer = fit_discretizer(trajectories.observations, bins, config.binning)
        counted = (discretizer.edges.diff(dim=1) > 0).all(dim=1)
        if not bool(counted.any()):
            raise DataError(f"{trajectories.name}: every observation dimension has bins of width zero")
        spread = torch.from_numpy(trajectories.take_episodes(training).observations.std(axis=0, dtype=np.float64))
        return cls(spread.float(), counted, discretizer)

    def rows(self, forecast: Forecast, pieces: Pieces) -> Rows:
        """Measure a forecast: a row a start and step; log-likelihoods in nats a dimension of standardised numbers."""
        dims, spread = int(self.counted.sum()), self.spread[self.counted]
        particles = forecast.predicted[..., self.counted]
        joint = (forecast.log_density[..., self.counted] + spread.log()).sum(dim=-1)  # [S, T, P]
        likelihood = (joint.logsumexp(dim=2) - math.log(joint.shape[2])) / dims
        truth, start = pieces.truth[..., self.counted], pieces.start[:, None, self.counted]
        off = (particles.mean(dim=2) - truth) / spread
        width = bin_widths(self.discretizer.edges, self.discretizer.encode(pieces.truth))[..., self.counted]
        found = {
            "log_likelihood": likelihood,
            "mean_log": joint.mean(dim=2) / dims,
            "fitted": fitted_log_density(truth / spread, particles / spread).mean(dim=-1),
            "squared_error": off.square().mean(dim=-1),
            "standstill": ((start - truth) / spread).square().mean(dim=-1),
            "limit": (spread / width).log().mean(dim=-1),
        }
        S, T = likelihood.shape
        return [
            {"start": s, "step": t + 1, **{name: float(numbers[s, t]) for name, numbers in found.items()}}
            for s in range(S)
            for t in range(T)
        ]


def fitted_log_density(truth: Tensor, particles: Tensor) -> Tensor:
    """Log-density of the truth under what P particles say as a cloud: Student's t with their mean and spread.

    It is the predictive distribution of a Gaussian of which P draws are known.

    Args:
        truth: [S, T, N], standardised.
        particles: [S, T, P, N], standardised; P >= 2.
    Returns:
        [S, T, N] nats.
    """
    P = particles.shape[2]
    spread = particles.std(dim=2).clamp_min(NARROWEST) * math.sqrt(1.0 + 1.0 / P)
    predictive = torch.distributions.StudentT(P - 1.0, particles.mean(dim=2), spread)
    density: Tensor = predictive.log_prob(truth)
    return density


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
    """What the issue asks for: the transformer above the others, from step 10 on."""
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
