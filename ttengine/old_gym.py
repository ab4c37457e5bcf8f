"""An old Gym environment behind Gymnasium's interface; `environments.adapt` imports it where Gymnasium is installed."""

from __future__ import annotations

import inspect
from typing import Any

import gymnasium
import numpy as np

from ttengine.errors import ConfigError


class OldGymAdapter(gymnasium.Env[Any, Any]):
    """Turn `reset() -> observation` and `step() -> 4 values` into Gymnasium's two and five.

    An episode is truncated, not terminated, when the old environment's time limit says so in
    `info["TimeLimit.truncated"]`.
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        self.observation_space = _box(env.observation_space, "observation_space")
        self.action_space = _box(env.action_space, "action_space")
        self.metadata = dict(getattr(env, "metadata", None) or {})
        self.render_mode = getattr(env, "render_mode", None)
        self._reset_takes_seed = "seed" in inspect.signature(env.reset).parameters

    @property
    def unwrapped(self) -> Any:
        """The innermost old environment, for its physics model."""
        return getattr(self.env, "unwrapped", self.env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; an old environment is seeded through `seed()`."""
        if seed is not None and not self._reset_takes_seed:
            if not hasattr(self.env, "seed"):
                raise ConfigError(
                    f"seed is {seed}, but {type(self.env).__name__} has neither reset(seed=...) nor seed()"
                )
            self.env.seed(seed)
        result = self.env.reset(seed=seed) if seed is not None and self._reset_takes_seed else self.env.reset()
        if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict):
            return result[0], result[1]
        return result, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act once; `done` becomes terminated or truncated."""
        result = self.env.step(action)
        if len(result) == 5:
            observation, reward, terminated, truncated, info = result
            return observation, float(reward), bool(terminated), bool(truncated), dict(info)
        observation, reward, done, info = result
        truncated = bool(done) and bool(info.get("TimeLimit.truncated", False))
        return observation, float(reward), bool(done) and not truncated, truncated, dict(info)

    def render(self) -> Any:
        """Render as the old environment does for video frames."""
        takes_mode = "mode" in inspect.signature(self.env.render).parameters
        return self.env.render(mode="rgb_array") if takes_mode else self.env.render()

    def close(self) -> None:
        """Close the old environment."""
        self.env.close()


def _box(space: Any, name: str) -> gymnasium.spaces.Box:
    if not hasattr(space, "low") or not hasattr(space, "high"):
        raise ConfigError(f"{name} is {type(space).__name__}; only boxes of numbers can be planned for")
    dtype = space.dtype if np.issubdtype(space.dtype, np.floating) else np.float32
    return gymnasium.spaces.Box(np.asarray(space.low, dtype), np.asarray(space.high, dtype), dtype=dtype)
