"""A run of an experiment: its folder, its arms, and how it goes on after it was stopped.

FOLDER/run.json        experiment, settings, seeds, versions: what the numbers depend on
FOLDER/data, models    collected transitions and trained models, made once
FOLDER/arms/NAME.csv   raw measurements of an arm, written when it is done: a row an episode
FOLDER/arms/NAME.txt   the traceback of an arm that failed
FOLDER/seconds.json    arm -> wall time of the attempt that finished it, training included
FOLDER/results.csv     all arms' rows
FOLDER/*.png, report.html, report.json
"""

from __future__ import annotations

import csv
import json
import platform
import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

from ttengine.config import to_dict
from ttengine.data.download import atomic_file
from ttengine.errors import ConfigError
from ttengine.stages import read_json, write_json

Rows = list[dict[str, str | float]]
"""Measurements: one dict an episode, or whatever is measured; all of one arm have the same keys."""

PACKAGES = ("ttengine", "torch", "numpy", "gymnasium", "gymnasium-robotics", "mujoco", "d3rlpy")


@dataclass(frozen=True)
class Arm:
    """One line of an experiment's table, measured on its own: another's failure does not touch it."""

    name: str
    measure: Callable[[], Rows]


class Run:
    """One experiment in one folder.

    Args:
        out: the folder; a run that was stopped there goes on.
        experiment: its name.
        config: its settings, a dataclass.
        fresh: begin anew: what another run left there is deleted.
        console: where to say what happens.
    Attributes:
        missing: arm -> why it has no numbers.
        seconds: arm -> wall time of the attempt that finished it.
    Raises:
        ConfigError: the folder holds a run with other settings or of another version.
    """

    def __init__(
        self, out: Path, experiment: str, config: Any, *, fresh: bool = False, console: Console | None = None
    ) -> None:
        self.out, self.experiment, self.config = out, experiment, config
        self.console = console or Console()
        self.missing: dict[str, str] = {}
        about = {"experiment": experiment, "config": to_dict(config), "versions": versions()}
        self.about: dict[str, Any] = json.loads(json.dumps(about))  # as it is read back
        path = out / "run.json"
        if path.is_file() and not fresh and self._begun():
            self._check_same(read_json(path))
        else:
            for name in ("arms", "data", "models", "paths"):
                shutil.rmtree(out / name, ignore_errors=True)
            (out / "seconds.json").unlink(missing_ok=True)
        write_json(path, self.about)
        (out / "arms").mkdir(exist_ok=True)
        kept = out / "seconds.json"
        self.seconds: dict[str, float] = dict(read_json(kept)) if kept.is_file() else {}

    def _begun(self) -> bool:
        """Whether anything was made: a run that was refused for its settings shall not stand in the way of better."""
        return any(any((self.out / name).glob("*")) for name in ("arms", "data", "models"))

    def _check_same(self, found: Mapping[str, Any]) -> None:
        wanted = {**self.about, "versions": self.about["versions"]["ttengine"]}
        given = {**found, "versions": found.get("versions", {}).get("ttengine")}
        for what, value in wanted.items():
            if given.get(what) != value:
                raise ConfigError(
                    f"{self.out} holds a run with other {what}: {_difference(given.get(what), value)}; take another "
                    "folder, or begin anew with --fresh"
                )

    def measure(self, arms: Sequence[Arm]) -> dict[str, Rows]:
        """Measure every arm that is not measured yet; a failed one is named in `missing` and tried again next time.

        Returns:
            Arm -> rows, of the arms that have any.
        """
        found = {}
        for arm in arms:
            path = self.out / "arms" / f"{arm.name}.csv"
            failed = path.with_suffix(".txt")
            if not path.is_file():
                began = time.perf_counter()
                try:
                    write_rows(path, arm.measure())
                except Exception as error:  # whatever an arm dies of, the others go on
                    failed.write_text(traceback.format_exc(), encoding="utf-8")
                    self.missing[arm.name] = f"{type(error).__name__}: {error}"
                    self.console.print(f"[red]{arm.name} failed[/]: {self.missing[arm.name]}", highlight=False)
                    continue
                failed.unlink(missing_ok=True)
                self.seconds[arm.name] = round(time.perf_counter() - began, 1)
                write_json(self.out / "seconds.json", self.seconds)
                self.console.print(f"{arm.name}  [dim]{self.seconds[arm.name]:,.0f} s[/]", highlight=False)
            found[arm.name] = read_rows(path)
        together = [{"arm": name, **row} for name, rows in found.items() for row in rows]
        if together:
            write_rows(self.out / "results.csv", together)
        return found


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_rows(path: Path, rows: Rows) -> None:
    """Write measurements as CSV, whole or not at all; keys that a row lacks are left empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_file(path) as part, open(part, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> Rows:
    """Read what `write_rows` wrote; what reads as a number is one."""
    with open(path, encoding="utf-8", newline="") as file:
        return [{key: _number(text) for key, text in row.items() if text} for row in csv.DictReader(file)]


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _difference(found: Any, wanted: Any) -> str:
    """Name what differs, of two settings or two values."""
    if not isinstance(found, Mapping) or not isinstance(wanted, Mapping):
        return f"{found} there, {wanted} now"
    keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    return ", ".join(f"{key} is {found.get(key)} there, {wanted.get(key)} now" for key in keys)
