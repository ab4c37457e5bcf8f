"""Plots of what `plan_latency.py` measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latency_report import Record, describe, weights_of

from ttengine.errors import require

PANELS = {"horizon": "horizon (transitions)", "beam_width": "beam width (sequences)"}
"""What a sweep varies, and the axis label."""


def plot_records(records: Sequence[Record], path: Path) -> None:
    """Draw each row from p50 to p99 beside its control period."""
    pyplot = _pyplot()
    ticker = require("matplotlib.ticker", "viz")
    figure, axes = pyplot.subplots(figsize=(10, 1.8 + 0.3 * len(records)), layout="constrained")
    labels = []
    for place, r in enumerate(records):
        first = place == 0  # one legend entry for all rows
        axes.plot([1e3 * r["p50_s"], 1e3 * r["p99_s"]], [place] * 2, color="C0", linewidth=2)
        axes.plot(1e3 * r["p50_s"], place, "o", color="C0", label="p50, line to p99" if first else None)
        period = "control period" if first else None
        axes.plot(1e3 * r["control_period_s"], place, "|", color="C3", markersize=12, markeredgewidth=2, label=period)
        dedup = ", dedup off" if r["dedup"] is False else ""
        labels.append(f"{r['preset']}, {r['engine']} {r['context']}{dedup} ({r['plans']:,} plans)")
    axes.set_yticks(range(len(records)), labels)
    axes.set_ylim(len(records) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.set_xlabel("milliseconds a plan")
    weights = ", ".join(dict.fromkeys(weights_of(r) for r in records))
    threads = records[0]["threads"]
    figure.suptitle(f"{weights}, {threads} thread{'s' if threads > 1 else ''}", fontsize="medium")
    figure.legend(frameon=False, fontsize="small", loc="outside lower center", ncols=2)
    _save(pyplot, figure, [axes], path)


def plot_sweeps(sweeps: Sequence[Record], path: Path) -> None:
    """Draw a panel for each thing that is varied: the medians of each kind of context, their fit dashed."""
    pyplot = _pyplot()
    figure, panels = pyplot.subplots(1, len(PANELS), figsize=(9, 4), layout="constrained", squeeze=False)
    for axes, (varied, words) in zip(panels[0], PANELS.items(), strict=True):
        drawn = [sweep for sweep in sweeps if sweep["varied"] == varied]
        for number, sweep in enumerate(drawn):
            x = [point["value"] for point in sweep["points"]]
            medians = [1e3 * point["p50_s"] for point in sweep["points"]]
            fit = [1e3 * (sweep["slope_s"] * value + sweep["intercept_s"]) for value in x]
            label = f"{sweep['context']}, linear fit $R^2$ = {sweep['r2']:.4f}"
            axes.plot(x, medians, "o", color=f"C{number}")
            axes.plot(x, fit, "--", color=f"C{number}", linewidth=1, label=label)
        axes.set(xlabel=words, ylabel="median milliseconds a plan", title=drawn[0]["held"] if drawn else "")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        if drawn:
            axes.legend(frameon=False, fontsize="small")
    figure.suptitle(f"{sweeps[0]['preset']}: {describe(sweeps[0])}", fontsize="medium")
    _save(pyplot, figure, list(panels[0]), path)


def _pyplot() -> Any:
    require("matplotlib", "viz").use("Agg")
    return require("matplotlib.pyplot", "viz")


def _save(pyplot: Any, figure: Any, panels: Sequence[Any], path: Path) -> None:
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
