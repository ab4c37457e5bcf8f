"""The naive reference of the planning bench: its tokens, and the arithmetic of extrapolating its time."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ttengine.config import ModelConfig, PlanConfig, plan_preset
from ttengine.planner import Planner

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
import naive_engine
from plan_inputs import find_body, random_checkpoint, replay, synthetic_log


def test_the_naive_planner_finds_the_reference_engines_beams() -> None:
    assert naive_engine.naive_equals_reference()


@pytest.mark.parametrize("what", ["window_limit", "visible_tokens"])
def test_a_naive_planner_that_crops_elsewhere_is_noticed(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(naive_engine, what)
    wrong = {"window_limit": lambda model, config: right(model, config) - model.transition_dim}
    wrong["visible_tokens"] = lambda length, limit, K: min(length, limit // K * K)  # crops within a transition
    monkeypatch.setattr(naive_engine, what, wrong[what])
    assert not naive_engine.naive_equals_reference()


def test_a_naive_plan_is_the_reference_engines_plan() -> None:
    checkpoint = random_checkpoint(3, 2, layers=2, heads=2, width=16, bins=20)
    checkpoint.model.double()
    config = PlanConfig(horizon=4, beam_width=6, context_kind="window", engine="reference")
    naive, reference = naive_engine.naive_planner(checkpoint, config), Planner(checkpoint, config)
    naive.objective = reference.objective = naive_engine.rounded_return
    moments = replay(synthetic_log(checkpoint.discretizer, 2), lead=10, capacity=5)
    for step, (moment, _) in enumerate(itertools.islice(moments, 5)):
        plans = [planner.plan(*moment, seed=3, step=step) for planner in (naive, reference)]
        for name in ("actions", "observations"):
            np.testing.assert_array_equal(*(getattr(plan, name) for plan in plans))
        assert plans[0].score == pytest.approx(plans[1].score, rel=1e-6)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [("hopper", 2_838_528), ("walker2d-medium", 6_991_872), ("halfcheetah-medium", 543_488), ("ant-medium", 4_523_264)],
)
def test_token_forwards_of_the_presets(preset: str, expected: int) -> None:
    """halfcheetah by hand: K = 25, so windows of 117 to 124 tokens, then 100 to 116; 64 and 32 rows; 5 and 4 times."""
    body = find_body(preset)
    model, config = ModelConfig(body.observation_dim, body.action_dim), plan_preset(preset)
    full_context = 5 * model.transition_dim + model.observation_dim
    assert naive_engine.token_forwards(model, config, full_context, config.horizon) == expected
    by_hand = 5 * 64 * sum(range(117, 125)) + 4 * 32 * sum(range(100, 117))
    assert preset != "halfcheetah-medium" or by_hand == expected


@pytest.mark.parametrize("transitions", [0, 2, 4, 5])
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_the_naive_planner_computes_the_token_forwards_that_are_extrapolated_by(transitions: int, rounds: int) -> None:
    checkpoint = random_checkpoint(3, 2, layers=1, heads=2, width=16, bins=9)
    config = PlanConfig(horizon=rounds, beam_width=3)
    planner = naive_engine.naive_planner(checkpoint, config)
    moment, _ = next(replay(synthetic_log(checkpoint.discretizer, 2), lead=5, capacity=transitions))
    counted = planner.plan(*moment).counters.physical_rows
    model = checkpoint.model.config
    prefix = transitions * model.transition_dim + model.observation_dim
    assert counted == naive_engine.token_forwards(model, config, prefix, rounds)


@pytest.mark.parametrize(("rounds", "words"), [(1, "extrapolated from 1 of 4"), (3, "from 3 of 4"), (4, "whole plans")])
def test_extrapolated_time_is_that_of_the_whole_plan(rounds: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that ticks once a token-forward, every extrapolation must give the whole plan's token-forwards."""
    checkpoint = random_checkpoint(3, 2, layers=1, heads=2, width=16, bins=9)
    config, ticks = PlanConfig(horizon=4, beam_width=3), [0]
    forward = checkpoint.model.forward

    def count(tokens: torch.Tensor) -> torch.Tensor:
        ticks[0] += tokens.numel()
        return forward(tokens)

    monkeypatch.setattr(checkpoint.model, "forward", count)
    monkeypatch.setattr(naive_engine.time, "perf_counter", lambda: float(ticks[0]))
    moments = replay(synthetic_log(checkpoint.discretizer, 2), lead=5, capacity=5)
    some = [moment for moment, _ in itertools.islice(moments, 2)]
    timed = naive_engine.time_naive(checkpoint, config, some, rounds)
    assert timed.seconds == naive_engine.token_forwards(checkpoint.model.config, config, 5 * 7 + 3, 4)
    assert words in timed.basis
    assert "2 plans timed" in timed.basis
