"""`ttengine report`: the pages of several experiments side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from ttengine.cli.common import parse
from ttengine.experiments.report import write_page


@dataclass(frozen=True)
class ReportCommand:
    """Show several runs of `ttengine experiment` side by side, in one self-contained page.

    ttengine report runs/imitation runs/ablations --out runs/report.html
    """

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """folders of runs"""
    out: Path = Path("report.html")
    """page to write"""


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    command = parse(ReportCommand, arguments, "report")
    print(write_page(command.folders, command.out))
