"""`ttengine experiment`: one of the paper's experiments, from data to page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ttengine.cli.common import parse
from ttengine.errors import ConfigError, TTEngineError
from ttengine.experiments import EXPERIMENTS, load_experiment
from ttengine.experiments.report import write_report
from ttengine.experiments.run import Run


def run(arguments: Sequence[str]) -> None:
    """Run the command: `NAME [--out FOLDER] [--full] [--fresh] [settings of the experiment]`."""
    common = argparse.ArgumentParser(prog="ttengine experiment", add_help=False)
    common.add_argument("name", nargs="?")
    common.add_argument("--out", type=Path)
    common.add_argument("--full", action="store_true")
    common.add_argument("--fresh", action="store_true")
    chosen, rest = common.parse_known_args(arguments)
    if chosen.name is None:
        print(_usage())
        sys.exit(0 if rest[:1] in (["-h"], ["--help"]) else 2)
    if chosen.name not in EXPERIMENTS:
        raise ConfigError(f"no experiment {chosen.name!r}; there are {', '.join(EXPERIMENTS)}")
    experiment = load_experiment(chosen.name)
    default = experiment.Config.full() if chosen.full else experiment.Config()
    config = parse(experiment.Config, rest, f"experiment {chosen.name} [--out FOLDER] [--full] [--fresh]", default)
    out, console = chosen.out or Path("runs") / chosen.name, Console()
    folder = Run(out, chosen.name, config, fresh=chosen.fresh, console=console)
    report = experiment.run(folder, config)
    console.print(f"\n{write_report(folder, report)}", highlight=False, soft_wrap=True)
    for claim, holds in report.checks.items():
        console.print(f"{'[green]holds[/]' if holds else '[red]does not hold[/]'}  {claim}", highlight=False)
    if folder.missing:
        raise TTEngineError(f"missing: {', '.join(folder.missing)}; the same command tries these again")


def _usage() -> str:
    width = max(map(len, EXPERIMENTS))
    experiments = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in EXPERIMENTS.items())
    return f"""usage: ttengine experiment NAME [--out FOLDER] [--full] [--fresh] ...

{experiments}

FOLDER (runs/NAME if not given) gets data, models, raw measurements, table, plot and report.html. A run that was stopped
goes on; --fresh begins anew. --full is the large version. `ttengine experiment NAME --help` shows its settings."""
