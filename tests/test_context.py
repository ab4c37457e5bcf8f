"""The context: the last executed transitions, bounded and checked."""

from __future__ import annotations

import numpy as np
import pytest

from ttengine.context import Context
from ttengine.errors import NonFiniteError, ShapeError


@pytest.mark.parametrize("capacity", [0, 1, 3])
def test_a_context_keeps_the_last_transitions_in_order(capacity: int) -> None:
    context = Context.empty(2, 1, capacity)
    for step in range(5):
        context = context.append([step, -step], [10 * step], 100.0 * step)
    kept = list(range(5 - capacity, 5))
    assert len(context) == capacity
    assert context.observations.tolist() == [[s, -s] for s in kept]
    assert context.actions.tolist() == [[10 * s] for s in kept]
    assert context.rewards.tolist() == [100 * s for s in kept]


def test_appending_leaves_the_old_context_as_it_was() -> None:
    first = Context.empty(2, 1, 3).append([1, 2], [3], 4)
    first.append([5, 6], [7], 8)
    assert first.rewards.tolist() == [4]


def test_wrong_transitions_are_refused() -> None:
    context = Context.empty(2, 1, 3)
    with pytest.raises(ShapeError, match=r"observation has shape \(3,\)"):
        context.append([1, 2, 3], [0], 0)
    with pytest.raises(ShapeError, match=r"action has shape \(2,\)"):
        context.append([1, 2], [0, 0], 0)
    with pytest.raises(NonFiniteError, match="rewards"):
        context.append([1, 2], [0], np.nan)
    with pytest.raises(NonFiniteError, match="observations"):
        context.append([1, np.inf], [0], 0)
    with pytest.raises(ShapeError, match="lengths disagree"):
        Context(np.zeros((2, 2)), np.zeros((1, 1)), np.zeros(2), 5)
