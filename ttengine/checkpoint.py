"""One file per model: weights, discretizer, configs and provenance, as safetensors."""

from __future__ import annotations

import contextlib
import importlib.resources
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ttengine.config import DataConfig, ModelConfig, from_dict, to_dict
from ttengine.discretizer import Discretizer
from ttengine.errors import CheckpointError, TTEngineError
from ttengine.model import TrajectoryTransformer

FORMAT = "ttengine.checkpoint/1"
SUFFIX = ".safetensors"
MODELS = importlib.resources.files("ttengine") / "models"
"""Where the shipped models lie: NAME.safetensors."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained model and everything that is needed to plan with it.

    Attributes:
        model: the Transformer.
        discretizer: its tokens.
        data: how its training data was prepared.
        dataset: name of the data it was trained on.
        provenance: who made it and how: versions, command, training settings, metrics; JSON types only.
    """

    model: TrajectoryTransformer
    discretizer: Discretizer
    data: DataConfig
    dataset: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.model.config
        expected = (config.transition_dim, config.n_bins)
        if (self.discretizer.n_columns, self.discretizer.n_bins) != expected:
            raise CheckpointError(
                f"the discretizer has {self.discretizer.n_columns} columns of {self.discretizer.n_bins} bins, the "
                f"model expects {expected[0]} of {expected[1]}"
            )

    def save(self, path: str | Path) -> None:
        """Write the file atomically: it is whole or not there."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors["discretizer.edges"] = self.discretizer.edges
        about = {
            "model": to_dict(self.model.config),
            "data": to_dict(self.data),
            "dataset": self.dataset,
            "last_duplicate": self.discretizer.last_duplicate,
            "provenance": dict(self.provenance),
        }
        write_tensors(Path(path), tensors, FORMAT, about)


def load(model: str | Path) -> Checkpoint:
    """Read a model: `load("runs/mine/model.safetensors")`, or a shipped one by its name, `load("halfcheetah")`.

    Args:
        model: a path, or the name of a shipped model. A shipped name means the shipped model even where a file of that
            name lies; that file is reached as `./halfcheetah` or as a `Path`, which always is a path.
    Raises:
        CheckpointError: there is no such file and no such shipped model, or the file is truncated or not a ttengine
            checkpoint.
    """
    with model_file(model) as path:
        return _read(path)


def shipped_models() -> tuple[str, ...]:
    """Return the names of the models that come with the package."""
    if not MODELS.is_dir():
        return ()
    return tuple(sorted(file.name.removesuffix(SUFFIX) for file in MODELS.iterdir() if file.name.endswith(SUFFIX)))


@contextlib.contextmanager
def model_file(model: str | Path) -> Iterator[Path]:
    """Give the file that `load` would read, for as long as the `with` block runs.

    Raises:
        CheckpointError: there is no such file and no such shipped model.
    """
    path, shipped = Path(model), shipped_models()
    if isinstance(model, str) and model in shipped:
        with importlib.resources.as_file(MODELS / f"{model}{SUFFIX}") as resource:
            yield resource
        return
    if not path.is_file():
        if isinstance(model, str) and path.name == model and path.suffix != SUFFIX:  # looks like a name
            names = f"shipped are {', '.join(shipped)}" if shipped else "none are shipped"
            raise CheckpointError(f"no model {model!r}: {names}, and there is no file of that name here")
        raise CheckpointError(f"no model file at {path}")
    yield path


def _read(path: Path) -> Checkpoint:
    tensors, about = read_tensors(path, FORMAT)
    try:
        model = TrajectoryTransformer(from_dict(ModelConfig, about["model"]))
        edges = tensors.pop("discretizer.edges")
        weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        model.load_state_dict(weights)
        return Checkpoint(
            model.eval(),
            Discretizer(edges, bool(about["last_duplicate"])),
            from_dict(DataConfig, about["data"]),
            str(about["dataset"]),
            about["provenance"],
        )
    # RuntimeError: names or shapes differ from the config's; TypeError, AttributeError: other JSON types than ours
    except (KeyError, TypeError, AttributeError, RuntimeError, TTEngineError) as error:
        raise CheckpointError(f"{path} is not a complete ttengine checkpoint: {error}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], kind: str, about: Mapping[str, Any]) -> None:
    """Write tensors and JSON to one safetensors file: to a neighbour first, then renamed over `path`."""
    from safetensors.torch import save

    content = save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        metadata={"format": kind, "about": json.dumps(about)},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(neighbour, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(neighbour, path)
    finally:
        neighbour.unlink(missing_ok=True)


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote under the same kind.

    Raises:
        CheckpointError: the file is missing, truncated, or of another kind.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as parse

    if not path.is_file():
        raise CheckpointError(f"no model file at {path}")
    try:
        content = path.read_bytes()  # once: training may replace the file meanwhile
        tensors = parse(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
        if header.get("format") != kind:
            raise CheckpointError(
                f"{path} is of format {header.get('format')!r}, expected {kind!r}; another program wrote it"
            )
        return tensors, json.loads(header["about"])
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file: {error}") from error
