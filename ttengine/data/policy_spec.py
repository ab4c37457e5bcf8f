"""Policies named in text: `hopper/medium,share=0.5`, a Stable-Baselines3 zip, an `.npz` actor, a script, `random`.

The text is the policy, then options after commas:

    random                                        uniform over the action space
    hopper/expert                                 a behaviour shipped with this package, by tier or by steps trained
    model.zip,normalizer=vecnormalize.pkl         a Stable-Baselines3 model and its VecNormalize statistics
    actor.npz                                     an actor as named arrays (see load_npz_policy)
    snapshots.npz:200                             the same, under the prefix `200/`
    controller.py:act                             a function from observation to action; also `package.module:act`
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.resources
import importlib.util
import re
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ttengine.config import check_range
from ttengine.data.policies import ACTIVATIONS, TIERS, Array, Behaviour, MLPPolicy, Policy, RandomPolicy, ScriptedPolicy
from ttengine.data.sb3_policies import load_sb3_policy
from ttengine.errors import CheckpointError, ConfigError, ShapeError

BODIES = ("hopper", "halfcheetah", "walker2d", "ant")
"""The bodies with shipped behaviours."""

FORMS = "random, hopper/medium, model.zip, actor.npz, path.py:callable and module:callable"

ANT_OBSERVATION_DIMS = (111, 27)
"""Ant with its contact forces, which old simulators logged as zeros, and without."""


@dataclass(frozen=True)
class PolicySpec:
    """One policy of a mixture. `PolicySpec.parse` reads it from text; str() writes it."""

    policy: str
    """what acts, in a form of this module's docstring"""
    share: float = 1.0
    """of the mixture's transitions; shares are relative to their sum only when all are 1, else they must sum to 1"""
    deterministic: bool = False
    """take the mean action instead of a sample"""
    normalizer: str | None = None
    """VecNormalize file of a Stable-Baselines3 model"""
    activation: str | None = None
    """activation of a Stable-Baselines3 model whose file does not say it"""

    def __post_init__(self) -> None:
        if not self.policy:
            raise ConfigError(f"a policy has no name; forms are {FORMS}")
        check_range(self, "share", 1e-9, 1e9)
        if not self.policy.endswith(".zip") and (self.normalizer or self.activation):
            raise ConfigError(f"{self.policy}: normalizer and activation belong to Stable-Baselines3 .zip models only")
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise ConfigError(f"{self.policy}: activation is {self.activation!r}, allowed are {', '.join(ACTIVATIONS)}")
        if self.policy == "random" and self.deterministic:
            raise ConfigError("the random policy cannot be deterministic; leave `deterministic` out")

    @classmethod
    def parse(cls, text: str) -> PolicySpec:
        """Read `policy[,option=value...]`.

        Raises:
            ConfigError: an option is unknown, is given twice, or has a value of the wrong kind.
        """
        policy, *options = text.split(",")
        known = [field.name for field in dataclasses.fields(cls)][1:]
        values: dict[str, Any] = {}
        for option in options:
            name, equals, value = option.partition("=")
            if not equals or name not in known or name in values:
                raise ConfigError(f"policy {text!r}: option {option!r} is not one `name=value` of {', '.join(known)}")
            values[name] = value
        try:
            if "share" in values:
                values["share"] = float(values["share"])
            if "deterministic" in values:
                values["deterministic"] = {"true": True, "false": False}[values["deterministic"].lower()]
        except (ValueError, KeyError) as error:
            raise ConfigError(f"policy {text!r}: share is a number, deterministic is true or false") from error
        return cls(policy, **values)

    def __str__(self) -> str:
        """Return the text that `parse` reads back."""
        parts = [self.policy]
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            if value != field.default:
                parts.append(f"{field.name}={str(value).lower() if value is True else value}")
        return ",".join(parts)


def load_policy(spec: PolicySpec, observation_dim: int, low: Array, high: Array) -> tuple[Policy, dict[str, Any]]:
    """Load a policy for an environment.

    Args:
        spec: what to load.
        observation_dim: N of the environment.
        low: [M] float32, the smallest action of the environment.
        high: [M] float32, the largest.
    Returns:
        The policy, and facts for the metadata (kind, file hash, snapshot and its return).
    Raises:
        ConfigError: the policy cannot be found, or needs bounded actions and the environment's are not.
        CheckpointError: its file is truncated or foreign.
        ShapeError: it was made for other observations or actions.
    """
    name = spec.policy
    if name == "random":
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ConfigError(f"a random policy needs a bounded action space, this one is {low} to {high}")
        return RandomPolicy(low, high), {"kind": "random"}
    npz = re.fullmatch(r"(.+\.npz)(?::(\d+))?", name)
    if name.endswith(".zip"):
        normalizer = Path(spec.normalizer) if spec.normalizer else None
        policy = load_sb3_policy(Path(name), normalizer, spec.activation, spec.deterministic)
        facts = {"kind": "stable-baselines3", "sha256": _sha256(Path(name))}
    elif npz:
        policy = load_npz_policy(Path(npz[1]), npz[2], observation_dim)
        facts = {"kind": "npz", "sha256": _sha256(Path(npz[1]))}
    elif ":" in name:
        return ScriptedPolicy(load_function(name), name, len(low)), {"kind": "script"}
    elif name.partition("/")[0] in BODIES:
        policy, facts = _load_behaviour_policy(name)
    else:
        raise ConfigError(f"no policy {name!r}; forms are {FORMS}; shipped bodies are {', '.join(BODIES)}")
    if (policy.observation_dim, policy.action_dim) != (observation_dim, len(low)):
        raise ShapeError(
            f"policy {name} maps {policy.observation_dim} observation dims to {policy.action_dim} action dims, the "
            f"environment has {observation_dim} and {len(low)}"
        )
    return policy, facts


def load_behaviour(body: str) -> Behaviour:
    """Read the shipped training run of a body.

    Raises:
        ConfigError: no behaviours of that body are shipped.
    """
    resource = importlib.resources.files("ttengine.data") / "behaviours" / f"{body}.safetensors"
    if body not in BODIES or not resource.is_file():
        raise ConfigError(f"no behaviours are shipped for {body!r}; bodies are {', '.join(BODIES)}")
    with importlib.resources.as_file(resource) as path:
        return Behaviour.load(path)


def _load_behaviour_policy(name: str) -> tuple[MLPPolicy, dict[str, Any]]:
    """Load `body/tier` or `body/steps`."""
    body, _, tier = name.partition("/")
    behaviour = load_behaviour(body)
    steps = behaviour.tier(tier) if tier in TIERS else int(tier) if tier.isdecimal() else -1
    if steps not in behaviour.snapshots:
        raise ConfigError(
            f"{body} has no snapshot {tier!r}; it has the tiers {', '.join(TIERS)} and the steps "
            f"{', '.join(map(str, behaviour.snapshots))}: write {body}/medium or {body}/{max(behaviour.snapshots)}"
        )
    facts = {
        "kind": "behaviour",
        "algorithm": behaviour.metadata["algorithm"],
        "trained_in": behaviour.metadata["env_id"],
        "snapshot_steps": steps,
        "snapshot_return": behaviour.curve[steps],
    }
    return behaviour.snapshots[steps], facts


def load_npz_policy(path: Path, prefix: str | None, observation_dim: int) -> MLPPolicy:
    """Read an actor stored as named arrays.

    The arrays: `W0, b0, W1, b1, ...` hidden layers [inputs, outputs] and `Wo, bo` the mean; optional are `act` (tanh,
    relu), `head` (clip, tanh), `obs_mean`, `obs_std`, `obs_clip`, and `log_std`, or `Ws, bs` for a log-std that depends
    on the state. Actions are in [-1, 1]. An actor of 111 Ant observations runs on 27: the other 84 were always zero.

    Args:
        path: the file; no pickle in it is opened.
        prefix: `200` reads the arrays whose names start with `200/`.
        observation_dim: N of the environment.
    Raises:
        CheckpointError: the file is truncated, lacks an array, or needs a time feature.
        ConfigError: the file is missing, or has no such prefix.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = {name.removeprefix(f"{prefix}/"): name for name in file.files}
            if prefix is not None:
                names = {short: name for short, name in names.items() if name.startswith(f"{prefix}/")}
            arrays = {short: file[name] for short, name in names.items() if "/" not in short}
            found = sorted({int(name.partition("/")[0]) for name in file.files if name.partition("/")[0].isdecimal()})
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise CheckpointError(f"{path} is no readable .npz file ({error})") from error
    if "Wo" not in arrays and found:
        raise ConfigError(f"{path} holds snapshots {', '.join(map(str, found))}: write {path.name}:{found[-1]}")
    if arrays.get("time_feature", 0):
        raise CheckpointError(f"{path} observes the time since the episode's start, which policies here do not")
    try:
        return _npz_actor(arrays, observation_dim)
    except KeyError as error:
        raise CheckpointError(f"{path} has no array {error}; it has {', '.join(sorted(arrays))}") from error


def _npz_actor(arrays: Mapping[str, Any], observation_dim: int) -> MLPPolicy:
    hidden = sorted((name[1:] for name in arrays if re.fullmatch(r"W\d+", name)), key=int)
    weights = [arrays[f"W{i}"].astype(np.float32) for i in (*hidden, "o")]
    biases = [arrays[f"b{i}"].astype(np.float32) for i in (*hidden, "o")]
    n = len(weights[0])
    mean = np.asarray(arrays.get("obs_mean", np.zeros(n)), dtype=np.float64)
    std = np.maximum(np.asarray(arrays.get("obs_std", np.ones(n)), dtype=np.float64), 1e-8)
    clip = float(arrays.get("obs_clip", np.inf))
    if (n, observation_dim) == ANT_OBSERVATION_DIMS:
        # zeros normalise to a constant, so their part of the first layer is a constant as well: it joins the bias
        zeros = np.clip(-mean[observation_dim:] / std[observation_dim:], -clip, clip)
        biases[0] = (biases[0] + zeros @ weights[0][observation_dim:].astype(np.float64)).astype(np.float32)
        weights[0], mean, std = weights[0][:observation_dim], mean[:observation_dim], std[:observation_dim]
    state_dependent = "Ws" in arrays
    log_std = arrays["bs"] if state_dependent else arrays.get("log_std")
    return MLPPolicy(
        tuple(weights),
        tuple(biases),
        None if log_std is None else log_std.astype(np.float32),
        mean.astype(np.float32),
        std.astype(np.float32),
        observation_clip=clip,
        activation=str(arrays.get("act", "tanh")) if hidden else "tanh",
        log_std_weight=arrays["Ws"].astype(np.float32) if state_dependent else None,
        squash=str(arrays.get("head", "clip")) == "tanh",
    )


def load_function(name: str) -> Callable[[Array], Any]:
    """Import `path.py:callable` or `module:callable`.

    Raises:
        ConfigError: the file, the module or the callable is missing.
    """
    source, _, attribute = name.rpartition(":")
    try:
        if source.endswith(".py"):
            location = importlib.util.spec_from_file_location(f"ttengine_script_{Path(source).stem}", source)
            assert location is not None and location.loader is not None  # a .py name always has a loader
            module = importlib.util.module_from_spec(location)
            sys.modules[location.name] = module  # dataclasses and pickles in the script look themselves up here
            location.loader.exec_module(module)
        else:
            module = importlib.import_module(source)
    except FileNotFoundError as error:
        raise ConfigError(f"policy {name}: there is no file {source}") from error
    except ModuleNotFoundError as error:
        raise ConfigError(f"policy {name}: {error}; is it installed, or is `path.py:callable` meant?") from error
    function: Callable[[Array], Any] | None = getattr(module, attribute, None)
    if function is None or not callable(function):
        callables = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(
            f"policy {name}: {source} has no callable {attribute!r}; it has {', '.join(callables) or 'none'}"
        )
    return function


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
