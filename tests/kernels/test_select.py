"""Top-k by rank: the reference's choice, ties and order included."""

from __future__ import annotations

import pytest
import torch
from interpreted import DEVICE

from ttengine.kernels import reference

pytest.importorskip("triton")
from ttengine.kernels.select import MOST, select_beams, select_beams_into


@pytest.mark.parametrize("width", [1, 31, 32, 33, 127, 128, 200, 256, 300])
def test_select_beams_equals_the_reference_on_scores_with_ties(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    for candidates in (1, 2 * width, 2 * width + 1):
        score = torch.randint(0, max(2, width // 3), (2, candidates), generator=generator).float()
        found = select_beams(score.to(DEVICE), width)
        for ours, theirs in zip(found, reference.select_beams(score, width), strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours.cpu(), theirs)


def test_scores_that_are_not_finite_lower_the_fault_and_select_in_range() -> None:
    score = torch.tensor([[1.0, float("nan"), 3.0, 2.0], [4.0, 3.0, 2.0, 1.0]])
    fault = torch.tensor([9], dtype=torch.int64, device=DEVICE)
    _, kept = select_beams_into(score.to(DEVICE), 2, fault, 5)
    assert int(fault) == 5
    assert kept.cpu().tolist() == [[2, 3], [0, 1]]
    fault.fill_(9)
    select_beams_into(score[1:].to(DEVICE), 2, fault, 5)
    assert int(fault) == 9
    score[0, 1] = float("inf")
    select_beams_into(score.to(DEVICE), 2, fault, 5)
    assert int(fault) == 5


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        select_beams(torch.zeros(1, MOST + 1), 2)
    with pytest.raises(ValueError, match="float32"):
        select_beams(torch.zeros(1, 4, dtype=torch.float64), 2)
