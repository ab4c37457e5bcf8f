"""What careful PyTorch does for a plan: a static key/value cache, one token of all rows at a time; eager or compiled.

The yardstick beside the triton engine on the same GPU: every shape is fixed, nothing is copied to the host between
tokens, and `compiled=True` runs each token step through `torch.compile(mode="reduce-overhead")`, as CUDA graphs. It
plans one problem with a rolling context and no goal; keys hold their positions within the plan.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ttengine.checkpoint import Checkpoint
from ttengine.config import PlanConfig, Sampling
from ttengine.discretizer import Discretizer
from ttengine.engines import Candidates, Counters, EagerEngine, NoiseKey
from ttengine.engines.reference import draw
from ttengine.errors import ConfigError
from ttengine.kernels import reference as ops
from ttengine.model import ROTARY_BASE, KeyValueCache, TrajectoryTransformer
from ttengine.planner import Planner


class TorchEngine(EagerEngine):
    """Plans one problem in a rolling context for `objective="return"`."""

    def __init__(
        self, model: TrajectoryTransformer, discretizer: Discretizer, config: PlanConfig, *, compiled: bool = False
    ) -> None:
        if config.context_kind != "rolling" or config.percentile != "mean" or model.config.goal:
            raise ConfigError("the PyTorch planner plans with a rolling context, means, and no goal")
        if config.objective != "return":
            raise ConfigError("the PyTorch planner searches for returns only: objective='return'")
        self.model, self.config = model.eval(), config
        self.device = next(model.parameters()).device
        self.discretizer = discretizer.to(self.device)
        self.counters = Counters()
        sizes = model.config
        self.rows = config.beam_width * config.expand
        self.columns = (sizes.layers * sizes.context + 1 + config.horizon) * sizes.transition_dim
        head = sizes.width // sizes.heads
        self.cache = torch.zeros(
            sizes.layers, 2, self.rows, sizes.heads, self.columns, head, device=self.device, dtype=torch.float32
        )
        pairs = head // 4
        frequency = ROTARY_BASE ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        angle = torch.arange(self.columns, dtype=torch.float64)[:, None] * frequency
        self.cos, self.sin = (part.float().to(self.device) for part in (angle.cos(), angle.sin()))
        self._step = torch.compile(self._forward, mode="reduce-overhead", dynamic=False) if compiled else self._forward

    def prefill(self, prefixes: Sequence[Tensor], goals: Sequence[Tensor] | None, keys: Sequence[NoiseKey]) -> None:
        """Begin a search: one row a candidate, all of them equal."""
        (prefix,), (self.key,) = prefixes, keys
        self.counters = Counters(prefills=1)
        self.prefix_length = self.position = len(prefix)
        self.observation = self.discretizer.decode(prefix[-self.model.config.observation_dim :].to(self.device))
        self.tokens = prefix.to(self.device).expand(self.config.beam_width, -1)
        self.rewards = torch.zeros(self.config.beam_width, 0, device=self.device)
        cache = KeyValueCache(self.model.config, 1, 0, self.cos)
        hidden = self.model.hidden(self.tokens[:1], None, cache)  # all at once, for one row that stands for all
        for layer, pair in enumerate(zip(cache._keys, cache._values, strict=True)):
            for part, computed in enumerate(pair):
                self.cache[layer, part, :, :, : self.position] = computed[:, :, : self.position]
        self.logits = self.model.head(hidden[:, -1:], self.position - 1)[0].expand(self.rows, -1)

    def expand(self, copies: int) -> Candidates:
        """Copy each beam, decode an action, a reward and a value."""
        self._reorder(torch.arange(self.rows, device=self.device) // copies)
        for _ in range(self.model.config.action_dim):
            self._append(self.config.action)
        reward = ops.expectation(self._append(self.config.reward), self.discretizer.edges[-2])
        value = ops.expectation(self._append(self.config.value), self.discretizer.edges[-1])
        self.rewards = torch.cat([self.rewards, reward[:, None]], dim=1)
        planned = self.tokens[None, :, self.prefix_length :]
        M = self.model.config.action_dim
        return Candidates(planned, self.rewards[None], value[None], self.observation[None], self.discretizer, M)

    def select(self, kept: Tensor) -> None:
        """Keep some candidates as beams; the rows beside them are computed and ignored."""
        self._reorder(F.pad(kept[0], (0, self.rows - kept.shape[1])))

    def observe(self) -> None:
        """Decode the next observation of each beam."""
        for _ in range(self.model.config.observation_dim):
            self._append(self.config.observation)
        beams = self.config.beam_width
        self.tokens, self.rewards, self.logits = self.tokens[:beams], self.rewards[:beams], self.logits[:beams]

    def _reorder(self, rows: Tensor) -> None:
        self.cache[:, :, :, :, : self.position] = self.cache[:, :, rows, :, : self.position]
        source = rows.clamp(max=len(self.tokens) - 1)
        self.tokens, self.rewards, self.logits = self.tokens[source], self.rewards[source], self.logits[source]

    def _append(self, sampling: Sampling) -> Tensor:
        """Draw the next token of every row and feed it; return the probabilities before any filter."""
        probabilities = (self.logits / sampling.temperature).softmax(dim=-1)
        token = self.tokens.shape[1] - self.prefix_length
        where = {"device": self.device}
        noise = torch.zeros(len(self.tokens), **where)
        if not sampling.greedy:
            seed, plan = torch.tensor(self.key.seed, **where), torch.tensor(self.key.plan, **where)
            rows = torch.arange(len(self.tokens), **where)
            noise = ops.philox_uniform(seed, plan, rows, torch.tensor(token, **where))
        drawn = draw(probabilities, sampling, noise)
        self.tokens = torch.cat([self.tokens, drawn[:, None]], dim=1)
        self._feed(drawn)
        return probabilities

    def _feed(self, tokens: Tensor) -> None:
        """Pass a token of every row through the model."""
        position = torch.tensor(self.position, device=self.device)
        self.logits = self._step(tokens, position).clone()
        self.position += 1
        self.counters.token_steps += 1
        self.counters.physical_rows += len(tokens)
        self.counters.logical_rows += len(tokens)

    def _forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """Logits after a token. tokens [R] int64, position [] int64 -> [R, V+1]."""
        model, sizes = self.model, self.model.config
        K, V = sizes.transition_dim, sizes.n_bins
        column = position % K
        row = torch.where(tokens == V, V * K, tokens + column * V)
        x = model.token_embedding(row) + model.column_embedding[column]
        past = torch.arange(self.columns, device=tokens.device)
        visible = (past <= position) & (past % K != K - 1) & (position // K - past // K <= sizes.context)
        cos, sin = self.cos[position], self.sin[position]
        pairs = len(cos)
        for layer, block in enumerate(model.blocks):
            qkv = block.qkv(block.attention_norm(x)).unflatten(-1, (3, sizes.heads, -1))
            a, b, rest = qkv[:, :2].split([pairs, pairs, qkv.shape[-1] - 2 * pairs], dim=-1)
            turned = torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)
            keys, values = self.cache[layer]
            keys.index_copy_(2, position[None], turned[:, 1, :, None])
            values.index_copy_(2, position[None], qkv[:, 2, :, None])
            mixed = F.scaled_dot_product_attention(turned[:, 0, :, None], keys, values, attn_mask=visible[None])
            x = x + block.projection(mixed[:, :, 0].flatten(1))
            x = x + block.mlp_out(F.gelu(block.mlp_in(block.mlp_norm(x))))
        return torch.einsum("rd,vd->rv", model.final_norm(x), model.head.weight[column])


def torch_planner(
    checkpoint: Checkpoint, config: PlanConfig, *, device: str = "cpu", compiled: bool = False
) -> Planner:
    """Return a planner that computes by `TorchEngine`; its plans call themselves the reference engine's."""
    planner = Planner(checkpoint, config, device=device)
    planner.engine = TorchEngine(planner.model, planner.discretizer, planner.config, compiled=compiled)
    return planner
