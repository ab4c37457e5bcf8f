"""What every operation of the search means, in plain PyTorch; fast versions are tested against these."""

from __future__ import annotations

import torch
from torch import Tensor

MASK_32 = 0xFFFFFFFF
PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
PHILOX_ROUNDS = 10


def philox_uniform(seed: Tensor, plan: Tensor, row: Tensor, token: Tensor) -> Tensor:
    """Return counter-based noise: the same four numbers always give the same draw, whatever is computed beside it.

    The arguments broadcast against each other.

    Args:
        seed: int64, the 64-bit key.
        plan: int64 >= 0, which plan of this seed.
        row: int64 >= 0, the logical row within the plan.
        token: int64 >= 0, the token's index within the plan.
    Returns:
        float32 in [0, 1), a multiple of 2**-24.
    Source: Salmon et al. 2011, Philox-4x32-10; key (seed low, seed high), counter (token, row, plan, 0), first word.
    """
    c0, c1, c2, key0, key1 = torch.broadcast_tensors(
        token & MASK_32, row & MASK_32, plan & MASK_32, seed & MASK_32, (seed >> 32) & MASK_32
    )
    c3 = torch.zeros_like(c0)
    for _ in range(PHILOX_ROUNDS):
        # the product may wrap around int64; its 64 bits are still right, and only they are used
        product0, product1 = c0 * PHILOX_MULTIPLIERS[0], c2 * PHILOX_MULTIPLIERS[1]
        c0, c2 = _high(product1) ^ c1 ^ key0, _high(product0) ^ c3 ^ key1
        c1, c3 = product1 & MASK_32, product0 & MASK_32
        key0, key1 = (key0 + PHILOX_INCREMENTS[0]) & MASK_32, (key1 + PHILOX_INCREMENTS[1]) & MASK_32
    noise: Tensor = (c0 >> 8).to(torch.float32) * 2.0**-24
    return noise


def _high(product: Tensor) -> Tensor:
    return (product >> 32) & MASK_32


def filter_tokens(probabilities: Tensor, cdf: float | None, k: int | None) -> Tensor:
    """Return sampling weights: the cdf filter, then top-k. probabilities [..., V+1] -> [..., V+1], zero where dropped.

    cdf: sort ascending, find the largest index whose cumulative sum is below `cdf` (index 0 if none is), and drop every
    token that is no more probable than that one. If that drops all, all weigh the same. k: drop what is less probable
    than the k-th most probable; ties stay.

    Source: Janner et al. 2021, released code, `filter_cdf` and `top_k_logits`.
    """
    weights = probabilities
    if cdf is not None:
        ascending = probabilities.sort(dim=-1).values
        below = ascending.cumsum(dim=-1) < cdf
        last_below = (below.sum(dim=-1, keepdim=True) - 1).clamp(min=0)
        kept = probabilities > ascending.gather(-1, last_below)
        weights = torch.where(kept, probabilities, torch.zeros_like(probabilities))
        weights = torch.where(kept.any(dim=-1, keepdim=True), weights, torch.ones_like(probabilities))
    if k is not None and k < weights.shape[-1]:
        kth = weights.topk(k, dim=-1).values[..., -1:]
        weights = torch.where(weights >= kth, weights, torch.zeros_like(weights))
    return weights


def sample_tokens(weights: Tensor, uniform: Tensor) -> Tensor:
    """Draw a token a row by inverting the cumulative weights. weights [..., V+1], uniform [...] in [0, 1) -> int64."""
    cumulative = weights.cumsum(dim=-1)
    threshold = uniform.to(weights.dtype).unsqueeze(-1) * cumulative[..., -1:]
    token = (cumulative <= threshold).sum(dim=-1)
    index = torch.arange(weights.shape[-1], device=weights.device)
    last = torch.where(weights > 0, index, torch.zeros_like(index)).amax(dim=-1)
    return torch.minimum(token, last)  # uniform * total may round up to total


def greedy_tokens(probabilities: Tensor) -> Tensor:
    """Return the most probable token, the lower one on ties. probabilities [..., V+1] -> [...] int64."""
    bins = probabilities.shape[-1]
    index = torch.arange(bins, device=probabilities.device)
    top = probabilities == probabilities.amax(dim=-1, keepdim=True)
    return torch.where(top, index, torch.full_like(index, bins - 1)).amin(dim=-1)


def expectation(probabilities: Tensor, edges: Tensor) -> Tensor:
    """Return the expected number of a token. probabilities [..., V+1], edges [V+1] (or [..., V+1]) -> [...].

    The stop token's share is dropped without renormalising; each bin counts with the mean of its two edges.

    Source: Janner et al. 2021, released code, `value_expectation`.
    """
    bins = probabilities[..., :-1]
    left = (bins * edges[..., :-1]).sum(dim=-1)
    right = (bins * edges[..., 1:]).sum(dim=-1)
    return (left + right) / 2


def percentile(probabilities: Tensor, edges: Tensor, share: float, as_released: bool = False) -> Tensor:
    """Return the mid-point of the first bin at which the cumulative probability reaches `share`.

    The stop token is left out and the rest renormalised: a percentile needs a distribution, and without this a likely
    stop would read as the highest bin.

    Args:
        probabilities: [..., V+1], the stop token last.
        edges: [V+1] bin edges.
        share: in (0, 1].
        as_released: reproduce the released code, which is one bin low, wraps from bin 0 to the last bin and does not
            renormalise.
    Returns:
        [...] in the edges' units.
    """
    bins = probabilities[..., :-1]
    last = bins.shape[-1] - 1
    cumulative = bins.cumsum(dim=-1)
    if as_released:
        index = (cumulative < share).sum(dim=-1) - 1
        index = torch.where(index < 0, torch.full_like(index, last), index)
    else:
        total = cumulative[..., -1:]
        index = (cumulative < share * total).sum(dim=-1).clamp(max=last)
    return (edges[..., :-1][index] + edges[..., 1:][index]) / 2


def select_beams(score: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Keep the `width` highest scores; equal scores keep the lower index; survivors stay in index order.

    Args:
        score: [B, C] floating point.
        width: W; with fewer candidates all are kept.
    Returns:
        [B, min(W, C)] scores and [B, min(W, C)] int64 indices, ascending.
    """
    order = torch.argsort(score, dim=1, descending=True, stable=True)[:, :width]
    kept = order.sort(dim=1).values  # neighbours then share ancestors, and so cached pages
    return score.gather(1, kept), kept


def sample_topk(
    logits: Tensor, noise: Tensor, *, k: int | None = None, cdf: float | None = None, temperature: float = 1.0
) -> Tensor:
    """Draw a token a row: softmax, the two filters, inversion. logits [R, V], noise [R] in [0, 1) -> [R] int64.

    With k = 1 it is the most probable token, the lower one on ties, whatever cdf says.
    """
    probabilities = (logits.float() / temperature).softmax(dim=-1)
    if k == 1:
        return greedy_tokens(probabilities)
    return sample_tokens(filter_tokens(probabilities, cdf, k), noise)


def paged_attention(query: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor) -> Tensor:
    """Attend from one query a row to the first slots of the pages that its table names, in order.

    Args:
        query: [R, A, D/A].
        keys, values: [P, A, S, D/A], P pages of S slots.
        table: [R, entries] int, pages of each row.
        lengths: [R] int, how many slots each row sees; zero gives zeros.
    Returns:
        [R, A, D/A] of the query's dtype, computed in float32 or wider.
    """
    out = torch.zeros_like(query)
    for row, length in enumerate(lengths.tolist()):
        pages = table[row, : -(-length // keys.shape[2])].long()
        seen_keys, seen_values = (
            pool[pages].transpose(0, 1).flatten(1, 2)[:, :length].to(torch.promote_types(pool.dtype, torch.float32))
            for pool in (keys, values)
        )
        if length:
            score = (seen_keys @ query[row, :, :, None].to(seen_keys.dtype))[..., 0] / query.shape[2] ** 0.5
            out[row] = (score.softmax(dim=-1)[:, None] @ seen_values)[:, 0].to(out.dtype)
    return out
