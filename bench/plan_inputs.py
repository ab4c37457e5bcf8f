"""What the planning benches plan with and from: bodies, random weights, and an episode replayed step by step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ttengine.checkpoint import Checkpoint
from ttengine.config import WINDOW_CONTEXT, DataConfig, ModelConfig, Positions
from ttengine.context import Context
from ttengine.data import load_dataset
from ttengine.discretizer import Discretizer, fit_discretizer
from ttengine.errors import ConfigError
from ttengine.model import TrajectoryTransformer

FloatArray = npt.NDArray[np.float32]

HEAD_SHARPNESS = 1.3
"""Standard deviation of random weights' logits: the cdf filter at 0.6 then keeps about as many tokens as for a trained
model (5 to 9 an action dimension); `tests/test_plan_inputs.py` holds it there."""


class Body(NamedTuple):
    """A robot: N, M, and the seconds between two of its actions."""

    observation_dim: int
    action_dim: int
    control_period_s: float


BODIES = {
    "hopper": Body(11, 3, 0.008),
    "halfcheetah": Body(17, 6, 0.05),
    "walker2d": Body(17, 6, 0.008),
    "ant": Body(27, 8, 0.05),
}


def find_body(preset: str) -> Body:
    """Return the body of a dataset such as `hopper-medium`.

    Raises:
        ConfigError: the name begins with no known body.
    """
    name = preset.split("-")[0].lower()
    if name not in BODIES:
        raise ConfigError(f"preset {preset!r} is of no known body; a preset begins with {', '.join(BODIES)}")
    return BODIES[name]


def random_checkpoint(
    observation_dim: int,
    action_dim: int,
    *,
    layers: int = 4,
    heads: int = 4,
    width: int = 128,
    bins: int = 100,
    seed: int = 0,
    positions: Positions = "rotary",
) -> Checkpoint:
    """Return an untrained model whose sampling is not degenerate; the same seed gives the same weights.

    Every weight has the scale that keeps activations of order one, so that all layers take part, and the head is
    sharpened to `HEAD_SHARPNESS`. The discretizer is fitted on standard normal numbers.
    """
    sizes: dict[str, Any] = {"n_bins": bins, "layers": layers, "heads": heads, "width": width}
    config = ModelConfig(observation_dim, action_dim, positions=positions, dropout=0.0, **sizes)
    model = TrajectoryTransformer(config).eval()
    place = model.column_embedding if positions == "rotary" else model.position_embedding
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(std=1 / math.sqrt(module.in_features), generator=generator)
        for weight in (model.token_embedding.weight, place):
            weight.normal_(generator=generator)
        model.head.weight.normal_(std=HEAD_SHARPNESS / math.sqrt(width), generator=generator)
    columns = np.random.default_rng(seed).standard_normal((20_000, config.transition_dim)).astype(np.float32)
    return Checkpoint(model, fit_discretizer(columns, bins), DataConfig(), "random weights")


@dataclass(frozen=True, eq=False)
class Log:
    """Recorded control steps to replay.

    Attributes:
        observations: [L, N] float32, environment units.
        actions: [L, M] float32.
        rewards: [L] float32.
        episodes: (first row, row after the last) of each episode.
        label: where it comes from, for reports.
    """

    observations: FloatArray
    actions: FloatArray
    rewards: FloatArray
    episodes: list[tuple[int, int]]
    label: str


def read_log(path: Path) -> Log:
    """Read a dataset file, or a dataset id such as `hopper-medium-v2`."""
    data = load_dataset(str(path))
    episodes = [(int(a), int(b)) for a, b in zip(data.episode_starts, data.episode_ends, strict=True)]
    return Log(data.observations, data.actions, data.rewards, episodes, f"replayed from {path.name}")


def synthetic_log(discretizer: Discretizer, action_dim: int, length: int = 1000, seed: int = 0) -> Log:
    """Return one episode of random walks: each column drifts over the range that its bins cover, some bins a step."""
    rng = np.random.default_rng(seed)
    columns = discretizer.n_columns - 1  # the context holds no values
    walk = np.empty((length, columns))
    walk[0] = rng.standard_normal(columns)
    for row in range(1, length):  # mean 0, variance 1 at every step
        walk[row] = 0.99 * walk[row - 1] + math.sqrt(1 - 0.99**2) * rng.standard_normal(columns)
    share = 0.5 * (1 + torch.erf(torch.from_numpy(walk) / math.sqrt(2)))  # uniform in (0, 1)
    edges = discretizer.edges[:columns].numpy()
    place = np.linspace(0, 1, edges.shape[1])
    numbers = np.stack([np.interp(share[:, k].numpy(), place, edges[k]) for k in range(columns)], axis=1)
    numbers = numbers.astype(np.float32)
    N = columns - action_dim - 1
    return Log(numbers[:, :N], numbers[:, N:-1], numbers[:, -1], [(0, length)], "synthetic random walk")


class Moment(NamedTuple):
    """One control step: the observation [N] and what was executed before it."""

    observation: FloatArray
    context: Context


def replay(log: Log, lead: int, capacity: int) -> Iterator[tuple[Moment, bool]]:
    """Yield control steps as a control loop meets them, each one transition after the last, without end.

    Every episode begins `lead` steps in, so that its contexts are full; episodes too short for that are left out.

    Args:
        log: what to replay; after its last episode it begins again.
        lead: steps skipped at each episode's start, at least `capacity`.
        capacity: most transitions of a context.
    Yields:
        The moment, and whether it is an episode's first: its context does not follow from the moment before.
    Raises:
        ConfigError: no episode is long enough.
    """
    long_enough = [(first, end) for first, end in log.episodes if end - first >= lead + 2]
    if not long_enough:
        raise ConfigError(f"no episode has {lead + 2} steps or more; a replay needs one whose context can fill")
    for first, end in itertools.cycle(long_enough):
        for row in range(first + lead, end):
            past = slice(row - capacity, row)
            context = Context(log.observations[past], log.actions[past], log.rewards[past], capacity)
            yield Moment(log.observations[row], context), row == first + lead


def moments_of(checkpoint: Checkpoint, count: int) -> list[Moment]:
    """Return successive control steps of one synthetic episode, with contexts as long as any search takes."""
    model = checkpoint.model.config
    capacity = model.layers * model.context
    lead = max(capacity, WINDOW_CONTEXT)
    log = synthetic_log(checkpoint.discretizer, model.action_dim, length=lead + count + 1)
    return [moment for moment, _ in itertools.islice(replay(log, lead, lead), count)]


def cropped(context: Context, capacity: int) -> Context:
    """Return the last `capacity` transitions of a context."""
    return Context(context.observations, context.actions, context.rewards, capacity)
