"""Dropout: rates, means, gradients, and attention with dropped weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ttengine.dropout import SEQUENCES_AT_A_TIME, attention, dropout


def make_attention(B: int, T: int, columns: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(B * T)
    shapes = [(B, 2, T, 4), (B, 2, columns, 4), (B, 2, columns, 4)]
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    return tensors, torch.ones(T, columns, dtype=torch.bool).tril(columns - T)


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 400_001])
def test_dropout_drops_the_rate_and_keeps_the_mean(rate: float, count: int) -> None:
    torch.manual_seed(0)
    y = dropout(torch.ones(count), rate, training=True)
    assert y.shape == (count,)
    kept = y[y != 0]
    assert kept.numel() == 0 or torch.allclose(kept, torch.full_like(kept, 1 / (1 - rate)), rtol=1e-4)
    if count > 5:
        deviation = (rate * (1 - rate) / count) ** 0.5
        assert abs(float((y == 0).float().mean()) - rate) < 5 * deviation


def test_dropout_draws_every_element_by_itself() -> None:
    """Four elements share a 64-bit draw; neighbours must still be independent."""
    torch.manual_seed(0)
    zero = (dropout(torch.ones(100_000, 4), 0.5, training=True) == 0).double()
    correlation = torch.corrcoef(zero.T) - torch.eye(4)
    assert float(correlation.abs().max()) < 0.02


def test_dropout_is_the_identity_outside_training() -> None:
    x = torch.randn(7)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0, training=True) is x


def test_the_same_generator_state_drops_the_same_elements() -> None:
    x = torch.randn(50)
    torch.manual_seed(3)
    first = dropout(x, 0.3, training=True)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.3, training=True), first)


@pytest.mark.parametrize("B", [1, SEQUENCES_AT_A_TIME, SEQUENCES_AT_A_TIME + 1])
def test_attention_without_dropped_weights_equals_the_fused_one(B: int) -> None:
    (q, k, v), visible = make_attention(B, 5, 7)
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    given = attention(q, k, v, visible, 1e-9)  # rounds to a rate of zero, by the path with dropout
    torch.testing.assert_close(given, wanted)
    weight = torch.randn_like(wanted)
    for a, b in zip(
        torch.autograd.grad((given * weight).sum(), (q, k, v)),
        torch.autograd.grad((wanted * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("remembered", [0, 10**9])
def test_the_gradient_of_attention_with_dropped_weights_is_right(
    remembered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ttengine.dropout.REMEMBERED_WEIGHTS", remembered)
    (q, k, v), visible = make_attention(SEQUENCES_AT_A_TIME + 1, 3, 4)

    def seeded(*inputs: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return attention(*inputs, visible, 0.4)

    assert torch.autograd.gradcheck(seeded, (q, k, v))
    assert not torch.equal(seeded(q, k, v), attention(q, k, v, visible, 0.0))


def test_attention_weights_are_dropped_at_the_rate_and_masked_columns_stay_out() -> None:
    torch.manual_seed(0)
    T = 40
    q = k = torch.zeros(50, 2, T, T)
    v = torch.eye(T).expand(50, 2, T, T)  # the output is the weights themselves
    visible = torch.ones(T, T, dtype=torch.bool).tril()
    weights = attention(q, k, v, visible, 0.25)
    assert float(weights[..., ~visible].abs().max()) == 0.0
    assert float((weights[..., visible] == 0).float().mean()) == pytest.approx(0.25, abs=0.005)
    torch.testing.assert_close(weights.sum(-1).mean(), torch.tensor(1.0), rtol=0.01, atol=0)
