"""Gymnasium-Robotics' medium maze with a point or an ant in it, as one flat task: from the start's corner to the goal.

The physics, the bodies and the walls are Gymnasium-Robotics'; here are only the fixed task and flat observations.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import numpy.typing as npt

from ttengine.errors import require
from ttengine.experiments.maze_map import FRAMES, FREE, GOAL, MEDIUM, REACHED_M, START, Frame

FloatArray = npt.NDArray[np.float32]
Body = Literal["point", "ant"]

REPEAT = {"point": 5, "ant": 1}
"""Body -> steps of Gymnasium-Robotics' environment in a control step; both are 0.05 s."""


class Maze(gymnasium.Env[FloatArray, FloatArray]):
    """A body in the medium maze: reaching the goal gives 1 and ends the episode, all else gives 0.

    An observation is float32, position first: [x, y, vx, vy] of the point, [29] of the ant as in D4RL (x, y, then what
    Ant-v4 observes). An action is float32 in [-1, 1], [2] or [8], for 0.05 s.

    Args:
        body: what moves.
        max_steps: control steps until an episode is truncated.
        anywhere: begin in any free cell but the goal's, in place of the start's.
        paths: folder where the way of every whole episode is written, `SEED.npy`, [T, 2] as observed; None: nowhere.
        frame: where the cells lie; None: the body's own.
    Raises:
        MissingExtraError: gymnasium-robotics is not installed.
    """

    def __init__(
        self,
        body: Body = "point",
        max_steps: int = 500,
        anywhere: bool = False,
        paths: Path | None = None,
        frame: Frame | None = None,
    ) -> None:
        require("gymnasium_robotics", "maze")
        self.body, self.max_steps, self.anywhere, self.paths = body, max_steps, anywhere, paths
        self.frame = frame or FRAMES[body]
        layout = [[int(mark == "#") for mark in row] for row in MEDIUM][:: -self.frame.up]  # its first is the highest
        self.inner: Any
        if body == "point":
            from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv

            self.inner = PointMazeEnv(maze_map=layout, continuing_task=False)
        else:
            from gymnasium_robotics.envs.maze.ant_maze_v4 import AntMazeEnv

            self.inner = AntMazeEnv(maze_map=layout, continuing_task=False)
        Path(self.inner.tmp_xml_file_path).unlink(missing_ok=True)  # it is read by now, and they leave it behind
        dims = 4 if body == "point" else 29
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (dims,))
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, self.inner.action_space.shape)
        self.goal = self.frame.middle(GOAL)
        self.steps, self.episode_seed = 0, 0
        self.way: list[FloatArray] = []

    @property
    def dt(self) -> float:
        """Seconds between two actions."""
        return 0.05

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Begin an episode, at rest, up to a quarter of a cell from the middle of one."""
        super().reset(seed=seed)
        begins = [cell for cell in FREE if cell != GOAL] if self.anywhere else [START]
        cell = begins[self.np_random.integers(len(begins))]
        rows = range(len(MEDIUM))[:: -self.frame.up]
        options = {"goal_cell": (rows[GOAL[0]], GOAL[1]), "reset_cell": (rows[cell[0]], cell[1])}
        self.inner.reset(seed=int(self.np_random.integers(2**31)), options=options)
        self.inner.goal = self.goal.copy()  # it had added noise, which nothing that is observed would tell
        self.inner.update_target_site_pos()
        self.steps, self.episode_seed = 0, self.episode_seed + 1 if seed is None else seed
        observation = self._observe()
        self.way = [observation[:2]]
        return observation, {}

    def step(self, action: FloatArray) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """Act for a control step."""
        reached = False
        for _ in range(REPEAT[self.body]):
            _, _, reached, _, _ = self.inner.step(np.clip(action, -1.0, 1.0))
            if reached:
                break
        self.steps += 1
        cut = not reached and self.steps >= self.max_steps
        observation = self._observe()
        self.way.append(observation[:2])
        if self.paths is not None and (reached or cut):
            self.paths.mkdir(parents=True, exist_ok=True)
            np.save(self.paths / f"{self.episode_seed}.npy", np.array(self.way))
        return observation, float(reached), bool(reached), cut, {}

    def render(self) -> Any:
        """Return a picture, if the inner environment was made for it."""
        return self.inner.render()

    def close(self) -> None:
        """Let the physics go."""
        self.inner.close()

    @property
    def position(self) -> npt.NDArray[np.float64]:
        """[2], metres from the maze's middle."""
        return np.array(self.inner.data.qpos[:2])

    def _observe(self) -> FloatArray:
        data = self.inner.data
        observation = np.concatenate([data.qpos, data.qvel])
        observation[:2] -= self.frame.zero
        return observation.astype(np.float32)


def reached(way: FloatArray, frame: Frame) -> bool:
    """Say whether a way [T, 2], as observed, ends at the goal."""
    return bool(np.linalg.norm(way[-1] + frame.zero - frame.middle(GOAL)) <= REACHED_M + 1e-6)
