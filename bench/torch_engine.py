"""What careful PyTorch does for a plan: a static key/value cache, one token of all rows at a time; eager or compiled.

The yardstick beside the triton engine on the same GPU, in float32. Every shape is fixed, the cache holds no more than a
token can see, the noise of a plan is drawn at once, and within a segment the host waits for nothing. `compiled=True`
runs each token step through `torch.compile(mode="reduce-overhead")`, as CUDA graphs. It plans one problem without a
goal. With a window the context is cropped as the paper's planner does, and computed anew for all beams at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ttengine.checkpoint import Checkpoint
from ttengine.config import PlanConfig, Sampling
from ttengine.discretizer import Discretizer
from ttengine.engines import Candidates, Counters, EagerEngine, NoiseKey
from ttengine.engines.reference import draw, window_tokens
from ttengine.errors import ConfigError
from ttengine.kernels import reference as ops
from ttengine.model import ROTARY_BASE, KeyValueCache, TrajectoryTransformer
from ttengine.planner import Planner


class TorchEngine(EagerEngine):
    """Plans one problem for `objective="return"`.

    Keys and values lie in a ring of as many tokens as one can see: position p in column p % ring. Positions in a window
    are counted from its start, so that they never reach the ring's end.
    """

    def __init__(
        self, model: TrajectoryTransformer, discretizer: Discretizer, config: PlanConfig, *, compiled: bool = False
    ) -> None:
        if config.percentile != "mean" or model.config.goal:
            raise ConfigError("the PyTorch planner plans with means and no goal")
        if config.objective != "return":
            raise ConfigError("the PyTorch planner searches for returns only: objective='return'")
        self.model, self.config = model.eval(), config
        self.device = next(model.parameters()).device
        self.discretizer = discretizer.to(self.device)
        self.counters = Counters()
        sizes = model.config
        K = sizes.transition_dim
        self.rows = config.beam_width * config.expand
        self.window = window_tokens(sizes, config) if config.context_kind == "window" else None
        self.ring = self.window or (sizes.context + 1) * K
        head = sizes.width // sizes.heads
        self.cache = [
            [torch.zeros(self.rows, sizes.heads, self.ring, head, device=self.device) for _ in range(2)]
            for _ in range(sizes.layers)
        ]
        """Keys and values of each layer, [R, A, ring, D/A]."""
        positions = max(self.ring, (sizes.layers * sizes.context + 1 + config.horizon) * K)
        pairs = head // 4
        frequency = ROTARY_BASE ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        angle = torch.arange(positions, dtype=torch.float64)[:, None] * frequency
        self.cos, self.sin = (part.float().to(self.device) for part in (angle.cos(), angle.sin()))
        self.positions = torch.arange(positions, device=self.device)[:, None]
        """[position, 1]: a position for the device without a copy from the host, which would wait."""
        self.row = torch.arange(self.rows, device=self.device)
        segments = {config.action, config.reward, config.value, config.observation}
        self._choose = {sampling: chooser(sampling) for sampling in segments}
        self._step: Callable[[Tensor, Tensor], Tensor] = self._forward
        if compiled:
            torch.compiler.reset()  # what was compiled for another planner counts towards a limit
            for tensor in (self.cos, self.sin, *(part for layer in self.cache for part in layer)):
                torch._dynamo.mark_static_address(tensor)  # a graph that writes to anything else is not captured
            self._choose = {sampling: compile_token(choose) for sampling, choose in self._choose.items()}
            self._step = compile_token(self._forward)

    def prefill(self, prefixes: Sequence[Tensor], goals: Sequence[Tensor] | None, keys: Sequence[NoiseKey]) -> None:
        """Begin a search: one row a candidate, all of them equal."""
        (prefix,), (key,) = prefixes, keys
        self.counters = Counters(prefills=1)
        self.prefix_length = self.position = len(prefix)
        while self.window is not None and self.position > self.window:
            self.position -= self.model.config.transition_dim
        self.observation = self.discretizer.decode(prefix[-self.model.config.observation_dim :].to(self.device))
        self.tokens = prefix.to(self.device).expand(self.config.beam_width, -1)
        self.rewards = torch.zeros(self.config.beam_width, 0, device=self.device)
        cache = KeyValueCache(self.model.config, 1, 0, self.cos)
        visible = prefix.to(self.device)[None, len(prefix) - self.position :]
        hidden = self.model.hidden(visible, None, cache)  # all at once, for one row that stands for all
        seen = self.positions[max(0, self.position - self.ring) : self.position, 0]
        for ours, computed in zip(self.cache, zip(cache._keys, cache._values, strict=True), strict=True):
            for part, prefilled in zip(ours, computed, strict=True):
                part[:, :, seen % self.ring] = prefilled[:, :, seen]
        self.logits: Tensor | None = self.model.head(hidden[:, -1:], self.position - 1)[0].expand(len(self.tokens), -1)
        seed, plan = torch.tensor([key.seed, key.plan]).to(self.device)
        token = self.positions[: self.config.horizon * self.model.config.transition_dim]
        self.noise = ops.philox_uniform(seed, plan, self.row, token)

    def expand(self, copies: int) -> Candidates:
        """Copy each beam, decode an action, a reward and a value."""
        self._next_logits()  # before copying: what the copies share is computed once
        self._reorder(self.row // copies)
        for _ in range(self.model.config.action_dim):
            self._append(self.config.action)
        reward = ops.expectation(self._append(self.config.reward), self.discretizer.edges[-2])
        value = ops.expectation(self._append(self.config.value), self.discretizer.edges[-1])
        self.rewards = torch.cat([self.rewards, reward[:, None]], dim=1)
        planned = self.tokens[None, :, self.prefix_length :]
        M = self.model.config.action_dim
        return Candidates(planned, self.rewards[None], value[None], self.observation[None], self.discretizer, M)

    def select(self, kept: Tensor) -> None:
        """Keep some candidates as beams."""
        self._reorder(kept[0])

    def observe(self) -> None:
        """Decode the next observation of each beam."""
        for _ in range(self.model.config.observation_dim):
            self._append(self.config.observation)

    def _reorder(self, rows: Tensor) -> None:
        for layer in self.cache:
            for part in layer:
                part[: len(rows)] = part[rows]
        self.tokens, self.rewards = self.tokens[rows], self.rewards[rows]
        self.logits = None if self.logits is None else self.logits[rows]

    def _append(self, sampling: Sampling) -> Tensor:
        """Draw the next token of every row; return the probabilities before any filter."""
        noise = self.noise[self.tokens.shape[1] - self.prefix_length, : len(self.tokens)]
        # what a graph returned is overwritten by the next replay
        probabilities, drawn = (part.clone() for part in self._choose[sampling](self._next_logits(), noise))
        self.tokens = torch.cat([self.tokens, drawn[:, None]], dim=1)
        self.logits = None
        return probabilities

    def _next_logits(self) -> Tensor:
        """Logits of the next token, [R, V+1]: the last one is fed; or what is left of a window that grew too long."""
        if self.logits is None:
            first, self.position = self.position, self.position + 1
            if self.window is not None and self.position > self.window:
                first, self.position = 0, self.position - self.model.config.transition_dim
                self.counters.prefills += 1
            fed = self.tokens[:, self.tokens.shape[1] - self.position + first :].contiguous()
            self.logits = self._step(fed, self.positions[first : self.position, 0]).clone()
            self.counters.token_steps += 1
            self.counters.physical_rows += fed.numel()
            self.counters.logical_rows += fed.numel()
        return self.logits

    def _forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits after the last of some successive tokens. tokens [R, T] int64, positions [T] int64 -> [R, V+1]."""
        model, sizes, rows = self.model, self.model.config, len(tokens)
        K, V = sizes.transition_dim, sizes.n_bins
        column, last = positions % K, positions[-1:]
        row = torch.where(tokens == V, V * K, tokens + column * V)
        past = last - (last - torch.arange(self.ring, device=tokens.device)) % self.ring
        visible = (past >= 0) & (past % K != K - 1) & (past <= positions[:, None])
        rotary = sizes.positions == "rotary"
        if rotary:
            visible &= positions[:, None] // K - past // K <= sizes.context
        place = model.column_embedding[column] if rotary else model.position_embedding[positions]
        x = model.token_embedding(row) + place
        cos, sin = self.cos[positions], self.sin[positions]
        pairs = cos.shape[1]
        for block, (keys, values) in zip(model.blocks, self.cache, strict=True):
            qkv = block.qkv(block.attention_norm(x)).unflatten(-1, (3, sizes.heads, -1))
            query_key, value = qkv.permute(2, 0, 3, 1, 4).split([2, 1])  # [2 or 1, R, A, T, D/A]
            if rotary:
                a, b, rest = query_key.split([pairs, pairs, query_key.shape[-1] - 2 * pairs], dim=-1)
                query_key = torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)
            keys[:rows].index_copy_(2, positions % self.ring, query_key[1])
            values[:rows].index_copy_(2, positions % self.ring, value[0])
            mixed = F.scaled_dot_product_attention(query_key[0], keys[:rows], values[:rows], attn_mask=visible)
            x = x + block.projection(mixed.transpose(1, 2).flatten(2))
            x = x + block.mlp_out(F.gelu(block.mlp_in(block.mlp_norm(x))))
        return F.linear(model.final_norm(x[:, -1]), model.head.weight[column[-1:]][0])


def chooser(sampling: Sampling) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return what turns logits [R, V+1] and noise [R] into probabilities [R, V+1] and drawn tokens [R] int64."""

    def choose(logits: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        probabilities = (logits / sampling.temperature).softmax(dim=-1)
        return probabilities, draw(probabilities, sampling, noise)

    return choose


def compile_token(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile what is called for every token; as a whole, or it is an error."""
    return torch.compile(function, mode="reduce-overhead", dynamic=False, fullgraph=True)


def torch_planner(
    checkpoint: Checkpoint, config: PlanConfig, *, device: str = "cpu", compiled: bool = False
) -> Planner:
    """Return a planner that computes by `TorchEngine`; its plans call themselves the reference engine's."""
    planner = Planner(checkpoint, config, device=device)
    planner.engine = TorchEngine(planner.model, planner.discretizer, planner.config, compiled=compiled)
    return planner
