"""Which episodes a collection consists of: the parts of a mixture, their budgets, their episodes' seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ttengine.data.rollout import Episode

UNLIMITED = 2**62
"""Transitions; an episode's limit where nothing but the environment ends it."""


@dataclass
class Part:
    """One policy's part of the collection."""

    policy: int
    budget: int
    """transitions, or episodes if `count_episodes`"""
    count_episodes: bool
    limit: int
    """longest possible episode"""
    seeds: tuple[int, int]
    """seed of episode k is seeds[0] + k * seeds[1]"""
    submitted: int = 0
    finished: dict[int, Episode] = field(default_factory=dict)
    covered: int = 0

    def finish(self, number: int, episode: Episode) -> None:
        """Take an episode in."""
        self.finished[number] = episode
        self.covered += 1 if self.count_episodes else len(episode)

    def wants_more(self) -> bool:
        """Whether the episodes finished and under way are not expected to fill the budget."""
        under_way = self.submitted - len(self.finished)
        expected = 1.0 if self.count_episodes else self.covered / len(self.finished) if self.finished else self.limit
        return self.covered + under_way * expected < self.budget

    def episodes(self) -> list[Episode]:
        """Return the episodes that fill the budget, in order, the last one cut to fit.

        Episodes beyond, which several processes may have begun, are dropped: which of them exist depends on timing.
        """
        taken: list[Episode] = []
        left = self.budget
        for number in range(self.submitted):
            episode = self.finished[number]
            if left <= 0:
                break
            if not self.count_episodes and len(episode) > left:
                episode = episode.cut(left)
            taken.append(episode)
            left -= 1 if self.count_episodes else len(episode)
        return taken


def first_seed(seed: int) -> int:
    """Return the seed of a collection's first episode, from which the others count up.

    31 bits: apart from those of other collections by chance alone, and old environments take no more than 32 bits.
    """
    return int(np.random.SeedSequence(seed).generate_state(1)[0]) >> 1


def split_collection(
    shares: Sequence[float], total: int, count_episodes: bool, max_episode_steps: int | None, seed: int
) -> list[Part]:
    """Divide a collection among its policies, in whole units, by largest remainder.

    Args:
        shares: one for each policy; they sum to 1.
        total: transitions, or episodes if `count_episodes`.
        count_episodes: what `total` counts.
        max_episode_steps: longest episode; None: as the environment says.
        seed: of the collection.
    Returns:
        The parts of the policies that get any.
    """
    exact = np.array(shares) * total
    budgets = np.floor(exact + 1e-9).astype(int)
    budgets[np.argsort(budgets - exact, kind="stable")[: total - budgets.sum()]] += 1
    parts = []
    for policy, budget in enumerate(budgets.tolist()):
        limit = min(max_episode_steps or UNLIMITED, UNLIMITED if count_episodes else budget)
        parts.append(Part(policy, budget, count_episodes, limit, (first_seed(seed) + policy, len(shares))))
    return [part for part in parts if part.budget > 0]
