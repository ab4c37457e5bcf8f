"""A run of an experiment: its folder, its arms, and how it goes on after it was stopped.

FOLDER/run.json        experiment, settings, seeds, versions: what the numbers depend on
FOLDER/data, models    collected transitions and trained models, made once
FOLDER/arms/NAME.csv   raw measurements of an arm, written when it is done: a row an episode
FOLDER/arms/NAME.txt   why an arm failed
FOLDER/arms/NAME.log   what its process said, if it had its own
FOLDER/seconds.csv     arm, wall time of the attempt that finished it, training included
FOLDER/results.csv     all arms' rows
FOLDER/*.png, report.html, report.json
"""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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

MADE = ("data", "models")
"""Folders of a run with what its settings up to training make."""

PACKAGES = ("ttengine", "torch", "numpy", "gymnasium", "gymnasium-robotics", "mujoco", "d3rlpy")


@dataclass(frozen=True)
class Arm:
    """One line of an experiment's table, measured on its own: another's failure does not touch it."""

    name: str
    measure: Callable[[], Rows]
    quick: bool = False
    """takes next to no time: no process is started for it"""
    group: str = ""
    """arms of one group share what they keep in memory, so one process measures them; "": none"""


@dataclass(frozen=True)
class Processes:
    """How arms are measured side by side, in processes of their own."""

    command: Sequence[str]
    """that runs the same experiment in the same folder; `--arm NAME` is put behind it"""
    jobs: int
    """processes at a time, which share the cores"""


class Run:
    """One experiment in one folder.

    Args:
        out: the folder; a run that was stopped there goes on.
        experiment: its name.
        config: its settings, a dataclass.
        fresh: begin anew: what another run left there is deleted; not with `only`.
        models_of: folder of another run of the experiment, whose data and models a new run begins with; only the
            settings that `config.AFTERWARDS` names may differ. A run that has begun keeps its own.
        console: where to say what happens.
        processes: None: arms are measured in this process, one after the other.
        only: names of arms; `measure` measures no others, and then exits.
    Attributes:
        missing: arm -> why it has no numbers.
        seconds: arm -> wall time of the attempt that finished it.
    Raises:
        ConfigError: the folder holds a run with other settings or of another version, or no run and what no run made;
            with `only`, it holds none; or `models_of` holds none whose data and models would be this one's.
    """

    def __init__(
        self,
        out: Path,
        experiment: str,
        config: Any,
        *,
        fresh: bool = False,
        models_of: Path | None = None,
        console: Console | None = None,
        processes: Processes | None = None,
        only: Sequence[str] = (),
    ) -> None:
        self.out, self.experiment, self.config = out, experiment, config
        self.console = console or Console()
        self.processes, self.only = processes, only
        self.missing: dict[str, str] = {}
        about = {"experiment": experiment, "config": to_dict(config), "versions": versions()}
        self.about: dict[str, Any] = json.loads(json.dumps(about))  # as it is read back
        path = out / "run.json"
        if only and not path.is_file():
            raise ConfigError(f"{out} holds no run whose arms could be measured; begin it without --arm")
        if only or (path.is_file() and not fresh and self._begun()):
            found = read_json(path)
            self._check_same(out, found)
            if "models_of" in found:
                self.about["models_of"] = found["models_of"]
        else:
            if models_of is not None:
                self._check_models_of(models_of)
            self._clear()
            if models_of is not None:
                self._take_over(models_of)
        if not only:
            write_json(path, self.about)
        (out / "arms").mkdir(exist_ok=True)
        self.seconds = self._read_seconds()

    @property
    def _spent(self) -> Path:
        return self.out / "seconds.csv"

    def _read_seconds(self) -> dict[str, float]:
        if not self._spent.is_file():
            return {}
        with open(self._spent, encoding="utf-8", newline="") as file:
            return {name: float(seconds) for name, seconds in csv.reader(file)}

    def _begun(self) -> bool:
        """Whether anything was made: a run that was refused for its settings shall not stand in the way of better."""
        return any(any((self.out / name).glob("*")) for name in ("arms", "data", "models"))

    def _clear(self) -> None:
        """Delete what another run left here. What is here without a run is the user's."""
        folders = [self.out / name for name in ("arms", *MADE, "paths")]
        theirs = [folder.name for folder in folders if folder.exists()]
        path = self.out / "run.json"
        if theirs and not (path.is_file() and "experiment" in read_json(path)):
            raise ConfigError(f"{self.out} holds {', '.join(theirs)} of something else than a run; take another folder")
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        self._spent.unlink(missing_ok=True)

    def _check_same(self, folder: Path, found: Mapping[str, Any], but: Sequence[str] = ()) -> None:
        """Refuse a folder's run if it has another experiment, version or setting, `but` for some settings."""
        wanted = {**self.about, "versions": self.about["versions"]["ttengine"]}
        given = {**found, "versions": found.get("versions", {}).get("ttengine")}
        for each in (wanted, given):
            each["config"] = {name: value for name, value in (each.get("config") or {}).items() if name not in but}
        for what, value in wanted.items():
            if given.get(what) != value:
                raise ConfigError(
                    f"{folder} holds a run with other {what}: {_difference(given.get(what), value)}; take another "
                    f"folder{'' if but else ', or begin anew with --fresh'}"
                )

    def _check_models_of(self, folder: Path) -> None:
        if not (folder / "run.json").is_file():
            raise ConfigError(f"{folder} holds no run whose models could be used; name the folder of one")
        if folder.resolve() == self.out.resolve():
            raise ConfigError(f"{folder} is the run's own folder; a run with other settings needs one of its own")
        self._check_same(folder, read_json(folder / "run.json"), self.config.AFTERWARDS)

    def _take_over(self, folder: Path) -> None:
        for name in MADE:
            if (folder / name).is_dir():
                shutil.copytree(folder / name, self.out / name)
        self.about["models_of"] = str(folder)

    def measure(self, arms: Sequence[Arm], *, timed: bool = False) -> dict[str, Rows]:
        """Measure every arm that is not measured yet; a failed one is named in `missing` and tried again next time.

        Args:
            arms: of the experiment, in the order of its report.
            timed: what they measure depends on what runs beside them: one after the other.
        Returns:
            Arm -> rows, of the arms that have any.
        Raises:
            ConfigError: `only` names an arm that there is not.
        """
        unknown = set(self.only) - {arm.name for arm in arms}
        if unknown:
            raise ConfigError(f"no arm {', '.join(unknown)}; there are {', '.join(arm.name for arm in arms)}")
        waiting = [arm for arm in arms if not self._rows_of(arm.name).is_file()]
        if self.only:
            for arm in waiting:
                if arm.name in self.only:
                    self._measure(arm)
            raise SystemExit(1 if self.missing else 0)
        apart = [arm for arm in waiting if not (timed or arm.quick)] if self.processes is not None else []
        for arm in waiting:
            if arm not in apart:
                self._measure(arm)
        if self.processes is not None and apart:
            self._measure_apart(apart, self.processes)
        self.seconds = self._read_seconds()
        measured = [arm.name for arm in arms if self._rows_of(arm.name).is_file()]
        found = {name: read_rows(self._rows_of(name)) for name in measured}
        together = [{"arm": name, **row} for name, rows in found.items() for row in rows]
        if together:
            write_rows(self.out / "results.csv", together)
        return found

    def _rows_of(self, arm: str) -> Path:
        return self.out / "arms" / f"{arm}.csv"

    def _why(self, arm: str) -> Path:
        return self.out / "arms" / f"{arm}.txt"

    def _measure(self, arm: Arm) -> None:
        began = time.perf_counter()
        self._why(arm.name).unlink(missing_ok=True)
        try:
            write_rows(self._rows_of(arm.name), arm.measure())
        except Exception as error:  # whatever an arm dies of, the others go on
            said = f"{type(error).__name__}: {error}".replace("\n", " ")
            self._why(arm.name).write_text(f"{said}\n\n{traceback.format_exc()}", encoding="utf-8")
        else:
            with open(self._spent, "a", encoding="utf-8", newline="") as file:  # a short line is appended whole
                csv.writer(file).writerow([arm.name, round(time.perf_counter() - began, 1)])
        self._say(arm.name)

    def _measure_apart(self, arms: Sequence[Arm], processes: Processes) -> None:
        groups: dict[str, list[str]] = {}
        for arm in arms:
            groups.setdefault(arm.group or arm.name, []).append(arm.name)
        jobs = min(processes.jobs, len(groups))
        self.console.print(
            f"[dim]{jobs} arms at a time; what they say is in {self.out / 'arms'}/*.log[/]", soft_wrap=True
        )
        environment = {"OMP_NUM_THREADS": str(max(1, cores() // jobs)), **os.environ}

        def measure(names: Sequence[str]) -> None:
            for name in names:
                self._why(name).unlink(missing_ok=True)
            command = [*processes.command, *(word for name in names for word in ("--arm", name))]
            with open(self.out / "arms" / f"{names[0]}.log", "w", encoding="utf-8") as log:
                code = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode
            for name in names:
                if not self._rows_of(name).is_file() and not self._why(name).is_file():
                    self._why(name).write_text(
                        f"its process ended with {code}: arms/{names[0]}.log\n", encoding="utf-8"
                    )
                self._say(name)

        pool = ThreadPoolExecutor(jobs)
        try:
            list(pool.map(measure, groups.values()))
        finally:
            pool.shutdown(cancel_futures=True)

    def _say(self, arm: str) -> None:
        """Say how an arm ended."""
        if self._rows_of(arm).is_file():
            self.console.print(f"{arm}  [dim]{self._read_seconds().get(arm, 0.0):,.0f} s[/]", highlight=False)
            return
        self.missing[arm] = self._why(arm).read_text(encoding="utf-8").splitlines()[0]
        self.console.print(f"[red]{arm} failed[/]: {self.missing[arm]}", highlight=False)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


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
