"""A PETS-style ensemble of probabilistic feed-forward networks: fit, save, roll particles forward.

Each member is a multi-layer perceptron from a standardised observation and action to a Gaussian over the change of the
observation: a mean and a log-variance a dimension, the log-variance bounded softly by learned limits. Members differ by
their initialisation and their bootstrap. A particle keeps one member for its whole rollout (TS-infinity).

Source: Chua et al. 2018 (arXiv 1805.12114), PETS, and its released code.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttengine.checkpoint import read_tensors, write_tensors
from ttengine.config import check_range, to_dict
from ttengine.data.trajectories import Trajectories
from ttengine.errors import DataError, NonFiniteError, ShapeError

FORMAT = "ttengine.ensemble/1"
BOOTSTRAP_STREAM, BATCH_STREAM = 11, 12
"""Kinds of randomness: each is a generator of its own, keyed by (seed, stream)."""
BOUND_WEIGHT = 0.01
"""Of the loss that draws the limits of the log-variance together."""
HIGHEST_LOG_VARIANCE, LOWEST_LOG_VARIANCE = 0.5, -10.0
"""Where these limits begin."""


@dataclass(frozen=True)
class EnsembleConfig:
    """Sizes of an ensemble and of its training."""

    members: int = 5
    width: int = 200
    """of the hidden layers"""
    layers: int = 3
    """hidden ones"""
    batch_size: int = 256
    """transitions a step, a member"""
    steps: int = 8_000
    learning_rate: float = 1e-3
    """falls to a hundredth along a cosine"""
    weight_decay: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("members", "width", "layers", "batch_size", "steps"):
            check_range(self, name, 1, 10**6)
        check_range(self, "learning_rate", 1e-9, 10.0)
        check_range(self, "weight_decay", 0.0, 1.0)


class Ensemble(nn.Module):
    """All members at once.

    Args:
        config: sizes.
        observation_dim: N.
        action_dim: M.
    """

    input_mean: Tensor
    input_spread: Tensor
    change_mean: Tensor
    change_spread: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, config: EnsembleConfig, observation_dim: int, action_dim: int) -> None:
        super().__init__()
        self.config, self.observation_dim, self.action_dim = config, observation_dim, action_dim
        sizes = [observation_dim + action_dim, *[config.width] * config.layers, 2 * observation_dim]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in itertools.pairwise(sizes):
            weight = torch.empty(config.members, inputs, outputs)
            nn.init.trunc_normal_(weight, std=1.0 / (2.0 * math.sqrt(inputs)))
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(config.members, 1, outputs)))
        self.highest = nn.Parameter(torch.full((observation_dim,), HIGHEST_LOG_VARIANCE))
        self.lowest = nn.Parameter(torch.full((observation_dim,), LOWEST_LOG_VARIANCE))
        for name, size in (("input", sizes[0]), ("change", observation_dim)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_spread", torch.ones(size))
        self.register_buffer("low", torch.full((observation_dim,), -math.inf))
        self.register_buffer("high", torch.full((observation_dim,), math.inf))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the standardised change. inputs [E, B, N+M] standardised -> mean, log-variance [E, B, N]."""
        x = inputs
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if layer < len(self.weights) - 1:
                x = F.silu(x)
        mean, log_variance = x.chunk(2, dim=-1)
        log_variance = self.highest - F.softplus(self.highest - log_variance)
        return mean, self.lowest + F.softplus(log_variance - self.lowest)

    def predict(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the next observation, a Gaussian a dimension.

        Args:
            observation: [E, B, N], environment units; row e is for member e.
            action: [E, B, M], environment units.
        Returns:
            Mean and standard deviation [E, B, N], environment units.
        """
        inputs = (torch.cat([observation, action], dim=-1) - self.input_mean) / self.input_spread
        mean, log_variance = self(inputs)
        change = mean * self.change_spread + self.change_mean
        return observation + change, (0.5 * log_variance).exp() * self.change_spread

    @torch.no_grad()
    def roll(
        self, start: Tensor, actions: Tensor, truth: Tensor, particles: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Roll particles forward under given actions, and look at each step how likely they find the truth.

        A sampled observation is kept within the range of the training data, as a transformer's bins keep theirs.

        Args:
            start: [S, N] float32.
            actions: [S, T, M] float32, executed at steps 0 to T-1.
            truth: [S, T, N] float32, what was observed after each of them.
            particles: P, a multiple of the members.
            generator: of the noise.
        Returns:
            Log-densities [S, T, P, N], of the truth given each particle's step before, environment units; and what the
            particles became [S, T, P, N].
        Raises:
            ShapeError: the particles cannot be shared out evenly.
            NonFiniteError: a prediction is NaN or infinite.
        """
        E, (S, T, N) = self.config.members, truth.shape
        if particles % E:
            raise ShapeError(f"{particles} particles cannot be shared evenly by {E} members; take a multiple")
        copies = particles // E
        observation = start.repeat(E, copies, 1)  # [E, copies * S, N]
        densities, sampled = truth.new_empty(T, E, copies, S, N), truth.new_empty(T, E, copies, S, N)
        for t in range(T):
            mean, spread = self.predict(observation, actions[:, t].repeat(E, copies, 1))
            densities[t] = gaussian_log_density(truth[:, t].repeat(E, copies, 1), mean, spread).view(E, copies, S, N)
            noise = torch.randn(mean.shape, generator=generator)
            observation = torch.minimum(torch.maximum(mean + spread * noise, self.low), self.high)
            sampled[t] = observation.view(E, copies, S, N)
        if not bool(torch.isfinite(densities).all()):
            raise NonFiniteError(
                "the ensemble's densities hold NaN or infinity; train it longer, or with smaller steps"
            )
        return _by_start(densities), _by_start(sampled)


def gaussian_log_density(x: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """Logarithm of a Gaussian's density, in nats, elementwise. spread: its standard deviation."""
    return -0.5 * ((x - mean) / spread).square() - spread.log() - 0.5 * math.log(2.0 * math.pi)


def fit_ensemble(trajectories: Trajectories, config: EnsembleConfig, seed: int) -> Ensemble:
    """Train an ensemble by the likelihood of each observation's successor; each member has a bootstrap of its own.

    Args:
        trajectories: the training episodes alone.
        config: sizes.
        seed: of initialisation, bootstraps and batches.
    Raises:
        DataError: no transition has a successor.
    """
    rows = np.setdiff1d(np.arange(len(trajectories)), trajectories.episode_ends - 1)
    if not len(rows):
        raise DataError(f"{trajectories.name}: no transition has a successor to learn from")
    observations, actions = torch.from_numpy(trajectories.observations), torch.from_numpy(trajectories.actions)
    inputs = torch.cat([observations, actions], dim=1)[rows]
    changes = observations[rows + 1] - observations[rows]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ensemble = Ensemble(config, trajectories.observation_dim, trajectories.action_dim)
    for name, numbers in (("input", inputs), ("change", changes)):
        getattr(ensemble, f"{name}_mean").copy_(numbers.mean(dim=0))
        getattr(ensemble, f"{name}_spread").copy_(_spread(numbers))
    ensemble.low.copy_(observations.amin(dim=0))
    ensemble.high.copy_(observations.amax(dim=0))
    inputs = (inputs - ensemble.input_mean) / ensemble.input_spread
    changes = (changes - ensemble.change_mean) / ensemble.change_spread
    _train(ensemble, inputs, changes, seed)
    return ensemble.eval()


def _train(ensemble: Ensemble, inputs: Tensor, changes: Tensor, seed: int) -> None:
    config, count = ensemble.config, len(inputs)
    bootstraps = np.random.default_rng([seed, BOOTSTRAP_STREAM]).integers(count, size=(config.members, count))
    rng, members = np.random.default_rng([seed, BATCH_STREAM]), np.arange(config.members)[:, None]
    optimiser = torch.optim.AdamW(
        ensemble.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps, config.learning_rate / 100)
    for _ in range(config.steps):
        chosen = torch.from_numpy(bootstraps[members, rng.integers(count, size=(config.members, config.batch_size))])
        mean, log_variance = ensemble(inputs[chosen])
        likelihood = (mean - changes[chosen]).square() * (-log_variance).exp() + log_variance
        bounds = BOUND_WEIGHT * (ensemble.highest.sum() - ensemble.lowest.sum())
        # summed over members: each learns as if it were alone
        loss = likelihood.mean(dim=(1, 2)).sum() + bounds
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def saved_ensemble(path: Path, trajectories: Trajectories, config: EnsembleConfig, seed: int) -> Ensemble:
    """Return the ensemble in a file; it is trained and written if the file is not there or was made otherwise."""
    about = {"config": to_dict(config), "seed": seed, "transitions": len(trajectories), "data": trajectories.name}
    if path.is_file():
        tensors, found = read_tensors(path, FORMAT)
        if found == about:
            ensemble = Ensemble(config, trajectories.observation_dim, trajectories.action_dim)
            ensemble.load_state_dict(tensors)
            return ensemble.eval()
    ensemble = fit_ensemble(trajectories, config, seed)
    write_tensors(path, ensemble.state_dict(), FORMAT, about)
    return ensemble


def _spread(numbers: Tensor) -> Tensor:
    """Standard deviation of each column [L, k] -> [k]; 1 for what never changes."""
    spread = numbers.std(dim=0)
    return torch.where(spread > 1e-6, spread, torch.ones_like(spread))


def _by_start(x: Tensor) -> Tensor:
    """[T, E, copies, S, N] -> [S, T, P, N]; neighbouring particles have different members."""
    return x.permute(3, 0, 2, 1, 4).flatten(2, 3).contiguous()
