"""What a plan of the triton engine reads and writes on the GPU: allocated once for a number of problems."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ttengine.config import ModelConfig, PlanConfig, Sampling
from ttengine.discretizer import Discretizer
from ttengine.engines.protocol import NoiseKey
from ttengine.engines.reference import window_tokens
from ttengine.engines.triton import WARPS
from ttengine.errors import EngineError
from ttengine.kernels.records import FIELDS, NO_FAULT, Problems, Rows, Search
from ttengine.kernels.sampling import Rule
from ttengine.kernels.transformer import Shape

IntArray = npt.NDArray[np.int64]

LAST = 5
"""Numbers of a found plan besides tokens and rewards: value, score, what went wrong, tiles, slots."""


def compiled_for(model: ModelConfig, config: PlanConfig, device: torch.device) -> tuple[Shape, Search]:
    """Return what the kernels are compiled for."""
    import triton.language as tl

    rotary = model.positions == "rotary"
    window = config.context_kind == "window"
    shape = Shape(
        observation_dim=model.observation_dim,
        action_dim=model.action_dim,
        n_bins=model.n_bins,
        layers=model.layers,
        heads=model.heads,
        width=model.width,
        goal=model.goal,
        rotary=rotary,
        places=model.transition_dim if rotary else model.max_tokens,
        dtype=tl.dtype(config.precision),
        **({"sight": model.context} if rotary else {}),
        room=room_on(device),
    )
    # a window holds so many transitions, its last still growing; each has a page, and so has the first observation
    transitions = (window_tokens(model, config) + 1) // model.transition_dim if window else model.context + 1
    entries = transitions + 1
    search = Search(
        horizon=config.horizon,
        beam_width=config.beam_width,
        expand=config.expand,
        window=window,
        entries=entries,
        context_pages=model.layers * model.context + 1,
        action_rule=_rule(config.action),
        reward_rule=_rule(config.reward),
        value_rule=_rule(config.value),
        observation_rule=_rule(config.observation),
        percentile=None if config.percentile == "mean" else config.percentile,
        percentile_as_released=config.percentile_as_released,
        draft=config.draft,
        share=window and config.deduplicate,
        pieces=shape.pieces(entries),
    )
    return shape, search


def sequences_of_a_tile(sequences: int, multiprocessors: int, least: int = 1) -> int:
    """Candidates or beams that a program takes: as few as keep no more than half of the multiprocessors busy.

    A program reads all weights at every token, and each list's keys and values besides, from the L2 cache. That gives
    about half of the multiprocessors as much as they can take; more of them would only wait for each other.
    """
    return next((few for few in (1, 2, 4, 8) if few >= least and 2 * sequences <= few * multiprocessors), 16)


def room_on(device: torch.device) -> int:
    """Bytes of shared memory that a program may take."""
    if device.type != "cuda":
        return Shape.room
    properties = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)  # type: ignore[attr-defined]  # by the stubs alone


def _rule(sampling: Sampling) -> Rule:
    return Rule(sampling.k, sampling.cdf, sampling.temperature)


@dataclass
class Episode:
    """Whose pages a problem's ring holds: tokens of its last prefix and goal; where in the ring its first page is."""

    tokens: bytes
    goal: bytes
    first: int


class Staged:
    """Host and device copies of what the host says of each problem, in one buffer, so that one copy uploads it."""

    def __init__(self, problems: int, longest: int, goal: int, entries: int, start: int, device: torch.device) -> None:
        self._sizes = {
            "fault": (1,),
            "tiles": (problems,),
            "slots": (problems,),
            "state": (problems, FIELDS.value),
            "prefix": (problems, longest),
            "goals": (problems, goal),
            "table": (problems, entries + 1),
            "start": (problems, -(-start // 2)),
        }
        total = sum(math.prod(size) for size in self._sizes.values())
        self._on_host = torch.zeros(total, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._on_device = torch.zeros(total, dtype=torch.int64, device=device)
        self._start = start
        self.host = {name: view.numpy() for name, view in self._views(self._on_host).items()}
        self.device = self._views(self._on_device)
        self.host["fault"].fill(NO_FAULT.value)  # nothing went wrong yet

    def _views(self, buffer: Tensor) -> dict[str, Tensor]:
        parts = buffer.split([math.prod(size) for size in self._sizes.values()])
        views = {name: part.view(size) for (name, size), part in zip(self._sizes.items(), parts, strict=True)}
        views["start"] = views["start"].view(torch.float32)[:, : self._start]
        return views

    def upload(self) -> None:
        """Copy to the device: kernels write there, what the host says stays as it is."""
        self._on_device.copy_(self._on_host, non_blocking=True)


class Memory:
    """State and pages for B problems.

    Pages are numbered: those of the contexts first, then the goals', then the candidates'. With a rolling context each
    problem has a ring of context pages, others onto which those in sight are copied for the plan, and the candidates of
    as many rounds as can be seen have theirs; with a window every beam has the pages of its window, and only one
    round's candidates have any. A likelihood search has two
    sets of beams, the second in the candidates' place, which take turns; each has a page that grows.

    Raises:
        EngineError: the device has too little memory; the message says how much was asked for.
    """

    def __init__(self, problems: int, model: ModelConfig, shape: Shape, search: Search, discretizer: Discretizer,
                 config: PlanConfig, device: torch.device) -> None:  # fmt: skip
        likelihood = config.objective == "likelihood"
        B, W, C = problems, search.beam_width, search.beam_width * (1 if likelihood else search.expand)
        H, K, N = search.horizon, shape.transition_dim, shape.observation_dim
        self.graph: torch.cuda.CUDAGraph | None = None
        self.awaits_prefill = False
        self.slots = shape.slots
        self.search = search
        self.transitions = search.entries - 2 if search.window else model.layers * model.context
        # while a tile is computed, the pages that its first token sees must not be written again
        self.ring = search.entries * W if search.window else search.entries + 2 + (shape.rows - 1) // shape.slots
        self.turns = 1 if search.window else search.entries
        if likelihood:  # a page is copied from one set's to the other's, and once whole read in the rounds to come
            self.turns = 2 * (2 if search.window else search.entries)
        gpu = device.type == "cuda"
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count if gpu else 4  # interpreted
        # with fewer strands than warps, each would be spread over several, and add up in another order
        least = 1 if shape.heads_beside * shape.split >= WARPS else shape.group
        self.candidates_of_a_tile = sequences_of_a_tile(B * C, multiprocessors, least)
        self.beams_of_a_tile = 1 if search.window else sequences_of_a_tile(B * W, multiprocessors, least)
        entries = search.entries if search.window else self.transitions + 1
        first_of_plan = B * self.ring
        self.goal_page = first_of_plan + (0 if search.window else B * entries)
        self.first_page = self.goal_page + (B if shape.goal else 0)
        pages = self.first_page + self.turns * B * C
        self.staged = Staged(B, self.transitions * K + N, N if shape.goal else 0, entries, N, device)
        self.episodes: list[Episode | None] = [None] * B
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float16  # fp32 in two parts
        asked = pages * shape.page_size * dtype.itemsize
        try:
            self.pages = _new((pages, shape.page_size), dtype, device)
            self.beams = _rows(B, W, H, K, search, shape.padded, device)
            self.candidates = _rows(B, C, H, K, search, shape.padded, device)
        except torch.OutOfMemoryError as error:
            halved = " precision='fp16' or 'bf16'," if config.precision == "fp32" else ""
            raise EngineError(
                f"{pages:,} pages of keys and values take {asked / 2**30:.1f} GiB, more than {device} has left; "
                f"use{halved} a narrower beam or fewer problems at once than {B}"
            ) from error
        if search.window:  # a beam's pages never change
            own = torch.arange(B * W * search.entries, device=device).view(B, W, search.entries)
            self.beams.table[..., :-1].copy_(own)
            self.beams.table[..., -1] = self.goal_page + torch.arange(B, device=device)[:, None]
        goal_pages = torch.arange(self.goal_page, self.goal_page + B, device=device)
        plan = torch.arange(first_of_plan, self.goal_page, device=device).view(B, 0 if search.window else entries)
        edges = discretizer.edges.to(device, torch.float32)
        staged = self.staged.device
        self.problems = Problems(
            state=staged["state"],
            prefix=staged["prefix"],
            goals=staged["goals"],
            table=staged["table"],
            plan_table=torch.cat([plan, goal_pages[:, None]], dim=1),
            goal_pages=goal_pages,
            discounts=(config.discount ** torch.arange(H + 1, dtype=torch.float32)).to(device),
            reward_edges=edges[-2].contiguous(),
            value_edges=edges[-1].contiguous(),
            fault=staged["fault"],
            tiles=staged["tiles"],
            slots=staged["slots"],
            progress=_new((1 + B * W,), torch.int64, device),
        )
        self.found = _new((B, H * K + H + LAST), torch.int32, device)
        self.found_on_host = torch.zeros(B, H * K + H + LAST, dtype=torch.int32, pin_memory=device.type == "cuda")

    def stage(self, b: int, tokens: IntArray, goal: IntArray, key: NoiseKey) -> None:
        """Say what problem b is, but for its start.

        Args:
            b: the problem.
            tokens: [T] int64, whole transitions, then the current observation, no longer than can be seen.
            goal: [N] int64, or [0].
            key: noise.
        """
        host = self.staged.host
        transitions = len(tokens) // (self.slots + 1)
        if self.search.window:
            pages, begin = self._window(b, transitions)
        else:
            pages, begin = self._roll(b, tokens, goal, transitions)
        host["state"][b] = (transitions, key.seed, key.plan, len(pages), begin)
        host["prefix"][b, : len(tokens)] = tokens
        host["table"][b, : len(pages) + 1] = [*pages, self.goal_page + b]
        host["goals"][b] = goal

    def _window(self, b: int, transitions: int) -> tuple[list[int], int]:
        """The first beam's pages; all is computed anew."""
        first = b * self.ring
        oldest = self.search.entries - 1 - transitions
        return list(range(first, first + self.search.entries)), oldest * self.slots + self._observation_slot()

    def _roll(self, b: int, tokens: IntArray, goal: IntArray, transitions: int) -> tuple[list[int], int]:
        """Pages in the problem's ring; those whose tokens were in the last prefix are kept.

        Keys hold traces of what lay before them. So pages from which transitions have slid away since are kept only for
        a prefix as long as can be seen: then nothing that a plan reads reaches back past its start.
        """
        last, now = self.episodes[b], Episode(tokens.tobytes(), goal.tobytes(), first=0)
        begin = self._observation_slot()
        if last is not None and last.goal == now.goal:
            transition = (self.slots + 1) * tokens.itemsize
            before = len(last.tokens) // transition
            for gone in range(before + 1 if transitions == self.transitions else 1):
                if now.tokens.startswith(last.tokens[gone * transition :]):
                    now.first = (last.first + gone) % self.ring
                    begin = min(before - gone + 1, transitions) * self.slots or begin
                    break
        self.episodes[b] = now
        return [b * self.ring + (now.first + entry) % self.ring for entry in range(transitions + 1)], begin

    def _observation_slot(self) -> int:
        """The slot of a page from which the observation lies."""
        observation_dim: int = self.staged.host["start"].shape[1]
        return self.slots - observation_dim

    def forget(self) -> None:
        """Keep no pages for the next plan."""
        self.episodes = [None] * len(self.episodes)


def _rows(B: int, R: int, H: int, K: int, search: Search, padded: int, device: torch.device) -> Rows:
    return Rows(
        tokens=_new((B, R, H * K), torch.int64, device),
        rewards=_new((B, R, H), torch.float32, device),
        returns=_new((B, R), torch.float32, device),
        table=_new((B, R, search.entries + 1), torch.int32, device),
        logits=_new((B, R, padded), torch.float32, device),
        value=_new((B, R), torch.float32, device),
        score=_new((B, R), torch.float32, device),
        steps=_new((-(-B * R // Shape.rows) * Shape.rows, search.steps), torch.int32, device),  # whole tiles
    )


def _new(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Fresh memory. Tests replace this function to fill it with NaN and canaries."""
    return torch.empty(size, dtype=dtype, device=device)
