"""`ttengine experiment`: one of the paper's experiments, from data to page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from ttengine.cli.common import parse
from ttengine.errors import ConfigError, TTEngineError
from ttengine.experiments import EXPERIMENTS, load_experiment
from ttengine.experiments.report import write_report
from ttengine.experiments.run import Processes, Run, cores

OPTIONS = "[--out FOLDER] [--full] [--fresh] [--models-of FOLDER] [--jobs N] [--arm NAME]"


def run(arguments: Sequence[str]) -> None:
    """Run the command: `NAME`, OPTIONS, and the experiment's settings."""
    common = argparse.ArgumentParser(prog="ttengine experiment", add_help=False)
    common.add_argument("name", nargs="?")
    common.add_argument("--out", type=Path)
    common.add_argument("--full", action="store_true")
    common.add_argument("--fresh", action="store_true")
    common.add_argument("--models-of", type=Path)
    common.add_argument("--jobs", type=int)
    common.add_argument("--arm", action="append", default=[])
    chosen, rest = common.parse_known_args(arguments)
    if chosen.name is None:
        print(_usage())
        sys.exit(0 if rest[:1] in (["-h"], ["--help"]) else 2)
    if chosen.name not in EXPERIMENTS:
        raise ConfigError(f"no experiment {chosen.name!r}; there are {', '.join(EXPERIMENTS)}")
    experiment = load_experiment(chosen.name)
    default = experiment.Config.full() if chosen.full else experiment.Config()
    config = parse(experiment.Config, rest, f"experiment {chosen.name} {OPTIONS}", default)
    out, console = chosen.out or Path("runs") / chosen.name, Console()
    jobs = default_jobs() if chosen.jobs is None else chosen.jobs
    if jobs < 1:
        raise ConfigError(f"--jobs is {jobs}, allowed is 1 or more")
    again = [sys.executable, "-P", "-m", "ttengine", "experiment", chosen.name, "--out", str(out), *rest]
    if chosen.full:
        again.append("--full")
    processes = Processes(again, jobs) if jobs > 1 else None
    folder = Run(
        out, chosen.name, config, fresh=chosen.fresh, models_of=chosen.models_of, console=console, processes=processes,
        only=chosen.arm,
    )  # fmt: skip
    report = experiment.run(folder, config)
    console.print(f"\n{write_report(folder, report)}", highlight=False, soft_wrap=True)
    for claim, holds in report.checks.items():
        console.print(f"{'[green]holds[/]' if holds else '[red]does not hold[/]'}  {claim}", highlight=False)
    if folder.missing:
        raise TTEngineError(f"missing: {', '.join(folder.missing)}; the same command tries these again")


def default_jobs() -> int:
    """Return how many arms are measured at a time: one a core, or one alone where they would share a GPU."""
    return 1 if torch.cuda.is_available() else cores()


def _usage() -> str:
    width = max(map(len, EXPERIMENTS))
    experiments = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in EXPERIMENTS.items())
    return f"""usage: ttengine experiment NAME [--out FOLDER] [--full] [--fresh] ...

{experiments}

FOLDER (runs/NAME if not given) gets data, models, raw measurements, table, plot and report.html. A run that was stopped
goes on; --fresh begins anew. --full is the large version. `ttengine experiment NAME --help` shows its settings.
--models-of FOLDER begins with the data and models of another run, to search with other settings and not train again.

The table's arms are measured side by side, --jobs N at a time, which share the cores (as many as there are cores; 1
where there is a GPU). --arm NAME measures one arm of a run that has begun: other machines that see the folder can help.
"""
