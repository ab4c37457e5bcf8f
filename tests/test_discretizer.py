"""Bins: edges for any column, exact round trips, and the released code's rule where it works."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ttengine.discretizer import Discretizer, fit_discretizer
from ttengine.errors import ConfigError, DataError, NonFiniteError, ShapeError

FINITE = st.floats(-(2.0**99), 2.0**99, width=32)
FEW_VALUES = st.sampled_from([0.0, 0.0, 0.0, 1.0, -2.5, 2.0**-99, 2.0**99])
COLUMNS = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=60), elements=FINITE | FEW_VALUES
)


@settings(max_examples=150, deadline=None)
@given(COLUMNS, st.integers(2, 40), st.sampled_from(["uniform", "quantile"]))
def test_any_column_gets_ascending_edges_that_span_it(columns: np.ndarray, bins: int, binning: str) -> None:
    edges = fit_discretizer(columns, bins, binning).edges.numpy()
    assert edges.shape == (columns.shape[1], bins + 1)
    assert (np.diff(edges, axis=1) >= 0).all()
    np.testing.assert_array_equal(edges[:, 0], columns.min(axis=0))
    np.testing.assert_array_equal(edges[:, -1], columns.max(axis=0))


@settings(max_examples=150, deadline=None)
@given(COLUMNS, st.integers(2, 40), st.sampled_from(["uniform", "quantile"]))
def test_a_number_is_encoded_to_a_bin_that_holds_it(columns: np.ndarray, bins: int, binning: str) -> None:
    discretizer = fit_discretizer(columns, bins, binning)
    tokens = discretizer.encode(torch.from_numpy(columns))
    assert int(tokens.min()) >= 0
    assert int(tokens.max()) < bins
    column = torch.arange(columns.shape[1])
    left, right = discretizer.edges[column, tokens].numpy(), discretizer.edges[column, tokens + 1].numpy()
    assert (left <= columns).all()
    assert (columns <= right).all()


@settings(max_examples=100, deadline=None)
@given(COLUMNS, st.integers(2, 40), st.sampled_from(["uniform", "quantile"]))
def test_decoding_and_encoding_again_gives_the_same_number(columns: np.ndarray, bins: int, binning: str) -> None:
    """Tokens themselves may move where edges lie closer than float32 resolves; what they stand for may not."""
    discretizer = fit_discretizer(columns, bins, binning)
    once = discretizer.decode(discretizer.encode(torch.from_numpy(columns)))
    twice = discretizer.decode(discretizer.encode(once))
    spread = np.spacing(np.abs(discretizer.edges.numpy()).max(axis=1))
    assert (np.abs(twice.numpy() - once.numpy()) <= spread).all()


@settings(max_examples=100, deadline=None)
@given(COLUMNS, st.integers(2, 40))
def test_encoding_keeps_the_order_of_numbers(columns: np.ndarray, bins: int) -> None:
    discretizer = fit_discretizer(columns, bins)
    tokens = discretizer.encode(torch.from_numpy(np.sort(columns, axis=0))).numpy()
    assert (np.diff(tokens, axis=0) >= 0).all()


@pytest.mark.parametrize("binning", ["uniform", "quantile"])
@pytest.mark.parametrize("constant", [0.0, -3.25, 1e-38, 7e20])
def test_a_constant_column_decodes_to_its_constant(binning: str, constant: float) -> None:
    columns = np.full((50, 1), constant, np.float32)
    discretizer = fit_discretizer(columns, 10, binning)
    assert discretizer.decode(discretizer.encode(torch.from_numpy(columns))).unique().tolist() == [np.float32(constant)]


def test_a_sparse_column_keeps_its_zeros_exactly() -> None:
    rng = np.random.default_rng(0)
    column = np.where(rng.random(5000) < 0.9, 0.0, rng.random(5000)).astype(np.float32)[:, None]
    discretizer = fit_discretizer(column, 100)
    assert float(discretizer.decode(discretizer.encode(torch.zeros(1, 1)))) == 0.0
    nonzero = torch.from_numpy(column[column > 0.05][:, None])
    error = (discretizer.decode(discretizer.encode(nonzero)) - nonzero).abs()
    assert float(error.max()) < 0.15  # the tenth of the numbers that are not zero share about ten bins
    released = fit_discretizer(column, 100, as_released=True)
    assert float(released.decode(released.encode(torch.zeros(1, 1)))) > 0.0


def test_quantile_bins_hold_equally_many_numbers() -> None:
    column = np.random.default_rng(0).standard_normal((10_000, 1)).astype(np.float32)
    tokens = fit_discretizer(column, 100).encode(torch.from_numpy(column)).flatten()
    counts = torch.bincount(tokens, minlength=100)
    assert int(counts.min()) >= 99
    assert int(counts.max()) <= 101


def test_numbers_outside_the_data_fall_in_the_outermost_bins() -> None:
    discretizer = fit_discretizer(np.linspace(-1, 1, 201, dtype=np.float32)[:, None], 20, "uniform")
    outside = torch.tensor([[-torch.inf], [-5.0], [-1.0], [1.0], [5.0], [torch.inf]])
    assert discretizer.encode(outside).flatten().tolist() == [0, 0, 0, 19, 19, 19]


NUMBERS = np.array([0.0, 1e-45, 1e-38, 0.5, 1.0, 1.0 + 2**-23, 3e38, np.inf], np.float32)


@pytest.mark.parametrize("last_duplicate", [False, True])
def test_a_token_says_how_many_edges_a_number_passed(last_duplicate: bool) -> None:
    """Written out, with comparisons: both zeros, the smallest numbers and neighbours; edges that repeat, in columns
    whose ranges overlap, touch, or lie apart."""
    numbers = np.concatenate([-NUMBERS, NUMBERS])
    finite = np.sort(numbers[np.isfinite(numbers)])
    edges = np.stack([finite, np.sort(np.resize(finite[::3], len(finite))), np.repeat(finite[4:6], 7)])
    found = Discretizer(torch.from_numpy(edges), last_duplicate).encode(torch.from_numpy(np.stack([numbers] * 3, 1)))
    passed = (edges.T[None] <= numbers[:, None, None]).sum(axis=1) - 1
    if not last_duplicate:  # the zero-width bin, which begins at the first of several equal edges
        passed = np.minimum(passed, (edges.T[None] < numbers[:, None, None]).sum(axis=1))
    np.testing.assert_array_equal(found.numpy(), passed.clip(0, edges.shape[1] - 2))


def test_a_stop_token_decodes_as_the_highest_bin() -> None:
    discretizer = fit_discretizer(np.linspace(-1, 1, 201, dtype=np.float32)[:, None], 20, "uniform")
    assert discretizer.decode(torch.tensor([[discretizer.stop_token]])) == discretizer.decode(torch.tensor([[19]]))


@pytest.mark.parametrize("binning", ["uniform", "quantile"])
@pytest.mark.parametrize(("rows", "bins"), [(1000, 100), (1000, 10), (995, 100), (400, 20)])
def test_as_released_reproduces_the_released_rule_bit_for_bit(binning: str, rows: int, bins: int) -> None:
    """The rule written out: thresholds, >= comparisons, the largest true index, clipped."""
    rng = np.random.default_rng(rows)
    data = np.stack([rng.standard_normal(rows), np.round(rng.random(rows), 1), np.zeros(rows)], axis=1).astype(
        np.float32
    )
    if binning == "quantile":
        step = int(np.ceil(rows / bins))
        thresholds = np.concatenate([np.sort(data, axis=0)[::step], data.max(axis=0, keepdims=True)])
    else:
        thresholds = np.linspace(data.min(axis=0), data.max(axis=0), bins + 1)
    discretizer = fit_discretizer(data, bins, binning, as_released=True)  # type: ignore[arg-type]
    np.testing.assert_array_equal(discretizer.edges.numpy(), thresholds.T.astype(np.float32))
    probe = np.concatenate([data, data + 0.05, thresholds.astype(np.float32), [[-9, -9, -9], [9, 9, 9]]]).astype(
        np.float32
    )
    above = probe[None] >= thresholds.astype(np.float32)[:, None]
    largest = np.where(above.any(axis=0), bins - above[::-1].argmax(axis=0), 0).clip(0, bins - 1)
    np.testing.assert_array_equal(discretizer.encode(torch.from_numpy(probe)).numpy(), largest)


def test_as_released_refuses_lengths_for_which_the_released_code_breaks() -> None:
    with pytest.raises(DataError, match="as_released=False"):
        fit_discretizer(np.random.default_rng(0).random((150, 2)).astype(np.float32), 100, as_released=True)
    assert fit_discretizer(np.random.default_rng(0).random((150, 2)).astype(np.float32), 100).n_bins == 100


def test_published_bin_edges_of_real_data_round_trip(shared_data) -> None:  # type: ignore[no-untyped-def]
    for body in ("hopper", "halfcheetah", "walker2d"):
        with np.load(shared_data / "d4rl_discretizers" / f"discretizer_{body}.npz") as file:
            edges = next(file[name] for name in file.files if file[name].ndim == 2 and file[name].shape[1] == 101)
        discretizer = Discretizer(torch.from_numpy(np.ascontiguousarray(edges, np.float32)))
        mids = (discretizer.edges[:, 1:] + discretizer.edges[:, :-1]) / 2
        wanted = torch.arange(100)[:, None].expand(100, len(edges))
        assert torch.equal(discretizer.encode(mids.T), wanted)
        torch.testing.assert_close(discretizer.decode(wanted), mids.T, rtol=0, atol=0)


def test_a_slice_of_columns_uses_that_slice_of_edges() -> None:
    discretizer = fit_discretizer(
        np.random.default_rng(0).random((100, 5)).astype(np.float32) * np.arange(1, 6, dtype=np.float32), 8
    )
    numbers = torch.rand(7, 5) * torch.arange(1, 6)
    whole = discretizer.encode(numbers)
    assert torch.equal(discretizer.encode(numbers[:, 2:4], first_column=2), whole[:, 2:4])
    assert torch.equal(discretizer.decode(whole[:, 2:4], first_column=2), discretizer.decode(whole)[:, 2:4])
    strided = torch.rand(5, 7).T
    assert torch.equal(discretizer.encode(strided), discretizer.encode(strided.contiguous()))
    with pytest.raises(ShapeError, match="columns 3 to 5"):
        discretizer.encode(torch.rand(2, 3), first_column=3)


def test_a_dataset_is_encoded_like_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttengine.discretizer.ENCODE_ROWS", 7)
    columns = np.random.default_rng(0).random((23, 3)).astype(np.float32)
    discretizer = fit_discretizer(columns, 9)
    tokens = discretizer.encode_dataset(columns)
    assert tokens.dtype == np.int16
    np.testing.assert_array_equal(tokens, discretizer.encode(torch.from_numpy(columns)).numpy())


def test_bad_input_is_refused() -> None:
    good = np.random.default_rng(0).random((10, 2)).astype(np.float32)
    with pytest.raises(DataError, match="needs at least 2"):
        fit_discretizer(good[:1])
    with pytest.raises(ShapeError):
        fit_discretizer(good[0])
    with pytest.raises(ConfigError, match="n_bins"):
        fit_discretizer(good, 1)
    with pytest.raises(ConfigError, match="uniform, quantile"):
        fit_discretizer(good, 4, "kmeans")  # type: ignore[arg-type]
    bad = good.copy()
    bad[3, 1] = np.nan
    with pytest.raises(NonFiniteError, match="column 1"):
        fit_discretizer(bad, 4)
    with pytest.raises(NonFiniteError, match="NaN"):
        fit_discretizer(good, 4).encode(torch.tensor([[0.0, torch.nan]]))
    with pytest.raises(DataError, match="ascending"):
        Discretizer(torch.tensor([[0.0, 2.0, 1.0]]))
