"""An independent planner, written from the algorithm's description and from nothing else in the package.

No cache: every token is a full forward of its whole window. No code of the package is used: the model is computed from
its state dict with matrix products, the noise with Python integers, the filter by its definition. It is slow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MASK = 0xFFFFFFFF


def philox_draw(seed: int, plan: int, row: int, token: int) -> float:
    """Philox-4x32-10, first word, its upper 24 bits as a number in [0, 1)."""
    counter = [token & MASK, row & MASK, plan & MASK, 0]
    key = [seed & MASK, (seed >> 32) & MASK]
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [(b >> 32) ^ counter[1] ^ key[0], b & MASK, (a >> 32) ^ counter[3] ^ key[1], a & MASK]
        key = [(key[0] + 0x9E3779B9) & MASK, (key[1] + 0xBB67AE85) & MASK]
    return (counter[0] >> 8) / 2**24


@dataclass
class NaiveModel:
    """The Transformer as a function of its weights."""

    weights: dict[str, Tensor]
    observation_dim: int
    action_dim: int
    bins: int
    heads: int
    rotary: bool = False
    context: int = 0  # rotary: past transitions in sight

    def probabilities(self, tokens: list[int], goal: list[int] | None = None) -> Tensor:
        """[V+1] distribution of the token that follows `tokens`."""
        w, K, V, N = self.weights, self.observation_dim + self.action_dim + 2, self.bins, self.observation_dim
        G = 0 if goal is None else N
        x = []
        for i, token in enumerate(tokens):
            row = V * K if token == V else (i % K) * V + token
            e = w["token_embedding.weight"][row]
            x.append(e + (w["column_embedding"][i % K] if self.rotary else w["position_embedding"][i]))
        for i, token in enumerate(reversed(goal or [])):
            x.insert(0, w["goal_embedding.weight"][(N - 1 - i) * V + token])
        x = torch.stack(x)
        layers = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))
        for layer in range(layers):
            x = self._layer(x, {k.split(".", 2)[2]: v for k, v in w.items() if k.startswith(f"blocks.{layer}.")}, G)
        last = normalise(x, w["final_norm.weight"], w["final_norm.bias"])[-1]
        logits = w["head.weight"][(len(tokens) - 1) % K] @ last
        return torch.softmax(logits, dim=0)

    def _layer(self, x: Tensor, w: dict[str, Tensor], G: int) -> Tensor:
        T, D = x.shape
        K, size = self.observation_dim + self.action_dim + 2, D // self.heads
        h = normalise(x, w["attention_norm.weight"], w["attention_norm.bias"])
        qkv = h @ w["qkv.weight"].T + w["qkv.bias"]
        sees = torch.tensor([[self._sees(i - G, j - G, K) for j in range(T)] for i in range(T)])
        mixed = []
        for head in range(self.heads):
            q, k, v = (qkv[:, part * D + head * size :][:, :size] for part in range(3))
            if self.rotary:
                q, k = self._turn(q, G), self._turn(k, G)
            score = (q @ k.T / math.sqrt(size)).masked_fill(~sees, -math.inf)
            mixed.append(torch.softmax(score, dim=1) @ v)
        mixed = torch.cat(mixed, dim=1)
        x = x + mixed @ w["projection.weight"].T + w["projection.bias"]
        h = normalise(x, w["mlp_norm.weight"], w["mlp_norm.bias"]) @ w["mlp_in.weight"].T + w["mlp_in.bias"]
        h = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
        return x + h @ w["mlp_out.weight"].T + w["mlp_out.bias"]

    def _sees(self, i: int, j: int, K: int) -> bool:
        if j > i:
            return False
        if j < 0:
            return True
        if j % K == K - 1:
            return False
        return not self.rotary or i // K - j // K <= self.context

    def _turn(self, x: Tensor, G: int) -> Tensor:
        pairs = x.shape[1] // 4
        turned = x.clone()
        for p in range(pairs):
            angle = torch.arange(-G, len(x) - G, dtype=x.dtype) * 10_000 ** (-p / pairs)
            a, b = x[:, p], x[:, pairs + p]
            turned[:, p] = a * torch.cos(angle) - b * torch.sin(angle)
            turned[:, pairs + p] = a * torch.sin(angle) + b * torch.cos(angle)
        turned[:G, : 2 * pairs] = 0
        return turned


def normalise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm over the last axis."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5) * weight + bias


def draw(p: list[float], k: int | None, cdf: float | None, u: float) -> int:
    """One token: the cdf filter by its definition, then top-k, then the inverse of the cumulative distribution."""
    kept = list(p)
    if cdf is not None:
        kept = [x if x + sum(y for y in p if y < x) >= cdf else 0.0 for x in p]
    if k == 1:
        return kept.index(max(kept))
    if k is not None:
        kth = sorted(kept, reverse=True)[k - 1]
        kept = [x if x >= kth else 0.0 for x in kept]
    target, total = u * sum(kept), 0.0
    for token, x in enumerate(kept):
        total += x
        if total > target:
            return token
    raise AssertionError("u must be below 1")


def plan_naively(
    model: NaiveModel,
    edges: Tensor,
    prefix: list[int],
    *,
    horizon: int,
    width: int,
    expand: int,
    discount: float,
    action: tuple[int | None, float | None] = (1, None),
    limit: int | None = None,
    goal: list[int] | None = None,
    seed: int = 0,
    plan: int = 0,
) -> tuple[list[list[int]], list[float]]:
    """Beam search; returns the last round's beams (tokens after the prefix) and their scores.

    Scores are rounded to nine places, so that equal sequences tie however their sums were rounded.
    """
    N, M = model.observation_dim, model.action_dim
    K = N + M + 2
    mids = (edges[:, 1:] + edges[:, :-1]) / 2
    memory: dict[tuple[int, ...], Tensor] = {}

    def next_probabilities(tokens: list[int]) -> Tensor:
        while limit is not None and len(tokens) > limit:
            tokens = tokens[K:]
        if tuple(tokens) not in memory:  # rows that are equal give equal numbers
            memory[tuple(tokens)] = model.probabilities(tokens, goal)
        return memory[tuple(tokens)]

    beams = [(list(prefix), [], 0.0)] * width
    scores: list[float] = []
    for round_index in range(horizon):
        candidates = []
        for w, (tokens, rewards, _) in enumerate(beams):
            for e in range(expand):
                row, new = w * expand + e, list(tokens)
                for _ in range(M):
                    u = philox_draw(seed, plan, row, len(new) - len(prefix))
                    new.append(draw(next_probabilities(new).tolist(), *action, u))
                numbers = []
                for column in (K - 2, K - 1):
                    p = next_probabilities(new)
                    numbers.append(float(p[:-1] @ mids[column]))
                    new.append(draw(p.tolist(), 1, None, 0.0))
                all_rewards = [*rewards, numbers[0]]
                score = sum(discount**i * r for i, r in enumerate(all_rewards))
                score += discount ** (round_index + 1) * numbers[1]
                candidates.append((new, all_rewards, round(score, 9)))
        best = sorted(range(len(candidates)), key=lambda i: (-candidates[i][2], i))
        beams = [candidates[i] for i in sorted(best[:width])]
        scores = [beam[2] for beam in beams]
        if round_index + 1 < horizon:
            grown = []
            for tokens, rewards, score in beams:
                new = list(tokens)
                for _ in range(N):
                    new.append(draw(next_probabilities(new).tolist(), 1, None, 0.0))
                grown.append((new, rewards, score))
            beams = grown
    return [tokens[len(prefix) :] for tokens, _, _ in beams], scores
