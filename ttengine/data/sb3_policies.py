"""Read Stable-Baselines3 actors and their VecNormalize statistics without running anything that the files hold.

A model's zip has `policy.pth` (tensors, read with `weights_only`) and `data` (JSON in which SB3 also stores pickles;
those are never opened). VecNormalize is a pickle: an unpickler that builds inert records instead of objects reads it.
Source: the formats that Stable-Baselines3 and sb3-contrib 2.9 write (save_util.py, vec_normalize.py, policies.py).
"""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ttengine.data.policies import ACTIVATIONS, Array, MLPPolicy
from ttengine.errors import CheckpointError, ConfigError, ShapeError

State = Mapping[str, npt.NDArray[Any]]

ACTIVATION_NAMES = {"Tanh": "tanh", "ReLU": "relu", "ELU": "elu", "LeakyReLU": "leaky_relu"}
"""torch.nn class -> name in ACTIVATIONS."""

HINT = "save it again with a current Stable-Baselines3, or collect with a script (path.py:callable) that loads it"


@dataclass(frozen=True, eq=False)
class _Actor:
    """The part of a model that acts. See MLPPolicy for the fields; `activation` is the algorithm's default."""

    weights: list[Array]
    biases: list[Array]
    log_std: Array | None
    log_std_weight: Array | None
    squash: bool
    activation: str


def load_sb3_policy(
    path: Path, normalizer: Path | None = None, activation: str | None = None, deterministic: bool = False
) -> MLPPolicy:
    """Read the actor of a PPO, A2C, TRPO, SAC, TQC, TD3, DDPG or ARS model with a multi-layer perceptron policy.

    Args:
        path: the zip file that `model.save` wrote.
        normalizer: the file that `VecNormalize.save` wrote; None: the model was trained on raw observations.
        activation: one of ACTIVATIONS; None: as the file says, which is the algorithm's default where it says nothing.
        deterministic: the mean action is enough; needed for models with state-dependent exploration (gSDE).
    Raises:
        CheckpointError: the file is truncated, foreign, or holds a policy that is no plain perceptron.
        ConfigError: the activation cannot be read, or gSDE noise was asked for.
        ShapeError: the normalizer's observations differ from the model's.
    """
    data, state = _read_zip(path)
    kwargs = data.get("policy_kwargs")
    kwargs = kwargs if isinstance(kwargs, dict) else {}
    if data.get("use_sde") and not deterministic:
        raise ConfigError(
            f"{path} explores with gSDE, whose noise is not read; collect its mean action: add deterministic=true, and "
            "an action noise if wanted"
        )
    actor = _find_actor(path, data, kwargs, state)
    low, high = (_read_bound(path, data, name) for name in ("low", "high"))
    mean, std, clip = np.zeros(len(actor.weights[0]), np.float32), np.ones(len(actor.weights[0]), np.float32), np.inf
    if normalizer is not None:
        mean, std, clip = load_vec_normalize(normalizer)
        if mean.shape != (len(actor.weights[0]),):
            raise ShapeError(
                f"{normalizer} normalises {mean.shape} observations, {path} was trained on {len(actor.weights[0])} dims"
            )
    return MLPPolicy(
        tuple(actor.weights),
        tuple(actor.biases),
        actor.log_std,
        mean,
        std,
        observation_clip=clip,
        activation=activation or _read_activation(path, kwargs, actor.activation),
        log_std_weight=actor.log_std_weight,
        squash=actor.squash,
        low=low,
        high=high,
    )


def _read_zip(path: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    import torch  # here, not above: collecting processes that read no such file start seconds sooner

    try:
        with zipfile.ZipFile(path) as archive:
            data = json.loads(archive.read("data"))
            tensors = torch.load(io.BytesIO(archive.read("policy.pth")), map_location="cpu", weights_only=True)
        state = {name: tensor.numpy() for name, tensor in tensors.items()}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; a policy file is what `model.save` of SB3 wrote") from error
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, OSError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no complete Stable-Baselines3 model ({error}); {HINT}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: policy.pth holds more than tensors and was not opened; {HINT}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: its `data` is {type(data).__name__}, not the settings of a model; {HINT}")
    return data, state


def _find_actor(path: Path, data: Mapping[str, Any], kwargs: Mapping[str, Any], state: State) -> _Actor:
    """Tell the algorithm family by the names of its tensors, and take the actor out."""
    if any("features_extractor" in name or "lstm" in name for name in state):
        raise CheckpointError(f"{path}: its policy reads observations with a network of its own (CNN, LSTM); {HINT}")
    squash = kwargs.get("squash_output")
    if "actor.mu.weight" in state:  # SAC, TQC
        layers = [*_sequential(path, state, "actor.latent_pi."), _linear(path, state, "actor.mu")]
        log_std_weight, log_std = _linear(path, state, "actor.log_std")
        return _Actor(*_unzip(layers), log_std, log_std_weight, True, "relu")
    if "actor.mu.0.weight" in state and data.get("use_sde"):
        raise CheckpointError(f"{path}: a SAC or TQC actor with gSDE bounds its mean in a way that is not read; {HINT}")
    if "actor.mu.0.weight" in state:  # TD3, DDPG
        return _Actor(*_unzip(_sequential(path, state, "actor.mu.")), None, None, True, "relu")
    if "action_net.weight" in state and "log_std" in state:  # PPO, A2C, TRPO
        if any(name.startswith("mlp_extractor.shared_net") for name in state):
            raise CheckpointError(f"{path}: its actor and critic share layers, as before SB3 1.8; {HINT}")
        layers = [*_sequential(path, state, "mlp_extractor.policy_net."), _linear(path, state, "action_net")]
        fixed = None if data.get("use_sde") else state["log_std"].astype(np.float32)
        return _Actor(*_unzip(layers), fixed, None, bool(squash), "tanh")
    if "action_net.0.weight" in state:  # ARS; its linear policy clips where the other one squashes
        linear = "ARSLinearPolicy" in str(data.get("policy_class"))
        squash = not linear if squash is None else bool(squash)
        return _Actor(*_unzip(_sequential(path, state, "action_net.")), None, None, squash, "relu")
    raise CheckpointError(
        f"{path}: no actor with continuous actions among its tensors ({', '.join(sorted(state)[:6])}, ...); "
        f"readable are MlpPolicy models of PPO, A2C, TRPO, SAC, TQC, TD3, DDPG and ARS; {HINT}"
    )


def _linear(path: Path, state: State, name: str) -> tuple[Array, Array]:
    """Return a linear layer as ([inputs, outputs], [outputs]) float32; a missing bias is zero."""
    weight = state.get(f"{name}.weight")
    if weight is None or weight.ndim != 2:
        raise CheckpointError(f"{path}: layer {name} is not linear; {HINT}")
    bias = state.get(f"{name}.bias", np.zeros(len(weight)))
    return np.ascontiguousarray(weight.T, dtype=np.float32), bias.astype(np.float32)


def _sequential(path: Path, state: State, prefix: str) -> list[tuple[Array, Array]]:
    """Return the linear layers of an nn.Sequential in order; the activations between them have no tensors."""
    numbers = {int(found[1]) for name in state if (found := re.match(re.escape(prefix) + r"(\d+)\.", name))}
    return [_linear(path, state, f"{prefix}{number}") for number in sorted(numbers)]


def _unzip(layers: list[tuple[Array, Array]]) -> tuple[list[Array], list[Array]]:
    return [weight for weight, _ in layers], [bias for _, bias in layers]


def _read_activation(path: Path, kwargs: Mapping[str, Any], default: str) -> str:
    """Read the activation from the readable copy that SB3 writes beside its pickles."""
    if "activation_fn" not in kwargs:
        if ":serialized:" in kwargs and set(kwargs) <= {":type:", ":serialized:"}:
            raise ConfigError(f"{path} hides its activation in a pickle; give activation={'|'.join(ACTIVATIONS)}")
        return default
    name = re.search(r"(\w+)'?>?$", str(kwargs["activation_fn"]))
    if name is None or name[1] not in ACTIVATION_NAMES:
        raise ConfigError(
            f"{path} uses activation {kwargs['activation_fn']}, readable are {', '.join(ACTIVATION_NAMES)}; {HINT}"
        )
    return ACTIVATION_NAMES[name[1]]


def _read_bound(path: Path, data: Mapping[str, Any], name: str) -> Array:
    """Read one bound of the action space, [M] float32, from its printed form such as `[-2. -2.]`."""
    space = data.get("action_space")
    text = str(space.get(name, "")) if isinstance(space, dict) else ""
    try:
        bound = np.array(text.strip("[]").split(), dtype=np.float32)
    except ValueError:
        bound = np.empty(0, np.float32)
    if bound.size == 0 or not np.isfinite(bound).all():
        raise CheckpointError(f"{path}: its action space has no readable bound `{name}` ({text!r:.80}); {HINT}")
    return bound


# --- VecNormalize --------------------------------------------------------------------------------------------------

KNOWN_CLASSES = frozenset(
    {
        ("stable_baselines3.common.vec_env.vec_normalize", "VecNormalize"),
        ("stable_baselines3.common.running_mean_std", "RunningMeanStd"),
        ("gymnasium.spaces.box", "Box"),
        ("gym.spaces.box", "Box"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy.random._pickle", "__generator_ctor"),
        ("numpy.random._pickle", "__bit_generator_ctor"),
        ("numpy.random._pickle", "__randomstate_ctor"),
        ("numpy.random._pcg64", "PCG64"),
        ("numpy.random.bit_generator", "SeedSequence"),
        ("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence"),
        *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
        *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    }
)
"""Every name that a VecNormalize pickle may mention; each becomes a record, none is imported."""


class _Record:
    """What a pickle says it would have built: the name, the arguments and the state; nothing is run."""

    name = ""

    def __new__(cls, *args: Any, **_: Any) -> _Record:
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __init__(self, *args: Any, **_: Any) -> None:
        self.args: tuple[Any, ...] = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _RecordUnpickler(pickle.Unpickler):
    """Builds a `_Record` for every known name and refuses the others."""

    def find_class(self, module: str, name: str) -> type[_Record]:
        """Return a record type. Raises UnpicklingError for a name outside KNOWN_CLASSES."""
        if (module, name) not in KNOWN_CLASSES:
            raise pickle.UnpicklingError(f"it mentions {module}.{name}")
        return type(name, (_Record,), {"name": name})


def load_vec_normalize(path: Path) -> tuple[Array, Array, float]:
    """Read the observation statistics of a VecNormalize file.

    Returns:
        mean [N] float32, std [N] float32 (its epsilon included), the clip in standard deviations.
    Raises:
        CheckpointError: the file is truncated, is not a VecNormalize, mentions any other class, or does not hold the
            statistics of one flat observation.
    """
    try:
        with path.open("rb") as file:
            record = _RecordUnpickler(file).load()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; a normalizer is what `VecNormalize.save` of SB3 wrote") from error
    except Exception as error:  # a broken or hostile pickle can fail in any way; all of them mean the same
        raise CheckpointError(f"{path} is not a VecNormalize file, and was not opened further ({error})") from error
    if not isinstance(record, _Record) or record.name != "VecNormalize" or not isinstance(record.state, dict):
        raise CheckpointError(f"{path} is not a VecNormalize file but holds {getattr(record, 'name', type(record))}")
    state = record.state
    if not state.get("norm_obs", True):
        raise CheckpointError(f"{path} does not normalise observations (norm_obs=False); leave `normalizer` out")
    statistics = state.get("obs_rms")
    if not isinstance(statistics, _Record) or not isinstance(statistics.state, dict):
        raise CheckpointError(f"{path} holds no statistics of one flat observation (a dict of observations?); {HINT}")
    try:
        mean, variance = (_decode_array(statistics.state[name]) for name in ("mean", "var"))
        epsilon, clip = float(state["epsilon"]), float(state["clip_obs"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: its statistics cannot be read ({error!r}); {HINT}") from error
    return mean.astype(np.float32), np.sqrt(variance + epsilon).astype(np.float32), clip


def _decode_array(record: Any) -> npt.NDArray[np.float64]:
    """Decode the record of a float array: `_reconstruct` with a state, or `_frombuffer` (pickle protocol 5)."""
    if record.name == "_frombuffer":
        raw, dtype, shape, order = record.args
        fortran = order == "F"
    else:
        _, shape, dtype, fortran, raw = record.state
    kind = {"f8": np.float64, "f4": np.float32}[dtype.args[0]]
    values = np.frombuffer(raw, np.dtype(kind).newbyteorder(dtype.state[1]))
    return values.reshape(shape, order="F" if fortran else "C").astype(np.float64)
