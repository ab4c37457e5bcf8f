"""What careful PyTorch does for a plan: a static key/value cache, one token of all rows at a time; eager or compiled.

The yardstick beside the triton engine on the same GPU, in float32. Every shape is fixed, the cache holds no more than a
token can see, the noise of a plan is drawn at once, and within a segment the host waits for nothing. `compiled=True`
runs each token step through `torch.compile(mode="reduce-overhead")`, as CUDA graphs. It plans one problem with a
rolling context and no goal.
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
from ttengine.engines.reference import draw
from ttengine.errors import ConfigError
from ttengine.kernels import reference as ops
from ttengine.model import ROTARY_BASE, KeyValueCache, TrajectoryTransformer
from ttengine.planner import Planner


class TorchEngine(EagerEngine):
    """Plans one problem in a rolling context for `objective="return"`.

    Keys and values lie in a ring of as many tokens as one can see: position p in column p % ring.
    """

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
        K = sizes.transition_dim
        self.rows = config.beam_width * config.expand
        self.ring = (sizes.context + 1) * K
        head = sizes.width // sizes.heads
        self.cache = [
            [torch.zeros(self.rows, sizes.heads, self.ring, head, device=self.device) for _ in range(2)]
            for _ in range(sizes.layers)
        ]
        """Keys and values of each layer, [R, A, ring, D/A]."""
        positions = (sizes.layers * sizes.context + 1 + config.horizon) * K
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
        self.observation = self.discretizer.decode(prefix[-self.model.config.observation_dim :].to(self.device))
        self.tokens = prefix.to(self.device).expand(self.config.beam_width, -1)
        self.rewards = torch.zeros(self.config.beam_width, 0, device=self.device)
        cache = KeyValueCache(self.model.config, 1, 0, self.cos)
        hidden = self.model.hidden(self.tokens[:1], None, cache)  # all at once, for one row that stands for all
        seen = self.positions[max(0, self.position - self.ring) : self.position, 0]
        for ours, computed in zip(self.cache, zip(cache._keys, cache._values, strict=True), strict=True):
            for part, prefilled in zip(ours, computed, strict=True):
                part[:, :, seen % self.ring] = prefilled[:, :, seen]
        self.logits = self.model.head(hidden[:, -1:], self.position - 1)[0].expand(self.rows, -1)
        seed, plan = torch.tensor([key.seed, key.plan]).to(self.device)
        token = self.positions[: self.config.horizon * self.model.config.transition_dim]
        self.noise = ops.philox_uniform(seed, plan, self.row, token)

    def expand(self, copies: int) -> Candidates:
        """Copy each beam, decode an action, a reward and a value."""
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
        """Keep some candidates as beams; the rows beside them are computed and ignored."""
        self._reorder(F.pad(kept[0], (0, self.rows - kept.shape[1])))

    def observe(self) -> None:
        """Decode the next observation of each beam."""
        for _ in range(self.model.config.observation_dim):
            self._append(self.config.observation)
        beams = self.config.beam_width
        self.tokens, self.rewards, self.logits = self.tokens[:beams], self.rewards[:beams], self.logits[:beams]

    def _reorder(self, rows: Tensor) -> None:
        for layer in self.cache:
            for part in layer:
                part.copy_(part[rows])
        source = rows.clamp(max=len(self.tokens) - 1)
        self.tokens, self.rewards, self.logits = self.tokens[source], self.rewards[source], self.logits[source]

    def _append(self, sampling: Sampling) -> Tensor:
        """Draw the next token of every row and feed it; return the probabilities before any filter."""
        noise = self.noise[self.tokens.shape[1] - self.prefix_length]
        # what a graph returned is overwritten by the next replay
        probabilities, drawn = (part.clone() for part in self._choose[sampling](self.logits, noise))
        self.tokens = torch.cat([self.tokens, drawn[:, None]], dim=1)
        self.logits = self._step(drawn, self.positions[self.position]).clone()
        self.position += 1
        self.counters.token_steps += 1
        self.counters.physical_rows += self.rows
        self.counters.logical_rows += self.rows
        return probabilities

    def _forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """Logits after a token. tokens [R] int64, position [1] int64 -> [R, V+1]."""
        model, sizes = self.model, self.model.config
        K, V = sizes.transition_dim, sizes.n_bins
        column = position % K
        row = torch.where(tokens == V, V * K, tokens + column * V)
        x = model.token_embedding(row) + model.column_embedding[column]
        past = position - (position - torch.arange(self.ring, device=tokens.device)) % self.ring
        visible = (past >= 0) & (past % K != K - 1) & (position // K - past // K <= sizes.context)
        cos, sin = self.cos[position], self.sin[position]
        pairs = cos.shape[1]
        for block, (keys, values) in zip(model.blocks, self.cache, strict=True):
            qkv = block.qkv(block.attention_norm(x)).unflatten(-1, (3, sizes.heads, -1))
            a, b, rest = qkv[:, :2].split([pairs, pairs, qkv.shape[-1] - 2 * pairs], dim=-1)
            turned = torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)
            keys.index_copy_(2, position % self.ring, turned[:, 1, :, None])
            values.index_copy_(2, position % self.ring, qkv[:, 2, :, None])
            mixed = F.scaled_dot_product_attention(turned[:, 0, :, None], keys, values, attn_mask=visible[None])
            x = x + block.projection(mixed[:, :, 0].flatten(1))
            x = x + block.mlp_out(F.gelu(block.mlp_in(block.mlp_norm(x))))
        return F.linear(model.final_norm(x), model.head.weight[column][0])


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
