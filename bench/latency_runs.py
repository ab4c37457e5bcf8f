"""Timing plans: what is planned, by which engine, in turns; and whether the engines agree."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from harness import resident_mb
from plan_inputs import Body, Log, find_body, random_checkpoint, replay, synthetic_log

from ttengine.checkpoint import Checkpoint, load
from ttengine.config import WINDOW_CONTEXT, ContextKind, PlanConfig, plan_preset
from ttengine.errors import ConfigError
from ttengine.planner import Plan, Planner

BLOCKS = 20
"""Turns in which engines take their shares of the plans."""

RELATIVE_SCORE_LIMIT, DIFFERING_LIMIT = 1e-3, 0.02
"""An engine disagrees with the reference when it exceeds both: a plan's score off by so much, relative to the
reference's; and so large a share of plans that differ."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One preset with its model and its observations.

    Attributes:
        preset: for reports, what was overridden included.
        body: dims and control period.
        checkpoint: the model.
        weights: `random`, or the model's file name.
        log: what is replayed.
        config: the search.
    """

    preset: str
    body: Body
    checkpoint: Checkpoint
    weights: str
    log: Log
    config: PlanConfig

    @property
    def lead(self) -> int:
        """Steps skipped at each episode's start: with either kind of context it is then full, at the same step."""
        model = self.checkpoint.model.config
        return max(WINDOW_CONTEXT, model.layers * model.context)


def make_subject(
    preset: str,
    model: str | Path | None,
    data: Log | None,
    sizes: dict[str, int],
    search: dict[str, int],
) -> Subject:
    """Build what a preset plans with.

    Args:
        preset: a dataset's name; its first word says the body.
        model: a checkpoint file or a shipped model's name, or None for random weights of the released size.
        data: what to replay, or None for random walks over the range of the model's bins.
        sizes: random_checkpoint's `layers`, `heads`, `width`, where they differ from the released model's.
        search: PlanConfig's `horizon`, `beam_width`, where they differ from the preset's.
    Raises:
        ConfigError: the preset's body is unknown, or the model or the data has other dims.
    """
    body = find_body(preset)
    dims = (body.observation_dim, body.action_dim)
    if model is not None and sizes:
        raise ConfigError(f"{', '.join(sizes)} can be chosen for random weights only, and {model} was given")
    checkpoint = random_checkpoint(*dims, **sizes) if model is None else load(model)
    config = checkpoint.model.config
    log = synthetic_log(checkpoint.discretizer, config.action_dim) if data is None else data
    for name, got in (
        ("the model", (config.observation_dim, config.action_dim)),
        ("the data", (log.observations.shape[1], log.actions.shape[1])),
    ):
        if got != dims:
            raise ConfigError(
                f"{name} has {got[0]} observation and {got[1]} action dims, {preset} has {dims[0]} and {dims[1]}"
            )
    changed = ", ".join(f"{name}={value}" for name, value in {**sizes, **search}.items())
    return Subject(
        f"{preset} ({changed})" if changed else preset,
        body,
        checkpoint,
        "random" if model is None else Path(model).name,
        log,
        dataclasses.replace(plan_preset(preset), **search),  # type: ignore[arg-type]
    )


@dataclass(frozen=True)
class Variant:
    """Who computes, and how. deduplicate is None for engines that have no such choice."""

    engine: str
    context: ContextKind
    deduplicate: bool | None = None

    @property
    def label(self) -> str:
        """In words, for reports."""
        return f"{self.engine} {self.context}{', dedup off' if self.deduplicate is False else ''}"

    def planner(self, subject: Subject, threads: int) -> Planner:
        """Return a new planner for a subject."""
        config = dataclasses.replace(
            subject.config,
            engine=self.engine,  # type: ignore[arg-type]
            context_kind=self.context,
            threads=threads,
            deduplicate=self.deduplicate is not False,
        )
        return Planner(subject.checkpoint, config)


@dataclass(eq=False)
class Run:
    """Plans of one variant, one control step after another.

    Attributes:
        subject, variant: what is planned, and by whom.
        threads: of the engine.
        wanted: plans to time.
        seconds: how long each timed plan took, from the call of `Planner.plan` to the action in NumPy.
        work: counters of the timed plans, summed, by name.
        memory_mb: filled in later; see `measure_memory`.
    """

    subject: Subject
    variant: Variant
    threads: int
    wanted: int
    seconds: list[float] = field(default_factory=list)
    work: Counter[str] = field(default_factory=Counter)
    memory_mb: float | None = None

    def __post_init__(self) -> None:
        self._planner: Planner | None = self.variant.planner(self.subject, self.threads)
        self._moments = replay(self.subject.log, self.subject.lead, self._planner.context_capacity)
        self._step = 0

    def plan(self, timed: bool = True) -> None:
        """Plan at the next moment. An episode's first is planned untimed: in a control loop no context appears full."""
        assert self._planner is not None
        moment, first = next(self._moments)
        if first:
            self._planner.plan(*moment, step=self._step)
            moment, _ = next(self._moments)
        self._step += 1
        started = time.perf_counter()
        plan = self._planner.plan(*moment, step=self._step)
        action = plan.action
        elapsed = time.perf_counter() - started
        assert isinstance(action, np.ndarray)
        if timed:
            self.seconds.append(elapsed)
            self.work.update(dataclasses.asdict(plan.counters))

    def mean_work(self, name: str) -> float:
        """Mean over the timed plans of a counter."""
        return float(self.work[name]) / len(self.seconds)

    def close(self) -> None:
        """Let go of the planner and its memory; the measurements stay."""
        self._planner = None


def run_in_turns(runs: Sequence[Run], warmup: int) -> None:
    """Warm all runs up, then time them in turns, so that what slows the machine down for a while slows all of them.

    Args:
        runs: what to time; each takes its own share of plans in each of `BLOCKS` turns.
        warmup: untimed plans of each run, besides the first of an episode, which is never timed; a run that times
            fewer plans than that has that first one only.
    """
    for run in runs:
        for _ in range(warmup if run.wanted > warmup else 0):
            run.plan(timed=False)
    for block in range(1, BLOCKS + 1):
        for run in runs:
            while len(run.seconds) < run.wanted * block // BLOCKS:
                run.plan()


@dataclass(frozen=True)
class Comparison:
    """How many plans of a variant equal the reference engine's.

    Attributes:
        variant: who was compared.
        equal: plans with the same actions and the same observations, and scores within `RELATIVE_SCORE_LIMIT`.
        apart: for each other plan, its score's distance from the reference's, relative to the reference's.
    """

    variant: Variant
    equal: int
    apart: list[float]

    @property
    def agrees(self) -> bool:
        """Whether the differences may be near-ties: few plans, or scores that are as good."""
        share = len(self.apart) / (self.equal + len(self.apart))
        return share <= DIFFERING_LIMIT or max(self.apart) <= RELATIVE_SCORE_LIMIT

    def __str__(self) -> str:
        """Say it in a sentence."""
        text = f"{self.variant.label}: {self.equal} of {self.equal + len(self.apart)} plans equal the reference's"
        if self.apart:
            text += f"; scores of the others differ by {', '.join(f'{x:.1e}' for x in self.apart)} (relative)"
        return text


def compare_with_reference(subject: Subject, variants: Sequence[Variant], plans: int, threads: int) -> list[Comparison]:
    """Plan the same moments with the same seeds by the reference engine and by each variant of another engine."""
    comparisons = []
    references: dict[ContextKind, list[Plan]] = {}
    for variant in variants:
        if variant.engine == "reference":
            continue
        if variant.context not in references:
            reference = Variant("reference", variant.context)
            references[variant.context] = _plan_some(subject, reference, plans, threads)
        equal, apart = 0, []
        found = _plan_some(subject, variant, plans, threads)
        for mine, theirs in zip(found, references[variant.context], strict=True):
            same = [np.array_equal(getattr(mine, name), getattr(theirs, name)) for name in ("actions", "observations")]
            score, wanted = float(mine.score), float(theirs.score)
            distance = abs(score - wanted) / max(abs(wanted), 1e-6)
            if all(same) and distance <= RELATIVE_SCORE_LIMIT:
                equal += 1
            else:
                apart.append(distance)
        comparisons.append(Comparison(variant, equal, apart))
    return comparisons


def _plan_some(subject: Subject, variant: Variant, plans: int, threads: int) -> list[Plan]:
    planner = variant.planner(subject, threads)
    moments = replay(subject.log, subject.lead, planner.context_capacity)
    return [planner.plan(*next(moments)[0], seed=1, step=step) for step in range(plans)]


def measure_memory(subject: Subject, variant: Variant, plans: int, threads: int, before_mb: float) -> float:
    """Return the largest resident size seen after any of some plans, in MB beyond `before_mb`.

    Called in a process that does nothing else; `before_mb` is its size once everything was imported and the data to
    replay was read, so that the model, the planner and what they make libraries load or allocate all count.
    """
    run = Run(subject, variant, threads, plans)
    largest = resident_mb()
    for _ in range(plans):
        run.plan()
        largest = max(largest, resident_mb())
    return largest - before_mb


def endure(run: Run, points: int = 10) -> list[float]:
    """Plan `run.wanted` times; return the resident size in MB after each of ten equal parts."""
    sizes = []
    done = 0
    for point in range(1, points + 1):
        while done < run.wanted * point // points:
            run.plan(timed=False)  # keeping a hundred thousand times would itself be growth
            done += 1
        sizes.append(resident_mb())
    return sizes


def set_threads(threads: int | None) -> int:
    """Let PyTorch use so many threads, and return how many; None leaves its own choice."""
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()
