"""Stages that are done once: a stamp beside the results says what they were made from."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ttengine.data.download import atomic_file


class Stages:
    """The stages of one folder, in order; each also depends on what the one before it wrote.

    Args:
        out: the folder.
        fresh: do every stage again.
    Attributes:
        seconds: stage -> wall time, of those that were done now or, if reused, when they were done.
        reused: stages that were not done again.
        was_begun: whether the stage that is being done was begun before with the same inputs, and not finished.
        last: name of the last stage.
    """

    def __init__(self, out: Path, fresh: bool) -> None:
        self.out, self.fresh = out, fresh
        self.seconds: dict[str, float] = {}
        self.reused: list[str] = []
        self.was_begun = False
        self.last = ""
        self._upstream: dict[str, str] = {}
        out.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def stage(self, name: str, inputs: Mapping[str, Any], outputs: Sequence[Path]) -> Iterator[bool]:
        """Yield whether the stage has to be done; the body does it then, and its outputs are stamped.

        Args:
            name: of the stage.
            inputs: settings that its result depends on, JSON values.
            outputs: the files that it leaves.
        """
        self.last = name
        stamp = self.out / ".stamps" / f"{name}.json"
        wanted = {"inputs": json.loads(json.dumps(dict(inputs))), "upstream": self._upstream, "version": _version()}
        found = read_json(stamp) if stamp.is_file() else {}
        same = not self.fresh and all(found.get(key) == value for key, value in wanted.items())
        done = same and "outputs" in found and found["outputs"] == _digests(outputs)
        if done:
            yield False
            self.seconds[name] = found["seconds"]
            self.reused.append(name)
        else:
            self.was_begun = same
            write_json(stamp, wanted)
            began = time.perf_counter()
            yield True
            self.seconds[name] = time.perf_counter() - began
            write_json(stamp, wanted | {"outputs": _digests(outputs), "seconds": self.seconds[name]})
        self._upstream = _digests(outputs)


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as part:
        part.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _digests(paths: Sequence[Path]) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for path in paths}


def _version() -> str:
    try:
        return version("ttengine")
    except PackageNotFoundError:
        return "not installed"
