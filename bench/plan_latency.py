"""How long a plan takes, end to end, beside the naive reference and the robot's control period.

    python bench/plan_latency.py --preset halfcheetah-medium hopper walker2d-medium ant-medium --json latency.json
    python bench/plan_latency.py --preset halfcheetah-medium --model model.safetensors --data halfcheetah-medium.hdf5
    python bench/plan_latency.py --preset halfcheetah-medium --engine cpp --sweep --plot sweep.png
    python bench/plan_latency.py --preset halfcheetah-medium --engine cpp --endurance 100000

Before anything is timed, the naive planner is compared with the reference engine on tiny models, and each engine with
the reference engine on the preset itself; a mismatch ends the run with 1. Then all engines plan in turns, in one
process. Without --model the weights are random, and every output says so. Both kinds of context use the same rotary
weights: such a model serves either. docs/BENCHMARKS.md says what each number means.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import commit, machine, matmul_gflops, resident_mb, write_json
from latency_plots import plot_records, plot_sweeps
from latency_report import make_record, print_tables
from latency_runs import (
    Comparison,
    Run,
    Subject,
    Variant,
    compare_with_reference,
    endure,
    make_subject,
    measure_memory,
    run_in_turns,
    set_threads,
)
from latency_sweep import BEAM_WIDTHS, HORIZONS, print_sweeps, sweep_record, sweep_runs
from naive_engine import NaiveTime, naive_equals_reference, time_naive
from plan_inputs import BODIES, read_log, replay

from ttengine.config import WINDOW_CONTEXT
from ttengine.engines import ENGINES
from ttengine.errors import TTEngineError

FAST = ("cpp", "triton")
"""Engines that plan often enough for percentiles; the others are timed on --slow-plans."""

MEMORY_PLANS = 50
"""Plans of a fast engine whose memory is looked at; of a slow one it is one plan."""

ENDURANCE_SEARCH = {"horizon": 2, "beam_width": 8}
ENDURANCE_GROWTH_MB = 5.0
MISMATCH, WRONG_ARGUMENT, INTERRUPTED = 1, 2, 130


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options; `command` says how to run this again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    bodies = ", ".join(BODIES)
    add("--preset", nargs="+", default=["halfcheetah-medium"], metavar="NAME", help=f"datasets; bodies: {bodies}")
    add("--engine", nargs="+", default=["cpp", "reference"], choices=[*ENGINES], help="default: cpp reference")
    add("--context", nargs="+", default=["window", "rolling"], choices=["window", "rolling"], help="default: both")
    add("--dedup", nargs="+", default=["on"], choices=["on", "off"], help="cpp's de-duplication (default on)")
    add("--threads", type=int, default=None, help="default: PyTorch's choice")
    add("--plans", type=int, default=None, help="timed plans of a fast engine (default 1000; 30 a point in a sweep)")
    add("--slow-plans", type=int, default=3, help="timed plans of a slow engine (default 3)")
    add("--warmup", type=int, default=5, help="untimed plans before, of a fast engine (default 5)")
    add("--verify", type=int, default=2, help="plans compared with the reference engine first (default 2)")
    add("--naive-rounds", type=int, default=1, help="rounds of the naive plan that are timed (default 1; 0: none)")
    add("--naive-plans", type=int, default=1, help="plans of the naive reference (default 1)")
    add("--no-memory", action="store_true", help="do not measure memory, which starts a process a row")
    add("--model", default=None, help="real weights: a ttengine checkpoint, or a shipped name")
    add("--data", type=Path, default=None, help="dataset whose episodes are replayed (default: random walks)")
    add("--json", type=Path, default=None, help="write the records here")
    add("--plot", type=Path, default=None, help="draw a PNG here")
    add("--sweep", action="store_true", help="latency against horizon and beam width, on the first engine")
    add("--horizons", type=int, nargs="+", default=HORIZONS, help="of the sweep")
    add("--beam-widths", type=int, nargs="+", default=BEAM_WIDTHS, help="of the sweep")
    add("--endurance", type=int, default=None, metavar="N", help="N plans in a row; exits with 1 if memory grows")
    for name in ("layers", "heads", "width"):
        add(f"--{name}", type=int, default=None, help=f"{name} of random weights (default: the released model's)")
    for name in ("horizon", "beam-width"):
        add(f"--{name}", type=int, default=None, help="of the search (default: the preset's)")
    add("--memory-child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    for name in ("plans", "slow_plans", "naive_plans", "threads", "endurance"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}, at least 1 is needed")
    if (arguments.sweep or arguments.endurance) and len(arguments.preset) > 1:
        parser.error("a sweep or an endurance run takes one --preset")
    if arguments.plans is None:
        arguments.plans = 30 if arguments.sweep else 1000
    arguments.command = f"python bench/plan_latency.py {shlex.join(argv)}"
    arguments.log = None  # read when the options are known to be right
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns 1 on a mismatch or growing memory, 2 on a wrong argument, 130 on Ctrl-C."""
    arguments = parse(sys.argv[1:] if argv is None else list(argv))
    arguments.threads = set_threads(arguments.threads)
    try:
        arguments.log = None if arguments.data is None else read_log(arguments.data)
        if arguments.memory_child:
            return print_memory(arguments)
        if arguments.endurance:
            return run_endurance(arguments)
        return run_sweep(arguments) if arguments.sweep else run_latency(arguments)
    except TTEngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_ARGUMENT


def run_latency(arguments: argparse.Namespace) -> int:
    """Time every row; print, write and draw what was timed, whatever ended it."""
    facts = {"command": arguments.command, "machine": machine()}
    commit()  # of the code that runs: it may change while this does
    timed: list[tuple[Run, NaiveTime | None]] = []
    comparisons: list[tuple[Subject, Comparison]] = []
    peak, status = matmul_gflops(), 0
    try:
        status = measure_presets(arguments, timed, comparisons)
    except KeyboardInterrupt:
        print("interrupted; what was timed so far:", file=sys.stderr)
        status = INTERRUPTED
    peak = max(peak, matmul_gflops())
    records = [make_record(run, naive, peak) for run, naive in timed if run.seconds]
    print_tables(records)
    if arguments.json:
        facts["interrupted"] = status == INTERRUPTED
        write_json(arguments.json, {**facts, "verification": verification(comparisons), "rows": records})
    if arguments.plot and records:
        plot_records(records, arguments.plot)
    return status


def measure_presets(
    arguments: argparse.Namespace,
    timed: list[tuple[Run, NaiveTime | None]],
    comparisons: list[tuple[Subject, Comparison]],
) -> int:
    """Compare, then time, preset by preset; returns the exit status. Fills the two lists as it goes."""
    if arguments.naive_rounds > 0 and not naive_equals_reference():
        print("the naive planner disagrees with the reference engine", file=sys.stderr)
        return MISMATCH
    for preset in arguments.preset:
        subject = subject_of(arguments, preset)
        if not verify(arguments, subject, comparisons):
            return MISMATCH
        naive = None
        if arguments.naive_rounds > 0:
            _note(subject, "timing the naive reference")
            moments = replay(subject.log, subject.lead, WINDOW_CONTEXT)
            some = [moment for moment, _ in itertools.islice(moments, arguments.naive_plans)]
            naive = time_naive(subject.checkpoint, subject.config, some, arguments.naive_rounds)
        runs = [
            Run(subject, variant, arguments.threads, plans_of(arguments, variant)) for variant in variants(arguments)
        ]
        timed.extend((run, naive) for run in runs)
        _note(subject, f"timing {len(runs)} rows in turns")
        run_in_turns(runs, arguments.warmup)
        for run in runs:
            run.close()
        if not arguments.no_memory:
            _note(subject, "measuring memory")
            for run in runs:
                run.memory_mb = memory_of(arguments, preset, run.variant)
    return 0


def subject_of(arguments: argparse.Namespace, preset: str, **search: int) -> Subject:
    """Return the preset as the options say, and as `search` says where they do not."""
    sizes = {name: getattr(arguments, name) for name in ("layers", "heads", "width")}
    search.update({name: getattr(arguments, name) for name in ("horizon", "beam_width") if getattr(arguments, name)})
    return make_subject(
        preset,
        arguments.model,
        arguments.log,
        {name: value for name, value in sizes.items() if value is not None},
        search,
    )


def variants(arguments: argparse.Namespace) -> list[Variant]:
    """Return the rows of one preset."""
    rows: list[Variant] = []
    for engine, context in itertools.product(arguments.engine, arguments.context):
        choices: list[bool | None] = [dedup == "on" for dedup in arguments.dedup] if engine == "cpp" else [None]
        rows.extend(Variant(engine, context, choice) for choice in choices)
    return rows


def plans_of(arguments: argparse.Namespace, variant: Variant) -> int:
    """Return how many plans of a row are timed."""
    return int(arguments.plans if variant.engine in FAST else arguments.slow_plans)


def verify(arguments: argparse.Namespace, subject: Subject, comparisons: list[tuple[Subject, Comparison]]) -> bool:
    """Whether all engines agree with the reference; says so on the terminal and keeps the comparisons."""
    if arguments.verify < 1:
        print(f"{subject.preset}: not compared with the reference engine (--verify 0)")
        return True
    _note(subject, "comparing with the reference engine")
    found = compare_with_reference(subject, variants(arguments), arguments.verify, arguments.threads)
    for comparison in found:
        comparisons.append((subject, comparison))
        print(f"{subject.preset}, {comparison}")
        if not comparison.agrees:
            print(f"{comparison.variant.label} disagrees with the reference engine", file=sys.stderr)
    return all(comparison.agrees for comparison in found)


def verification(comparisons: Sequence[tuple[Subject, Comparison]]) -> list[dict[str, Any]]:
    """Return the comparisons as JSON."""
    return [
        {
            "preset": subject.preset,
            "engine": comparison.variant.engine,
            "context": comparison.variant.context,
            "dedup": comparison.variant.deduplicate,
            "equal_plans": comparison.equal,
            "relative_score_differences": comparison.apart,
        }
        for subject, comparison in comparisons
    ]


def memory_of(arguments: argparse.Namespace, preset: str, variant: Variant) -> float | None:
    """Measure a row's memory in a process of its own; None, and the reason on the terminal, where that fails."""
    plans = min(arguments.plans, MEMORY_PLANS) if variant.engine in FAST else 1
    dedup = "off" if variant.deduplicate is False else "on"
    command = [sys.executable, __file__, "--memory-child", "--preset", preset, "--engine", variant.engine]
    command += ["--context", variant.context, "--dedup", dedup, "--plans", str(plans), "--slow-plans", str(plans)]
    for name in ("threads", "model", "data", "layers", "heads", "width", "horizon", "beam_width"):
        if getattr(arguments, name) is not None:
            command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    child = subprocess.run(command, text=True, capture_output=True)
    if child.returncode:
        print(f"memory of {variant.label} was not measured: {child.stderr.strip()}", file=sys.stderr)
        return None
    return float(child.stdout)


def print_memory(arguments: argparse.Namespace) -> int:
    """Print the MB that one row needs; `memory_of` calls it in a process of its own."""
    before = resident_mb()
    (variant,) = variants(arguments)
    subject = subject_of(arguments, arguments.preset[0])
    print(measure_memory(subject, variant, plans_of(arguments, variant), arguments.threads, before))
    return 0


def run_endurance(arguments: argparse.Namespace) -> int:
    """Plan again and again with the first engine; returns 1 if memory grew after the first tenth of the plans."""
    subject = subject_of(arguments, arguments.preset[0], **ENDURANCE_SEARCH)
    status, results = 0, []
    for context in arguments.context:
        variant = Variant(arguments.engine[0], context)
        weights = "random weights" if arguments.model is None else Path(arguments.model).name
        print(f"{subject.preset}, {weights}, {variant.label}: {arguments.endurance:,} plans; MB after each tenth:")
        run = Run(subject, variant, arguments.threads, arguments.endurance)
        sizes = []
        for size in endure(run):
            sizes.append(round(size, 1))
            print(f"  {size:.1f}", flush=True)
        grown = max(sizes) - sizes[0]
        print(f"  grew by {grown:.1f} MB after the first tenth, {ENDURANCE_GROWTH_MB:g} are allowed")
        row = {"preset": subject.preset, "weights": subject.weights, "engine": variant.engine, "context": context}
        results.append({**row, "resident_mb": sizes})
        if grown > ENDURANCE_GROWTH_MB:
            status = MISMATCH
    if arguments.json:
        facts = {"command": arguments.command, "machine": machine(), "commit": commit()}
        write_json(arguments.json, {**facts, "plans": arguments.endurance, "endurance": results})
    return status


def run_sweep(arguments: argparse.Namespace) -> int:
    """Time the first engine over horizons and over beam widths; print, write and draw."""
    arguments.engine, arguments.dedup = arguments.engine[:1], arguments.dedup[:1]
    facts = {"command": arguments.command, "machine": machine()}
    commit()
    subject = subject_of(arguments, arguments.preset[0])
    comparisons: list[tuple[Subject, Comparison]] = []
    if not verify(arguments, subject, comparisons):
        return MISMATCH
    rows = variants(arguments)
    series = sweep_runs(
        subject, rows, arguments.horizons, arguments.beam_widths, plans_of(arguments, rows[0]), arguments.threads
    )
    status = 0
    try:
        run_in_turns([run for _, runs in series for run in runs.values()], arguments.warmup)
    except KeyboardInterrupt:
        print("interrupted; what was timed so far:", file=sys.stderr)
        status = INTERRUPTED
    records = [record for varied, runs in series if (record := sweep_record(subject, varied, runs)) is not None]
    print_sweeps(records)
    if arguments.json:
        facts["interrupted"] = status == INTERRUPTED
        write_json(arguments.json, {**facts, "verification": verification(comparisons), "sweeps": records})
    if arguments.plot and records:
        plot_sweeps(records, arguments.plot)
    return status


def _note(subject: Subject, doing: str) -> None:
    print(f"{subject.preset}: {doing}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
