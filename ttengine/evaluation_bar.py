"""What an evaluation shows while it runs: a progress bar, or a line an episode where there is no terminal."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class EvaluationBar:
    """A progress bar on standard error: episodes, steps a second, mean return so far, time left.

    Args:
        episodes: in all.
        longest: control steps that an episode can have; the time left assumes that the rest are that long.
        shown: False for silence.
    """

    def __init__(self, episodes: int, longest: int, shown: bool) -> None:
        self._episodes, self._longest = episodes, longest
        self._returns: list[float] = []
        self._steps = self._steps_of_finished = 0
        self._began = time.monotonic()
        self._console = Console(stderr=True, quiet=not shown)
        self._bar: Progress | None = None
        if shown and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("episodes"),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("episodes", total=episodes * longest, text=self._text())

    def __enter__(self) -> EvaluationBar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, steps: int) -> None:
        """Count environment steps."""
        self._steps += steps
        self._draw()

    def finish(self, returns: list[float]) -> None:
        """Count finished episodes."""
        self._returns += returns
        self._draw()
        if self._bar is None:
            self._console.print(self._text(), highlight=False, soft_wrap=True)

    def _draw(self) -> None:
        if self._bar is not None:
            # a finished episode counts as the longest, however short it was
            done = min(max(self._steps, len(self._returns) * self._longest), self._episodes * self._longest)
            self._bar.update(self._task, completed=done, text=self._text())

    def _text(self) -> str:
        rate = self._steps / max(time.monotonic() - self._began, 1e-9)
        text = f"{len(self._returns)}/{self._episodes}  {rate:,.1f} steps/s"
        if self._returns:
            text += f"  mean return {sum(self._returns) / len(self._returns):,.1f}"
        return text
