"""Drawing tokens in Triton: the reference's tokens."""

from __future__ import annotations

import pytest
import torch
from interpreted import DEVICE

from ttengine.kernels import reference

pytest.importorskip("triton")
from ttengine.kernels.sampling import sample_topk


def logits_of(rows: int, bins: int, seed: int = 0, sharpness: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return sharpness * torch.randn(rows, bins, generator=generator)


@pytest.mark.parametrize("bins", [2, 31, 101, 256])
@pytest.mark.parametrize(
    "settings",
    [{"cdf": 0.6}, {"k": 1}, {"k": 5}, {"cdf": 0.3, "k": 2}, {"temperature": 0.5}, {"cdf": 0.0}, {"cdf": 0.95}],
    ids=str,
)
def test_sample_topk_draws_the_tokens_of_the_reference(bins: int, settings: dict[str, float]) -> None:
    logits = logits_of(33, bins, seed=bins)
    noise = torch.rand(33, generator=torch.Generator().manual_seed(1))
    wanted = reference.sample_topk(logits, noise, **settings)
    found = sample_topk(logits.to(DEVICE), noise.to(DEVICE), **settings)
    assert torch.equal(found.cpu(), wanted)


def test_ties_at_the_filters_edges_are_treated_alike() -> None:
    """Equal logits: all dropped by the cdf filter, so all stay; at the k-th place all of them stay."""
    rows = torch.tensor(
        [[0.0] * 8, [1.0, 1.0, 0.0, 0.0, 0.0, 1.0, -1.0, -1.0], [5.0, 5.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]]
    )
    logits, noise = rows.repeat(9, 1), torch.arange(27) / 27
    for settings in ({"cdf": 0.6}, {"k": 2}, {"k": 1}, {"cdf": 0.2, "k": 4}):
        wanted = reference.sample_topk(logits, noise, **settings)
        assert torch.equal(sample_topk(logits.to(DEVICE), noise.to(DEVICE), **settings).cpu(), wanted), settings


def test_a_rows_token_does_not_depend_on_the_rows_beside_it() -> None:
    logits, noise = logits_of(40, 101), torch.rand(40, generator=torch.Generator().manual_seed(2))
    whole = sample_topk(logits.to(DEVICE), noise.to(DEVICE), cdf=0.6).cpu()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    assert torch.equal(sample_topk(logits[order].to(DEVICE), noise[order].to(DEVICE), cdf=0.6).cpu(), whole[order])
    assert torch.equal(sample_topk(logits[7:8].to(DEVICE), noise[7:8].to(DEVICE), cdf=0.6).cpu(), whole[7:8])


def test_rows_may_be_strided_and_nan_gives_a_token_in_range() -> None:
    wide = logits_of(5, 60)
    noise = torch.full((5,), 0.5)
    assert torch.equal(
        sample_topk(wide[:, :31].to(DEVICE), noise.to(DEVICE), cdf=0.6).cpu(),
        reference.sample_topk(wide[:, :31], noise, cdf=0.6),
    )
    wide[2] = float("nan")
    for settings in ({"cdf": 0.6}, {"k": 1}, {"k": 3}):
        token = sample_topk(wide.to(DEVICE), noise.to(DEVICE), **settings)
        assert int(token.min()) >= 0
        assert int(token.max()) < 60


def test_wrong_arguments_are_refused() -> None:
    logits, noise = logits_of(3, 9), torch.rand(3)
    for bad in ((logits[0], noise), (logits, noise[:2]), (logits[:, :1], noise), (logits.t(), noise)):
        with pytest.raises(ValueError, match="shape"):
            sample_topk(*bad)
    for settings in ({"k": 0}, {"cdf": 1.5}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match="allowed"):
            sample_topk(logits, noise, **settings)
