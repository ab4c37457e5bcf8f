"""What experiments are made of: collected data, trained models, episodes under a planner; each made once in a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ttengine.checkpoint import Checkpoint
from ttengine.config import DataConfig, ModelConfig, PlanConfig, Precision, TrainConfig
from ttengine.data.collect import CollectConfig, collect_to
from ttengine.data.load import load_dataset
from ttengine.data.preprocessing import crop_observation
from ttengine.data.trajectories import Trajectories
from ttengine.environments import make_environment
from ttengine.errors import require
from ttengine.evaluation import Environment, EvaluateConfig, evaluate
from ttengine.experiments.baselines import Policy
from ttengine.experiments.run import Rows, Run, cores
from ttengine.objectives import Objective
from ttengine.training import train

BODIES = {"hopper": "Hopper-v4", "halfcheetah": "HalfCheetah-v4", "walker2d": "Walker2d-v4", "ant": "Ant-v4"}
"""Body -> environment."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How an experiment's models are made: sizes of the model and of its training."""

    layers: int = 4
    heads: int = 4
    width: int = 128
    window: int = 10
    context: int = 5
    batch_size: int = 16
    steps: int = 8000
    learning_rate: float = 1e-3
    bin_smoothing: float = 4.0
    """of training: fewer steps are needed"""
    precision: Precision = "no"
    """of training: no (float32), bf16 or fp16"""

    def model(self, trajectories: Trajectories, **changes: Any) -> ModelConfig:
        """Return the model's sizes for some data."""
        sizes = {name: getattr(self, name) for name in ("layers", "heads", "width", "window", "context")}
        dims = trajectories.observation_dim, trajectories.action_dim
        return ModelConfig(*dims, **{**sizes, "dropout": 0.0, **changes})

    def training(self, seed: int) -> TrainConfig:
        """Return the settings of a training run."""
        return TrainConfig(
            batch_size=self.batch_size, steps=self.steps, learning_rate=self.learning_rate, warmup_share=0.03,
            final_learning_rate_share=0.03, bin_smoothing=self.bin_smoothing, precision=self.precision,
            seed=seed, log_every=100, save_every_s=60.0,
        )  # fmt: skip


SMALL = Recipe(layers=2, width=64, window=6, context=3, batch_size=32, steps=4000, learning_rate=4e-3)
"""Trained in a few minutes on two cores."""

PAPER = Recipe()
"""The paper's sizes; half an hour on a core."""

WORTH_PROCESSES = 20_000
"""Transitions from which on it pays to start processes that collect them."""


def collected(run: Run, name: str, config: CollectConfig) -> Trajectories:
    """Return data, collected once for a run.

    Args:
        run: whose folder keeps them.
        name: of their file.
        config: of the collection; how many processes it takes is decided here, the data do not depend on it.
    """
    path = run.out / "data" / f"{name}.hdf5"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        processes = cores() if (config.transitions or 0) >= WORTH_PROCESSES else 1
        collect_to(dataclasses.replace(config, processes=processes), path)
    return load_dataset(path)


def trained(
    run: Run, name: str, data: Trajectories, recipe: Recipe, seed: int, config: DataConfig | None = None, **changes: Any
) -> Checkpoint:
    """Return a model, trained once for a run; a training that was stopped goes on, and another arm's is waited for.

    Args:
        run: whose folder keeps it.
        name: of the model in that folder.
        data: to train on.
        recipe: sizes.
        seed: of the training.
        config: how data become windows.
        changes: of the model's settings.
    """
    folder = run.out / "models" / f"{name}-seed{seed}"
    folder.parent.mkdir(exist_ok=True)
    with require("filelock", "train").FileLock(folder.with_name(f"{folder.name}.lock")):
        return train(data, folder, recipe.model(data, **changes), config, recipe.training(seed), tensorboard=False)


def planned_episodes(
    model: Checkpoint,
    environment: Environment,
    plan: PlanConfig,
    episodes: int,
    seed: int,
    workers: int = 1,
    objective: Objective | None = None,
    max_steps: int | None = None,
) -> Rows:
    """Let a planner control an environment: a row an episode, with its return, length and latencies in seconds."""
    config = EvaluateConfig(episodes, seed=seed, workers=workers, max_steps=max_steps)
    found = evaluate(model, environment, plan, config, objective=objective)
    return [
        {
            "seed": episode.seed,
            "return": episode.total_reward,
            "length": episode.length,
            "latency_s": float(np.median(episode.latencies_s)),
        }
        for episode in found.episodes
    ]


def policy_episodes(
    policy: Policy, environment: Environment, episodes: int, seed: int, columns: int | None = None
) -> Rows:
    """Let a policy control an environment: a row an episode. columns: of an observation that it sees; None: all."""
    env: Any = make_environment(environment) if isinstance(environment, str) else environment()
    rows: Rows = []
    for e in range(episodes):
        observation, _ = env.reset(seed=seed + e)
        policy.reset()
        total, reward, length, over = 0.0, 0.0, 0, False
        while not over:
            action = policy.act(crop_observation(np.asarray(observation, np.float32), columns), reward)
            action = np.clip(action, env.action_space.low, env.action_space.high)
            observation, gained, terminated, truncated, _ = env.step(action)
            reward = float(gained)
            total, length, over = total + reward, length + 1, terminated or truncated
        rows.append({"seed": seed + e, "return": total, "length": length})
    env.close()
    return rows


def logged_episodes(data: Trajectories) -> Rows:
    """The data's own episodes: a row each."""
    lengths = data.episode_lengths
    return [{"return": float(r), "length": int(n)} for r, n in zip(data.episode_returns, lengths, strict=True)]


def arms_of(found: Mapping[str, Rows], arm: str, seeds: Sequence[int] = ()) -> list[str]:
    """Names of an arm's measurements that there are: of every seed, or of the one arm that has none."""
    return [name for name in ([f"{arm} {seed}" for seed in seeds] or [arm]) if found.get(name)]


def mean_and_spread(rows: Rows, key: str = "return") -> tuple[float, float]:
    """Mean and standard deviation over rows."""
    numbers = np.array([float(row[key]) for row in rows])
    return float(numbers.mean()), float(numbers.std())
