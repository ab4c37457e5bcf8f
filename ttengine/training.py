"""Training: one loop, resumable to the bit.

Everything random in step s is a pure function of (seed, s): the windows, the goals and the dropout. So a run that was
killed needs its weights, its optimiser moments and its step to go on, and ends with the weights of one never killed.

Source: Janner et al. 2021, released code and settings.
"""

from __future__ import annotations

import json
import os
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from ttengine.checkpoint import Checkpoint, load
from ttengine.config import DataConfig, ModelConfig, TrainConfig
from ttengine.data.check import inspect_trajectories
from ttengine.data.trajectories import Trajectories
from ttengine.data.windows import Windows, split_episodes, tokenise
from ttengine.errors import CheckpointError, ConfigError, DataError, DataWarning, ShapeError, require
from ttengine.training_log import TrainingLog
from ttengine.training_loop import Prepared, TrainingLoop
from ttengine.training_state import RunFolder, run_identity


def train(
    trajectories: Trajectories,
    out: str | Path,
    model: ModelConfig | None = None,
    data: DataConfig | None = None,
    config: TrainConfig | None = None,
    *,
    resume: bool = True,
    progress: bool = True,
    tensorboard: bool = True,
) -> Checkpoint:
    """Train a Trajectory Transformer, or go on with a run that was stopped.

    Under `torchrun` or `accelerate launch` every process calls this with the same arguments; each takes its part of
    every batch, and the first one writes. Devices are accelerate's choice; ACCELERATE_USE_CPU=1 forces the CPU.

    Args:
        trajectories: the data, environment units.
        out: the run's folder: model.safetensors (to plan with), resume.safetensors (to go on), metrics.csv and
            tensorboard/. Each file is whole at every moment; the first two are replaced at every save.
        model: sizes; None: the default ones with the data's dims.
        data: how trajectories become windows; None: the paper's.
        config: the run; None: the paper's.
        resume: go on from `out` if a run was started there; False starts over.
        progress: show a progress bar, or plain lines where standard output is not a terminal.
        tensorboard: write curves for TensorBoard.
    Returns:
        The trained model, on the CPU, in evaluation mode; the same as `load(out / "model.safetensors")`. A finished
        run is not trained again.
    Raises:
        ShapeError: the model's dims are not the data's.
        DataError: the data cannot be trained on, or are not those the run in `out` was started with.
        ConfigError: likewise for the settings; or fp16 without a GPU.
        CheckpointError: the resume file is damaged.
        NonFiniteError: the loss or a gradient became NaN or infinite; the message names the step and the first bad
            tensor, and the last saved state stays.
        MissingExtraError: accelerate or tensorboard is not installed.
    """
    data, config = data or DataConfig(), config or TrainConfig()
    model = _checked_model(trajectories, model)
    accelerator = _make_accelerator(config.precision)
    main, folder = accelerator.is_main_process, RunFolder(Path(out))
    if main:
        folder.prepare(resume)
    accelerator.wait_for_everyone()
    prepared = prepare(trajectories, model, data, config)
    if main:
        _report(trajectories, prepared, progress)
    loop = TrainingLoop(accelerator, folder, prepared)
    done = loop.progress.step
    if done < prepared.steps:
        events = folder.tensorboard if tensorboard else None
        opened = TrainingLog(folder.metrics, events, prepared.steps, done, progress) if main else nullcontext()
        with opened as log:
            loop.run(log)
    elif main and not _is_finished(folder.model, prepared.steps):
        loop.write_model()  # killed between the last resume file and the last model file
    accelerator.wait_for_everyone()
    return load(folder.model)


def planned_steps(windows: Windows, config: TrainConfig) -> int:
    """Return the optimiser steps of a run: `config.steps`, or the paper's int(1e6 / windows * reference) epochs."""
    if config.steps is not None:
        return config.steps
    epochs = max(1, int(1e6 / len(windows) * config.epochs_reference))
    return epochs * -(-len(windows) // config.batch_size)


def prepare(trajectories: Trajectories, model: ModelConfig, data: DataConfig, config: TrainConfig) -> Prepared:
    """Tokenise the data, split its episodes and count the steps; deterministic.

    Raises:
        DataError: the dataset's metadata hold something that is no JSON value.
    """
    try:
        metadata = json.loads(json.dumps(dict(trajectories.metadata)))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{trajectories.name}: metadata must be JSON values to be kept in the model file: {error}"
        ) from error
    discretizer, tokens = tokenise(trajectories, data, model.n_bins)
    windows = Windows.of(tokens, trajectories.episode_ends, model, data.max_episode_steps)
    chosen, held_out = split_episodes(trajectories.episode_lengths, data.validation_share, config.seed)
    training = windows.of_episodes(chosen)
    return Prepared(
        model,
        data,
        config,
        discretizer,
        training,
        windows.of_episodes(held_out),
        planned_steps(training, config),
        run_identity(trajectories, model, data, config),
        trajectories.name,
        metadata,
    )


def _report(trajectories: Trajectories, prepared: Prepared, progress: bool) -> None:
    report = inspect_trajectories(trajectories, prepared.data)
    for warning in report.warnings:
        warnings.warn(warning, DataWarning, stacklevel=3)
    if progress:
        print("\n".join([*report.facts, prepared.summary()]), flush=True)


def _checked_model(trajectories: Trajectories, model: ModelConfig | None) -> ModelConfig:
    dims = (trajectories.observation_dim, trajectories.action_dim)
    if model is None:
        return ModelConfig(*dims)
    if (model.observation_dim, model.action_dim) != dims:
        raise ShapeError(
            f"the model expects {model.observation_dim} observation and {model.action_dim} action dims, "
            f"{trajectories.name} has {dims[0]} and {dims[1]}"
        )
    return model


def _make_accelerator(precision: str) -> Any:
    require("accelerate", "train")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # it outlives a run, and would hold the next one to this one's precision
    # left to itself, accelerate joins the processes of a launcher on a CPU only when it is told that it is on one
    try:
        accelerator = Accelerator(mixed_precision=precision, cpu=not torch.accelerator.is_available())
    except ValueError as error:
        raise ConfigError(f"precision {precision!r} does not work on this machine: {error}") from error
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise ConfigError(
            f"the launcher started {launched} processes (WORLD_SIZE), accelerate joined {accelerator.num_processes}; "
            "use `accelerate launch`, or, where an accelerator is present and not to be used, set ACCELERATE_USE_CPU=1"
        )
    return accelerator


def _is_finished(path: Path, steps: int) -> bool:
    try:
        return bool(load(path).provenance.get("step") == steps)
    except CheckpointError:  # killed before the last model file was written: it is written again
        return False
