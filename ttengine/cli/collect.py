"""`ttengine collect`: roll policies out and write a dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ttengine.cli.common import parse, print_json, print_table, quiet_stdout
from ttengine.data.collect import CollectConfig, collect_to
from ttengine.data.recipes import RECIPES, recipe_config
from ttengine.data.trajectories import Trajectories
from ttengine.errors import ConfigError

RECIPE_TRANSITIONS = 1_000_000
"""Size of a recipe's dataset when none is given, D4RL's."""


@dataclass(frozen=True)
class CollectCommand:
    """Roll policies out in a simulator and write the transitions as a dataset.

    By recipe, with the policies that this package ships:

        ttengine collect hopper-medium-replay --transitions 200000 --out hopper.hdf5 --processes 2

    Or by environment and policies, with Stable-Baselines3 files or functions of your own:

        ttengine collect Hopper-v4 --policies ppo.zip,share=0.5 random,share=0.5 --episodes 200 --out mine.hdf5
        ttengine collect Pendulum-v1 --policies controller.py:act --transitions 10000 --out pendulum.npz
    """

    what: Annotated[Positional[str], arg(metavar="RECIPE|ENVIRONMENT")]
    """a recipe, such as halfcheetah-mixed (body-tier: hopper, halfcheetah, walker2d, ant; random, medium, expert,
    medium-expert, medium-replay, full-replay, mixed), or a Gymnasium environment"""
    out: Path | None = None
    """file to write: .hdf5 (D4RL's layout) or .npz"""
    minari_id: str | None = None
    """write a Minari dataset of this id as well, or instead"""
    policies: tuple[str, ...] = ()
    """with an environment: what acts, each `policy[,share=0.5][,deterministic=true]`; policy is random, hopper/medium,
    model.zip, actor.npz, path.py:callable or module:callable"""
    transitions: int | None = None
    """size of the dataset in transitions; of a recipe's, a million if not given"""
    episodes: int | None = None
    """size of the dataset in whole episodes, in place of transitions"""
    action_noise: float = 0.0
    """standard deviation of noise added to every action, as a share of half the action range"""
    epsilon: float = 0.0
    """share of actions replaced by uniform ones"""
    deterministic: bool = False
    """of a recipe: policies act by their mean actions, to which noise may be added"""
    max_episode_steps: int | None = None
    """end episodes after so many transitions, if the environment does not end them sooner"""
    processes: int = 1
    """processes that roll out; the data do not depend on it"""
    seed: int = 0
    """equal seeds give equal data"""
    name: str | None = None
    """name of the dataset; else the recipe's or the environment's, and `-tt`"""
    overwrite: bool = False
    """replace what is there"""
    json: bool = False
    """print the result as one JSON document; progress goes to standard error"""


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    command = parse(CollectCommand, arguments, "collect")
    config = collection(command)
    with quiet_stdout(command.json):
        made = collect_to(config, command.out, command.minari_id, overwrite=command.overwrite)
    if command.json:
        print_json(_about(command, made))
        return
    returns, lengths = made.episode_returns, made.episode_lengths
    print_table(
        f"{made.name}: {len(made):,} transitions in {made.n_episodes:,} episodes",
        [
            ("return", f"{returns.mean():,.1f} mean, {returns.std():,.1f} spread, {returns.max():,.1f} best"),
            ("length", f"{lengths.mean():,.1f} mean, {lengths.min():,} to {lengths.max():,}"),
            *([("file", str(command.out))] if command.out else []),
            *([("Minari", command.minari_id)] if command.minari_id else []),
        ],
    )


def collection(command: CollectCommand) -> CollectConfig:
    """Return what the command asks to collect.

    Raises:
        ConfigError: policies are given with a recipe, or none with an environment, or it is to be deterministic.
    """
    extra = {
        "action_noise": command.action_noise,
        "epsilon": command.epsilon,
        "max_episode_steps": command.max_episode_steps,
    }
    if command.what.removesuffix("-tt") in RECIPES:
        if command.policies:
            raise ConfigError(f"the recipe {command.what} has its own policies; give an environment to choose others")
        size = RECIPE_TRANSITIONS if command.transitions is None else command.transitions
        config = recipe_config(
            command.what, size, command.seed, command.processes, command.name, deterministic=command.deterministic
        )  # fmt: skip
        if command.episodes is not None:
            extra |= {"episodes": command.episodes, "transitions": command.transitions}
        return dataclasses.replace(config, **extra)  # type: ignore[arg-type]
    if command.deterministic:
        raise ConfigError("--deterministic is for recipes; write hopper/expert,deterministic=true among --policies")
    if not command.policies:
        raise ConfigError(
            f"{command.what} is no recipe, so it needs --policies, such as --policies random; recipes are "
            f"{', '.join(RECIPES)}"
        )
    return CollectConfig(
        command.what,
        command.policies,
        command.transitions,
        command.episodes,
        processes=command.processes,
        seed=command.seed,
        name=command.name,
        **extra,  # type: ignore[arg-type]
    )


def _about(command: CollectCommand, made: Trajectories) -> dict[str, object]:
    return {
        "name": made.name,
        "transitions": len(made),
        "episodes": made.n_episodes,
        "return_mean": float(made.episode_returns.mean()),
        "return_max": float(made.episode_returns.max()),
        "file": None if command.out is None else str(command.out),
        "minari_id": command.minari_id,
        "metadata": dict(made.metadata),
    }
