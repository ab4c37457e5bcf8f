"""Goals: likelihood beam search with a goal in front, in four rooms, from the logs of a wanderer and no reward.

The model reads an observation of the episode's future before everything else (a goal), so its likeliest sequences are
those that lead there. Pairs of a start and a goal are held out: no logged episode shows a way from the one to the
other, in any part; that is checked on the data that are trained on.

Source: Janner et al. 2021, section 4.2, "Goal-conditioned reinforcement learning".
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ttengine.checkpoint import Checkpoint
from ttengine.config import DataConfig, PlanConfig, check_range, plan_preset
from ttengine.controller import Controller, act_together
from ttengine.data.files import save_dataset
from ttengine.data.load import load_dataset
from ttengine.data.trajectories import Trajectories
from ttengine.errors import ConfigError, DataWarning, require
from ttengine.experiments.four_rooms_walks import WANDER_STREAM, Pairs, check_data, draw_pairs, wander
from ttengine.experiments.ingredients import PAPER, Recipe, mean_and_spread, trained
from ttengine.experiments.report import Report, Table
from ttengine.experiments.run import Arm, Rows, Run
from ttengine.planner import Planner
from ttengine.viz.maps import Paths, plot_paths
from ttengine.viz.plots import check_plot_path

FloatArray = npt.NDArray[np.float32]
Act = Callable[[list[int], list[FloatArray]], Sequence[FloatArray]]
"""Which pairs are under way, and their observations [4] -> an action [2] for each."""

TARGET = 0.9
"""Share of the held-out pairs that are to be reached."""
DRAWN = 60
"""Logged episodes in the picture."""

SMALL = Recipe(layers=2, width=64, window=8, context=5, batch_size=32, steps=30_000, learning_rate=4e-3)
"""Trained in about twenty minutes on a core; a third of the steps and half the episodes reached 68 of 100 goals."""

PLAN = plan_preset("four-rooms-wanderer")


@dataclass(frozen=True)
class Config:
    """Reach goals in four rooms: a prepended future observation, likelihood beam search, no reward anywhere."""

    episodes: int = 8000
    """of the wanderer that are kept"""
    episode_steps: int = 32
    """control steps of each; a goal is drawn from the rest of its episode: this bounds how roundabout its way may be"""
    pairs: int = 100
    """of a start and a goal that are held out and evaluated"""
    held_out_m: float = 0.5
    """no kept episode comes so near to a pair's start and later to its goal"""
    reached_m: float = 0.3
    """so near to the goal, in metres, is success"""
    time_limit: int = 100
    """control steps in which a goal is to be reached"""
    seeds: tuple[int, ...] = (0,)
    """of training and of the planner; pairs and data have seed 0"""
    recipe: Recipe = SMALL
    plan: PlanConfig = PLAN

    AFTERWARDS: ClassVar[tuple[str, ...]] = ("time_limit", "reached_m", "seeds", "plan")
    """settings that neither data nor models depend on"""

    def __post_init__(self) -> None:
        check_range(self, "episodes", 2, 10**7)
        check_range(self, "pairs", 1, 10_000)
        check_range(self, "held_out_m", 0.0, 2.0)
        check_range(self, "reached_m", 0.01, 2.0)
        check_range(self, "time_limit", 1, 100_000)
        if not self.seeds:
            raise ConfigError("seeds is empty; at least one training is needed")
        if self.episode_steps <= self.recipe.window:
            raise ConfigError(
                f"episode_steps is {self.episode_steps}, a training window has {self.recipe.window} transitions; goals "
                "are drawn from what comes after a window, so episodes have to be longer"
            )
        if self.plan.objective != "likelihood":
            raise ConfigError(f"plan.objective is {self.plan.objective!r}; goals are reached by 'likelihood'")

    @classmethod
    def full(cls) -> Config:
        """The paper's model, more data, pairs and seeds; hours on a few cores."""
        return cls(
            episodes=16_000, pairs=300, seeds=(0, 1, 2), recipe=dataclasses.replace(PAPER, steps=60_000),
            plan=dataclasses.replace(PLAN, horizon=10, beam_width=32),
        )  # fmt: skip


def run(run: Run, config: Config) -> Report:
    """Run the experiment and say what it found.

    Raises:
        MissingExtraError: MuJoCo, Gymnasium, matplotlib or accelerate is not installed; before anything is collected.
        DataError: the data in the folder show a held-out way, or hold rewards.
    """
    picture = run.out / "goals.png"
    check_requirements(picture)
    pairs = draw_pairs(config.pairs)
    data = _wandered(run, config, pairs)
    arms = [
        Arm("head straight", partial(_head_straight, run, config, pairs), quick=True),
        Arm("wanderer", partial(_wander, run, config, pairs), quick=True),
    ]
    for seed in config.seeds:
        arms.append(Arm(f"with goal {seed}", partial(_plan, run, config, data, pairs, seed, True)))
        arms.append(Arm(f"without goal {seed}", partial(_plan, run, config, data, pairs, seed, False)))
    return _report(run, config, data, pairs, run.measure(arms), picture)


def check_requirements(picture: Path) -> None:
    """Raise now what would be raised after hours.

    Raises:
        MissingExtraError: an optional package is not installed.
    """
    require("gymnasium", "mujoco")
    require("mujoco", "mujoco")
    require("h5py", "data")
    require("accelerate", "train")
    check_plot_path(picture)


def _wandered(run: Run, config: Config, pairs: Pairs) -> Trajectories:
    """Return the wanderer's logs, collected once for a run and checked in every one."""
    path = run.out / "data" / "wanderer.hdf5"
    if not path.is_file():
        save_dataset(wander(pairs, config.episodes, config.episode_steps, config.held_out_m), path)
    data = load_dataset(path)
    check_data(data, pairs, config.held_out_m)
    return data


# --- arms -----------------------------------------------------------------------------------------------------------


def _plan(run: Run, config: Config, data: Trajectories, pairs: Pairs, seed: int, goal: bool) -> Rows:
    """Measure likelihood beam search, with the goal in front or without."""
    name = f"{'with' if goal else 'without'} goal"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*every reward is 0", DataWarning)  # that is the point
        model = trained(
            run, name.replace(" ", "-"), data, config.recipe, seed,
            DataConfig(binning="uniform", max_episode_steps=config.episode_steps), goal=goal,
        )  # fmt: skip
    return reach(run, f"{name} {seed}", config, pairs, planner_act(model, config.plan, pairs, seed))


def planner_act(model: Checkpoint, plan: PlanConfig, pairs: Pairs, seed: int) -> Act:
    """Return a planner's actions; a goal is a position at rest, as an observation of the future.

    Args:
        model: with goals or without.
        plan: the search.
        pairs: their goals are the planner's.
        seed: of the planner; pair i has seed + i.
    """
    planner = Planner(model, plan)
    goals: list[Any] = [None] * len(pairs)
    if planner.model.config.goal:
        goals = [np.array([*goal, 0.0, 0.0], np.float32) for goal in pairs[:, 1]]
    controllers = [Controller(planner, bounds=(-1, 1), goal=goal, seed=seed + i) for i, goal in enumerate(goals)]

    def act(running: list[int], observations: list[FloatArray]) -> list[FloatArray]:
        group = [controllers[i] for i in running]
        actions = act_together(group, observations)
        for controller in group:
            controller.observe(0.0)  # what the environment gives for whatever is done
        return actions

    return act


def _wander(run: Run, config: Config, pairs: Pairs) -> Rows:
    """Measure how often the wanderer comes by."""
    from ttengine.experiments.four_rooms import Wanderer

    wanderers = [Wanderer(np.random.default_rng([0, WANDER_STREAM, i])) for i in range(len(pairs))]

    def act(running: list[int], observations: list[FloatArray]) -> list[FloatArray]:
        return [wanderers[i].act(observation) for i, observation in zip(running, observations, strict=True)]

    return reach(run, "wanderer", config, pairs, act)


def _head_straight(run: Run, config: Config, pairs: Pairs) -> Rows:
    """Measure how often no way has to be known."""
    from ttengine.experiments.four_rooms import head_straight

    goals = pairs[:, 1].astype(np.float32)

    def act(running: list[int], observations: list[FloatArray]) -> list[FloatArray]:
        return [head_straight(observation, goals[i]) for i, observation in zip(running, observations, strict=True)]

    return reach(run, "head straight", config, pairs, act)


def reach(run: Run, name: str, config: Config, pairs: Pairs, act: Act) -> Rows:
    """Start at every pair's start, all side by side, until its goal is reached or time is up; keep the paths.

    Returns:
        A row a pair: whether it was reached (1 or 0), control steps, doors and metres of the shortest way, metres
        walked, and the least distance to the goal.
    """
    from ttengine.experiments.four_rooms import FourRooms, length, way

    envs = [FourRooms(config.time_limit) for _ in pairs]
    observations = [env.reset(options={"start": start})[0] for env, start in zip(envs, pairs[:, 0], strict=True)]
    paths = [[observation[:2]] for observation in observations]
    running = [i for i in range(len(pairs)) if not _is_there(paths[i], pairs[i], config.reached_m)]
    while running:
        actions = act(running, [observations[i] for i in running])
        going_on = []
        for i, action in zip(running, actions, strict=True):
            observations[i], _, _, over, _ = envs[i].step(action)
            paths[i].append(observations[i][:2])
            if not over and not _is_there(paths[i], pairs[i], config.reached_m):
                going_on.append(i)
        running = going_on
    _save_paths(_paths_file(run, name), paths)
    rows: Rows = []
    for i, (path, (start, goal)) in enumerate(zip(paths, pairs, strict=True)):
        shortest = way(start, goal)
        rows.append(
            {
                "pair": i,
                "reached": int(_is_there(path, pairs[i], config.reached_m)),
                "steps": len(path) - 1,
                "doors": len(shortest) // 2,
                "shortest_m": length([start, *shortest]),
                "walked_m": length(path),
                "nearest_m": float(np.linalg.norm(np.stack(path) - goal, axis=1).min()),
            }
        )
    return rows


def _is_there(path: Sequence[FloatArray], pair: npt.NDArray[np.float64], within_m: float) -> bool:
    return float(np.linalg.norm(path[-1] - pair[1])) <= within_m


def _paths_file(run: Run, name: str) -> Path:
    return run.out / "paths" / f"{name}.npz"


def _save_paths(path: Path, paths: Sequence[Sequence[FloatArray]]) -> None:
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, positions=np.concatenate(paths), lengths=[len(each) for each in paths])


def _read_paths(path: Path) -> list[FloatArray]:
    with np.load(path) as file:
        return np.split(file["positions"], np.cumsum(file["lengths"])[:-1])


# --- report ---------------------------------------------------------------------------------------------------------


def interval(reached: int, pairs: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a success rate (Wilson 1927)."""
    z, rate = 1.96, reached / pairs
    middle = rate + z**2 / (2 * pairs)
    half = z * math.sqrt(rate * (1 - rate) / pairs + z**2 / (4 * pairs**2))
    return (middle - half) / (1 + z**2 / pairs), (middle + half) / (1 + z**2 / pairs)


def _report(
    run: Run, config: Config, data: Trajectories, pairs: Pairs, found: dict[str, Rows], picture: Path
) -> Report:
    methods = {
        "head straight": "heads straight for the goal",
        "wanderer": "the wanderer",
        "without goal": "likelihood search without a goal",
        "with goal": "likelihood search with the goal in front",
    }
    table, by_doors, panels, checks = [], [], {}, {}
    for method, label in methods.items():
        arms = {name: rows for name, rows in found.items() if name.startswith(method)}
        if not arms:
            continue
        rows = [row for each in arms.values() for row in each]
        reached = [row for row in rows if row["reached"]]
        rate = len(reached) / len(rows)
        low, high = interval(len(reached), len(rows))
        rates = ", ".join(f"{100 * mean_and_spread(each, 'reached')[0]:.0f}" for each in arms.values())
        trained_seeds = str(len(arms)) if method.startswith("with") else ""
        table.append(
            [
                label,
                f"{100 * rate:.0f} % ({100 * low:.0f} to {100 * high:.0f})",
                rates,
                f"{len(rows)}",
                trained_seeds,
                _spread(reached, "steps"),
                _spread([{"ratio": _detour(row)} for row in reached], "ratio", 2),
            ]
        )
        by_doors.append([label, *(_share([row for row in rows if row["doors"] == doors]) for doors in (1, 2))])
        name, first = next(iter(arms.items()))
        panels[f"{label}: {100 * mean_and_spread(first, 'reached')[0]:.0f} %"] = Paths(
            _read_paths(_paths_file(run, name)), [bool(row["reached"]) for row in first], pairs[:, 1]
        )
        if method == "with goal":
            checks[f"reaches at least {100 * TARGET:.0f} % of the held-out goals"] = rate >= TARGET
    _draw(picture, data, panels)
    return Report(
        "Goals",
        f"Held-out pairs of a start and a goal in different rooms; success is to come within {config.reached_m} m of "
        f"the goal in {config.time_limit} control steps of 0.2 s. {data.n_episodes:,} logged episodes of "
        f"{config.episode_steps} steps of a wanderer, all rewards 0; none comes within {config.held_out_m} m of a "
        f"pair's start and, then or later, within {config.held_out_m} m of its goal (checked in this run). Plain "
        f"likelihood beam search, H = {config.plan.horizon}, W = {config.plan.beam_width}. In brackets the 95 % "
        "interval over pairs (Wilson); other numbers are mean and standard deviation over the pairs that were reached.",
        [
            Table(
                "Success",
                ["who", "reached", "each seed, %", "trips", "seeds of training", "control steps", "way / shortest way"],
                table,
            ),
            Table("Success by the doors of the shortest way", ["who", "one door", "two doors"], by_doors),
        ],
        [picture.name],
        checks,
    )


def _detour(row: dict[str, str | float]) -> float:
    return float(row["walked_m"]) / float(row["shortest_m"])


def _spread(rows: Rows, key: str, digits: int = 0) -> str:
    if not rows:
        return ""
    mean, spread = mean_and_spread(rows, key)
    return f"{mean:.{digits}f} +- {spread:.{digits}f}"


def _share(rows: Rows) -> str:
    reached = sum(int(row["reached"]) for row in rows)
    return f"{reached} of {len(rows)}" if rows else ""


def _draw(picture: Path, data: Trajectories, panels: dict[str, Paths]) -> None:
    from ttengine.experiments.four_rooms import walls

    episodes = list(data.episodes())[:DRAWN]
    logs = Paths([data.observations[rows, :2] for rows in episodes])
    shown = {f"{len(episodes)} of {data.n_episodes:,} logged episodes": logs, **panels}
    plot_paths(picture, shown, walls(), title="Held-out starts (dots) and goals (crosses); coloured: reached")
