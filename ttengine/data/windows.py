"""Trajectories to training windows: rewards, values, tokens, and whole batches gathered at once.

A window is `window` transitions from one start: K tokens each, stop tokens after the episode's end. Every transition
but an episode's last starts one. Only the int16 tokens are kept; a window is made when its batch is.

Source: Janner et al. 2021, released code, `SequenceDataset` and `DiscretizedDataset`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ttengine.config import DataConfig, ModelConfig
from ttengine.data.trajectories import BoolArray, FloatArray, IntArray, Trajectories
from ttengine.discretizer import Discretizer, fit_discretizer
from ttengine.errors import ShapeError

TokenArray = npt.NDArray[np.int16]

ORDER_STREAM, GOAL_STREAM, SPLIT_STREAM = 1, 2, 3
"""Kinds of randomness: each is a generator of its own, keyed by (seed, stream, epoch)."""


def returns_to_go(rewards: FloatArray, episode_ends: IntArray, discount: float) -> FloatArray:
    """Return each transition's value: the discounted rewards after its own, up to the episode's end.

    V_t = sum over k >= 1 of discount^(k-1) * r_(t+k), computed backwards as V_t = r_(t+1) + discount * V_(t+1) in
    float64.

    Args:
        rewards: [L] float32, the terminal penalty already in.
        episode_ends: [episodes] int64, the row after each episode's last.
        discount: in [0, 1].
    Returns:
        [L] float32, 0 at each episode's last transition.
    """
    values = np.zeros(len(rewards), np.float64)
    start = 0
    for end in episode_ends.tolist():
        later, value = (
            rewards[start + 1 : end].tolist(),
            0.0,
        )  # Python floats: numpy scalars would take ten times as long
        for row in range(len(later) - 1, -1, -1):
            value = later[row] + discount * value
            later[row] = value
        values[start : end - 1] = later
        start = end
    return values.astype(np.float32)


def penalised_rewards(trajectories: Trajectories, penalty: float | None) -> FloatArray:
    """Return the rewards [L] float32 with `penalty` in place of each true terminal's; None returns them as logged."""
    if penalty is None:
        return trajectories.rewards
    return np.where(trajectories.terminals, np.float32(penalty), trajectories.rewards)


def transition_columns(trajectories: Trajectories, data: DataConfig) -> FloatArray:
    """Return whole transitions [L, K] float32: observation, action, reward, value."""
    rewards = penalised_rewards(trajectories, data.terminal_penalty)
    n, m = trajectories.observation_dim, trajectories.action_dim
    columns = np.empty((len(trajectories), n + m + 2), np.float32)
    columns[:, :n] = trajectories.observations
    columns[:, n : n + m] = trajectories.actions
    columns[:, -2] = rewards
    columns[:, -1] = returns_to_go(rewards, trajectories.episode_ends, data.discount)
    return columns


def tokenise(trajectories: Trajectories, data: DataConfig, n_bins: int) -> tuple[Discretizer, TokenArray]:
    """Fit the discretizer to all transitions, held-out episodes included as in the released code, and encode them.

    Returns:
        The discretizer and tokens [L, K] int16; the float columns are dropped.
    """
    columns = transition_columns(trajectories, data)
    discretizer = fit_discretizer(columns, n_bins, data.binning)
    return discretizer, discretizer.encode_dataset(columns)


def split_episodes(lengths: IntArray, share: float, seed: int) -> tuple[IntArray, IntArray]:
    """Choose the episodes that validate; a pure function of its arguments.

    Args:
        lengths: [episodes] int64, transitions in each.
        share: of the episodes that are held out, in [0, 1).
        seed: of the choice.
    Returns:
        Training and validation episodes, ascending int64 indices. Each part gets at least one episode with a window
        (two transitions or more); where fewer than two episodes have one, or share is 0, nothing is held out.
    """
    usable = np.flatnonzero(lengths >= 2)
    held_out = 0
    if share > 0.0 and len(usable) >= 2:
        held_out = min(max(1, round(share * len(usable))), len(usable) - 1)
    validation = np.sort(np.random.default_rng([seed, SPLIT_STREAM]).permutation(usable)[:held_out])
    return np.setdiff1d(np.arange(len(lengths)), validation), validation


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows ready for the model.

    Attributes:
        tokens: [B, window*K] int64 in [0, V]. All but the last are the input, all but the first the targets.
        trained: [B, window*K - 1] bool, targets that count in the loss.
        goal: [B, N] int64, for goal models.
        share: of the whole batch, over all processes, that this part holds.
    """

    tokens: Tensor
    trained: Tensor
    goal: Tensor | None
    share: float = 1.0

    @property
    def inputs(self) -> Tensor:
        """[B, T] int64."""
        return self.tokens[:, :-1]

    @property
    def targets(self) -> Tensor:
        """[B, T] int64."""
        return self.tokens[:, 1:]

    def split(self, size: int) -> Iterator[Batch]:
        """Yield parts of at most `size` windows; their shares add up to this batch's."""
        for start in range(0, len(self.tokens), size):
            rows = slice(start, start + size)
            goal = None if self.goal is None else self.goal[rows]
            tokens = self.tokens[rows]
            yield Batch(tokens, self.trained[rows], goal, self.share * len(tokens) / len(self.tokens))


@dataclass(frozen=True, eq=False)
class Windows:
    """Training sequences over one array of tokens.

    Attributes:
        tokens: [L, K] int16, whole episodes end to end.
        episode_ends: [episodes] int64, the row after each episode's last.
        starts: [windows] int64, the row where each window starts.
        model: sizes, and whether goals are drawn.
        max_episode_steps: padding at or past this time step is not trained on: an episode that long was cut there, it
            did not end. Logged transitions always are trained on.
    """

    tokens: TokenArray
    episode_ends: IntArray
    starts: IntArray
    model: ModelConfig
    max_episode_steps: int

    @classmethod
    def of(cls, tokens: TokenArray, episode_ends: IntArray, model: ModelConfig, max_episode_steps: int) -> Windows:
        """Return every window of all episodes: one for each transition that has a successor.

        Raises:
            ShapeError: the tokens have another number of columns than the model.
        """
        if tokens.ndim != 2 or tokens.shape[1] != model.transition_dim:
            raise ShapeError(f"tokens have shape {tokens.shape}, the model needs [transitions, {model.transition_dim}]")
        starts = np.delete(np.arange(len(tokens)), episode_ends - 1)
        return cls(tokens, episode_ends, starts, model, max_episode_steps)

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.starts)

    def of_episodes(self, episodes: IntArray) -> Windows:
        """Return the windows that start in the given episodes; the tokens are shared, not copied."""
        chosen = np.zeros(len(self.episode_ends), np.bool_)
        chosen[episodes] = True
        return dataclasses.replace(self, starts=self.starts[chosen[self._episode(self.starts)]])

    def gather(self, which: IntArray, draw: npt.NDArray[np.float64], device: torch.device | str = "cpu") -> Batch:
        """Make a batch.

        Args:
            which: [B] int64, indices into the windows.
            draw: [B] float64 in [0, 1), the goal models' choice: the goal is the observation of a transition drawn
                uniformly from the window's last logged one to the episode's last.
            device: where the batch goes.
        """
        start = self.starts[which]
        episode = self._episode(start)
        end = self.episode_ends[episode]
        row = start[:, None] + np.arange(self.model.window)
        logged: BoolArray = row < end[:, None]
        tokens = self.tokens[np.minimum(row, len(self.tokens) - 1)]
        tokens[~logged] = self.model.n_bins
        first = np.where(episode > 0, self.episode_ends[episode - 1], 0)
        trained = logged | (row - first[:, None] < self.max_episode_steps)
        goal = None
        if self.model.goal:
            last = np.minimum(row[:, -1], end - 1)
            chosen = last + (draw * (end - last)).astype(np.int64)
            goal = torch.from_numpy(self.tokens[chosen, : self.model.observation_dim]).to(device).long()
        # moved as int16 and bool, widened there: a quarter of the bytes cross the bus
        return Batch(
            torch.from_numpy(tokens).to(device).flatten(1).long(),
            torch.from_numpy(trained).to(device).repeat_interleave(self.model.transition_dim, dim=1)[:, 1:],
            goal,
        )

    def _episode(self, rows: IntArray) -> IntArray:
        return np.searchsorted(self.episode_ends, rows, side="right")


class BatchOrder:
    """Which windows each optimiser step sees: a pure function of (seed, step), so that resuming needs the step only.

    Every epoch visits every window once, in an order of its own; its last batch is short when they do not divide.
    """

    def __init__(self, windows: Windows, batch_size: int, seed: int) -> None:
        self.windows = windows
        self.batch_size = batch_size
        self.seed = seed
        self.batches_per_epoch = -(-len(windows) // batch_size)
        self._epoch = -1
        self._order: IntArray
        self._draw: npt.NDArray[np.float64]

    def batch(self, step: int, process: int = 0, processes: int = 1, device: torch.device | str = "cpu") -> Batch:
        """Return this process's part of the batch of a step; the parts of all processes make up the whole batch.

        A part that would be empty holds one window with nothing to train on and a share of 0.
        """
        epoch, index = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, ORDER_STREAM, epoch]).permutation(len(self.windows))
            self._draw = np.random.default_rng([self.seed, GOAL_STREAM, epoch]).random(len(self.windows))
            self._epoch = epoch
        whole = np.arange(index * self.batch_size, min((index + 1) * self.batch_size, len(self.windows)))
        part = np.array_split(whole, processes)[process]
        taken = part if len(part) else whole[:1]
        batch = self.windows.gather(self._order[taken], self._draw[taken], device)
        trained = batch.trained if len(part) else torch.zeros_like(batch.trained)
        return dataclasses.replace(batch, trained=trained, share=len(part) / len(whole))
