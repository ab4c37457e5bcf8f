"""What the demo says: a heading before each stage, a line after it, a table at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ttengine.demo_real_time import describe_real_time
from ttengine.stages import Stages


def announce(console: Console, number: int, title: str, text: str) -> None:
    """Say what comes."""
    console.print(f"\n[bold cyan]{number}  {title}[/]  {text}", highlight=False)


def finish(console: Console, stages: Stages, text: str) -> None:
    """Say what came, and how long it took."""
    seconds = stages.seconds[stages.last]
    took = "unchanged, kept" if stages.last in stages.reused else f"{seconds:,.0f} s"
    console.print(f"   [green]done[/]  {text}  [dim]({took})[/]", highlight=False)


def print_report(console: Console, report: Mapping[str, Any]) -> None:
    """Print the table and where the files are."""
    behaviour, planner = report["behaviour"], report["planner"]
    returns = planner["return"]
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(report["environment"])
    table.add_column("return", justify="right")
    table.add_column("", style="dim")
    table.add_row("logged data, mean", f"{behaviour['mean']:,.0f}", f"{behaviour['episodes']:,} episodes")
    table.add_row("logged data, best", f"{behaviour['best']:,.0f}", "")
    table.add_row(
        "[bold]planner, mean[/]",
        f"[bold]{returns['mean']:,.0f}[/]",
        f"+- {returns['std']:,.0f} over {len(returns['all'])} episodes, {min(returns['all']):,.0f} to "
        f"{max(returns['all']):,.0f}",
    )
    table.add_row("planner / logged mean", f"[bold]{report['ratio']:.2f}x[/]", "")
    console.print()
    console.print(table)
    console.print(_latency(planner), highlight=False)
    console.print(f"\n{describe_real_time(report['real_time'])}", highlight=False)
    console.print()
    for name, path in report["files"].items():
        console.print(f"{name:<12} {path}", highlight=False, soft_wrap=True)
    if report["no_video"] is not None:
        console.print(f"[yellow]no video[/]     {report['no_video']}", highlight=False)
    console.print(f"\n[dim]{report['wall_s'] / 60:.1f} minutes in all[/]\n", highlight=False)


def _latency(planner: Mapping[str, Any]) -> str:
    latency, period_s = planner["latency"], planner["control_period_s"]
    text = f"One plan takes {latency['p50_s'] * 1e3:,.0f} ms (p99 {latency['p99_s'] * 1e3:,.0f} ms) on the "
    text += f"{planner['engine']} engine"
    if period_s is None:
        return f"{text}."
    text += f"; the control period is {period_s * 1e3:,.0f} ms"
    if latency["p99_s"] <= period_s:
        return f"{text}: fast enough for real time."
    return f"{text}, so the simulator waits for the planner: not real time."
