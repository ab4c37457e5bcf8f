"""What `plan_latency.py` reports: JSON records and the table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness import commit, percentile, significant, versions
from latency_runs import Run
from naive_engine import NaiveTime
from rich.console import Console
from rich.table import Table

Record = dict[str, Any]


def make_record(run: Run, naive: NaiveTime | None, machine_gflops: float) -> Record:
    """Return a row's JSON record; docs/BENCHMARKS.md says what each key means. None where nothing was measured."""
    p50, p90, p99 = (percentile(run.seconds, share) for share in (0.5, 0.9, 0.99))
    flops, total_s = float(run.work["flops"]), sum(run.seconds)
    gflops = flops / 1e9 / total_s if flops else None
    period = run.subject.body.control_period_s
    return {
        "engine": run.variant.engine,
        "preset": run.subject.preset,
        "context": run.variant.context,
        "dedup": run.variant.deduplicate,
        "threads": run.threads,
        "plans": len(run.seconds),
        "p50_s": significant(p50),
        "p90_s": significant(p90),
        "p99_s": significant(p99),
        "speedup_vs_naive": significant(naive.seconds / p50) if naive else None,
        "control_period_s": period,
        "meets_control_rate": p99 <= period,
        "token_steps": round(run.mean_work("token_steps"), 1),
        "logical_rows": round(run.mean_work("logical_rows"), 1),
        "physical_rows": round(run.mean_work("physical_rows"), 1),
        "gflop": significant(run.mean_work("flops") / 1e9) if flops else None,
        "gflops": significant(gflops),
        "machine_gflops": significant(machine_gflops),
        "commit": commit(),
        "versions": versions(),
        "weights": run.subject.weights,
        "observations": run.subject.log.label,
        "naive_s": significant(naive.seconds) if naive else None,
        "naive_basis": naive.basis if naive else None,
        "memory_mb": significant(run.memory_mb),
        "utilisation": significant(gflops / machine_gflops) if gflops else None,
    }


def print_tables(records: Sequence[Record]) -> None:
    """Print a table for each preset, under lines that say what its rows were measured with and against."""
    console = Console()
    if not console.is_terminal:
        console.width = 140  # a pipe has no width; rows stay whole
    for preset in dict.fromkeys(record["preset"] for record in records):
        rows = [record for record in records if record["preset"] == preset]
        first = rows[0]
        naive = f"{first['naive_s']:.4g} s a plan ({first['naive_basis']})" if first["naive_s"] else "not timed"
        for line in (
            f"{preset}: {weights_of(first)}, observations {first['observations']}",
            f"  control period {1e3 * first['control_period_s']:g} ms; naive reference {naive}",
        ):
            console.print(line, soft_wrap=True, markup=False, highlight=False)
        console.print(_table(rows))
    if not records:
        print("nothing was timed")
        return
    console.print(
        f"{records[0]['threads']} threads; best float32 matrix product {records[0]['machine_gflops']:.4g} GFLOP/s. "
        "ms: from the call to the action in NumPy. x naive: of p50. in period: whether p99 is. "
        "rows: physical over logical. of peak: GFLOP/s over the matrix product's.",
        highlight=False,
    )


def _table(rows: Sequence[Record]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("  engine", "context"):
        table.add_column(name, no_wrap=True)
    for name in ("plans", "p50 ms", "p90 ms", "p99 ms", "x naive", "in period", "rows", "GFLOP/s", "of peak", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for r in rows:
        table.add_row(
            f"  {r['engine']}{', dedup off' if r['dedup'] is False else ''}",
            r["context"],
            f"{r['plans']:,}",
            *(f"{1e3 * r[key]:,.4g}" for key in ("p50_s", "p90_s", "p99_s")),
            _shown(r["speedup_vs_naive"], "{:,.3g}"),
            "yes" if r["meets_control_rate"] else "no",
            f"{r['physical_rows'] / r['logical_rows']:.0%}",
            _shown(r["gflops"], "{:,.3g}"),
            _shown(r["utilisation"], "{:.0%}"),
            _shown(r["memory_mb"], "{:.0f}"),
        )
    return table


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def describe(record: Record) -> str:
    """Return the engine, the weights and the threads of a record, in words."""
    dedup = ", dedup off" if record["dedup"] is False else ""
    threads = f"{record['threads']} thread{'s' if record['threads'] > 1 else ''}"
    return f"{record['engine']} engine{dedup}, {weights_of(record)}, {threads}"


def weights_of(record: Record) -> str:
    """Return the name of the model's file, or `random weights`."""
    return "random weights" if record["weights"] == "random" else str(record["weights"])
