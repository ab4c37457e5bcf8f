"""`ttengine evaluate`: let a model control an environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro import MISSING
from tyro.conf import OmitArgPrefixes, Positional, arg

from ttengine.checkpoint import load
from ttengine.cli.common import parse, print_json, print_table, quiet_stdout, subject_preset
from ttengine.config import PlanConfig, plan_preset
from ttengine.controller import latency_summary
from ttengine.evaluation import EvaluateConfig, Evaluation, evaluate
from ttengine.viz.plots import check_plot_path, plot_foresight


@dataclass(frozen=True)
class EvaluateCommand:
    """Let a model control an environment for some episodes, and measure returns and latency.

    Episode e uses the seed `--seed` + e, so results depend neither on `--batch` nor on `--workers`. The defaults of the
    search are the paper's settings for the dataset that the model was trained on.

        ttengine evaluate halfcheetah --episodes 1 --deadline-s 0.05
        ttengine evaluate runs/hopper/model.safetensors --episodes 10 --workers 2 --video episode.mp4
        ttengine evaluate model.safetensors --environment Hopper-v4 --plan.horizon 5 --plan.beam-width 32 --json
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """model file, or the name of a shipped model"""
    environment: str | None = None
    """Gymnasium environment; else the one that the model's data came from"""
    evaluation: OmitArgPrefixes[EvaluateConfig] = field(default_factory=EvaluateConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    video: Path | None = None
    """.mp4 or .gif file that is to show the first episode"""
    foresight: Path | None = None
    """.png file that is to show the first episode's predictions against what happened"""
    json: bool = False
    """print the result as one JSON document; progress goes to standard error"""


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    command = _parse(arguments, subject_preset(arguments))  # so that --help shows what the model's defaults are
    checkpoint = load(command.model)
    command = _parse(arguments, plan_preset(checkpoint.dataset))
    if command.foresight is not None:
        check_plot_path(command.foresight)  # before the episodes are run
    with quiet_stdout(command.json):
        found = evaluate(checkpoint, command.environment, command.plan, command.evaluation, video=command.video)
        if command.foresight is not None:
            plot_foresight(
                command.foresight,
                found.foresight,
                title=f"{found.environment}: predicted and real",
                environment=found.environment,
                control_period_s=found.control_period_s,
            )
    if command.json:
        print_json(found.to_dict())
    else:
        print_table(f"{found.environment}, {len(found.episodes)} episodes", rows(found, command.foresight))


def rows(found: Evaluation, foresight: Path | None = None) -> list[tuple[str, str]]:
    """Return an evaluation as names and what they are."""
    latency, returns = latency_summary(found.latencies_s), found.returns
    table = [
        ("return", f"{returns.mean():,.1f} +- {returns.std():,.1f}   ({returns.min():,.1f} to {returns.max():,.1f})"),
        ("length", f"{found.lengths.mean():,.1f} steps"),
        ("plan latency", "  ".join(f"{name[:-2]} {seconds * 1e3:,.1f} ms" for name, seconds in latency.items())),
        ("engine", f"{found.engine}, {found.plan.context_kind} context"),
    ]
    if found.control_period_s:
        table.insert(3, ("control period", f"{found.control_period_s * 1e3:,.0f} ms"))
    if found.normalized is not None:
        score = f"{found.normalized.mean():.1f} +- {found.normalized.std():.1f}   (0 random, 100 expert)"
        table.insert(1, ("normalised score", score))
    if found.config.deadline_s is not None:
        missed = f"{found.missed_deadlines:,} of {len(found.latencies_s):,} plans"
        table.append(("missed deadlines", f"{missed} ({found.config.deadline_s * 1e3:,.1f} ms)"))
    if found.video is not None:
        table.append(("video", str(found.video)))
    if foresight is not None:
        table.append(("predictions", str(foresight)))
    return table


def _parse(arguments: Sequence[str], plan: PlanConfig) -> EvaluateCommand:
    return parse(EvaluateCommand, arguments, "evaluate", EvaluateCommand(MISSING, plan=plan))
