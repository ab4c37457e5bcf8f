"""A look at the data before any training time is spent: what is there, and what looks wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ttengine.config import DataConfig
from ttengine.data.trajectories import Trajectories

ACTION_LIMIT = 1.0 + 1e-5
"""Actions beyond this are counted as outside [-1, 1]; the rest is rounding."""
DUPLICATE_SHARE = 0.01
"""From this share of repeated transitions on they are worth a warning."""
SHORT_SHARE = 0.5
"""Likewise for the share of episodes that are too short to train on."""
HASHED_ROWS = 65_536


@dataclass(frozen=True)
class DataReport:
    """What the early check found.

    Attributes:
        facts: sizes and scales, one line each.
        warnings: what looks wrong and what to do about it, one sentence each; training goes on.
    """

    facts: tuple[str, ...]
    warnings: tuple[str, ...]


def inspect_trajectories(trajectories: Trajectories, data: DataConfig) -> DataReport:
    """Look for the faults that public datasets have had; hard errors are Trajectories' own.

    Needs little memory beside the data: a million transitions of Ant size are looked at in slices.
    """
    lengths, returns = trajectories.episode_lengths, trajectories.episode_returns
    rewards = trajectories.rewards
    facts = (
        f"{trajectories.name}: {len(trajectories):,} transitions in {trajectories.n_episodes:,} episodes, "
        f"{trajectories.observation_dim} observation and {trajectories.action_dim} action dims",
        f"episode length {lengths.min():,} to {lengths.max():,} (median {int(np.median(lengths)):,}), "
        f"{int(trajectories.terminals.sum()):,} ended by a terminal",
        f"return {returns.min():.1f} to {returns.max():.1f} (mean {returns.mean():.1f}), "
        f"reward {rewards.min():.3g} to {rewards.max():.3g}",
    )
    warnings = [
        *_column_warnings(trajectories),
        *_reward_warnings(trajectories, data),
        *_episode_warnings(trajectories, data),
    ]
    repeated = _repeated_share(trajectories)
    if repeated >= DUPLICATE_SHARE:
        warnings.append(
            f"{repeated:.1%} of the transitions repeat another one exactly; was a file joined to itself, or an episode "
            "padded?"
        )
    return DataReport(facts, tuple(f"{trajectories.name}: {warning}" for warning in warnings))


def _column_warnings(trajectories: Trajectories) -> list[str]:
    found = []
    for name, array in (("observation", trajectories.observations), ("action", trajectories.actions)):
        constant = np.flatnonzero(array.min(axis=0) == array.max(axis=0))
        if len(constant):
            shown = ", ".join(map(str, constant[:8])) + (", ..." if len(constant) > 8 else "")
            found.append(
                f"{len(constant)} of {array.shape[1]} {name} columns are constant ({shown}); they cost time and teach "
                "nothing"
            )
    outside = np.abs(trajectories.actions) > ACTION_LIMIT
    if outside.any():
        found.append(
            f"{outside.any(axis=1).mean():.2%} of the actions lie outside [-1, 1] (largest "
            f"{np.abs(trajectories.actions).max():.3g}); right only if the environment's limits are that wide"
        )
    return found


def _reward_warnings(trajectories: Trajectories, data: DataConfig) -> list[str]:
    rewards, penalty = trajectories.rewards, data.terminal_penalty
    if rewards.min() == rewards.max() and not (trajectories.terminals.any() and penalty is not None):
        return [f"every reward is {rewards[0]:.3g}; a search by return has nothing to prefer"]
    if penalty is not None and trajectories.terminals.any() and rewards.min() <= penalty:
        return [
            f"the smallest reward is {rewards.min():.3g}, so terminal_penalty={penalty:g} does not punish; choose a "
            "lower one, or None"
        ]
    return []


def _episode_warnings(trajectories: Trajectories, data: DataConfig) -> list[str]:
    found = []
    lengths, ends = trajectories.episode_lengths, trajectories.episode_ends
    ended = trajectories.terminals[ends - 1]
    short = lengths < 2
    if short.mean() >= SHORT_SHARE:
        found.append(
            f"{short.sum():,} of {len(lengths):,} episodes have one transition and give no window; are `terminals` or "
            "`timeouts` set too often?"
        )
    longest = lengths == lengths.max()
    if longest.sum() >= 2 and ended[longest].all() and lengths.max() > 1:
        found.append(
            f"all {longest.sum():,} longest episodes ({lengths.max():,} transitions) end in a terminal; time limits "
            "look logged as terminals: mark them in `timeouts` instead, or the terminal penalty falls on good episodes"
        )
    limit = data.max_episode_steps
    cut = lengths[~ended]
    if lengths.max() > limit:
        found.append(
            f"the longest episode has {lengths.max():,} transitions, max_episode_steps is {limit:,}; set it to the "
            "environment's time limit"
        )
    elif len(cut) >= 2 and (cut == cut.max()).mean() > 0.5 and 1 < cut.max() < limit:
        found.append(
            f"most time-outs come at {cut.max():,} transitions, max_episode_steps is {limit:,}: the model will learn "
            f"that episodes end there; set max_episode_steps={cut.max()} if that is the time limit"
        )
    return found


def _repeated_share(trajectories: Trajectories) -> float:
    """Share of transitions whose observation, action and reward, bit for bit, came before."""
    parts = (trajectories.observations, trajectories.actions, trajectories.rewards[:, None])
    rng = np.random.default_rng(0)
    factors = [rng.integers(1, 2**63, part.shape[1], np.uint64) | np.uint64(1) for part in parts]
    hashes = np.empty(len(trajectories), np.uint64)
    for start in range(0, len(trajectories), HASHED_ROWS):
        rows = slice(start, start + HASHED_ROWS)
        hashes[rows] = sum(_hash_rows(part[rows], factor) for part, factor in zip(parts, factors, strict=True))
    return 1.0 - len(np.unique(hashes)) / len(hashes)


def _hash_rows(rows: npt.NDArray[np.float32], factor: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    words = rows.view(np.uint32).astype(np.uint64)
    words *= factor
    words ^= words >> np.uint64(29)
    words *= factor
    total: npt.NDArray[np.uint64] = words.sum(axis=1, dtype=np.uint64)
    return total
