"""What the commands share: parsing, one JSON document on standard output, tables."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from ttengine.checkpoint import load, shipped_models
from ttengine.config import PlanConfig, plan_preset

T = TypeVar("T")


def parse(kind: type[T], arguments: Sequence[str], command: str, default: Any = None) -> T:
    """Read a command's arguments into its dataclass; its docstring is the help.

    Args:
        kind: the dataclass.
        arguments: after the command's name.
        command: its name.
        default: values of what is not given.
    """
    parsed: T = tyro.cli(
        kind,
        prog=f"ttengine {command}",
        args=list(arguments),
        default=default,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return parsed


def subject(arguments: Sequence[str]) -> str:
    """Return the first argument if it names something, so that `--help` can show the defaults that go with it."""
    return arguments[0] if arguments and not arguments[0].startswith("-") else ""


def subject_preset(arguments: Sequence[str]) -> PlanConfig:
    """Return the paper's planner settings for the model that the first argument names, the general ones for none.

    Raises:
        CheckpointError: its file is truncated or not a ttengine checkpoint.
    """
    model = subject(arguments)
    return plan_preset(load(model).dataset) if model in shipped_models() or Path(model).is_file() else PlanConfig()


@contextlib.contextmanager
def quiet_stdout(active: bool) -> Iterator[None]:
    """Send what is printed on the way to standard error, so that standard output holds one JSON document."""
    with contextlib.redirect_stdout(sys.stderr) if active else contextlib.nullcontext():
        yield


def print_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    print(json.dumps(document, indent=2, allow_nan=False))


def print_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print names and what they are."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    Console().print(table)
