"""What a training run shows: a progress bar or plain lines, a CSV, TensorBoard."""

from __future__ import annotations

import csv
import io
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ttengine.errors import require
from ttengine.optimisation import SEGMENTS

COLUMNS = (
    "step",
    "tokens",
    "learning_rate",
    "loss",
    *SEGMENTS,
    "grad_norm",
    "tokens_per_s",
    "validation_loss",
    *(f"validation_{segment}" for segment in SEGMENTS),
)
"""Of the CSV. Losses are means over the steps since the last row: `loss` the weighted one that is minimised, the
segments' in nats a token; the others are the row's own step's. Validation is empty where there was none."""


class MetricsFile:
    """A CSV that is appended a whole line at a time and cut back to the resumed step."""

    def __init__(self, path: Path, after_step: int) -> None:
        """Open the file, keeping rows up to `after_step` and dropping later ones and a torn last line."""
        kept = [row for row in _rows(path) if int(row[0]) <= after_step]
        neighbour = path.with_name(f".{path.name}.{os.getpid()}.part")
        neighbour.write_text("".join(map(_line, [list(COLUMNS), *kept])), encoding="utf-8")
        os.replace(neighbour, path)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()

    def append(self, row: dict[str, float]) -> None:
        """Add a row with one unbuffered write: a reader never sees half of it."""
        self._file.write(_line([_number(row[name]) if name in row else "" for name in COLUMNS]).encode())

    def sync(self) -> None:
        """Bring all rows to the disk, so that a resume file never refers to rows that a power cut lost."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _rows(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    rows = list(csv.reader(io.StringIO(whole)))[1:]
    return [row for row in rows if len(row) == len(COLUMNS) and row[0].isdigit()]


def _line(cells: list[str]) -> str:
    return ",".join(cells) + "\n"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.7g}"


class TrainingLog:
    """Every way in which a run reports; a context manager, for the main process only."""

    def __init__(self, metrics: Path, tensorboard: Path | None, steps: int, done: int, progress: bool) -> None:
        """Open the outputs.

        Args:
            metrics: the CSV.
            tensorboard: folder of event files, None for none.
            steps: of the whole run.
            done: steps that an earlier start of this run has done.
            progress: whether to show anything on standard output.
        """
        self._metrics = MetricsFile(metrics, done)
        self._writer: Any = None
        if tensorboard is not None:
            require("tensorboard", "train")
            from torch.utils.tensorboard import SummaryWriter

            # rows after the resumed step are hidden: they are trained, and written, again
            self._writer = SummaryWriter(str(tensorboard), purge_step=done + 1 if done else None)
        self._steps = steps
        self._console = Console(quiet=not progress)
        self._bar: Progress | None = None
        if progress and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("training", total=steps, completed=done, text="")

    def __enter__(self) -> TrainingLog:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._writer is not None:
            self._writer.close()
        self._metrics.close()

    def step(self) -> None:
        """Count one optimiser step."""
        if self._bar is not None:
            self._bar.advance(self._task)

    def row(self, row: dict[str, float]) -> None:
        """Write a row of numbers everywhere."""
        self._metrics.append(row)
        if self._writer is not None:
            for name, value in row.items():
                kind = "validation" if name.startswith("validation_") else "train"
                self._writer.add_scalar(f"{kind}/{name.removeprefix('validation_')}", value, int(row["step"]))
        losses = f"loss {row['loss']:.4f}"
        if "validation_loss" in row:
            losses += f" (validation {row['validation_loss']:.4f})"
        text = f"{losses}  {row['tokens_per_s']:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, text=text)
            return
        segments = "  ".join(f"{segment} {row[segment]:.3f}" for segment in SEGMENTS)
        left = (self._steps - row["step"]) * row["tokens"] / max(row["step"], 1) / max(row["tokens_per_s"], 1e-9)
        line = f"step {int(row['step']):,}/{self._steps:,}  {text}  {segments}  {_duration(left)} left"
        self._console.print(line, highlight=False, soft_wrap=True)

    def sync(self) -> None:
        """Bring what was written to the disk, before a save."""
        self._metrics.sync()
        if self._writer is not None:
            self._writer.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
