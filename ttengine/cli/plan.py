"""`ttengine plan`: plan once from an observation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tyro import MISSING
from tyro.conf import Positional, arg

from ttengine.checkpoint import load
from ttengine.cli.common import parse, print_json, print_table, subject_preset
from ttengine.config import PlanConfig, plan_preset, to_dict
from ttengine.context import Context
from ttengine.errors import DataError
from ttengine.planner import Plan, Planner


@dataclass(frozen=True)
class PlanCommand:
    """Plan once: the best action sequence from an observation.

    The defaults of the search are the paper's settings for the dataset that the model was trained on.

        ttengine plan halfcheetah --observation now.json
        ttengine plan model.safetensors --observation '[1.25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]'
        ttengine plan model.safetensors --observation now.npy --context executed.npz --plan.horizon 5 --json
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """model file, or the name of a shipped model"""
    observation: str
    """the observation in environment units: a JSON list, or a .json or .npy file"""
    context: Path | None = None
    """what was executed before: a .npz or .json file with observations [T, N], actions [T, M] and rewards [T]"""
    goal: str | None = None
    """for goal models: the observation to reach, given like the observation"""
    seed: int = 0
    """of the noise"""
    step: int = 0
    """number of the plan under this seed"""
    deadline_s: float | None = None
    """return the best plan of the rounds that fit into so many seconds"""
    plan: PlanConfig = field(default_factory=PlanConfig)
    json: bool = False
    """print the plan as one JSON document"""


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    command = _parse(arguments, subject_preset(arguments))  # so that --help shows what the model's defaults are
    checkpoint = load(command.model)
    command = _parse(arguments, plan_preset(checkpoint.dataset))
    planner = Planner(checkpoint, command.plan)
    found = planner.plan(
        read_vector(command.observation, "observation"),
        None if command.context is None else read_context(command.context, planner),
        goal=None if command.goal is None else read_vector(command.goal, "goal"),
        seed=command.seed,
        step=command.step,
        deadline_s=command.deadline_s,
    )
    if command.json:
        print_json(_document(found, planner))
    else:
        print_table(f"{found.rounds} transitions ahead, score {found.score:,.2f}", _rows(found))


def read_vector(text: str, name: str) -> Any:
    """Return numbers given as a JSON list or in a .json or .npy file.

    Raises:
        DataError: it is neither, or the file cannot be read.
    """
    path = Path(text)
    if not text.lstrip().startswith("["):
        if not path.is_file():
            raise DataError(f"--{name} is {text!r}, which is no JSON list and no file")
        if path.suffix == ".npy":
            try:
                return np.load(path, allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise DataError(f"{path} is no readable .npy file: {error}") from error
    try:
        return np.array(json.loads(path.read_text() if path.is_file() else text), np.float32)
    except (ValueError, TypeError) as error:  # bad JSON or text, or no rectangle of numbers
        raise DataError(f"--{name} is no JSON list of numbers: {error}") from error


def read_context(path: Path, planner: Planner) -> Context:
    """Return executed transitions from a .npz or .json file.

    Raises:
        DataError: the file is missing, unreadable, or lacks a field.
        ShapeError, NonFiniteError: its arrays do not fit one another.
    """
    names = ("observations", "actions", "rewards")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in names}
        else:
            document = json.loads(path.read_text())
            arrays = {name: np.array(document[name], np.float32) for name in names}
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except KeyError as error:
        raise DataError(f"{path} has no {error}; a context has {', '.join(names)}") from error
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise DataError(f"{path} is no readable .npz or .json file: {error}") from error
    return Context(**arrays, capacity=planner.context_capacity)


def _parse(arguments: Sequence[str], plan: PlanConfig) -> PlanCommand:
    return parse(PlanCommand, arguments, "plan", PlanCommand(MISSING, MISSING, plan=plan))


def _document(found: Plan, planner: Planner) -> dict[str, Any]:
    arrays = {name: getattr(found, name) for name in ("action", "actions", "observations", "rewards", "value", "score")}
    return {name: array.tolist() for name, array in arrays.items()} | {
        "latency_s": found.latency_s,
        "rounds": found.rounds,
        "engine": found.engine,
        "context_kind": found.context_kind,
        "counters": to_dict(found.counters),
        "plan": to_dict(planner.config),
    }


def _rows(found: Plan) -> list[tuple[str, str]]:
    rows = [
        (f"action {t}" if t else "action now", f"[{', '.join(f'{x:.4g}' for x in action)}]   reward {reward:.4g}")
        for t, (action, reward) in enumerate(zip(np.atleast_2d(found.actions), found.rewards, strict=True))
    ]
    return [
        *rows,
        ("value after", f"{float(found.value):,.4g}"),
        ("latency", f"{found.latency_s * 1e3:,.1f} ms, {found.engine} engine, {found.context_kind} context"),
    ]
