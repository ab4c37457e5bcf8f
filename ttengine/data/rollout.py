"""One episode: a policy acts in an environment until it ends, and every transition is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ttengine.data.policies import Array, Policy
from ttengine.errors import ConfigError, NonFiniteError, ShapeError

if TYPE_CHECKING:
    import gymnasium


@dataclass(frozen=True)
class Noise:
    """What is done to a policy's actions before they are executed and logged."""

    action_noise: float = 0.0
    """standard deviation of added Gaussian noise, as a share of half the action range"""
    epsilon: float = 0.0
    """share of actions replaced by uniform ones"""
    deterministic: bool = False
    """take the policy's mean action; the two noises above still apply"""


@dataclass(frozen=True, eq=False)
class Episode:
    """What one rollout logged.

    Attributes:
        observations: [T, N] float32, before each action.
        actions: [T, M] float32, as executed.
        rewards: [T] float32.
        terminated: whether the environment ended the episode; otherwise a time limit did.
        seed: what the environment was reset with; the policy's noise derives from it too.
        final_observation: [N] float32, seen after the last action.
    """

    observations: Array
    actions: Array
    rewards: Array
    terminated: bool
    seed: int
    final_observation: Array

    def __len__(self) -> int:
        """Transitions T."""
        return len(self.rewards)

    def cut(self, length: int) -> Episode:
        """Return the first `length` < T transitions, as an episode that something else than the environment ended."""
        head = (self.observations[:length], self.actions[:length], self.rewards[:length])
        return Episode(*head, False, self.seed, self.observations[length])


def action_bounds(env: gymnasium.Env[Any, Any]) -> tuple[int, Array, Array]:
    """Return N and the action bounds [M] float32 of an environment with flat, continuous spaces.

    Raises:
        ConfigError: a space is discrete, a dict, an image.
    """
    spaces = {"observation": env.observation_space, "action": env.action_space}
    for name, space in spaces.items():
        if type(space).__name__ != "Box" or space.shape is None or len(space.shape) != 1:
            raise ConfigError(
                f"the {name} space is {space}; only flat, continuous spaces (a Box of shape [n]) are handled"
            )
    box: Any = env.action_space
    return spaces["observation"].shape[0], box.low.astype(np.float32), box.high.astype(np.float32)  # type: ignore[index]


def roll_out(env: gymnasium.Env[Any, Any], policy: Policy, noise: Noise, seed: int, limit: int) -> Episode:
    """Run one episode; the same arguments give the same bytes.

    Args:
        env: flat observations and actions (`action_bounds` checked them).
        policy: called once a control step.
        noise: what is done to its actions. They are clipped to the action space before they are executed and logged.
        seed: of the environment's reset and, through a stream of its own, of all noise.
        limit: at most so many transitions, >= 1.
    Raises:
        NonFiniteError: the policy or the environment gave NaN or infinity; the message names the step.
        ShapeError: the policy's action has the wrong shape.
    """
    low, high = (np.asarray(bound, np.float32) for bound in (env.action_space.low, env.action_space.high))  # type: ignore[attr-defined]
    rng = np.random.default_rng((seed, 1))  # not the environment's own stream: its first draws are the initial state
    policy_rng = None if noise.deterministic else rng
    spread = noise.action_noise * 0.5 * (high - low) if noise.action_noise else None
    observations: list[Array] = []
    actions: list[Array] = []
    rewards: list[float] = []
    current, _ = env.reset(seed=seed)
    terminated = truncated = False
    while not (terminated or truncated) and len(rewards) < limit:
        observation = np.asarray(current, dtype=np.float32)
        action = policy(observation, policy_rng)
        if action.shape != low.shape:
            raise ShapeError(f"the policy's action has shape {action.shape}, the environment takes {low.shape}")
        if not math.isfinite(action.sum()):
            raise NonFiniteError(
                f"the policy's action is {action} at step {len(rewards)} of the episode with seed {seed}"
            )
        if spread is not None:
            action = action + spread * rng.standard_normal(action.shape, dtype=np.float32)
        if noise.epsilon and rng.random() < noise.epsilon:
            action = low + (high - low) * rng.random(low.shape, dtype=np.float32)
        action = np.minimum(np.maximum(action, low), high)
        current, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        actions.append(action)
        rewards.append(float(reward))
    arrays = (np.stack(observations), np.stack(actions), np.array(rewards, dtype=np.float32))
    episode = Episode(*arrays, bool(terminated), seed, np.asarray(current, dtype=np.float32))
    _check_environment(episode)
    return episode


def _check_environment(episode: Episode) -> None:
    seen = np.vstack([episode.observations[1:], episode.final_observation])  # row t: what action t led to
    finite = np.isfinite(seen).all(axis=1) & np.isfinite(episode.rewards)
    if not finite.all():
        step = int(np.argmin(finite))
        raise NonFiniteError(
            f"the environment gave NaN or infinity at step {step} of the episode with seed {episode.seed}: action "
            f"{episode.actions[step]} led to reward {episode.rewards[step]}, observation {seen[step]}"
        )
