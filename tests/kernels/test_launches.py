"""What launches on a GPU show and the interpreter hides: kernels are compiled once, and before they are needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_all_kernels_are_compiled_at_construction_and_never_again(repository: Path) -> None:
    """Whatever the context's length, the seed, the plan's number, and the round that a deadline ends.

    A search looks at nothing that lies on the device, so that it can be captured.
    """
    tests = repository / "tests"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tests), str(repository / "bench"), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, tests / "dry_launch.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["rolling"]["constructed"] == ["_select_beams", "expand", "observe", "prefill", "take"]
    assert report["likelihood"]["constructed"] == ["branch", "prefill"]
    assert all(report[kind]["later"] == [] for kind in ("rolling", "window", "likelihood"))
    for kind in ("rolling", "window"):
        rounds = ["expand", "_select_beams", "observe"] * 3
        assert report[kind]["launched"] == ["prefill", *rounds[:-1], "take"]
        assert report[kind]["looked at"] == ""
    assert report["too small"].startswith("EngineError: engine='triton' does not run on a small GPU: OutOfResources")


def test_the_hosts_share_of_a_plan_is_timed(repository: Path) -> None:
    command = [sys.executable, repository / "bench" / "host_time.py"]
    arguments = ["--preset", "hopper", "--problems", "1", "2", "--plans", "10"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("rolling") == done.stdout.count("window") == 2
