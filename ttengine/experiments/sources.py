"""Where an experiment's data come from: recipe, D4RL id, Minari id or file, all resolved before any training."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ttengine.data.load import load_dataset
from ttengine.data.recipes import RECIPES, recipe_config
from ttengine.data.trajectories import Trajectories
from ttengine.environments import make_environment
from ttengine.errors import ConfigError
from ttengine.experiments.ingredients import collected
from ttengine.experiments.run import Rows, Run

_TIER = re.compile(
    r"(?:^|.*-)(hopper|halfcheetah|walker2d|ant)-"
    r"(random|medium|expert|medium-expert|medium-replay|full-replay|mixed)(?:-v\d+)?"
)


@dataclass(frozen=True, eq=False)
class Source:
    """Logged trajectories and the environment that they are from.

    Attributes:
        name: of its arms, models and pictures: the dataset's, with `-` for what a file's name should not hold.
        trajectories: what was logged.
        environment: Gymnasium id; None where it is not known and not needed.
    """

    name: str
    trajectories: Trajectories
    environment: str | None

    @property
    def env_id(self) -> str:
        """The environment, in experiments that need one."""
        assert self.environment is not None  # sources() refuses those without, unless told otherwise
        return self.environment

    @property
    def observation_columns(self) -> int | None:
        """How many leading numbers of the environment's observation the data kept; None: all."""
        found: int | None = self.trajectories.metadata.get("observation_columns")
        return found


def sources(
    run: Run,
    datasets: Sequence[str],
    transitions: int,
    environment: str | None = None,
    *,
    action_noise: float | None = None,
    needs_environment: bool = True,
) -> list[Source]:
    """Resolve datasets by name; what is wrong with any of them is said before the first is collected.

    Args:
        run: whose folder keeps what is collected.
        datasets: recipes (`hopper-medium-expert`), D4RL ids, Minari ids, files or Minari folders.
        transitions: to collect for each recipe; files are taken whole.
        environment: Gymnasium id for datasets that do not say theirs.
        action_noise: of recipes' policies, which act by their means then, a share of half the action range; None: they
            draw their actions.
        needs_environment: whether a dataset without an environment is an error.
    Raises:
        ConfigError: two datasets of one name; no environment is known, or the given one is not needed; the data are
            not from this environment.
        All that `load_dataset` and `make_environment` raise.
    """
    names = [dataset_name(each) for each in datasets]
    check_unique(names)
    loaded = {each: load_dataset(each) for each in datasets if not is_recipe(each)}
    unknown = [each for each, data in loaded.items() if not data.metadata.get("env_id")]
    if environment is not None and not unknown:
        raise ConfigError(f"environment is {environment}, but every dataset says its own; leave it out")
    if unknown and environment is None and needs_environment:
        raise ConfigError(f"the environment of {', '.join(unknown)} is not known; give it with --environment")
    found = {}
    for name, each in zip(names, datasets, strict=True):
        if each in loaded:
            found[each] = Source(name, loaded[each], loaded[each].metadata.get("env_id") or environment)
            if needs_environment or (each in unknown and environment is not None):
                check_environment(found[each])
    for name, each in zip(names, datasets, strict=True):
        if each not in found:  # only now, that nothing is wrong with the others
            config = recipe_config(each, transitions, deterministic=action_noise is not None)
            config = dataclasses.replace(config, action_noise=action_noise or 0.0)
            found[each] = Source(name, collected(run, name, config), config.env_id)
    return [found[each] for each in datasets]


def is_recipe(dataset: str) -> bool:
    """Return whether a dataset's name is a recipe's, `-tt` at the end or not."""
    return dataset.removesuffix("-tt") in RECIPES


def dataset_name(dataset: str) -> str:
    """Return the name that arms and files get: a file's without its folders and suffix, an id's with `-` for `/`."""
    path = Path(dataset).expanduser()
    if is_recipe(dataset):
        return dataset.removesuffix("-tt")
    shown = path.stem if path.is_file() or path.suffix in (".hdf5", ".h5", ".npz") else dataset
    if path.is_dir():
        shown = path.resolve().name
    return re.sub(r"[^\w.-]+", "-", shown).strip("-.")


def check_unique(names: Sequence[str]) -> None:
    """Raise ConfigError where there is no name, or two are the same: arms are told apart by them."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"datasets: {', '.join(twice)} is there twice; arms are named by dataset, rename a file")
    if not names:
        raise ConfigError("datasets is empty; name at least one, such as hopper-medium-expert")


def check_environment(source: Source) -> None:
    """Raise ConfigError unless the data's columns are those of the environment, or the first of its observation."""
    env: Any = make_environment(source.env_id)
    try:
        spaces = {"observations": env.observation_space, "actions": env.action_space}
        data = {"observations": source.trajectories.observation_dim, "actions": source.trajectories.action_dim}
        for what, space in spaces.items():
            shape = space.shape
            if shape is None or len(shape) != 1:
                raise ConfigError(f"{source.name}: {what} of {source.env_id} are no vectors ({space})")
            cut = what == "observations" and source.observation_columns == data[what] < shape[0]
            if data[what] != shape[0] and not cut:
                raise ConfigError(
                    f"{source.name}: the data's {what} have {data[what]} columns, those of {source.env_id} have "
                    f"{shape[0]}; is this the environment that the data came from?"
                )
    finally:
        env.close()


def body_and_tier(name: str) -> tuple[str, str] | None:
    """Return body and tier of a name such as `hopper-medium-v2` or `hopper_medium-v2`; None where it has none."""
    found = _TIER.fullmatch(name.replace("_", "-"))
    return (found.group(1), found.group(2)) if found is not None else None


def expert_episodes(data: Trajectories) -> Rows | None:
    """Logged episodes of the mixture's best policy, a row each; None where the data do not say which these are.

    A policy's last episode is cut to fit the set's size, so it is left out where there are others.
    """
    about = data.metadata.get("episodes")
    if not isinstance(about, dict) or len(about.get("policy", ())) != data.n_episodes:
        return None
    policies, returns, lengths = np.array(about["policy"]), data.episode_returns, data.episode_lengths
    kept = {}
    for policy in np.unique(policies):
        rows = np.flatnonzero(policies == policy)
        kept[policy] = rows[:-1] if len(rows) > 1 else rows
    best = max(kept.values(), key=lambda rows: float(returns[rows].mean()))
    return [{"return": float(returns[row]), "length": int(lengths[row])} for row in best]
