"""Make environments: by Gymnasium id or dataset name, with the physics that the literature's data came from."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ttengine.data.catalogue import BODIES, d4rl_catalogue
from ttengine.errors import ConfigError, DatasetNotFoundError, EnvironmentNotFoundError, require

if TYPE_CHECKING:
    import gymnasium

_MINARI_MUJOCO = re.compile(r"mujoco/([a-z0-9]+)/[-\w]+-v\d+")
_LOCOMOTION = re.compile(rf"({'|'.join(stem for stem, _, _ in BODIES.values())})-v[45]")
_PACKAGES = (
    (r"(AntMaze|PointMaze|AdroitHand|FrankaKitchen|Fetch|Hand)", "gymnasium_robotics", "gymnasium-robotics==1.4.2"),
    (r"(MiniGrid|BabyAI)", "minigrid", "minigrid"),
)
"""Ids that start so -> the module that registers them, what pip calls it."""
SUMMED_MARGINS = (3, 5)
"""From this MuJoCo on, the contact margins of two geoms are added; before, the larger one counted."""


def make_environment(env_id: str, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    """Make a Gymnasium environment.

    Hopper, HalfCheetah, Walker2d and Ant are given back the contact margins that they had before MuJoCo 3.5, so that
    they stay the environments of the literature.

    Args:
        env_id: Gymnasium id, `Hopper-v4`.
        kwargs: what `gymnasium.make` takes, `render_mode="rgb_array"` for one.
    Raises:
        EnvironmentNotFoundError: the id is unknown, or its package is not installed; the message lists near ids.
        MissingExtraError: Gymnasium is not installed.
    """
    require("gymnasium", "mujoco")
    import gymnasium

    _register_package(env_id)
    try:
        with warnings.catch_warnings():
            # -v4 is what D4RL's numbers are comparable with, out of date or not
            warnings.filterwarnings("ignore", message=r".*out of date")
            env: gymnasium.Env[Any, Any] = gymnasium.make(env_id, **kwargs)
    except gymnasium.error.DependencyNotInstalled as error:
        if "mujoco_py" in str(error):  # cannot be had any more; Gymnasium-Robotics registers the ids that need it
            raise EnvironmentNotFoundError(_unknown(env_id, gymnasium.registry, error)) from error
        raise EnvironmentNotFoundError(
            f"{env_id} needs a package that is not here ({error}); for MuJoCo: pip install 'ttengine[mujoco]'"
        ) from error
    except (gymnasium.error.Error, ImportError) as error:
        if env_id in gymnasium.registry and not isinstance(error, ImportError):
            raise  # the id is fine; what is wrong is in `kwargs`, and Gymnasium's message says it
        raise EnvironmentNotFoundError(_unknown(env_id, gymnasium.registry, error)) from error
    if _LOCOMOTION.fullmatch(env_id):
        _restore_margins(env)
    return env


def environment_for_dataset(name: str) -> str:
    """Return the Gymnasium id of the environment that a dataset is from: `hopper-medium-v2` -> `Hopper-v4`.

    Args:
        name: D4RL id, or Minari id of the namespace `mujoco` (those were recorded in -v5).
    Raises:
        DatasetNotFoundError: the name is neither, or Gymnasium has no such environment.
    """
    minari = _MINARI_MUJOCO.fullmatch(name)
    if minari is not None and minari.group(1) in BODIES:
        return f"{BODIES[minari.group(1)][0]}-v5"
    catalogue = d4rl_catalogue()
    entry = catalogue.get(name)
    if entry is not None and entry.env_id is not None:
        return entry.env_id
    near = difflib.get_close_matches(name, catalogue, n=3, cutoff=0.5)
    raise DatasetNotFoundError(
        f"the environment of the dataset {name!r} is not known"
        + (f"; near it: {', '.join(near)}" if near and entry is None else "")
        + "; name the environment yourself"
    )


def control_period_s(env: gymnasium.Env[Any, Any]) -> float | None:
    """Return the seconds between two actions: 0.008 for Hopper and Walker2d, 0.05 for HalfCheetah and Ant.

    None when the environment has no clock (a grid world).
    """
    inner: Any = env.unwrapped
    inner = getattr(inner, "point_env", None) or getattr(inner, "ant_env", None) or inner  # the mazes wrap a body
    inner = getattr(inner, "unwrapped", inner)
    model: Any = getattr(inner, "model", None)
    frame_skip = getattr(inner, "frame_skip", None)
    if hasattr(model, "opt") and frame_skip is not None:
        return float(model.opt.timestep) * int(frame_skip)
    for attribute in ("dt", "tau"):
        period = getattr(inner, attribute, None)
        if isinstance(period, int | float):
            return float(period)
    return None


def adapt(env: Any) -> gymnasium.Env[Any, Any]:
    """Return `env` with Gymnasium's interface: unchanged if it has it, else wrapped.

    Args:
        env: a Gymnasium environment, or an old Gym one whose `reset` returns an observation alone and whose `step`
            returns four values.
    Raises:
        ConfigError: it has no `reset`, `step`, or box-shaped spaces.
        MissingExtraError: Gymnasium is not installed.
    """
    require("gymnasium", "mujoco")
    import gymnasium

    if isinstance(env, gymnasium.Env):
        return env
    missing = [each for each in ("reset", "step", "observation_space", "action_space") if not hasattr(env, each)]
    if missing or inspect.isclass(env):
        what = "a class, make it first" if inspect.isclass(env) else f"without {', '.join(missing)}"
        raise ConfigError(f"adapt() takes a Gymnasium or an old Gym environment, this is {type(env).__name__} {what}")
    from ttengine.old_gym import OldGymAdapter

    return OldGymAdapter(env)


def _register_package(env_id: str) -> None:
    """Import the package that registers an id, if it is installed; if not, `make` fails and says so."""
    for pattern, module, _ in _PACKAGES:
        if re.match(pattern, env_id) and importlib.util.find_spec(module) is not None:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise EnvironmentNotFoundError(f"{env_id} is in {module}, which fails to import: {error}") from error


def _unknown(env_id: str, registry: Mapping[str, Any], error: Exception) -> str:
    # Gymnasium still lists the -v2 and -v3 bodies that it no longer has
    gone = [each for each, spec in registry.items() if "mujoco" in str(spec.entry_point) and spec.version in (2, 3)]
    known = [each for each in registry if each not in gone]
    package = next((pip for pattern, _, pip in _PACKAGES if re.match(pattern, env_id)), None)
    near = difflib.get_close_matches(env_id, known, n=5, cutoff=0.6)
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return (
        f"there is no environment {env_id!r} here ({reason})"
        + (f"; near it: {', '.join(near)}" if near else "")
        + (f"; it comes with: pip install {package}" if package else "")
    )


def _restore_margins(env: Any) -> None:
    """Halve the geoms' margins where MuJoCo adds them, so that equal margins act as they did."""
    mujoco = require("mujoco", "mujoco")
    version = tuple(int(part) for part in mujoco.__version__.split(".")[:2])
    if version >= SUMMED_MARGINS:
        env.unwrapped.model.geom_margin[:] *= 0.5
