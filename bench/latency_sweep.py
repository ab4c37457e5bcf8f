"""Latency against the horizon and against the beam width, with a linear fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from harness import commit, linear_fit, percentile, significant, versions
from latency_report import Record, describe
from latency_runs import Run, Subject, Variant

HORIZONS = (1, 2, 4, 6, 8, 10, 12, 14, 16)
BEAM_WIDTHS = (8, 16, 32, 64, 96, 128, 192, 256)
FEWEST_POINTS = 3
"""Two points always lie on a line: a fit through fewer than three says nothing."""


def sweep_runs(
    subject: Subject,
    variants: Sequence[Variant],
    horizons: Sequence[int],
    beam_widths: Sequence[int],
    plans: int,
    threads: int,
) -> list[tuple[str, dict[int, Run]]]:
    """Return the series to time: for each variant, what is varied and a run for each of its values."""
    series = []
    for variant in variants:
        for varied, values in (("horizon", horizons), ("beam_width", beam_widths)):
            runs = {}
            for value in values:
                config = dataclasses.replace(subject.config, **{varied: value})  # type: ignore[arg-type]
                runs[value] = Run(dataclasses.replace(subject, config=config), variant, threads, plans)
            series.append((varied, runs))
    return series


def sweep_record(subject: Subject, varied: str, runs: Mapping[int, Run]) -> Record | None:
    """Return a series as JSON, fitted over the medians of its points; None with too few points to fit."""
    runs = {value: run for value, run in runs.items() if run.seconds}
    if len(runs) < FEWEST_POINTS:
        return None
    points = [
        {
            "value": value,
            "plans": len(run.seconds),
            "p50_s": significant(percentile(run.seconds, 0.5)),
            "p99_s": significant(percentile(run.seconds, 0.99)),
            "physical_rows": round(run.mean_work("physical_rows"), 1),
        }
        for value, run in runs.items()
    ]
    slope, intercept, r2 = linear_fit(list(runs), [percentile(run.seconds, 0.5) for run in runs.values()])
    variant, config = next(iter(runs.values())).variant, subject.config
    held = f"beam width {config.beam_width}" if varied == "horizon" else f"horizon {config.horizon}"
    return {
        "engine": variant.engine,
        "preset": subject.preset,
        "context": variant.context,
        "dedup": variant.deduplicate,
        "threads": next(iter(runs.values())).threads,
        "varied": varied,
        "held": held,
        "points": points,
        "slope_s": significant(slope),
        "intercept_s": significant(intercept),
        "r2": round(r2, 5),
        "commit": commit(),
        "versions": versions(),
        "weights": subject.weights,
        "observations": subject.log.label,
    }


def print_sweeps(sweeps: Sequence[Record]) -> None:
    """Print each series: its points, and its fit."""
    for sweep in sweeps:
        print(f"{sweep['preset']}, {describe(sweep)}, {sweep['context']}, {sweep['held']}: median ms a plan")
        for point in sweep["points"]:
            print(f"  {sweep['varied']} {point['value']:4d}  {1e3 * point['p50_s']:10.4g}  ({point['plans']} plans)")
        print(f"  {1e3 * sweep['slope_s']:.4g} ms each and {1e3 * sweep['intercept_s']:.4g} ms, R^2 {sweep['r2']:.4f}")
    if not sweeps:
        print(f"fewer than {FEWEST_POINTS} points were timed in every series: no fit")
