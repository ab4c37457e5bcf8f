"""Every D4RL dataset: where its file is, what is in it, which Gymnasium environment it is from, its reference scores.

Addresses, time limits and scores are facts of Fu et al. 2020 (arXiv 2004.07219) as the `d4rl` 1.1 package states them.
Where that package is installed, its addresses and scores win (`d4rl_catalogue`).
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from ttengine.errors import DataError

SERVER = "http://rail.eecs.berkeley.edu/datasets/offline_rl"


@dataclass(frozen=True)
class D4RLDataset:
    """What is known about one D4RL id.

    Attributes:
        name: the id, `hopper-medium-v2`.
        url: address of the HDF5 file.
        env_id: the Gymnasium environment nearest to the one that the data came from; None when there is none.
        max_episode_steps: the time limit, in control steps; None when unknown.
        dims: columns of observations and actions in the file; None when unknown.
        scores: reference return of a random policy and of an expert, whose normalised scores are 0 and 100.
    """

    name: str
    url: str
    env_id: str | None = None
    max_episode_steps: int | None = None
    dims: tuple[int, int] | None = None
    scores: tuple[float, float] | None = None

    @property
    def file_name(self) -> str:
        """The file's name on the server and in D4RL's own cache folder."""
        return self.url.rpartition("/")[2]


# --- locomotion: hopper, halfcheetah, walker2d, ant -------------------------------------------------------------------

BODIES = {
    "hopper": ("Hopper", (11, 3), (-20.272305, 3234.3)),
    "halfcheetah": ("HalfCheetah", (17, 6), (-280.178953, 12135.0)),
    "walker2d": ("Walker2d", (17, 6), (1.629008, 4592.3)),
    "ant": ("Ant", (111, 8), (-325.6, 3879.7)),
}
"""D4RL body -> stem of the Gymnasium id, columns of observations and actions, reference scores."""

TIERS = ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert")


def _locomotion() -> Iterator[D4RLDataset]:
    for body, (stem, dims, scores) in BODIES.items():
        facts = (f"{stem}-v4", 1000, dims, scores)
        tiers = [tier for tier in TIERS if tier != "full-replay"] + (["random-expert"] if body == "ant" else [])
        for tier in tiers:  # v0 calls replay data "mixed", and walker2d's file lost its "2d"
            file = f"{body}_{tier.replace('-', '_')}" if tier != "medium-replay" else f"{body.removesuffix('2d')}_mixed"
            yield D4RLDataset(f"{body}-{tier}-v0", f"{SERVER}/gym_mujoco/{file}.hdf5", *facts)
        for version in ("v1", "v2"):
            for tier in TIERS:
                file = f"{body}_{tier.replace('-', '_')}-{version}.hdf5"
                yield D4RLDataset(f"{body}-{tier}-{version}", f"{SERVER}/gym_mujoco_{version}/{file}", *facts)


# --- AntMaze ----------------------------------------------------------------------------------------------------------

_ANTMAZE_TASKS = {
    "umaze": ("umaze", False, False),
    "umaze-diverse": ("umaze", True, True),
    "medium-play": ("medium", True, False),
    "medium-diverse": ("medium", True, True),
    "large-play": ("large", True, False),
    "large-diverse": ("large", True, True),
}
"""Task -> maze, starts vary, goals vary."""
_ANTMAZE_OLD_NAMES = {"umaze": "u-maze", "medium": "big-maze", "large": "hardest-maze"}
_ANTMAZE_ENVS = {"umaze": "AntMaze_UMaze-v4", "medium": "AntMaze_Medium-v4", "large": "AntMaze_Large-v4"}


def _antmaze() -> Iterator[D4RLDataset]:
    for task, (maze, starts, goals) in _ANTMAZE_TASKS.items():
        old = _ANTMAZE_OLD_NAMES[maze]
        many_goals = goals if maze == "umaze" else not goals  # the evaluation files of play and diverse are swapped
        files = {
            f"antmaze-{task}-v0": f"ant_maze_new/Ant_maze_{old}_noisy_{_multi(starts, goals)}_sparse",
            f"antmaze-{task}-v1": f"ant_maze_v1/Ant_maze_{maze}_noisy_{_multi(starts, goals)}_sparse",
            f"antmaze-{task}-v2": f"ant_maze_v2/Ant_maze_{old}_noisy_{_multi(starts, goals)}_sparse_fixed",
            f"antmaze-eval-{task}-v0": f"ant_maze_new/Ant_maze_{maze}_eval_noisy_{_multi(True, many_goals)}_sparse",
        }
        for name, file in files.items():
            limit = 700 if maze == "umaze" else 1000
            yield D4RLDataset(name, f"{SERVER}/{file}.hdf5", _ANTMAZE_ENVS[maze], limit, (29, 8), (0.0, 1.0))


def _multi(starts: bool, goals: bool) -> str:
    return f"multistart_{starts}_multigoal_{goals}"


# --- Maze2D -----------------------------------------------------------------------------------------------------------

_MAZE2D = {
    "open-v0": (150, (0.01, 20.66), (11.17817, 27.166538620695782)),
    "umaze-v0": (150, (0.94, 62.6), (23.249793, 81.78995240126592)),
    "medium-v0": (250, (5.77, 85.14), (19.47762, 96.03474232952358)),
    "large-v0": (600, (4.83, 191.99), (27.38831, 215.09965671563742)),
    "umaze-v1": (300, (23.85, 161.86), (68.537689, 193.66285642381482)),
    "medium-v1": (600, (13.13, 277.39), (44.264742, 297.4552547777125)),
    "large-v1": (800, (6.7, 273.99), (30.569041, 303.4857382709002)),
    "eval-umaze-v1": (300, (36.63, 141.4), (56.95455, 178.21373133248397)),
    "eval-medium-v1": (600, (13.07, 204.93), (42.28578, 235.5658957482388)),
    "eval-large-v1": (800, (16.4, 302.22), (56.95455, 326.09647655082637)),
}
"""Maze and version -> time limit, scores of the sparse reward, scores of the dense reward."""
_POINTMAZE = {"open": "Open", "umaze": "UMaze", "medium": "Medium", "large": "Large"}


def _maze2d() -> Iterator[D4RLDataset]:
    for task, (limit, sparse, dense) in _MAZE2D.items():
        maze, _, version = task.rpartition("-")
        suffix = "" if version == "v0" else f"-{version}"
        body = _POINTMAZE[maze.removeprefix("eval-")]
        for reward, middle, scores in (("sparse", "", sparse), ("dense", "-dense", dense)):
            yield D4RLDataset(
                f"maze2d-{maze}{middle}-{version}",
                f"{SERVER}/maze2d/maze2d-{maze}-{reward}{suffix}.hdf5",
                f"PointMaze_{body}{'Dense' if reward == 'dense' else ''}-v3",
                limit,
                (4, 2),
                scores,
            )


# --- Adroit and Kitchen -----------------------------------------------------------------------------------------------

_ADROIT = {
    "pen": (100, 200, (45, 24), (96.262799, 3076.8331017826877)),
    "hammer": (200, 600, (46, 26), (-274.856578, 12794.134825156867)),
    "relocate": (200, 500, (39, 30), (-6.425911, 4233.877797728884)),
    "door": (200, 300, (39, 28), (-56.512833, 2880.5693087298737)),
}
"""Task -> time limit, time limit of the long-horizon id, columns, scores."""
_ADROIT_OLD_NAMES = {"human": "v0_demos_clipped", "cloned": "demos-v0-bc-combined", "expert": "v0_expert_clipped"}
_KITCHEN = {
    "complete": "mini_kitchen_microwave_kettle_light_slider",
    "partial": "kitchen_microwave_kettle_light_slider",
    "mixed": "kitchen_microwave_kettle_bottomburner_light",
}


def _adroit() -> Iterator[D4RLDataset]:
    for task, (limit, long_limit, dims, scores) in _ADROIT.items():
        env_id = f"AdroitHand{task.title()}-v1"
        for tier, old in _ADROIT_OLD_NAMES.items():
            urls = {
                "v0": f"{SERVER}/hand_dapg/{task}-{old}.hdf5",
                "v1": f"{SERVER}/hand_dapg_v1/{task}-{tier}-v1.hdf5",
            }
            for version, url in urls.items():
                yield D4RLDataset(f"{task}-{tier}-{version}", url, env_id, limit, dims, scores)
                if tier == "human":
                    name = f"{task}-human-longhorizon-{version}"
                    yield D4RLDataset(name, url, env_id, long_limit, dims, scores)


def _kitchen() -> Iterator[D4RLDataset]:
    for task, file in _KITCHEN.items():
        url = f"{SERVER}/kitchen/{file}-v0.hdf5"
        yield D4RLDataset(f"kitchen-{task}-v0", url, "FrankaKitchen-v1", 280, (60, 9), (0.0, 4.0))


BUILT_IN: dict[str, D4RLDataset] = {
    entry.name: entry for family in (_locomotion, _antmaze, _maze2d, _adroit, _kitchen) for entry in family()
}
"""Every locomotion, AntMaze, Maze2D, Adroit and Kitchen id of D4RL."""


# --- the installed d4rl package ---------------------------------------------------------------------------------------


def d4rl_catalogue() -> dict[str, D4RLDataset]:
    """Return every known D4RL id; addresses and scores are those of the `d4rl` package where it is installed.

    Raises:
        DataError: the installed package's `infos.py` has not the three tables that it should have.
    """
    infos = _installed_infos()
    if infos is None:
        return dict(BUILT_IN)
    try:
        urls, low, high = infos.DATASET_URLS, infos.REF_MIN_SCORE, infos.REF_MAX_SCORE
    except AttributeError as error:
        raise DataError(f"the installed d4rl package is not one that ttengine knows: {error}") from error
    merged = dict(BUILT_IN)
    for name, url in urls.items():
        entry = replace(merged.get(name, D4RLDataset(name, url)), url=url)
        scores = (float(low[name]), float(high[name])) if name in low and name in high else entry.scores
        merged[name] = replace(entry, scores=scores)
    return merged


def _installed_infos() -> ModuleType | None:
    if "d4rl.infos" in sys.modules:
        return sys.modules["d4rl.infos"]
    try:
        spec = importlib.util.find_spec("d4rl")
    except ValueError:  # some program put a bare module named d4rl into sys.modules
        return None
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (Path(folder) / "infos.py").is_file():
            return _execute_infos(Path(folder) / "infos.py")
    return None


@functools.cache
def _execute_infos(path: Path) -> ModuleType:
    # by path, because importing the package d4rl itself would import gym and mujoco_py
    loader = importlib.machinery.SourceFileLoader("ttengine_d4rl_infos", str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
