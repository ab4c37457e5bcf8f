"""The meaning of each operation, against its definition written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import draw, philox_draw

from ttengine.kernels.reference import (
    expectation,
    filter_tokens,
    greedy_tokens,
    percentile,
    philox_uniform,
    sample_tokens,
    select_beams,
)


def probabilities(rows: int, bins: int, seed: int = 0, sharpness: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(rows, bins, generator=generator, dtype=torch.float64)).softmax(dim=-1)


@settings(max_examples=200, deadline=None)
@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**20), st.integers(0, 2**20))
def test_philox_is_the_published_generator(seed: int, plan: int, row: int, token: int) -> None:
    drawn = philox_uniform(*(torch.tensor(n) for n in (seed, plan, row, token)))
    assert drawn.dtype == torch.float32
    assert float(drawn) == philox_draw(seed, plan, row, token)


def test_philox_gives_the_known_answer() -> None:
    """First word of Philox-4x32-10 for an all-zero counter and key: 0x6627e8d5 (Random123's known answers)."""
    zero = torch.tensor(0)
    assert float(philox_uniform(zero, zero, zero, zero)) == (0x6627E8D5 >> 8) / 2**24


def test_philox_noise_is_uniform_and_differs_by_row_token_plan_and_seed() -> None:
    row, token = torch.arange(200)[:, None], torch.arange(100)
    zero, one = torch.tensor(0), torch.tensor(1)
    noise = philox_uniform(zero, zero, row, token)
    assert noise.shape == (200, 100)
    counts = torch.histc(noise, bins=20, min=0, max=1)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 50  # chi-square, 19 degrees: p < 1e-4
    for other in (philox_uniform(one, zero, row, token), philox_uniform(zero, one, row, token)):
        assert float((noise == other).float().mean()) < 0.01


@pytest.mark.parametrize("bins", [2, 3, 11, 101])
@pytest.mark.parametrize(("k", "cdf"), [(None, 0.6), (None, 0.95), (1, None), (3, None), (2, 0.6), (1000, 0.6)])
def test_sampling_equals_its_definition(bins: int, k: int | None, cdf: float | None) -> None:
    p = probabilities(300, bins, seed=bins)
    u = torch.rand(300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = sample_tokens(filter_tokens(p, cdf, k), u)
    clipped = None if k is None else min(k, bins)
    assert drawn.tolist() == [draw(row, clipped, cdf, x) for row, x in zip(p.tolist(), u.tolist(), strict=True)]


def test_the_cdf_filter_drops_the_tail_and_keeps_the_head() -> None:
    p = torch.tensor([[0.05, 0.5, 0.15, 0.3]])
    assert filter_tokens(p, 0.6, None)[0].tolist() == pytest.approx([0.0, 0.5, 0.0, 0.0])
    assert filter_tokens(p, 0.5, None)[0].tolist() == pytest.approx([0.0, 0.5, 0.0, 0.3])


def test_the_cdf_filter_drops_ties_together() -> None:
    weights = filter_tokens(torch.tensor([[0.1, 0.1, 0.8]]), 0.15, None)
    assert weights[0].tolist() == pytest.approx([0.0, 0.0, 0.8])


def test_the_cdf_filter_drops_the_smallest_even_below_every_threshold() -> None:
    weights = filter_tokens(torch.tensor([[0.2, 0.3, 0.5]]), 0.01, None)
    assert weights[0].tolist() == pytest.approx([0.0, 0.3, 0.5])


def test_the_cdf_filter_samples_uniformly_when_all_are_equal() -> None:
    weights = filter_tokens(torch.full((1, 4), 0.25), 0.6, None)
    assert weights.unique().numel() == 1
    drawn = sample_tokens(weights.expand(4, 4), torch.tensor([0.1, 0.3, 0.6, 0.9]))
    assert drawn.tolist() == [0, 1, 2, 3]


def test_top_k_keeps_ties_at_the_kth() -> None:
    weights = filter_tokens(torch.tensor([[0.1, 0.3, 0.3, 0.3]]), None, 2)
    assert (weights[0] > 0).tolist() == [False, True, True, True]


def test_sampling_never_returns_a_dropped_token() -> None:
    weights = torch.tensor([[0.0, 1.0, 0.0, 3.0, 0.0]], dtype=torch.float32)
    for u in (0.0, 0.25 - 2**-24, 0.25, 1 - 2**-24):
        assert int(sample_tokens(weights, torch.tensor([u]))) == (1 if u < 0.25 else 3)
    total = torch.tensor([[0.3, 0.3, 0.4000001, 0.0]])  # u * total rounds up to the total here
    assert int(sample_tokens(total, torch.tensor([1 - 2**-24]))) == 2


def test_greedy_takes_the_lower_token_on_ties() -> None:
    assert greedy_tokens(torch.tensor([[0.2, 0.4, 0.4], [0.4, 0.2, 0.4]])).tolist() == [1, 0]


def test_expectation_drops_the_stop_token_without_renormalising() -> None:
    p = torch.tensor([[0.25, 0.25, 0.5]])
    edges = torch.tensor([0.0, 2.0, 6.0])
    assert expectation(p, edges).tolist() == [0.25 * 1.0 + 0.25 * 4.0]


def test_percentile_is_the_first_bin_that_reaches_the_share() -> None:
    p = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0]).expand(5, -1)
    edges = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    shares = [0.05, 0.25, 0.5, 0.9, 1.0]
    assert [float(percentile(p[0], edges, s)) for s in shares] == [0.5, 1.5, 2.5, 3.5, 3.5]
    released = [float(percentile(p[0], edges, s, as_released=True)) for s in shares]
    assert released == [3.5, 0.5, 1.5, 2.5, 2.5]  # one bin low, and bin 0 wraps to the last


def test_percentile_is_not_pushed_up_by_a_likely_stop() -> None:
    p = torch.tensor([0.1, 0.1, 0.0, 0.8])
    assert float(percentile(p, torch.tensor([0.0, 1.0, 2.0, 3.0]), 0.9)) == 1.5


@pytest.mark.parametrize("width", [1, 2, 31, 32, 33, 127, 128, 200, 256])
def test_select_beams_keeps_what_sorting_by_score_then_index_keeps(width: int) -> None:
    score = torch.from_numpy(np.random.default_rng(width).integers(0, 20, (3, 2 * width)).astype(np.float32))
    kept_score, kept = select_beams(score, width)
    for row, indices, values in zip(score.tolist(), kept.tolist(), kept_score.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda i: (-row[i], i))[:width]
        assert indices == sorted(order)
        assert values == [row[i] for i in indices]
