"""D4RL's locomotion ids for the old `gym` package, without mujoco_py.

After `import ttengine.d4rl_gym`, as ever:

    env = gym.make("hopper-medium-v2")
    observation = env.reset()
    observation, reward, done, info = env.step(action)
    dataset = env.get_dataset()
    score = env.get_normalized_score(episode_return)

Physics are Gymnasium's -v4, data the local D4RL file. Tested with gym 0.26.2; importing this module registers the ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ttengine.data.catalogue import BODIES, D4RLDataset, d4rl_catalogue
from ttengine.data.d4rl import ACTION_LIMIT, locate
from ttengine.data.files import read_vector
from ttengine.environments import make_environment
from ttengine.errors import DataError, require

gym: Any = require("gym", "d4rl")


class D4RLEnv(gym.Env):  # type: ignore[misc]  # the old package has no types
    """One D4RL locomotion id: old Gym's interface over a Gymnasium environment.

    Args:
        dataset: D4RL id.
        kwargs: what `gymnasium.make` takes.
    """

    def __init__(self, dataset: str, **kwargs: Any) -> None:
        self.dataset: D4RLDataset = d4rl_catalogue()[dataset]
        assert self.dataset.env_id is not None and self.dataset.dims is not None and self.dataset.scores is not None
        self.env = make_environment(self.dataset.env_id, **kwargs)
        self.metadata = dict(self.env.metadata)
        self.render_mode = self.env.render_mode
        columns, actions = self.dataset.dims
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (columns,), np.float32)
        self.action_space = gym.spaces.Box(-ACTION_LIMIT, ACTION_LIMIT, (actions,), np.float32)
        self.dataset_url = self.dataset.url
        self.ref_min_score, self.ref_max_score = self.dataset.scores
        self._max_episode_steps = self.dataset.max_episode_steps
        self._seed: int | None = None

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Seed the next `reset`, and the action space."""
        self._seed = seed
        self.action_space.seed(seed)
        return [seed]

    def reset(self, *, seed: int | None = None, **_: Any) -> npt.NDArray[np.float64]:
        """Start an episode; return [N] float64 alone, as old Gym did."""
        observation, _info = self.env.reset(seed=self._seed if seed is None else seed)
        self._seed = None
        return self._pad(observation)

    def step(self, action: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], float, bool, dict[str, Any]]:
        """Act once; actions beyond [-1, 1] are clipped, as D4RL's wrapper did. `done` is set on the time limit too."""
        clipped = np.clip(np.asarray(action, np.float32), -ACTION_LIMIT, ACTION_LIMIT)
        observation, reward, terminated, truncated, info = self.env.step(clipped)
        if terminated or truncated:
            info = {**info, "TimeLimit.truncated": truncated and not terminated}
        return self._pad(observation), float(reward), terminated or truncated, info

    def render(self, mode: str = "rgb_array", **_: Any) -> Any:
        """Render as the `render_mode` given to `gym.make` says."""
        return self.env.render()

    def close(self) -> None:
        """Close the simulator."""
        self.env.close()

    @property
    def unwrapped(self) -> D4RLEnv:
        """This environment; the simulator is `env.unwrapped.env`."""
        return self

    def get_dataset(self, h5path: str | Path | None = None) -> dict[str, Any]:
        """Return every array of the dataset's HDF5 file by its full name, as D4RL does; rewards and flags as [L].

        Raises:
            DatasetNotFoundError: the file is not here and cannot be fetched.
            DataError: it cannot be read, or has other columns than this environment.
        """
        h5py = require("h5py", "data")
        path = locate(self.dataset.name) if h5path is None else Path(h5path)
        arrays: dict[str, Any] = {}

        def visit(key: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                arrays[key] = item[()]

        try:
            with h5py.File(path, "r") as file:
                file.visititems(visit)
        except OSError as error:
            raise DataError(f"{path} is not a readable HDF5 file: {error}") from error
        missing = [each for each in ("observations", "actions", "rewards", "terminals") if each not in arrays]
        if missing:
            raise DataError(f"{path} has no {', '.join(missing)}; it has {', '.join(sorted(arrays)[:12]) or 'nothing'}")
        for key, space in (("observations", self.observation_space), ("actions", self.action_space)):
            if arrays[key].shape[1:] != space.shape:
                came = arrays[key].shape
                raise DataError(f"{path}: {key} has shape {came}, {self.dataset.name} has rows of {space.shape}")
        for key in ("rewards", "terminals", "timeouts"):
            if key in arrays and arrays[key].ndim != 1:
                arrays[key] = read_vector(arrays[key], key, self.dataset.name).astype(arrays[key].dtype)
        return arrays

    def get_normalized_score(self, score: npt.ArrayLike) -> Any:
        """Return (score - random) / (expert - random); a hundredth of `ttengine.data.normalized_score`, as in D4RL."""
        return (np.asarray(score) - self.ref_min_score) / (self.ref_max_score - self.ref_min_score)

    def _pad(self, observation: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        # D4RL's Ant observes 84 contact forces that its MuJoCo left at zero; -v4 leaves them out
        missing = self.observation_space.shape[0] - observation.shape[0]
        return np.concatenate([observation, np.zeros(missing)]) if missing else observation


def register() -> list[str]:
    """Register the D4RL locomotion ids with the old `gym`, in place of any that are there; return them."""
    if not hasattr(np, "bool8"):
        np.bool8 = np.bool_  # type: ignore[attr-defined]  # gym 0.26 asks for a name that NumPy 2 dropped
    names = [name for name in d4rl_catalogue() if name.partition("-")[0] in BODIES]
    for name in names:
        gym.envs.registration.registry.pop(name, None)
        gym.register(
            name,
            entry_point="ttengine.d4rl_gym:D4RLEnv",
            order_enforce=False,
            disable_env_checker=True,  # it wants five values from step
            kwargs={"dataset": name},
        )
    return names


register()
