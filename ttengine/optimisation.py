"""What a training step minimises and how: the loss, the learning rate, the optimiser."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttengine.config import ModelConfig, TrainConfig
from ttengine.model import TrajectoryTransformer

SEGMENTS = ("observation", "action", "reward", "value")


class TokenWeights(NamedTuple):
    """How each target position counts.

    Attributes:
        loss: [T] float32, weight of its cross-entropy.
        segment: [T, 4] float32, one-hot over SEGMENTS.
    """

    loss: Tensor
    segment: Tensor


class Losses(NamedTuple):
    """The losses of one batch.

    Attributes:
        total: scalar, what is minimised.
        segments: [4] float32, cross-entropy summed over the trained targets of each segment, unweighted; detached.
        counts: [4] float32, how many targets that were.
    """

    total: Tensor
    segments: Tensor
    counts: Tensor


def token_weights(model: ModelConfig, config: TrainConfig, device: torch.device | str = "cpu") -> TokenWeights:
    """Return the weights of the T = window*K - 1 targets.

    Target position i is token i + 1 of the window: the released code rolls its weights by one for the same reason.
    """
    sizes = (model.observation_dim, model.action_dim, 1, 1)
    weights = (config.observation_weight, config.action_weight, config.reward_weight, config.value_weight)
    segment = torch.repeat_interleave(torch.arange(len(SEGMENTS)), torch.tensor(sizes)).repeat(model.window)[1:]
    loss = torch.tensor(weights, dtype=torch.float32)[segment]
    return TokenWeights(loss.to(device), F.one_hot(segment, len(SEGMENTS)).float().to(device))


def token_losses(logits: Tensor, targets: Tensor, trained: Tensor, weights: TokenWeights) -> Losses:
    """Return the cross-entropy of a batch, weighted by segment.

    The total is the mean of cross-entropy * weight * trained over *all* positions, masked ones included, as in the
    released code: the weights are not normalised, and a batch with more padding has a smaller loss.

    Args:
        logits: [B, T, V+1] floating point.
        targets: [B, T] int64.
        trained: [B, T] bool, targets that count.
        weights: of the T positions.
    Source: Janner et al. 2021, released code, `GPT.forward`.
    """
    entropy = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets) * trained
    sums = entropy.detach().float().sum(dim=0) @ weights.segment
    counts = trained.float().sum(dim=0) @ weights.segment
    return Losses((entropy * weights.loss).mean(), sums, counts)


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Return the learning rate of optimiser step `step` (from 0): linear warm-up, then one cosine down to the floor.

    The last step has exactly the floor, `final_learning_rate_share` of the learning rate; the released code's cosine is
    not clamped and climbs again.
    """
    warmup = round(config.warmup_share * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    floor = config.final_learning_rate_share
    return config.learning_rate * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def decayed_names(model: nn.Module) -> set[str]:
    """Return the names of the weights that decay: those of linear layers and of the per-position head."""
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return linear | {"head.weight"}


def make_optimiser(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW; embeddings, positions, norms and biases do not decay."""
    decayed = decayed_names(model)
    named = list(model.named_parameters())
    groups = [
        {"params": [p for name, p in named if name in decayed], "weight_decay": config.weight_decay},
        {"params": [p for name, p in named if name not in decayed], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda") for _, p in named)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=fused)


def spread_over_bins(model: TrajectoryTransformer, bins: float) -> None:
    """Spread the gradients of embeddings and heads over neighbouring bins, from now on.

    Bins are ordered, but every bin has an embedding and a row of the head of its own, which learn nothing of one
    another. Here a dimension's gradient g [V, D] becomes (I + G) g, G_ij = exp(-((i - j) / bins)^2 / 2): positive
    definite, so it still descends. The model, its file and its predictions know nothing of it.

    Args:
        model: whose parameters get hooks.
        bins: standard deviation of the Gaussian, in bins; 0 does nothing.
    """
    if bins == 0.0:
        return
    V = model.config.n_bins
    place = torch.arange(V, dtype=torch.float32) / bins
    mix = torch.eye(V) + torch.exp(-0.5 * (place[:, None] - place) ** 2)

    def spread_embedding(gradient: Tensor) -> Tensor:  # [V*dims, D], or one row more for the stop token
        rows = gradient.shape[0] // V * V
        return torch.cat([(mix.to(gradient) @ gradient[:rows].unflatten(0, (-1, V))).flatten(0, 1), gradient[rows:]])

    def spread_head(gradient: Tensor) -> Tensor:  # [K, V+1, D]
        return torch.cat([mix.to(gradient) @ gradient[:, :V], gradient[:, V:]], dim=1)

    model.token_embedding.weight.register_hook(spread_embedding)
    model.head.weight.register_hook(spread_head)
    if model.config.goal:
        model.goal_embedding.weight.register_hook(spread_embedding)


def optimised_names(model: nn.Module) -> list[str]:
    """Return the parameters' names in the order in which `make_optimiser` numbers them."""
    decayed = decayed_names(model)
    names = [name for name, _ in model.named_parameters()]
    return [name for name in names if name in decayed] + [name for name in names if name not in decayed]
