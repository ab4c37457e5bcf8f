"""The medium maze of AntMaze with a ball in it, in MuJoCo: a reward at the goal and nowhere else.

The walls are D4RL's medium layout. The ball is pushed; what it has logged are short walks between random places.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium
import mujoco
import numpy as np
import numpy.typing as npt

from ttengine.data.trajectories import Trajectories

FloatArray = npt.NDArray[np.float32]

MEDIUM = (
    "########",
    "#S.##..#",
    "#..#...#",
    "##...###",
    "#..#...#",
    "#.#..#.#",
    "#...#.G#",
    "########",
)
"""Row, then column; # wall, S start, G goal. Cells are a metre wide."""

RADIUS = 0.2
"""Of the ball, metres."""
TIMESTEP_S, FRAME_SKIP = 0.01, 10
"""A control step is FRAME_SKIP steps of physics."""
DAMPING, FORCE = 5.0, 10.0
"""In N s/m and N: the ball of 1 kg has a top speed of 2 m/s."""
REACHED = 0.5
"""So near the goal it is reached, metres."""
MAX_STEPS = 300
"""Control steps of an episode at most: six times the shortest way."""


def cells(marks: str) -> list[tuple[int, int]]:
    """Return the cells (row, column) with one of some marks."""
    return [(r, c) for r, row in enumerate(MEDIUM) for c, mark in enumerate(row) if mark in marks]


def middle(cell: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Return the middle of a cell, (x, y) in metres: columns go right, rows go down."""
    return np.array([cell[1] + 0.5, -cell[0] - 0.5])


def cell_of(position: npt.ArrayLike) -> tuple[int, int]:
    """Return the cell that a position (x, y) lies in."""
    x, y = np.asarray(position)
    return int(np.floor(-y)), int(np.floor(x))


def next_cells(goal: tuple[int, int]) -> dict[tuple[int, int], tuple[int, int]]:
    """Return for each free cell the next one on a shortest way to a goal."""
    free, ways = set(cells("SG.")), {goal: goal}
    edge = deque([goal])
    while edge:
        r, c = here = edge.popleft()
        for cell in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
            if cell in free and cell not in ways:
                ways[cell] = here
                edge.append(cell)
    return ways


def _mjcf() -> str:
    """Return the world as MuJoCo's XML."""
    boxes = "".join(
        f'<geom type="box" pos="{x:g} {y:g} 0.25" size="0.5 0.5 0.25"/>' for x, y in map(middle, cells("#"))
    )
    return f"""
<mujoco model="medium maze">
  <option timestep="{TIMESTEP_S}" integrator="implicitfast" gravity="0 0 0"/>
  <default><geom condim="1" solref="0.02 1"/></default>
  <worldbody>
    {boxes}
    <body name="ball" pos="0 0 0.25">
      <joint name="x" type="slide" axis="1 0 0" damping="{DAMPING}"/>
      <joint name="y" type="slide" axis="0 1 0" damping="{DAMPING}"/>
      <geom type="sphere" size="{RADIUS}" mass="1"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="x" gear="{FORCE}" ctrlrange="-1 1" ctrllimited="true"/>
    <motor joint="y" gear="{FORCE}" ctrlrange="-1 1" ctrllimited="true"/>
  </actuator>
</mujoco>"""


class Maze(gymnasium.Env[FloatArray, FloatArray]):
    """A ball in the medium maze: from the start's cell to the goal.

    An observation is position and velocity, [4] float32 in m and m/s; an action is the force in x and y, [2] float32 in
    [-1, 1], for 0.1 s. Reaching the goal gives 1 and ends the episode; all else gives 0.

    Args:
        max_steps: control steps until an episode is truncated.
        anywhere: begin in any free cell, in place of the start's.
    """

    def __init__(self, max_steps: int = MAX_STEPS, anywhere: bool = False) -> None:
        self.max_steps, self.anywhere = max_steps, anywhere
        self.model = mujoco.MjModel.from_xml_string(_mjcf())
        self.data = mujoco.MjData(self.model)
        limit = np.array([len(MEDIUM[0]), len(MEDIUM), 2.5, 2.5], np.float32)
        self.observation_space = gymnasium.spaces.Box(-limit, limit)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))
        self.goal = middle(cells("G")[0])
        self.steps = 0

    @property
    def dt(self) -> float:
        """Seconds between two actions."""
        return TIMESTEP_S * FRAME_SKIP

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Begin an episode, at rest, up to a quarter of a metre from the middle of a cell."""
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        free = cells("S.") if self.anywhere else cells("S")
        begin = middle(free[self.np_random.integers(len(free))]) + self.np_random.uniform(-0.25, 0.25, 2)
        self.data.qpos[:] = begin
        mujoco.mj_forward(self.model, self.data)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: FloatArray) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """Push for a control step."""
        self.data.ctrl[:] = np.clip(action, -1.0, 1.0)
        mujoco.mj_step(self.model, self.data, nstep=FRAME_SKIP)
        self.steps += 1
        reached = bool(np.linalg.norm(self.data.qpos - self.goal) < REACHED)
        return self._observe(), float(reached), reached, not reached and self.steps >= self.max_steps, {}

    def _observe(self) -> FloatArray:
        return np.concatenate([self.data.qpos, self.data.qvel]).astype(np.float32)


def wander(transitions: int, episode_steps: int, seed: int) -> Trajectories:
    """Log a ball that walks from anywhere to one random place after the other, with noise.

    Episodes are cut after so few steps that none leads from the start to the goal: who wants to get there has to put
    pieces together. One that comes by the goal ends there, with the only reward.

    Args:
        transitions: at least so many, up to the end of an episode.
        episode_steps: of an episode at most.
        seed: equal seeds give equal data.
    """
    env, rng = Maze(episode_steps, anywhere=True), np.random.default_rng(seed)
    free = cells("SG.")
    log: dict[str, list[Any]] = {name: [] for name in ("observations", "actions", "rewards", "terminals", "timeouts")}
    while len(log["rewards"]) < transitions:
        observation, _ = env.reset(seed=int(rng.integers(2**31)))
        over, noise, target = False, np.zeros(2), cell_of(observation[:2])
        ways = next_cells(target)
        while not over:
            here = cell_of(observation[:2])
            if here == target:
                target = free[rng.integers(len(free))]
                ways = next_cells(target)
            noise = 0.8 * noise + rng.normal(0.0, 0.25, 2)
            push = 2.0 * (middle(ways[here]) - observation[:2]) - 0.3 * observation[2:]
            action = np.clip(push + noise, -1.0, 1.0).astype(np.float32)
            log["observations"].append(observation)
            log["actions"].append(action)
            observation, reward, terminal, cut, _ = env.step(action)
            over = terminal or cut
            for name, value in (("rewards", reward), ("terminals", terminal), ("timeouts", cut)):
                log[name].append(value)
    arrays: dict[str, Any] = {name: np.asarray(values) for name, values in log.items()}
    return Trajectories(**arrays, name="medium-maze-ball")
