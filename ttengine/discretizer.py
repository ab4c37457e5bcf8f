"""Continuous transitions to tokens and back: fit, encode, decode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ttengine.errors import ConfigError, DataError, NonFiniteError, ShapeError

Binning = Literal["uniform", "quantile"]
FloatArray = npt.NDArray[np.float32]

ENCODE_ROWS = 2_048
"""Rows encoded at a time, so that a long dataset needs little memory beside its tokens."""


@dataclass(frozen=True, eq=False)
class Discretizer:
    """Bin edges for each column of a transition: N observation, M action, reward, value.

    A token in [0, V) stands for the interval between two neighbouring edges and decodes to its mid-point. Edges may
    repeat: where a number is so frequent that it fills whole bins, a bin of width zero stands for that very number.

    Attributes:
        edges: [K, V+1] float32, ascending along each row.
        last_duplicate: encode a number that equals several edges as the released code does, to the bin right of the
            last one; ours takes the zero-width bin, which decodes to the number itself.
    """

    edges: Tensor
    last_duplicate: bool = False

    def __post_init__(self) -> None:
        if self.edges.ndim != 2 or self.edges.shape[1] < 3:
            raise ShapeError(
                f"edges have shape {tuple(self.edges.shape)}, expected [columns, bins + 1] with 2 bins or more"
            )
        if not bool(torch.isfinite(self.edges).all()):
            raise NonFiniteError("edges hold NaN or infinity")
        if bool((self.edges[:, 1:] < self.edges[:, :-1]).any()):
            column = int((self.edges[:, 1:] < self.edges[:, :-1]).any(dim=1).nonzero()[0])
            raise DataError(f"edges of column {column} are not ascending")
        object.__setattr__(self, "edges", self.edges.to(torch.float32).contiguous())

    @property
    def n_bins(self) -> int:
        """V."""
        return self.edges.shape[1] - 1

    @property
    def n_columns(self) -> int:
        """K."""
        return self.edges.shape[0]

    @property
    def stop_token(self) -> int:
        """The token that fills everything after an episode's end."""
        return self.n_bins

    def to(self, device: torch.device | str) -> Discretizer:
        """Return the same discretizer with its edges on `device`."""
        return Discretizer(self.edges.to(device), self.last_duplicate)

    def encode(self, numbers: Tensor, first_column: int = 0) -> Tensor:
        """Return the bin of each number: below the lowest edge bin 0, at or above the highest bin V-1.

        Args:
            numbers: [..., k] floating point, k neighbouring columns; compared in float32.
            first_column: which column numbers[..., 0] belongs to.
        Returns:
            [..., k] int64 in [0, V).
        Raises:
            ShapeError: the columns reach past the last one.
            NonFiniteError: a number is NaN (infinities fall in the outermost bins).
        """
        edges = self._columns(first_column, numbers.shape[-1]).cpu().numpy()
        flat = numbers.detach().to("cpu", torch.float32).reshape(-1, numbers.shape[-1]).T.contiguous().numpy()
        if np.isnan(flat).any():
            raise NonFiniteError("cannot encode NaN: a bin needs a number")
        # NumPy's search: torch's wakes a thread pool for a few hundred numbers, and a plan has better use for the cores
        columns = list(zip(edges, flat, strict=True))
        bins = np.array([edge.searchsorted(column, "right") for edge, column in columns]) - 1
        if not self.last_duplicate:  # of a number that equals several edges the first one, left of the zero-width bin
            bins = np.minimum(bins, np.array([edge.searchsorted(column) for edge, column in columns]))
        tokens = torch.from_numpy(bins.clip(0, self.n_bins - 1)).T.reshape(numbers.shape)
        return tokens.to(numbers.device)

    def decode(self, tokens: Tensor, first_column: int = 0) -> Tensor:
        """Return the mid-point of each token's bin; a stop token decodes as bin V-1, as in the released code.

        Args:
            tokens: [..., k] int64, k neighbouring columns.
            first_column: which column tokens[..., 0] belongs to.
        Returns:
            [..., k] float32, environment units.
        """
        edges = self._columns(first_column, tokens.shape[-1])
        index = tokens.clamp(0, self.n_bins - 1)
        column = torch.arange(tokens.shape[-1], device=tokens.device)
        return (edges[column, index] + edges[column, index + 1]) / 2

    def encode_dataset(self, columns: FloatArray) -> npt.NDArray[np.int16]:
        """Encode whole transitions [L, K] float32 to tokens [L, K] int16, a slice of rows at a time."""
        tokens = np.empty(columns.shape, np.int16)
        for start in range(0, len(columns), ENCODE_ROWS):
            rows = slice(start, start + ENCODE_ROWS)
            tokens[rows] = self.encode(torch.from_numpy(np.ascontiguousarray(columns[rows]))).numpy()
        return tokens

    def _columns(self, first: int, count: int) -> Tensor:
        if first < 0 or first + count > self.n_columns:
            raise ShapeError(
                f"columns {first} to {first + count - 1} were asked for, the discretizer was fitted on {self.n_columns}"
            )
        return self.edges[first : first + count]


def fit_discretizer(
    columns: FloatArray, n_bins: int = 100, binning: Binning = "quantile", as_released: bool = False
) -> Discretizer:
    """Fit bin edges to each column.

    Args:
        columns: [L, K] float32, L >= 2 transitions.
        n_bins: V.
        binning: "uniform" bins are equally wide; "quantile" bins hold equally many numbers.
        as_released: the released code's edges and tie rule, bit for bit, where that code works.
    Returns:
        A discretizer with exactly V+1 edges a column, whatever the column holds.
    Raises:
        DataError: fewer than two transitions; or, with `as_released`, a length for which the released code breaks.
        NonFiniteError: NaN or infinity.
    Source: Janner et al. 2021, released code, `QuantileDiscretizer` and `DiscretizerUniform`.
    """
    if columns.ndim != 2:
        raise ShapeError(f"columns have shape {columns.shape}, expected [transitions, columns]")
    if len(columns) < 2:
        raise DataError(f"{len(columns)} transition(s) came, a discretizer needs at least 2 to find a range")
    if not 2 <= n_bins <= 1024:
        raise ConfigError(f"n_bins is {n_bins}, allowed is 2 to 1024")
    if binning not in ("uniform", "quantile"):
        raise ConfigError(f"binning is {binning!r}, allowed are uniform, quantile")
    for index in range(columns.shape[1]):  # a column at a time: a mask of the whole would be another copy
        if not np.isfinite(columns[:, index]).all():
            raise NonFiniteError(f"column {index} holds NaN or infinity; repair the data before fitting")
    if binning == "uniform":
        edges = _uniform_edges(columns, n_bins, as_released)
    else:
        rule = _released_quantile_edges if as_released else _quantile_edges
        edges = np.stack([rule(np.sort(columns[:, index]), n_bins) for index in range(columns.shape[1])])
    return Discretizer(torch.from_numpy(edges), last_duplicate=as_released)


def _uniform_edges(columns: FloatArray, n_bins: int, as_released: bool) -> FloatArray:
    precision = np.float32 if as_released else np.float64  # there, whatever the data came in
    low, high = columns.min(axis=0).astype(precision), columns.max(axis=0).astype(precision)
    return np.linspace(low, high, n_bins + 1).T.astype(np.float32)


def _quantile_edges(ascending: FloatArray, n_bins: int) -> FloatArray:
    position = np.linspace(0.0, len(ascending) - 1, n_bins + 1)
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, len(ascending) - 1)
    below, above = ascending[low].astype(np.float64), ascending[high].astype(np.float64)
    edges = below + (position - low) * (above - below)
    return np.maximum.accumulate(edges.astype(np.float32))


def _released_quantile_edges(ascending: FloatArray, n_bins: int) -> FloatArray:
    step = -(-len(ascending) // n_bins)
    edges = np.append(ascending[::step], ascending[-1])
    if len(edges) != n_bins + 1:
        raise DataError(
            f"the released code makes {len(edges)} edges from {len(ascending)} transitions where {n_bins + 1} are "
            "needed; use as_released=False"
        )
    return edges
