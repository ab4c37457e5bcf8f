"""The training loop: one step after the other, rows of numbers, saves."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ttengine.checkpoint import Checkpoint
from ttengine.config import DataConfig, ModelConfig, TrainConfig, to_dict
from ttengine.data.windows import Batch, BatchOrder, Windows
from ttengine.discretizer import Discretizer
from ttengine.errors import NonFiniteError
from ttengine.model import TrajectoryTransformer
from ttengine.optimisation import (
    SEGMENTS,
    TokenWeights,
    learning_rate,
    make_optimiser,
    spread_over_bins,
    token_losses,
    token_weights,
)
from ttengine.training_log import TrainingLog
from ttengine.training_state import Progress, RunFolder, read_resume, write_resume

MICRO_BATCH_TOKENS = 65_536
"""Tokens in flight in one process, unless the settings say otherwise; a layer keeps some 10 KB of each at width 128."""
DROPOUT_STREAM = 4
"""Key of the dropout generators, beside the streams of ttengine.data.windows."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything that is known before the first step.

    Attributes:
        model: sizes.
        data: how the windows were made.
        config: the run's settings.
        discretizer: fitted to all transitions.
        training: windows to train on.
        validation: windows held out; may be empty.
        steps: optimiser steps of the run.
        identity: what a continuation must share with this run, JSON values.
        dataset: the data's name.
        metadata: what the data's source said about itself, JSON values.
    """

    model: ModelConfig
    data: DataConfig
    config: TrainConfig
    discretizer: Discretizer
    training: Windows
    validation: Windows
    steps: int
    identity: dict[str, dict[str, Any]]
    dataset: str
    metadata: dict[str, Any]

    def summary(self) -> str:
        """Say in one line what the run will do."""
        held_out = f"{len(self.validation):,} held out" if len(self.validation) else "none held out, so no validation"
        epochs = self.steps / -(-len(self.training) // self.config.batch_size)
        return (
            f"{len(self.training):,} training windows of {self.model.max_tokens:,} tokens, {held_out}; "
            f"{self.steps:,} steps of {self.config.batch_size} windows ({epochs:.3g} epochs)"
        )


class TrainingLoop:
    """One training run in one process: what the loop reads and changes."""

    def __init__(self, accelerator: Any, folder: RunFolder, prepared: Prepared) -> None:
        """Make the model and its optimiser, or load them from the folder's resume file.

        Args:
            accelerator: accelerate's, which knows the device, the precision and the other processes.
            folder: the run's.
            prepared: the run.
        """
        config, device = prepared.config, accelerator.device
        self.accelerator, self.folder, self.prepared, self.config = accelerator, folder, prepared, config
        torch.manual_seed(config.seed)
        self.model = TrajectoryTransformer(prepared.model).to(device)
        self.adamw = make_optimiser(self.model, config)
        spread_over_bins(self.model, config.bin_smoothing)
        self.progress = Progress()
        if folder.resume.exists():
            self.progress = read_resume(folder.resume, self.model, self.adamw, prepared.identity, prepared.steps)
            if self.progress.scaler is not None:
                accelerator.scaler.load_state_dict(self.progress.scaler)
        self.progress.sums = self.progress.sums.to(device)
        accelerator.wait_for_everyone()  # nobody may replace the resume file while another process reads it
        self.wrapped, self.optimiser = accelerator.prepare(self.model, self.adamw)
        self.order = BatchOrder(prepared.training, config.batch_size, config.seed)
        self.micro_batch = config.micro_batch or max(1, MICRO_BATCH_TOKENS // prepared.model.max_tokens)
        self.weights = token_weights(prepared.model, config, device)
        self.bad_step = torch.full((), -1, device=device)
        self.row_step = self.saved_step = self.progress.step
        self.wall_before = self.progress.wall_s
        self.started = self.row_started = self.saved = time.monotonic()

    def run(self, log: TrainingLog | None) -> None:
        """Take the remaining steps and write the last files.

        Args:
            log: where the rows go, in the first process; None in the others, which write nothing.
        """
        steps, config = self.prepared.steps, self.config
        self.wrapped.train()
        while self.progress.step < steps:
            norm = self._step()
            done = self.progress.step
            validates = done % config.validate_every == 0 or done == steps
            row = validates or done % config.log_every == 0
            if row:
                self._row(log, norm, validates)
            if log is not None:
                log.step()
                if done == steps or self._save_is_due(just_after_row=row):
                    self.save(log)

    def _step(self) -> Tensor:
        """Take one optimiser step; return the gradient's norm before clipping, on the device."""
        step, accelerator = self.progress.step, self.accelerator
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(step, self.prepared.steps, self.config)
        parts = list(self._batch(self.order, step).split(self.micro_batch))
        self._seed_dropout(step)
        sums = torch.zeros_like(self.progress.sums)
        for index, part in enumerate(parts):
            # processes exchange gradients once a step, on the last part's way back
            with nullcontext() if index == len(parts) - 1 else accelerator.no_sync(self.wrapped):
                total, part_sums = self._losses(part)
                accelerator.backward(total)
            sums += part_sums
        norm: Tensor = accelerator.clip_grad_norm_(self.wrapped.parameters(), self.config.clip_norm)
        self._watch(step, sums[0], norm)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.progress.sums += sums
        self.progress.summed_steps += 1
        self.progress.step += 1
        return norm

    def _batch(self, order: BatchOrder, step: int) -> Batch:
        accelerator = self.accelerator
        return order.batch(step, accelerator.process_index, accelerator.num_processes, accelerator.device)

    def _seed_dropout(self, step: int) -> None:
        # every step has a generator of its own, so that neither a save nor a kill can shift the random numbers
        key = [self.config.seed, DROPOUT_STREAM, step, self.accelerator.process_index]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return a part's share of the whole batch's loss, times the processes that will average it, and [9] sums."""
        losses = token_losses(self.wrapped(batch.inputs, batch.goal), batch.targets, batch.trained, self.weights)
        total = losses.total * (batch.share * self.accelerator.num_processes)
        return total, torch.cat([total.detach()[None], losses.segments, losses.counts])

    def _row(self, log: TrainingLog | None, norm: Tensor, validates: bool) -> None:
        """Gather what the processes have summed since the last row, and report it."""
        self._check_finite()
        progress, done = self.progress, self.progress.step
        means = self._means(progress.sums, progress.summed_steps, "")  # waits for the device: the clock comes after
        elapsed = time.monotonic() - self.row_started
        row: dict[str, float] = {
            "step": done,
            "tokens": self._tokens(done),
            "learning_rate": learning_rate(done - 1, self.prepared.steps, self.config),
            **means,
            "grad_norm": float(norm),
            "tokens_per_s": (self._tokens(done) - self._tokens(self.row_step)) / max(elapsed, 1e-9),
        }
        if validates and len(self.prepared.validation):
            row |= self._validate()
        progress.sums, progress.summed_steps, progress.metrics = torch.zeros_like(progress.sums), 0, row
        if log is not None:
            log.row(row)
        self.row_started, self.row_step = time.monotonic(), done

    def _tokens(self, step: int) -> int:
        """Input tokens of the first `step` steps, over all processes."""
        epochs, rest = divmod(step, self.order.batches_per_epoch)
        windows = epochs * len(self.prepared.training) + rest * self.config.batch_size
        return windows * self.prepared.model.max_tokens

    def _means(self, sums: Tensor, divisor: float, prefix: str) -> dict[str, float]:
        total, *rest = self.accelerator.reduce(sums, "sum").tolist()
        means = {"loss": total / (divisor * self.accelerator.num_processes)}
        for index, segment in enumerate(SEGMENTS):
            means[segment] = rest[index] / max(1.0, rest[len(SEGMENTS) + index])
        return {f"{prefix}{name}": mean for name, mean in means.items()}

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Return the losses on a fixed random choice of the held-out windows."""
        config, windows = self.config, self.prepared.validation
        order = BatchOrder(windows, config.batch_size, config.seed)
        sums, seen = torch.zeros_like(self.progress.sums), 0
        self.wrapped.eval()
        for index in range(min(config.validation_batches, order.batches_per_epoch)):
            size = min(config.batch_size, len(windows) - index * config.batch_size)  # the last batch may be short
            for part in self._batch(order, index).split(self.micro_batch):
                losses = self._losses(part)[1]
                losses[0] *= size
                sums += losses
            seen += size
        self.wrapped.train()
        return self._means(sums, seen, "validation_")

    def _save_is_due(self, just_after_row: bool) -> bool:
        # the sums since the last row are spread over the processes: with several, only a row's end is a state to save
        if self.accelerator.num_processes > 1 and not just_after_row:
            return False
        every = self.config.save_every
        by_steps = every is not None and self.progress.step - self.saved_step >= every
        return by_steps or time.monotonic() - self.saved >= self.config.save_every_s

    def save(self, log: TrainingLog) -> None:
        """Write both files: the resume file first, since a model without one counts as somebody else's."""
        began = time.monotonic()
        self._check_finite()
        log.sync()
        self.progress.wall_s = self.wall_before + began - self.started
        self.progress.scaler = None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict()
        write_resume(self.folder.resume, self.model, self.adamw, self.progress, self.prepared.identity)
        self.write_model()
        self.saved, self.saved_step = time.monotonic(), self.progress.step
        self.row_started += self.saved - began  # tokens/s is about training

    def write_model(self) -> None:
        """Write the checkpoint to plan with."""
        run, progress = self.prepared, self.progress
        provenance = {
            "step": progress.step,
            "steps": run.steps,
            "metrics": progress.metrics,
            "wall_s": progress.wall_s,
            "seed": self.config.seed,
            "training": to_dict(self.config),
            "training_windows": len(run.training),
            "validation_windows": len(run.validation),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "processes": self.accelerator.num_processes,
            "device": self.accelerator.device.type,
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),  # not where this machine keeps the program
            "versions": {
                "ttengine": _own_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "dataset": run.metadata,
        }
        Checkpoint(self.model, run.discretizer, run.data, run.dataset, provenance).save(self.folder.model)

    def _watch(self, step: int, total: Tensor, norm: Tensor) -> None:
        finite = torch.isfinite(total)
        if self.config.precision != "fp16":  # there the scaler skips steps whose gradients overflow
            finite = finite & torch.isfinite(norm)
        self.bad_step = torch.where((self.bad_step < 0) & ~finite, step, self.bad_step)
        if self.bad_step.device.type == "cpu":  # elsewhere looking waits for the device: left to rows and saves
            self._check_finite()

    def _check_finite(self) -> None:
        """Raise if any step so far had a loss or a gradient that is not finite."""
        step = int(self.bad_step)
        if step < 0:
            return
        self._seed_dropout(step)
        parts = self._batch(self.order, step).split(self.micro_batch)
        culprits = (first_bad_tensor(self.model, part, self.weights) for part in parts)
        culprit = next((culprit for culprit in culprits if culprit is not None), "the gradient's norm")
        kept = (
            f"{self.folder.resume} still holds step {self.saved_step}" if self.saved_step else "nothing was saved yet"
        )
        raise NonFiniteError(
            f"the loss or its gradient is NaN or infinite in step {step + 1} of {self.prepared.steps}; the first bad "
            f"tensor is {culprit}; {kept}. Lower learning_rate or clip_norm, or use another precision, and start over "
            "with resume=False"
        )


def _own_version() -> str:
    try:
        return importlib.metadata.version("ttengine")
    except importlib.metadata.PackageNotFoundError:  # run from a source folder
        return "not installed"


def first_bad_tensor(model: nn.Module, batch: Batch, weights: TokenWeights) -> str | None:
    """Name the first tensor that is not finite: a weight, an output on the way forward, a gradient; None: all are."""
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return f"the weight {name}"
    outputs: list[str] = []
    with _named_outputs(model, outputs), torch.enable_grad():
        logits = model(batch.inputs, batch.goal)
        loss = token_losses(logits, batch.targets, batch.trained, weights).total
    if outputs:
        return f"the output of {outputs[0]}"
    if not bool(torch.isfinite(loss)):
        return "the loss"
    named = dict(model.named_parameters())
    for name, gradient in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
        if not bool(torch.isfinite(gradient).all()):
            return f"the gradient of {name}"
    return None


@contextmanager
def _named_outputs(model: nn.Module, bad: list[str]) -> Iterator[None]:
    """Collect the names of modules whose output is not finite, in the order in which they run."""

    def look(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if not bool(torch.isfinite(output).all()):
            bad.append(name)

    hooks = [module.register_forward_hook(partial(look, name)) for name, module in model.named_modules() if name]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
