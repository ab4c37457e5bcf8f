"""A tile of tokens through all layers of the Transformer, inside one Triton program.

The rows of a tile are tokens of one sequence or of several, which take turns. A row says where its token stands by an
*entry* of its list of pages and a *slot* of that page; everything else follows. All rows of a tile write their keys and
values before any row reads, so neighbours of one sequence see each other.

A page is one round: slots [action tokens, reward | next observation]. The value token, which no token attends to, has
no slot; its place is written as slot `Shape.slots`. `ttengine.model` says what is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import LOG2_E, attend, share_lists, turn, turn_pairs
from .products import factor, load_factor, product, store_factor, take_apart, whole

NORM_EPS = tl.constexpr(1e-5)
ROTARY_BASE = 10_000.0
UNBOUNDED = 1 << 20
"""As the sight of a model whose tokens see all transitions before them."""


@dataclass(frozen=True)
class Shape:
    """What a kernel is compiled for: the model's sizes, and how they are tiled."""

    observation_dim: int
    action_dim: int
    n_bins: int
    layers: int
    heads: int
    width: int
    goal: bool = False
    rotary: bool = False
    sight: int = UNBOUNDED
    """transitions before its own that a token sees"""
    places: int = 0
    """rows of the table of place embeddings: positions, or columns for rotary models"""
    dtype: Any = tl.float32
    """of weights, keys and values; sums are float32"""
    rows: int = 16
    """of a tile; a matrix unit takes no fewer"""
    group: int = 2
    """lists of pages read at a time by rows that have their own"""
    room: int = 160 * 1024
    """bytes of shared memory that a program may take"""

    def __str__(self) -> str:
        """With what follows from the fields: by this text Triton tells apart what it has compiled and keeps on disk."""
        follows = {name: getattr(self, name) for name, each in vars(Shape).items() if isinstance(each, property)}
        return f"{self!r}, {follows}"

    @property
    def transition_dim(self) -> int:
        """K, tokens in one transition."""
        return self.observation_dim + self.action_dim + 2

    @property
    def slots(self) -> int:
        """S, slots in one page: a transition's tokens without the value."""
        return self.transition_dim - 1

    @property
    def head_width(self) -> int:
        """Numbers in one head."""
        return self.width // self.heads

    @property
    def vocabulary(self) -> int:
        """Bins and the stop token."""
        return self.n_bins + 1

    @property
    def padded(self) -> int:
        """Columns of logits, a power of two."""
        return max(16, int(triton.next_power_of_2(self.vocabulary)))

    @property
    def roomy(self) -> bool:
        """Whether float32 can have as many numbers in flight as 16 bits."""
        return self.room >= 216 * 1024

    @property
    def read(self) -> int:
        """Numbers of a matrix read at a time."""
        numbers = 16 * 1024 if self.room >= 144 * 1024 else 8 * 1024
        return numbers if self.roomy else numbers // self.parts

    @property
    def heads_beside(self) -> int:
        """Heads computed at a time."""
        return max(1, min(self.heads, self.read // self.width // self.head_width))

    @property
    def columns(self) -> int:
        """Numbers of a token in the heads computed at a time."""
        return self.heads_beside * self.head_width

    @property
    def hidden_chunk(self) -> int:
        """Hidden units of the feed-forward layer computed at a time."""
        return min(2 * self.width, max(16, self.read // self.width))

    @property
    def ahead(self) -> bool:
        """Whether the matrices of attention are all read before the first is used: there is room for them."""
        return self.width * self.columns <= self.read

    @property
    def keys(self) -> int:
        """Keys of one list that a strand of `attend` reads at a time."""
        enough = self.stages == 3 or (self.stages == 2 and self.roomy)
        return 32 if enough and self.head_width <= 32 else 16

    @property
    def split(self) -> int:
        """Strands of `attend` for one head and list."""
        return max(1, min(8, 256 // self.head_width) // self.heads_beside)

    def pieces(self, entries: int) -> int:
        """Most pieces that strands of `attend` read of a list of so many pages, and a goal's behind them."""
        block = self.keys * self.split
        goal = -(-self.observation_dim // block) if self.goal else 0
        return self.split * (-(-entries * self.slots // block) + goal)

    @property
    def stages(self) -> int:
        """Blocks of weights or keys in flight at a time: as many as fit beside each other in shared memory."""
        if self.width > 128:
            return 1
        return (4 if self.room >= 96 * 1024 else 3) - self.parts

    @property
    def parts(self) -> int:
        """Numbers of 16 bits in which one is kept (`products`)."""
        return 2 if self.dtype == tl.float32 else 1

    @property
    def page_size(self) -> int:
        """Numbers of 16 bits in one page: keys and values of all layers, then their rests."""
        return self.parts * self.layers * 2 * self.slots * self.width

    @property
    def page_rest(self) -> int:
        """From a key or value to its rest; 0 if it has none."""
        return self.page_size // 2 * (self.parts - 1)

    @property
    def layer_matrices(self) -> int:
        """Numbers in the matrices of one layer."""
        return 12 * self.width**2

    @property
    def matrices(self) -> int:
        """Numbers in all matrices."""
        return self.layers * self.layer_matrices + self.transition_dim * self.width * self.padded

    @property
    def layer_vectors(self) -> int:
        """Numbers in the norms and biases of one layer."""
        return 13 * self.width


class Model(NamedTuple):
    """A packed model: four tensors on the device, or pointers to them in a kernel."""

    matrices: Any
    """[Shape.matrices] of the kernel's dtype: a layer's, one after the other, then the heads; for float32
    [2, Shape.matrices] float16, taken apart (`products`)"""
    vectors: Any
    """[layers * 13*D + 2*D] float32: norms and biases, in the order in which they are used"""
    embeddings: Any
    """[V*K + 1 + places + goal rows, D] of the kernel's dtype"""
    turns: Any
    """[distances, 2, D/A/2] float32, cosines and sines of pairs; one row of zeros without rotary positions"""


def pack(weights: Mapping[str, Tensor], shape: Shape, distances: int) -> Model:
    """Lay a model's state dict (`ttengine.model`) out as the kernels read it.

    Args:
        weights: the state dict.
        shape: its sizes.
        distances: tokens in the pages of a plan, from the first that is seen to the last that is planned.
    """
    D = shape.width
    matrices, vectors = [], []
    for layer in range(shape.layers):
        block = {name: weights[f"blocks.{layer}.{name}"] for name in _BLOCK}
        block |= {name: pair_up(block[name], shape) for name in ("qkv.weight", "qkv.bias")}
        pairs, value = block["qkv.weight"].split([2 * D, D])
        pairs = pairs.view(2, -1, 2, shape.columns // 2, D).transpose(3, 4)
        value = value.view(-1, shape.columns, D).transpose(1, 2)
        hidden = block["mlp_in.weight"].view(-1, shape.hidden_chunk, D).transpose(1, 2)
        matrices += [pairs, value, block["projection.weight"].t(), hidden, block["mlp_out.weight"].t()]
        vectors += [block[name] for name in _BLOCK if not name.endswith("weight") or "norm" in name]
    head = weights["head.weight"].transpose(1, 2)
    matrices.append(torch.nn.functional.pad(head, (0, shape.padded - shape.vocabulary)))
    vectors += [weights["final_norm.weight"], weights["final_norm.bias"]]
    place = weights["column_embedding" if shape.rotary else "position_embedding"]
    embeddings = [weights["token_embedding.weight"], place]
    if shape.goal:
        embeddings.append(weights["goal_embedding.weight"])
    numbers = torch.cat([each.flatten() for each in matrices])
    dtype = {tl.float32: torch.float32, tl.float16: torch.float16, tl.bfloat16: torch.bfloat16}[shape.dtype]
    return Model(
        take_apart(numbers) if shape.parts == 2 else numbers.to(dtype),
        torch.cat([each.flatten() for each in vectors]).float(),
        torch.cat(embeddings).to(dtype).contiguous(),
        turns(shape, distances).to(place.device),
    )


_BLOCK = (
    *("attention_norm.weight", "attention_norm.bias", "qkv.weight", "qkv.bias", "projection.weight", "projection.bias"),
    *("mlp_norm.weight", "mlp_norm.bias", "mlp_in.weight", "mlp_in.bias", "mlp_out.weight", "mlp_out.bias"),
)


def pair_up(qkv: Tensor, shape: Shape) -> Tensor:
    """Part the pairs of queries and keys that turn: of the heads computed at a time, first one half, then the other.

    Pairs are i and i + D/A/4 of a head, in its first half; the rest does not turn, and is parted as neighbours are.
    [3 * D, ...], the same shape.
    """
    quarter = shape.head_width // 4
    order = torch.arange(shape.head_width)
    if shape.rotary:
        order[: 2 * quarter] = order[: 2 * quarter].view(2, quarter).t().flatten()
    parts = qkv.view(3, -1, shape.heads_beside, shape.head_width, *qkv.shape[1:]).clone()
    pairs = parts[:2, :, :, order].unflatten(3, (-1, 2)).movedim(4, 2)
    parts[:2] = pairs.reshape(parts[:2].shape)
    return parts.view_as(qkv)


def turns(shape: Shape, distances: int) -> Tensor:
    """[distances, 2, D/A/2] float32: cosines and sines of the angles by which pairs are turned."""
    if not shape.rotary:
        return torch.zeros(1, 2, shape.head_width // 2)
    pairs = shape.head_width // 4
    frequency = ROTARY_BASE ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    angle = torch.arange(distances, dtype=torch.float64)[:, None] * frequency
    angle = torch.nn.functional.pad(angle, (0, shape.head_width // 2 - pairs))
    return torch.stack([angle.cos(), angle.sin()], dim=1).float()


@triton.jit
def column_of(slot, SHAPE: tl.constexpr):
    """Where in its transition the token in a slot stands."""
    after = slot - SHAPE.action_dim - 1
    column = tl.where(after >= 0, after, SHAPE.observation_dim + slot)
    return tl.where(slot == SHAPE.slots, SHAPE.transition_dim - 1, column)


@triton.jit
def position_of(entry, slot, oldest, SHAPE: tl.constexpr):
    """How many tokens lie between a token and the start of the window, which is the observation on the oldest page."""
    is_next = (slot > SHAPE.action_dim) & (slot < SHAPE.slots)
    return (entry - oldest - 1 + is_next.to(tl.int32)) * SHAPE.transition_dim + column_of(slot, SHAPE)


@triton.jit
def embed(token, entry, slot, oldest, live, model, SHAPE: tl.constexpr):
    """Token and place embeddings. [R] int32 -> [R, D] float32. Any token can be read: below 0 is 0, from V on stop."""
    d = tl.arange(0, SHAPE.width)[None, :]
    column = column_of(slot, SHAPE)
    stop = SHAPE.n_bins * SHAPE.transition_dim
    row = tl.where(token >= SHAPE.n_bins, stop, column * SHAPE.n_bins + tl.maximum(token, 0))
    place = column
    if not SHAPE.rotary:
        place = position_of(entry, slot, oldest, SHAPE)
    mask = live[:, None]
    table = model.embeddings
    x = tl.load(table + row[:, None] * SHAPE.width + d, mask=mask, other=0.0).to(tl.float32)
    return x + tl.load(table + (stop + 1 + place)[:, None] * SHAPE.width + d, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def embed_goal(token, index, live, model, SHAPE: tl.constexpr):
    """Goal embeddings. token, index [R] int32 -> [R, D] float32. Any token can be read: the nearest bin's is."""
    d = tl.arange(0, SHAPE.width)[None, :]
    token = tl.minimum(tl.maximum(token, 0), SHAPE.n_bins - 1)
    row = SHAPE.n_bins * SHAPE.transition_dim + 1 + SHAPE.places + index * SHAPE.n_bins + token
    return tl.load(model.embeddings + row[:, None] * SHAPE.width + d, mask=live[:, None], other=0.0).to(tl.float32)


@triton.jit
def only(x, FEW: tl.constexpr):
    """If FEW, zeros in all rows but the first 8. [R, C] -> the same shape.

    In a matrix unit's results the others lie in registers of their own, and the compiler drops what led to them.
    """
    return tl.where((tl.arange(0, x.shape[0]) < 8)[:, None], x, 0.0) if FEW else x


@triton.jit
def layer_norm(x, vectors, SHAPE: tl.constexpr):
    """LayerNorm over the last axis; vectors points at D weights, then D biases."""
    d = tl.arange(0, SHAPE.width)
    if SHAPE.parts == 1:  # at once: in 16 bits it does not matter that the difference loses digits
        total, squares = tl.split(tl.sum(tl.join(x, x * x), 1))
        mean = total * (1.0 / SHAPE.width)
        scale = tl.math.rsqrt(tl.maximum(tl.fma(-mean, mean, squares * (1.0 / SHAPE.width)), 0.0) + NORM_EPS)
        normed = tl.fma(x, scale[:, None], (-mean * scale)[:, None])
    else:
        centred = x - (tl.sum(x, 1) * (1.0 / SHAPE.width))[:, None]
        variance = tl.sum(centred * centred, 1) * (1.0 / SHAPE.width)
        normed = centred * tl.math.rsqrt(variance + NORM_EPS)[:, None]
    return tl.fma(normed, tl.load(vectors + d)[None, :], tl.load(vectors + SHAPE.width + d)[None, :])


@triton.jit
def gelu(x):
    """GELU, with the error function of Abramowitz and Stegun, 7.1.26, right to 1.5e-7 and a third of the exact one."""
    size = tl.abs(x)
    d = tl.fma(size, 0.3275911 * 0.7071067811865476, 1.0)
    t = tl.math.rsqrt(d * d)  # a reciprocal, in one instruction
    p = tl.fma(t, tl.fma(t, 0.5 * 1.061405429, -0.5 * 1.453152027), 0.5 * 1.421413741)
    p = t * tl.fma(t, tl.fma(t, p, -0.5 * 0.284496736), 0.5 * 0.254829592)
    return tl.fma(-size, p * tl.math.exp2(x * x * -0.7213475204444817), tl.maximum(x, 0.0))


@triton.jit
def read(matrix, rows: tl.constexpr, columns: tl.constexpr, SHAPE: tl.constexpr):
    """The [rows, columns] matrix at a pointer, as a factor."""
    at = matrix + tl.arange(0, rows)[:, None] * columns + tl.arange(0, columns)[None, :]
    return (tl.load(at), tl.load(at + SHAPE.matrices)) if SHAPE.parts == 2 else (tl.load(at),)


@triton.jit
def linear(x, matrix, bias):
    """The product of two factors, and a bias at a pointer added. -> [R, columns] float32."""
    return product(x, matrix) + tl.load(bias + tl.arange(0, matrix[0].shape[1]))[None, :]


@triton.jit
def first_seen(entry, slot, oldest, SHAPE: tl.constexpr):
    """Where on its list of pages the first slot is that a token sees."""
    is_next = (slot > SHAPE.action_dim) & (slot < SHAPE.slots)
    first = tl.maximum(oldest, entry - SHAPE.sight - tl.where(is_next, 0, 1))
    return first * SHAPE.slots + SHAPE.action_dim + 1  # of the first page only the observation


@triton.jit
def share_tile(steps, oldest, live, entry, lists, stride, count, SHAPE: tl.constexpr, LISTS: tl.constexpr):
    """Find what the lists of a tile of several sequences have in common, for `forward` at any token of a round.

    live: [R] bool, the first row of each list that is there.
    steps: pointer to int32, `Search.steps` for each of the LISTS. A tile of so few lists that all are read at once
    shares none, and nothing is written.
    """
    if SHAPE.group < LISTS:
        TAIL: tl.constexpr = SHAPE.observation_dim if SHAPE.goal else 0
        begin = first_seen(entry, oldest * 0, oldest, SHAPE)
        share_lists(
            steps, lists, stride, begin, live, (entry + 1) * SHAPE.slots, count, SHAPE.slots, LISTS, SHAPE.group,
            SHAPE.split, SHAPE.keys, TAIL,
        )  # fmt: skip


@triton.jit
def forward(x, slot, live, oldest, entry, ordinal, lists, stride, steps, count, model, pages, SHAPE: tl.constexpr,
            LISTS: tl.constexpr, IS_GOAL: tl.constexpr, RELATIVE: tl.constexpr, FEW: tl.constexpr = False):  # fmt: skip
    """Pass a tile through all layers; write its keys and values; return what the heads read.

    Args:
        x: [R, D] float32, embedded tokens.
        slot: [R] int32, each token's place on its page (a goal's: its index).
        live: [R] bool, rows that are there; the others write nothing.
        oldest: [R] int32, the first page of each list that holds anything: an observation.
        entry: which page of its list every token is on.
        ordinal: which page of the plan that is: queries and keys are turned by how far they lie from the first.
        lists: pointer to the first of LISTS lists of pages, each `stride` after the one before; row r's is r % LISTS.
        steps: what `share_tile` found; of one sequence unused.
        count: pages of a list; behind them stands the goal's (read if SHAPE.goal).
        pages: pointer to all pages, [page, part, layer, key or value, head, slot, D/A].
        IS_GOAL: the tile's tokens are a goal's.
        RELATIVE: keys are turned by their place in their page only, and further when they are read. So their bits do
            not depend on where a plan began, and they can be kept for the next.
        FEW: of the rows only the first 8 may be live.
    Returns:
        [R, D] of SHAPE.dtype.
    """
    D: tl.constexpr = SHAPE.width
    HEAD: tl.constexpr = SHAPE.head_width
    HEADS: tl.constexpr = SHAPE.heads_beside
    COLUMNS: tl.constexpr = SHAPE.columns
    SLOTS: tl.constexpr = SHAPE.slots
    PART: tl.constexpr = SHAPE.slots * SHAPE.width
    REST: tl.constexpr = SHAPE.page_rest
    CHUNK: tl.constexpr = SHAPE.hidden_chunk
    GROUP: tl.constexpr = min(LISTS, SHAPE.group)
    TAIL: tl.constexpr = SHAPE.observation_dim if SHAPE.goal and not IS_GOAL else 0
    TURN: tl.constexpr = SHAPE.transition_dim if SHAPE.rotary and RELATIVE else 0
    HALF: tl.constexpr = SHAPE.columns // 2
    c, h = tl.arange(0, COLUMNS), tl.arange(0, HALF)
    is_value = slot == SLOTS
    is_next = (slot > SHAPE.action_dim) & (slot < SLOTS)
    position = slot + is_next.to(tl.int32)  # in tokens from its page's first: the value token lies between
    position = tl.where(is_value, SHAPE.action_dim + 1, position)
    if not RELATIVE:
        position += ordinal * SHAPE.transition_dim
    anchor = (entry + 1) * SLOTS
    begin = slot * 0 + entry * SLOTS
    end = begin + tl.where(is_value, SHAPE.action_dim, slot)
    if not IS_GOAL:
        begin = first_seen(entry, slot, oldest, SHAPE)
    of_list = tl.arange(0, SHAPE.rows) % LISTS
    own = tl.load(lists + of_list * stride + entry, mask=live, other=0).to(tl.int64)
    stored, beside = own * SHAPE.page_size + slot * HEAD, c // HEAD * (SLOTS * HEAD) + c % HEAD
    has_slot = (live & (slot < SLOTS))[:, None]
    pair = h % (HEAD // 2)
    if SHAPE.rotary and not IS_GOAL:
        turned = model.turns + position[:, None] * HEAD + pair[None, :]
        cos, sin = tl.load(turned), tl.load(turned + HEAD // 2)
    for layer in tl.range(0, SHAPE.layers, disable_licm=True):
        matrices = model.matrices + layer * SHAPE.layer_matrices
        vectors = model.vectors + layer * SHAPE.layer_vectors
        normed = factor(only(layer_norm(x, vectors, SHAPE), FEW), SHAPE.dtype)
        added = tl.full((SHAPE.rows, D), 0.0, tl.float32)
        for head in tl.range(0, SHAPE.heads, HEADS, disable_licm=True, num_stages=1):
            at_query, bias = matrices + head * (D * HEAD), vectors + 2 * D + head * HEAD
            at_key, at_value = at_query + D * D, at_query + 2 * D * D
            second_query, second_key = at_query + D * HALF, at_key + D * HALF
            if SHAPE.ahead:  # all on their way before the first is needed
                of_query_a, of_query_b = read(at_query, D, HALF, SHAPE), read(second_query, D, HALF, SHAPE)
                of_key_a, of_key_b = read(at_key, D, HALF, SHAPE), read(second_key, D, HALF, SHAPE)
                of_value = read(at_value, D, COLUMNS, SHAPE)
            query_a = linear(normed, of_query_a if SHAPE.ahead else read(at_query, D, HALF, SHAPE), bias)
            query_b = linear(normed, of_query_b if SHAPE.ahead else read(second_query, D, HALF, SHAPE), bias + HALF)
            key_a = linear(normed, of_key_a if SHAPE.ahead else read(at_key, D, HALF, SHAPE), bias + D)
            key_b = linear(normed, of_key_b if SHAPE.ahead else read(second_key, D, HALF, SHAPE), bias + D + HALF)
            value = linear(normed, of_value if SHAPE.ahead else read(at_value, D, COLUMNS, SHAPE), bias + 2 * D)
            if SHAPE.rotary:
                if IS_GOAL:  # a goal has no position: what turns is zeroed
                    stays = (pair >= HEAD // 4)[None, :]
                    key_a, key_b = tl.where(stays, key_a, 0.0), tl.where(stays, key_b, 0.0)
                else:
                    key_a, key_b = turn_pairs(key_a, key_b, cos, sin)
                    query_a, query_b = turn_pairs(query_a, query_b, cos, sin)
            key = tl.reshape(tl.join(key_a, key_b), (SHAPE.rows, COLUMNS))
            query = tl.reshape(tl.join(query_a, query_b), (SHAPE.rows, HEADS, HEAD)) * (LOG2_E / HEAD**0.5)
            keys = pages + layer * 2 * PART + head * (SLOTS * HEAD)
            values = keys + PART
            at = (keys + stored)[:, None] + beside[None, :]
            store_factor(at, factor(key, SHAPE.dtype), has_slot, REST)
            store_factor(at + PART, factor(value, SHAPE.dtype), has_slot, REST)
            tl.debug_barrier()  # neighbours in the tile, and later steps, read what was just written
            mixed = attend(
                tl.permute(query, (1, 0, 2)), keys, values, SHAPE.page_size, lists, stride, steps, begin, end, live,
                anchor, entry, count, model.turns, SLOTS, LISTS, GROUP, SHAPE.split, SHAPE.keys, REST, TURN, TAIL,
                GROUP < LISTS, SHAPE.stages, FEW,
            )  # fmt: skip
            mixed = factor(tl.reshape(tl.permute(mixed, (1, 0, 2)), (SHAPE.rows, COLUMNS)), SHAPE.dtype)
            added += product(mixed, read(matrices + 3 * D * D + head * (HEAD * D), COLUMNS, D, SHAPE))
        x += added + tl.load(vectors + 5 * D + tl.arange(0, D))[None, :]
        normed = factor(only(layer_norm(x, vectors + 6 * D, SHAPE), FEW), SHAPE.dtype)
        added = tl.full((SHAPE.rows, D), 0.0, tl.float32)
        for chunk in tl.range(0, 4 * D // CHUNK, disable_licm=True):
            into, out_of = matrices + 4 * D * D + chunk * CHUNK * D, matrices + 8 * D * D + chunk * CHUNK * D
            hidden = linear(normed, read(into, D, CHUNK, SHAPE), vectors + 8 * D + chunk * CHUNK)
            hidden = factor(only(gelu(hidden), FEW), SHAPE.dtype)
            added += product(hidden, read(out_of, CHUNK, D, SHAPE))
        x += added + tl.load(vectors + 12 * D + tl.arange(0, D))[None, :]
    return only(layer_norm(x, model.vectors + SHAPE.layers * SHAPE.layer_vectors, SHAPE), FEW).to(SHAPE.dtype)


@triton.jit
def turn_page(source, target, ordinal, model, pages, SHAPE: tl.constexpr):
    """Copy a page whose keys are turned by their place in it to one of the plan, where they are turned by the whole."""
    HEAD: tl.constexpr = SHAPE.head_width
    ROWS: tl.constexpr = 4096 // SHAPE.head_width
    LINES: tl.constexpr = SHAPE.page_size // SHAPE.parts // SHAPE.head_width
    REST: tl.constexpr = SHAPE.page_rest
    start = ordinal * 0
    while start < LINES:
        line = start + tl.arange(0, ROWS)
        mask = (line < LINES)[:, None]
        at = line[:, None] * HEAD + tl.arange(0, HEAD)[None, :]
        x = whole(load_factor(pages + source * SHAPE.page_size + at, mask, SHAPE.dtype, REST))
        turned = turn(x, model.turns, line * 0 + ordinal * SHAPE.transition_dim, HEAD, False)
        is_value = line // (SHAPE.heads * SHAPE.slots) % 2 == 1
        x = tl.where(is_value[:, None], x, turned)
        store_factor(pages + target * SHAPE.page_size + at, factor(x, SHAPE.dtype), mask, REST)
        start += ROWS


@triton.jit
def logits_after(hidden, column, model, SHAPE: tl.constexpr):
    """Logits of the tokens that follow those in one column of the transition. [R, D], scalar -> [R, padded] float32."""
    heads = model.matrices + SHAPE.layers * SHAPE.layer_matrices
    head = read(heads + column * SHAPE.width * SHAPE.padded, SHAPE.width, SHAPE.padded, SHAPE)
    return product(factor(hidden, SHAPE.dtype), head)
