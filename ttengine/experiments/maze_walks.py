"""Log walks through the medium maze as D4RL's recipe does: a planner's waypoints, a body that follows them, noise."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from ttengine.data.trajectories import Trajectories
from ttengine.errors import require
from ttengine.experiments.ant_steering import Walker, is_tipped
from ttengine.experiments.maze_map import FREE, GOAL, REACHED_M, Cell, Frame, next_cells

if TYPE_CHECKING:
    from ttengine.experiments.maze import Body, Maze

FloatArray = npt.NDArray[np.float32]
Point = npt.NDArray[np.float64]

JITTER = 0.2
"""A waypoint is drawn so far around a cell's middle, in x and y, cells."""


@dataclass(frozen=True)
class Habits:
    """How a body follows its waypoints."""

    at_waypoint_m: float
    """so near a waypoint it turns to the next"""
    at_target_m: float
    """so near a target it has reached it"""
    target_jitter: float
    """JITTER of targets"""
    goal_share: float
    """of targets that are the evaluated goal, where D4RL's "play" sends its ants too"""


HABITS = {"point": Habits(0.2, 0.2, JITTER, 0.0), "ant": Habits(1.0, REACHED_M, 0.0, 0.2)}
"""An ant that turns a metre from its targets comes by the goal in 75 of a million steps, too rarely to learn from."""
PACE, GAIN = 1.0, 0.5
"""Of the point, m/s, and the share of a speed's error that a control step corrects."""
SPEED_PER_ACTION = 1.2
"""Of the point: a control step with action 1 adds so many m/s."""
NOISE, MEMORY = 0.4, 0.8
"""Of the point's actions: standard deviation, and the share that stays for the next step."""


class _Guide(Protocol):
    def act(self, observation: FloatArray, ahead: Point) -> FloatArray: ...


class _PointGuide:
    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.noise = rng, np.zeros(2)

    def act(self, observation: FloatArray, ahead: Point) -> FloatArray:
        fresh = NOISE * np.sqrt(1 - MEMORY**2) * self.rng.standard_normal(2)
        self.noise = MEMORY * self.noise + fresh
        wanted = PACE * ahead / max(1e-6, float(np.linalg.norm(ahead)))
        push = GAIN * (wanted - observation[2:]) / SPEED_PER_ACTION
        return np.clip(push + self.noise, -1.0, 1.0).astype(np.float32)


class _AntGuide:
    def __init__(self, rng: np.random.Generator) -> None:
        self.walker = Walker(rng)

    def act(self, observation: FloatArray, ahead: Point) -> FloatArray:
        return self.walker.act(np.asarray(observation[2:], np.float64), float(np.arctan2(ahead[1], ahead[0])))


class _Waypoints:
    """Leads to one random cell after the other."""

    def __init__(self, rng: np.random.Generator, position: Point, frame: Frame, habits: Habits) -> None:
        self.rng, self.frame, self.habits = rng, frame, habits
        self.reached = -1  # the first draw of a target is no success
        self.target = self.cell = frame.cell_of(position)
        self.point = position
        self.ways: dict[Cell, Cell] = {}

    def ahead(self, position: Point) -> Point:
        """Return the vector to the next waypoint."""
        near = self.habits.at_target_m if self.cell == self.target else self.habits.at_waypoint_m
        if np.linalg.norm(self.point - position) <= near or not self.ways:
            self._next(self.cell)
        else:
            here = self.frame.cell_of(position)
            if here in self.ways and here != self.cell and self.ways.get(here) != self.cell:
                self._next(here)  # pushed off the way
        return self.point - position

    def _next(self, here: Cell) -> None:
        if here == self.target:
            self.reached += 1
            others = [cell for cell in FREE if cell != here]
            self.target = others[self.rng.integers(len(others))]
            if here != GOAL and self.habits.goal_share and self.rng.random() < self.habits.goal_share:
                self.target = GOAL
            self.ways = next_cells(self.target)
        self.cell = self.ways[here]
        jitter = self.habits.target_jitter if self.cell == self.target else JITTER
        self.point = self.frame.middle(self.cell) + self.rng.uniform(-jitter, jitter, 2) * self.frame.cell_m


def wander(body: Body, transitions: int, episode_steps: int, seed: int, processes: int = 1) -> Trajectories:
    """Log a body that walks from anywhere to one random cell after the other.

    An episode that comes by the evaluated goal ends there, with the only reward; others are cut after `episode_steps`.
    An ant that has tipped over goes on kicking: who learns from the logs shall see what becomes of it.

    Args:
        body: that walks.
        transitions: at least so many, up to the end of an episode.
        episode_steps: of an episode at most.
        seed: equal seeds give equal data.
        processes: that walk; the data do not depend on it.
    Returns:
        The walks; `metadata` counts targets reached and episodes that end with the ant on its back.
    """
    require("gymnasium_robotics", "maze")
    walk = partial(_walk, body, episode_steps, seed)
    walks: list[_Walk] = []
    # spawn: a forked copy of a process that runs Torch's threads may hang
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) if processes > 1 else nullcontext()
    with pool as executor:
        while (missing := transitions - sum(len(each.rewards) for each in walks)) > 0:
            certain = range(len(walks), len(walks) + -(-missing // episode_steps))  # no walk is longer: all are needed
            walks += executor.map(walk, certain) if executor else map(walk, certain)
    columns = ("observations", "actions", "rewards", "terminals", "timeouts")
    arrays: dict[str, Any] = {name: np.concatenate([getattr(each, name) for each in walks]) for name in columns}
    facts = {name: sum(getattr(each, name) for each in walks) for name in ("targets_reached", "tipped")}
    return Trajectories(**arrays, name=f"medium-maze-{body}", metadata={**facts, "seed": seed})


@dataclass(frozen=True, eq=False)
class _Walk:
    """One episode: arrays of [T, ...], and what befell it."""

    observations: FloatArray
    actions: FloatArray
    rewards: FloatArray
    terminals: npt.NDArray[np.bool_]
    timeouts: npt.NDArray[np.bool_]
    targets_reached: int
    tipped: bool


def _walk(body: Body, episode_steps: int, seed: int, number: int) -> _Walk:
    env, rng = _maze(body, episode_steps), np.random.default_rng([seed, number])
    observation, _ = env.reset(seed=int(rng.integers(2**31)))
    guide: _Guide = _PointGuide(rng) if body == "point" else _AntGuide(rng)
    waypoints = _Waypoints(rng, env.position, env.frame, HABITS[body])
    observations, actions, rewards = [], [], []
    terminal = cut = False
    while not (terminal or cut):
        action = guide.act(observation, waypoints.ahead(env.position))
        observations.append(observation)
        actions.append(action)
        observation, reward, terminal, cut, _ = env.step(action)
        rewards.append(reward)
    last = np.arange(len(rewards)) == len(rewards) - 1
    return _Walk(
        np.array(observations), np.array(actions), np.array(rewards, np.float32),
        last & terminal, last & cut, waypoints.reached, body == "ant" and is_tipped(observation[3:7]),
    )  # fmt: skip


@cache
def _maze(body: Body, episode_steps: int) -> Maze:
    """Return a process's maze: to build one takes longer than to reset it."""
    from ttengine.experiments.maze import Maze

    return Maze(body, episode_steps, anywhere=True)
