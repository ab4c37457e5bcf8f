"""The Trajectory Transformer: a GPT over the tokens of transitions.

A trajectory is a row of tokens, K a transition: N observation, M action, one reward, one value. The model predicts each
token from those before it. Three things set it apart from a plain GPT:

* every position of the transition has token embeddings and an output head of its own;
* no token attends to a value token, which knows the future: it influences only the prediction of its own successor;
* with `positions="rotary"` a token sees its own and the previous `context` transitions and nothing else, at every
  depth, so that cached keys and values stay valid while the context slides.

State dict (i counts layers; D width, V bins, K tokens a transition, N observation dims):

    token_embedding.weight              [V*K + 1, D]   row column*V + bin; the last row is the stop token's
    position_embedding                  [window*K - 1, D]   absolute positions only
    column_embedding                    [K, D]         rotary positions only; by place in the transition
    goal_embedding.weight               [V*N, D]       goal models only; row column*V + bin
    blocks.i.attention_norm.{weight,bias}   [D]
    blocks.i.qkv.{weight,bias}          [3*D, D], [3*D]   query, key, value, each by heads
    blocks.i.projection.{weight,bias}   [D, D], [D]
    blocks.i.mlp_norm.{weight,bias}     [D]
    blocks.i.mlp_in.{weight,bias}       [4*D, D], [4*D]
    blocks.i.mlp_out.{weight,bias}      [D, 4*D], [D]
    final_norm.{weight,bias}            [D]
    head.weight                         [K, V+1, D]    one linear head a position, no bias

Source: Janner et al. 2021 (arXiv 2106.02039) and its released code.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttengine.config import ModelConfig
from ttengine.dropout import attention, dropout
from ttengine.errors import ShapeError

NORM_EPS = 1e-5
ROTARY_BASE = 10_000.0


class KeyValueCache:
    """Keys and values of tokens already seen, for decoding one token at a time.

    The columns are the goal's, if any, then tokens `start`, `start` + 1, ... of the row.

    Attributes:
        origin: index of the first token that what is cached depends on: forgotten tokens have been seen.
        start: index of the first cached token of the row, a multiple of K.
        length: cached columns, the goal's included.
    """

    GROWTH = 32
    """columns added when the buffers are full"""

    def __init__(self, config: ModelConfig, rows: int, start: int, like: Tensor) -> None:
        self.origin = self.start = start
        self.length = 0
        self._goals = config.goal_tokens
        empty = like.new_empty(rows, config.heads, 0, config.width // config.heads)
        self._keys = [empty] * config.layers
        self._values = [empty] * config.layers

    @property
    def tokens(self) -> int:
        """Cached tokens, the goal's not counted."""
        return max(0, self.length - self._goals)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [R, A, T, D/A] keys and values behind the cached ones; return all of them."""
        end = self.length + keys.shape[2]
        for buffers, new in ((self._keys, keys), (self._values, values)):
            missing = end - buffers[layer].shape[2]
            if missing > 0:
                buffers[layer] = F.pad(buffers[layer], (0, 0, 0, missing + self.GROWTH))
            buffers[layer][:, :, self.length : end] = new
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def select(self, rows: Tensor) -> None:
        """Keep the given rows, in the given order, repeats allowed. rows [R'] int64."""
        self._keep(lambda buffer: buffer[rows, :, : self.length])

    def forget(self, tokens: int) -> None:
        """Drop the oldest `tokens` tokens; the goal's columns stay."""
        if tokens <= 0:
            return
        goals, rest = slice(self._goals), slice(self._goals + tokens, self.length)
        self._keep(lambda buffer: torch.cat([buffer[:, :, goals], buffer[:, :, rest]], dim=2))
        self.start += tokens
        self.length -= tokens

    def _keep(self, pick: Callable[[Tensor], Tensor]) -> None:
        self._keys = [pick(buffer) for buffer in self._keys]
        self._values = [pick(buffer) for buffer in self._values]


class Block(nn.Module):
    """One pre-norm Transformer layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.attention_norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.projection = nn.Linear(config.width, config.width)
        self.mlp_norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.mlp_in = nn.Linear(config.width, 4 * config.width)
        self.mlp_out = nn.Linear(4 * config.width, config.width)

    def forward(
        self, x: Tensor, visible: Tensor, turn: Rotation | None, cache: KeyValueCache | None, layer: int
    ) -> Tensor:
        """x [B, T, D], visible [T, columns] bool -> [B, T, D]."""
        qkv: Tensor = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))  # [B, T, 3, A, D/A]
        turned, value = qkv.split([2, 1], dim=2)
        if turn is not None:
            turned = turn(turned)
        query, key, value = (part.transpose(1, 2) for part in (*turned.unbind(2), value[:, :, 0]))
        if cache is not None:
            key, value = cache.append(layer, key, value)
        rate = self.dropout if self.training else 0.0
        mixed = attention(query, key, value, visible, rate)
        x = x + dropout(self.projection(mixed.transpose(1, 2).flatten(2)), self.dropout, self.training)
        hidden = F.gelu(self.mlp_in(self.mlp_norm(x)))
        return x + dropout(self.mlp_out(hidden), self.dropout, self.training)


class Rotation:
    """Rotary positions: turns pairs in the first half of each head by an angle that grows with the position.

    Goal tokens have no position: their turned half is zeroed, so that a query sees them alike from everywhere.

    Source: Su et al. 2021 (arXiv 2104.09864), on half of each head as in GPT-J.
    """

    def __init__(self, first: int, goal_tokens: int, length: int, head_width: int, like: Tensor) -> None:
        """Prepare `goal_tokens` goal columns followed by `length` tokens, the first at position `first`."""
        pairs = head_width // 4
        # float64 angles: at position 25,000 (an episode) float32 would be off by a thousandth of a turn
        frequency = ROTARY_BASE ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        angle = torch.arange(first, first + length, dtype=torch.float64)[:, None] * frequency
        none = torch.zeros(goal_tokens, pairs, dtype=torch.float64)
        self.cos = torch.cat([none, angle.cos()]).to(like)[:, None, None]
        self.sin = torch.cat([none, angle.sin()]).to(like)[:, None, None]

    def __call__(self, x: Tensor) -> Tensor:
        """x [B, T, ..., A, D/A] with one axis between -> the same."""
        pairs = self.cos.shape[-1]
        a, b, rest = x.split([pairs, pairs, x.shape[-1] - 2 * pairs], dim=-1)
        return torch.cat([a * self.cos - b * self.sin, a * self.sin + b * self.cos, rest], dim=-1)


class Head(nn.Module):
    """One linear head without bias for each position of the transition."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.transition_dim, config.n_bins + 1, config.width))
        for weight in self.weight:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))

    def forward(self, x: Tensor, first: int) -> Tensor:
        """Logits of the tokens that follow. x [B, T, D], x[:, 0] at position `first` -> [B, T, V+1]."""
        K = self.weight.shape[0]
        if x.shape[1] < K:
            column = (first + torch.arange(x.shape[1], device=x.device)) % K
            return torch.einsum("btd,tvd->btv", x, self.weight[column])
        lead = first % K
        whole = F.pad(x, (0, 0, lead, -(lead + x.shape[1]) % K)).unflatten(1, (-1, K))
        return torch.einsum("brkd,kvd->brkv", whole, self.weight).flatten(1, 2)[:, lead : lead + x.shape[1]]


class TrajectoryTransformer(nn.Module):
    """Predicts each token of a trajectory from the tokens before it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.n_bins * config.transition_dim + 1, config.width)
        if config.positions == "absolute":
            self.position_embedding = nn.Parameter(torch.zeros(config.max_tokens, config.width))
        else:
            self.column_embedding = nn.Parameter(torch.zeros(config.transition_dim, config.width))
        if config.goal:
            self.goal_embedding = nn.Embedding(config.n_bins * config.observation_dim, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.head = Head(config)
        self.apply(_initialise)

    def forward(self, tokens: Tensor, goal: Tensor | None = None) -> Tensor:
        """Predict the token after each token.

        Args:
            tokens: [B, T] int64 in [0, V], starting with a transition's first token; T <= max_tokens for absolute
                positions.
            goal: [B, N] int64 in [0, V), for goal models.
        Returns:
            [B, T, V+1] logits.
        Raises:
            ShapeError: T is too long, or a goal is missing or unwanted.
        """
        logits: Tensor = self.head(self.hidden(tokens, goal), 0)
        return logits

    def hidden(self, tokens: Tensor, goal: Tensor | None = None, cache: KeyValueCache | None = None) -> Tensor:
        """Run all layers; with a cache, `tokens` follow the cached ones and the goal is read once, on the first call.

        Returns:
            [B, T, D], what the head reads.
        """
        first = 0 if cache is None else cache.tokens
        self._check(tokens, goal, first)
        x = self._embed(tokens, first)
        goals = self.config.goal_tokens if first == 0 else 0
        if goals:
            assert goal is not None
            offsets = torch.arange(goals, device=goal.device) * self.config.n_bins
            x = torch.cat([self.goal_embedding(goal + offsets), x], dim=1)
        x = dropout(x, self.config.dropout, self.training)
        turn = None
        if self.config.positions == "rotary":
            origin = cache.start if cache is not None else 0
            turn = Rotation(origin + first, goals, tokens.shape[1], self.config.width // self.config.heads, x)
        visible = attention_mask(self.config, first, tokens.shape[1], x.device)
        for layer, block in enumerate(self.blocks):
            x = block(x, visible, turn, cache, layer)
        if cache is not None:
            cache.length += x.shape[1]
        normed: Tensor = self.final_norm(x)
        return normed[:, goals:]

    def _embed(self, tokens: Tensor, first: int) -> Tensor:
        column = (first + torch.arange(tokens.shape[1], device=tokens.device)) % self.config.transition_dim
        stop_row = self.config.n_bins * self.config.transition_dim
        row = torch.where(tokens == self.config.n_bins, stop_row, tokens + column * self.config.n_bins)
        if self.config.positions == "absolute":
            place = self.position_embedding[first : first + tokens.shape[1]]
        else:
            place = self.column_embedding[column]  # rotary positions are relative: they do not say which column it is
        embedded: Tensor = self.token_embedding(row) + place
        return embedded

    def _check(self, tokens: Tensor, goal: Tensor | None, first: int) -> None:
        if tokens.ndim != 2 or tokens.shape[1] < 1:
            raise ShapeError(f"tokens have shape {tuple(tokens.shape)}, expected [batch, tokens]")
        longest = self.config.max_tokens
        if self.config.positions == "absolute" and first + tokens.shape[1] > longest:
            raise ShapeError(
                f"{first + tokens.shape[1]} tokens came, the model has {longest} positions "
                f"({self.config.window} transitions); crop the context"
            )
        if first == 0 and self.config.goal != (goal is not None):
            raise ShapeError(
                f"this model was trained {'with' if self.config.goal else 'without'} goals, "
                f"and {'none' if goal is None else 'one'} came"
            )
        if goal is not None and goal.shape != (len(tokens), self.config.observation_dim):
            raise ShapeError(
                f"goal has shape {tuple(goal.shape)}, expected {(len(tokens), self.config.observation_dim)}"
            )


def attention_mask(config: ModelConfig, first: int, length: int, device: torch.device) -> Tensor:
    """Say what each token may attend to.

    Rows are the tokens at positions first to first+length-1; with first = 0 the goal's rows come before them. Columns
    are all tokens so far, the goal's first. Goal columns are never masked but for causality; a value token's column is
    masked for every row, its own included; rotary models see the previous `context` transitions and no further.

    Returns:
        [rows, columns] bool, True where visible.
    """
    K, goals = config.transition_dim, config.goal_tokens
    column = torch.arange(-goals, first + length, device=device)  # negative: goal tokens
    row = column[goals + first :] if first else column
    visible = column <= row[:, None]
    visible &= (column < 0) | (column % K != K - 1)
    if config.positions == "rotary":
        near = row[:, None] // K - column // K <= config.context
        visible &= (column < 0) | near
    return visible


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
