"""Trajectories: what is accepted, what is refused, and how episodes are cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ttengine.data.trajectories import Trajectories
from ttengine.errors import DataError, NonFiniteError, ShapeError


def parts(length: int = 7, **changes: Any) -> dict[str, Any]:
    """Two episodes: rows 0-2 end in a terminal, the rest is cut by the end of the log."""
    arrays: dict[str, Any] = {
        "observations": np.arange(length * 3, dtype=np.float64).reshape(length, 3),
        "actions": np.linspace(-1, 1, length * 2).reshape(length, 2),
        "rewards": np.arange(length, dtype=np.int64),
        "terminals": np.arange(length) == 2,
        "timeouts": np.zeros(length, np.uint8),
    }
    return arrays | changes


def test_arrays_become_float32_and_bool_and_a_cut_log_ends_in_a_timeout() -> None:
    trajectories = Trajectories(**parts())
    assert trajectories.observations.dtype == trajectories.rewards.dtype == np.float32
    assert trajectories.timeouts.tolist() == [False] * 6 + [True]
    assert (trajectories.observation_dim, trajectories.action_dim, len(trajectories)) == (3, 2, 7)


def test_episodes_are_cut_after_each_end() -> None:
    trajectories = Trajectories(**parts())
    assert trajectories.episode_starts.tolist() == [0, 3]
    assert trajectories.episode_ends.tolist() == [3, 7]
    assert trajectories.episode_lengths.tolist() == [3, 4]
    assert trajectories.episode_returns.tolist() == [0 + 1 + 2, 3 + 4 + 5 + 6]
    assert list(trajectories.episodes()) == [slice(0, 3), slice(3, 7)]


def test_taken_episodes_come_in_the_order_asked_for() -> None:
    taken = Trajectories(**parts(), name="set", metadata={"a": 1}).take_episodes(np.array([1, 0]))
    assert taken.rewards.tolist() == [3, 4, 5, 6, 0, 1, 2]
    assert taken.terminals.tolist() == [False] * 6 + [True]
    assert (taken.name, taken.metadata) == ("set", {"a": 1})


@pytest.mark.parametrize("which", [[], [2], [-1]])
def test_taking_no_episode_or_one_that_is_not_there_is_refused(which: list[int]) -> None:
    with pytest.raises(DataError, match="there are 0 to 1"):
        Trajectories(**parts()).take_episodes(np.array(which, np.int64))


def test_strided_views_are_copied_in_order() -> None:
    wide = np.arange(42, dtype=np.float32).reshape(7, 6)
    trajectories = Trajectories(**parts(observations=wide[:, ::2]))
    np.testing.assert_array_equal(trajectories.observations, wide[:, ::2])
    assert trajectories.observations.flags.c_contiguous


@pytest.mark.parametrize("field", ["observations", "actions", "rewards"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_non_finite_numbers_are_refused_by_row(field: str, bad: float) -> None:
    arrays = parts()
    arrays[field] = np.asarray(arrays[field], np.float64).copy()
    arrays[field].reshape(7, -1)[4, 0] = bad
    with pytest.raises(NonFiniteError, match=rf"{field}\[4"):
        Trajectories(**arrays)


def test_lengths_that_disagree_are_listed() -> None:
    with pytest.raises(ShapeError, match="actions 6"):
        Trajectories(**parts(actions=np.zeros((6, 2))))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"observations": np.zeros(7)}, ShapeError, "expected 2 axes"),
        ({"rewards": np.zeros((7, 1))}, ShapeError, "expected 1 axes"),
        ({"actions": np.zeros((7, 0))}, ShapeError, "at least one column"),
        ({"observations": [[1.0, 2.0], [3.0]]}, ShapeError, "rectangular"),
        ({"actions": np.array([["left"]] * 7)}, DataError, "expected numbers"),
        ({"terminals": np.full(7, 2)}, DataError, "0 and 1"),
        ({"terminals": np.full(7, np.nan)}, DataError, "0 and 1"),
        ({"terminals": np.ones(7)}, DataError, "every row"),
        ({"timeouts": np.arange(7) == 2}, DataError, "both terminal and time-out"),
    ],
)
def test_malformed_arrays_are_refused(change: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Trajectories(**parts(**change))


def test_an_empty_dataset_is_refused() -> None:
    with pytest.raises(DataError, match="empty"):
        Trajectories(**{name: array[:0] for name, array in parts().items()})


def test_a_one_step_dataset_is_refused() -> None:
    with pytest.raises(DataError, match="one transition"):
        Trajectories(**{name: array[:1] for name, array in parts().items()})


def test_one_transition_episodes_beside_longer_ones_are_kept() -> None:
    trajectories = Trajectories(**parts(terminals=np.isin(np.arange(7), [0, 2])))
    assert trajectories.episode_lengths.tolist() == [1, 2, 4]
