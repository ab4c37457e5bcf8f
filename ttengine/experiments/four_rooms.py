"""Four rooms: a ball that is pushed over a floor with walls and doors, in MuJoCo, and a wanderer that has no aim there.

+-------+-------+
|       :       |      a door in each of the four inner walls, none in the middle of its wall;
|  2    :   3   |      from room 0 to room 3 the way leads through room 1 or room 2
+--- ---+--- ---+
|  0    :   1   |
|       :       |
+-------+-------+
"""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium
import mujoco
import numpy as np
import numpy.typing as npt

from ttengine.errors import ConfigError

FloatArray = npt.NDArray[np.float32]
Point = npt.NDArray[np.float64]
"""[2] float64, metres from the middle of the floor."""

HALF = 4.0
"""The floor reaches from -HALF to HALF in x and y, metres."""
THICKNESS = 0.3
"""Of every wall, metres."""
DOOR = 1.2
"""Width of a door, metres."""
RADIUS = 0.2
"""Of the ball, metres."""
TIMESTEP_S, FRAME_SKIP = 0.01, 20
"""A control step is FRAME_SKIP steps of physics."""
DAMPING, FORCE = 5.0, 12.5
"""In N s/m and N: the ball of 1 kg gains 63 % of a speed within 0.2 s; its top speed is FORCE / DAMPING = 2.5 m/s."""

DOORS: dict[tuple[int, int], tuple[float, float]] = {
    (0, 1): (0.0, -1.6),
    (2, 3): (0.0, 2.2),
    (0, 2): (-2.2, 0.0),
    (1, 3): (1.6, 0.0),
}
"""The two rooms, the lower one first -> the middle of their door."""
STEP_THROUGH = 0.5
"""A way through a door has a corner so far before its middle, and one behind it, metres."""


def walls() -> npt.NDArray[np.float64]:
    """Return all walls as boxes: [walls, 4] float64, their middle (x, y) and half their size (x, y), metres."""
    half, reach = THICKNESS / 2, HALF + THICKNESS
    boxes = [[side * (HALF + half), 0.0, half, reach] for side in (-1, 1)]
    boxes += [[0.0, side * (HALF + half), reach, half] for side in (-1, 1)]
    for axis in (0, 1):  # the wall at x = 0, then the one at y = 0
        along = 1 - axis
        gaps = sorted(door[along] for door in DOORS.values() if door[axis] == 0.0)
        edges = [-HALF, *(gap + side * DOOR / 2 for gap in gaps for side in (-1, 1)), HALF]
        for low, high in zip(edges[::2], edges[1::2], strict=True):
            box = [0.0, 0.0, half, half]
            box[along], box[2 + along] = (low + high) / 2, (high - low) / 2
            boxes.append(box)
    return np.array(boxes)


def clearance(positions: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return how far positions [..., 2] are from the nearest wall [...], metres; 0 within one."""
    middles, sizes = np.split(walls(), 2, axis=1)
    beyond = np.abs(np.asarray(positions, np.float64)[..., None, :] - middles) - sizes
    nearest: npt.NDArray[np.float64] = np.linalg.norm(np.maximum(beyond, 0.0), axis=-1).min(axis=-1)
    return nearest


def room(position: npt.ArrayLike) -> int:
    """Return the room that a position [2] is in."""
    x, y = np.asarray(position)
    return int(x > 0) + 2 * int(y > 0)


def free_point(rng: np.random.Generator) -> Point:
    """Draw a position of the ball at which it touches no wall, uniformly. [2] float64."""
    while True:
        point = rng.uniform(-HALF, HALF, 2)
        if clearance(point) > RADIUS:
            return point


def way(start: npt.ArrayLike, end: npt.ArrayLike) -> list[Point]:
    """Return the corners of the shortest way through the doors' middles, `end` included, `start` not."""
    start, end = np.asarray(start, np.float64), np.asarray(end, np.float64)
    first, last = room(start), room(end)
    if first == last:
        return [end]
    between = [[first, last]] if first + last != 3 else [[first, via, last] for via in ({0, 1, 2, 3} - {first, last})]
    ways = []
    for rooms in between:
        corners: list[Point] = []
        for here, there in itertools.pairwise(rooms):
            middle = np.array(DOORS[min(here, there), max(here, there)])
            across = STEP_THROUGH * np.sign(there - here) * np.eye(2)[abs(there - here) - 1]
            corners += [middle - across, middle + across]
        ways.append([*corners, end])
    return min(ways, key=lambda corners: length([start, *corners]))


def length(corners: Any) -> float:
    """Return the length of a way [n, 2], metres."""
    return float(np.linalg.norm(np.diff(np.asarray(corners), axis=0), axis=1).sum())


def _mjcf() -> str:
    """Return the world as MuJoCo's XML."""
    boxes = "".join(
        f'<geom type="box" pos="{x:g} {y:g} 0.3" size="{width:g} {depth:g} 0.3"/>' for x, y, width, depth in walls()
    )
    return f"""
<mujoco model="four rooms">
  <option timestep="{TIMESTEP_S}" integrator="implicitfast" gravity="0 0 0"/>
  <default><geom condim="1" solref="0.02 1"/></default>
  <worldbody>
    {boxes}
    <body name="ball" pos="0 0 0.3">
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


class FourRooms(gymnasium.Env[FloatArray, FloatArray]):
    """A ball in four rooms.

    An observation is position and velocity, [4] float32 in m and m/s; an action is the force in x and y, [2] float32 in
    [-1, 1], for 0.2 s. The reward is always 0 and only the time limit ends an episode: nothing tells where to go.

    Args:
        max_steps: control steps until an episode is truncated.
    """

    def __init__(self, max_steps: int = 100) -> None:
        self.max_steps = max_steps
        self.model = mujoco.MjModel.from_xml_string(_mjcf())
        self.data = mujoco.MjData(self.model)
        self.frame_skip = FRAME_SKIP
        limit = np.array([HALF, HALF, np.inf, np.inf], np.float32)
        self.observation_space = gymnasium.spaces.Box(-limit, limit)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))
        self.steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Lay the ball down, at rest.

        Args:
            seed: of the position.
            options: `{"start": (x, y)}` says where; without it, anywhere that is free.
        Raises:
            ConfigError: an unknown option, or a start within RADIUS of a wall.
        """
        super().reset(seed=seed)
        options = options or {}
        if set(options) - {"start"}:
            raise ConfigError(f"options are {', '.join(options)}; allowed is start")
        start = np.asarray(options["start"], np.float64) if "start" in options else free_point(self.np_random)
        if start.shape != (2,) or not clearance(start) >= RADIUS or np.abs(start).max() > HALF:
            raise ConfigError(f"start is {start}; allowed are two coordinates at least {RADIUS} m from every wall")
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = start
        self.steps = 0
        return self._observation(), {}

    def step(self, action: FloatArray) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """Push the ball for one control period; forces beyond [-1, 1] are cut to it."""
        self.data.ctrl[:] = action
        mujoco.mj_step(self.model, self.data, FRAME_SKIP)
        self.steps += 1
        return self._observation(), 0.0, False, self.steps >= self.max_steps, {}

    def _observation(self) -> FloatArray:
        return np.concatenate([self.data.qpos, self.data.qvel]).astype(np.float32)


class Wanderer:
    """Walks to a free point drawn at random in another room, then to the next, for ever: it leaves any trip's log.

    Args:
        rng: of the points and the noise.
    """

    PACE = 0.75
    """Share of the greatest force that it uses: noise is hardly ever cut off."""
    NOISE, MEMORY = 0.06, 0.5
    """Standard deviation of the noise that is added to actions, and how much of it stays for the next step."""
    NEAR, SLOW = 0.4, 1.0
    """So near, in metres, a corner counts as turned; from here on it slows down towards a point."""
    ARRIVED = 0.15
    """So near, in metres, a point counts as reached. It rests there for one control step: longer rests would be the
    most predictable thing to do, and so the likeliest to a search by likelihood, for ever."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._corners: list[Point] = []
        self._noise = np.zeros(2)

    def act(self, observation: FloatArray) -> FloatArray:
        """Return the next action. observation [4] -> action [2] float32 in [-1, 1]."""
        position = observation[:2].astype(np.float64)
        while len(self._corners) > 1 and np.linalg.norm(self._corners[0] - position) < self.NEAR:
            self._corners.pop(0)
        if self._corners and np.linalg.norm(self._corners[0] - position) < self.ARRIVED:
            self._corners = []
        elif not self._corners:
            self._corners = way(position, self._other_room(position))
        fresh = self.NOISE * np.sqrt(1 - self.MEMORY**2) * self._rng.standard_normal(2)
        self._noise = self.MEMORY * self._noise + fresh
        return np.clip(self._push(position) + self._noise, -1.0, 1.0).astype(np.float32)

    def _other_room(self, position: Point) -> Point:
        while True:
            point = free_point(self._rng)
            if room(point) != room(position):
                return point

    def _push(self, position: Point) -> Point:
        if not self._corners:
            return np.zeros(2)
        ahead = self._corners[0] - position
        apart = float(np.linalg.norm(ahead))
        slowed = min(1.0, apart / self.SLOW) if len(self._corners) == 1 else 1.0
        return self.PACE * slowed * ahead / max(1e-9, apart)


def head_straight(observation: FloatArray, goal: FloatArray) -> FloatArray:
    """Return the action [2] float32 that pushes an observation [4] straight towards a goal's position, walls or not."""
    ahead = goal[:2] - observation[:2]
    return np.asarray(ahead / max(1e-6, float(np.linalg.norm(ahead))), np.float32)
