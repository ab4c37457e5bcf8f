"""Rolling models forward under true actions, and how likely they find what then happened.

Episodes that no model was trained on (the split that training itself makes) give start states; from each, the episode's
own actions are executed, and a model rolls the observations forward by itself: it sees nothing of the episode after the
start but the actions. P particles a start are rolled; at step h each looks at the true
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

Source: Janner et al. 2021, section 4.1 and appendix E.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ttengine.config import DataConfig, ModelConfig
from ttengine.data.trajectories import IntArray, Trajectories
from ttengine.discretizer import Discretizer, fit_discretizer
from ttengine.errors import ConfigError, DataError
from ttengine.experiments.run import Rows
from ttengine.model import KeyValueCache, TrajectoryTransformer

NARROWEST = 0.01
"""Standard deviations: a cloud of particles is taken to be no narrower; drawn bins may all be the same."""
ROWS_AT_A_TIME = 640
"""Particles rolled together: their keys and values stay small."""
START_STREAM = 13
"""Key of the generator that draws starts, beside the streams of ttengine.data.windows."""


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
