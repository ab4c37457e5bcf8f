"""`ttengine demo`: all of it once, small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ttengine.cli.common import parse
from ttengine.demo import run_demo


@dataclass(frozen=True)
class DemoCommand:
    """Collect data from mediocre policies, train a small model, plan closed-loop; run a shipped model in real time.

    Less than ten minutes on two cores. A stage whose result is there and whose inputs are unchanged is not done again.

        ttengine demo --out runs/demo
    """

    out: Path = Path("runs/demo")
    """folder of the results: video, plots, report.json, data and model"""
    fresh: bool = False
    """do every stage again"""


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    command = parse(DemoCommand, arguments, "demo")
    run_demo(command.out, fresh=command.fresh)
