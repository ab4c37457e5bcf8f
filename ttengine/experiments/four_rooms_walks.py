"""Log a wanderer in four rooms; ways from a held-out start to its goal are not kept.

Pairs of a start and a goal are drawn first, in different rooms, and an episode that comes within `held_out_m` of a
pair's start and, at that step or later, within `held_out_m` of its goal is not kept. So no logged episode shows a way
from the one to the other, in any part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ttengine.data.trajectories import Trajectories
from ttengine.errors import DataError

if TYPE_CHECKING:
    from ttengine.experiments.four_rooms import FourRooms

FloatArray = npt.NDArray[np.float32]
Pairs = npt.NDArray[np.float64]
"""[pairs, 2, 2] float64: of each its start and its goal, (x, y) in metres."""

PAIR_STREAM, DATA_STREAM, WANDER_STREAM = 1, 2, 3
"""Kinds of randomness: each is a generator of its own, keyed by (seed, stream, ...)."""
MOST_REFUSED = 200
"""Episodes that may be refused in a row before the held-out pairs are said to leave nothing."""


def draw_pairs(pairs: int, seed: int = 0) -> Pairs:
    """Draw pairs of a start and a goal in different rooms, uniformly over free positions."""
    from ttengine.experiments.four_rooms import free_point, room

    rng = np.random.default_rng([seed, PAIR_STREAM])
    drawn: list[list[npt.NDArray[np.float64]]] = []
    while len(drawn) < pairs:
        start, goal = free_point(rng), free_point(rng)
        if room(start) != room(goal):
            drawn.append([start, goal])
    return np.array(drawn)


def connected(positions: npt.ArrayLike, pairs: Pairs, within_m: float) -> npt.NDArray[np.bool_]:
    """Say which pairs an episode connects: it is near the start, and at that step or later near the goal.

    Args:
        positions: [T, 2] of the ball, in their order, metres.
        pairs: of starts and goals.
        within_m: how near is near.
    Returns:
        [pairs] bool.
    """
    apart = np.linalg.norm(np.asarray(positions)[:, None, None] - pairs, axis=-1)  # [T, pairs, start or goal]
    near = apart <= within_m
    been = np.logical_or.accumulate(near[:, :, 0], axis=0)
    both: npt.NDArray[np.bool_] = (been & near[:, :, 1]).any(axis=0)
    return both


def wander(pairs: Pairs, episodes: int, episode_steps: int, held_out_m: float, seed: int = 0) -> Trajectories:
    """Log a wanderer; episodes that connect a held-out pair are not kept.

    Args:
        pairs: that are held out.
        episodes: that are kept.
        episode_steps: control steps of each.
        held_out_m: how near to its start and its goal a pair counts as connected.
        seed: equal seeds give equal data.
    Returns:
        Episodes of `episode_steps` transitions each, rewards 0, each ended by the time limit.
    Raises:
        DataError: the pairs leave hardly an episode.
    """
    from ttengine.experiments.four_rooms import FourRooms, Wanderer

    env, tried, refused = FourRooms(episode_steps), 0, 0
    kept: list[tuple[FloatArray, FloatArray]] = []
    while len(kept) < episodes:
        wanderer = Wanderer(np.random.default_rng([seed, DATA_STREAM, tried]))
        observations, actions = _episode(env, wanderer.act, int(np.random.default_rng([seed, tried]).integers(2**31)))
        tried += 1
        if connected(observations[:, :2], pairs, held_out_m).any():
            refused += 1
            if refused == MOST_REFUSED:
                raise DataError(
                    f"{refused} episodes in a row connect one of the {len(pairs)} held-out pairs; hold out fewer "
                    "pairs, make held_out_m smaller, or make episodes shorter"
                )
            continue
        kept.append((observations[:-1], actions))
        refused = 0
    timeouts = np.zeros((len(kept), episode_steps), np.bool_)
    timeouts[:, -1] = True
    return Trajectories(
        np.concatenate([observations for observations, _ in kept]),
        np.concatenate([actions for _, actions in kept]),
        np.zeros(timeouts.size, np.float32),
        np.zeros(timeouts.size, np.bool_),
        timeouts.ravel(),
        name="four-rooms-wanderer",
        metadata={"made_by": "ttengine experiment goals", "episodes_tried": tried, "seed": seed},
    )


def _episode(env: FourRooms, act: Callable[[FloatArray], FloatArray], seed: int) -> tuple[FloatArray, FloatArray]:
    """Return an episode's observations [T+1, 4] and actions [T, 2], to its time limit."""
    observation, _ = env.reset(seed=seed)
    observations, actions, over = [observation], [], False
    while not over:
        actions.append(act(observation))
        observation, _, _, over, _ = env.step(actions[-1])
        observations.append(observation)
    return np.stack(observations), np.stack(actions)


def check_data(data: Trajectories, pairs: Pairs, within_m: float) -> None:
    """Refuse data that show a held-out way, or hold rewards.

    Raises:
        DataError: they do.
    """
    if data.rewards.any():
        raise DataError(f"{data.name} holds rewards; goals are to be reached without")
    for e, rows in enumerate(data.episodes()):
        shown = connected(data.observations[rows, :2], pairs, within_m)
        if shown.any():
            raise DataError(
                f"{data.name}: episode {e} leads from the start to the goal of held-out pair {int(np.argmax(shown))}; "
                "begin anew with --fresh"
            )
