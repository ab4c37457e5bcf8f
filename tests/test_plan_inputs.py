"""What the planning bench plans with and from: random weights that sample like trained ones, replayed episodes."""

from __future__ import annotations

import itertools
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ttengine.engines.reference as reference_engine
from ttengine.config import PlanConfig
from ttengine.errors import ConfigError
from ttengine.planner import Planner

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
from plan_inputs import Log, find_body, random_checkpoint, replay, synthetic_log


def test_random_weights_keep_as_many_action_tokens_as_trained_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    right = reference_engine.ops.filter_tokens

    def spy(probabilities: torch.Tensor, cdf: float | None, k: int | None) -> torch.Tensor:
        weights = right(probabilities, cdf, k)
        kept.extend((weights > 0).sum(dim=-1).tolist())
        return weights

    monkeypatch.setattr(reference_engine.ops, "filter_tokens", spy)
    for preset in ("hopper", "halfcheetah", "ant"):
        kept.clear()
        body = find_body(preset)
        checkpoint = random_checkpoint(body.observation_dim, body.action_dim)
        planner = Planner(checkpoint, PlanConfig(horizon=2, beam_width=8, engine="reference"))
        planner.plan(*next(replay(synthetic_log(checkpoint.discretizer, body.action_dim), 20, 20))[0])
        assert 5 <= statistics.mean(kept) <= 9, preset


def test_random_weights_are_the_same_for_the_same_seed() -> None:
    first, second, other = (random_checkpoint(2, 1, width=16, heads=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.model.head.weight, second.model.head.weight)
    assert torch.equal(first.discretizer.edges, second.discretizer.edges)
    assert not torch.equal(first.model.head.weight, other.model.head.weight)


def test_a_replay_slides_its_context_one_step_at_a_time_and_says_where_episodes_begin() -> None:
    rows = np.arange(20, dtype=np.float32)
    log = Log(rows[:, None], -rows[:, None], 10 * rows, [(0, 8), (8, 11), (11, 20)], "made up")
    seen = list(itertools.islice(replay(log, lead=4, capacity=2), 10))
    assert [int(moment.observation[0]) for moment, _ in seen] == [4, 5, 6, 7, 15, 16, 17, 18, 19, 4]
    assert [first for _, first in seen] == [True, False, False, False, True, False, False, False, False, True]
    context = seen[5][0].context
    assert context.observations[:, 0].tolist() == [14, 15]
    assert context.actions[:, 0].tolist() == [-14, -15]
    assert context.rewards.tolist() == [140, 150]
    with pytest.raises(ConfigError, match="no episode has 12 steps"):
        next(replay(log, lead=10, capacity=2))
