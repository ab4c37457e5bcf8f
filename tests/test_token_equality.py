"""What the bench that compares engines calls a near-tie."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ttengine.config import Sampling

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
from token_equality import NEAR, decision_margin, main, selection_margin

GREEDY = Sampling(k=1)


@pytest.mark.parametrize("option", [("--virtual-gpu",), ("--tile", "1")])
def test_options_of_tritons_kernels_are_no_other_engines(
    option: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["token_equality.py", *option])
    with pytest.raises(SystemExit):
        main()
    assert "add --engine triton" in capsys.readouterr().err


def test_the_margin_of_a_greedy_token_is_its_lead() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.2])
    assert decision_margin(probabilities, GREEDY, 0.4, 0, 1) == pytest.approx(0.2)


def test_a_draw_beside_an_edge_is_a_near_tie() -> None:
    probabilities = torch.tensor([0.45, 0.35, 0.15, 0.05])  # all but the last two stay
    edge, sampling = 0.45 / 0.8, Sampling(cdf=0.4)
    assert decision_margin(probabilities, sampling, edge + 1e-6, 0, 1) < NEAR
    assert decision_margin(probabilities, sampling, edge + 0.1, 0, 1) > 10 * NEAR


@pytest.mark.parametrize("gap", [0.0, 1e-6])
def test_a_filter_whose_edge_lies_between_near_equals_is_a_near_tie(gap: float) -> None:
    # the second and the third straddle the cdf: which of them goes, or both, is decided by their gap
    sampling = Sampling(cdf=0.7)
    probabilities = torch.tensor([0.1, 0.35, 0.35 + gap, 0.2 - gap])
    assert decision_margin(probabilities, sampling, 0.3, 1, 2) < NEAR
    apart = torch.tensor([0.1, 0.32, 0.38, 0.2])
    assert decision_margin(apart, sampling, 0.3, 1, 2) > 10 * NEAR


def test_a_filter_that_keeps_the_only_token_is_measured_too() -> None:
    assert decision_margin(torch.tensor([0.0, 1.0]), Sampling(cdf=1.0), 0.5, 1, 0) >= 0.0


def test_the_margin_of_a_selection_is_the_gap_of_the_scores_that_changed_places() -> None:
    score = torch.tensor([3.0, 2.0, 1.9999, 0.5])
    assert selection_margin(score, torch.tensor([0, 2]), torch.tensor([0, 1])) == pytest.approx(5e-5, rel=0.01)
