"""The triton engine: whole segments of a search as single kernels on a GPU, and one CUDA graph for a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ttengine.config import PlanConfig
from ttengine.discretizer import Discretizer
from ttengine.engines.protocol import Candidates, Counters, NoiseKey
from ttengine.engines.reference import log_probabilities, sampling_of
from ttengine.engines.triton_limits import captures, check_machine, check_sizes, describe
from ttengine.errors import ConfigError, EngineError, NonFiniteError
from ttengine.kernels import reference as ops
from ttengine.model import TrajectoryTransformer

if TYPE_CHECKING:
    from ttengine.engines.triton_memory import Memory
    from ttengine.kernels.records import Rows

WARPS = 8
"""Warps of a program."""

KEPT_SIZES = 4
"""Numbers of problems whose memory and graph are kept, the last used ones."""


class TritonEngine:
    """Plans on a GPU: a kernel a verb, rows carried through whole segments, nothing on the host in between.

    The weights are copied: a model that is trained further needs a new engine. With a rolling context, pages of the
    executed transitions in sight stay on the device for the next plan of the same place in a batch of
    the same size.

    A search without a deadline is captured once for each number of problems, and replayed. An objective of the
    caller's is then not called again: it has to compute with tensors alone, and whatever it reads has to stay where it
    was. With a deadline, kernels are launched one by one and every round is waited for.

    Args:
        model: on a CUDA device (anywhere, under TRITON_INTERPRET=1).
        discretizer: its bins.
        config: the search.
    Raises:
        MissingExtraError: no Triton.
        EngineError: no GPU, one that is too old or has too little memory, or kernels that do not run on it; the message
            says which engine works here.
        ConfigError: sizes, or a weight so large, that the kernels do not take.
        NonFiniteError: a weight is NaN or infinite; the message names the first such tensor.
    """

    def __init__(self, model: TrajectoryTransformer, discretizer: Discretizer, config: PlanConfig) -> None:
        self.device = next(model.parameters()).device
        check_machine(self.device)
        check_sizes(model.config, config)
        for name, tensor in model.state_dict().items():
            if not bool(torch.isfinite(tensor).all()):
                raise NonFiniteError(f"the model's {name} holds NaN or infinity")
        from ttengine.engines.triton_memory import Memory, compiled_for
        from ttengine.kernels import branch, records, segments, select, transformer

        self.model = model
        self.config = config
        self.discretizer = discretizer.to(self.device)
        self._host_discretizer = discretizer.to("cpu")
        self.counters = Counters()
        self.shape, self.search = compiled_for(model.config, config, self.device)
        K = model.config.transition_dim
        pages = max(self.search.entries, self.search.context_pages + config.horizon) + 1
        self._packed = transformer.pack(model.state_dict(), self.shape, pages * K)
        if not bool(torch.isfinite(self._packed.matrices).all()):
            raise ConfigError(
                f"a weight is beyond {torch.finfo(self._packed.matrices.dtype).max:,.0f}, the largest number that "
                f"engine='triton' multiplies in {config.precision}; use engine='reference'"
            )
        self._segments, self._branch, self._select = segments, branch, select
        self._records = records
        self._make_memory = Memory
        self._memories: dict[int, Memory] = {}
        self._memory: Memory
        self._kept = self._score = torch.empty(0)
        self._round = self._token = 0
        self._beams = 1
        self._waits = False
        if self.device.type == "cuda":
            self._try_out()

    def cores(self) -> AbstractContextManager[None]:
        """Make the model's GPU the current one: Triton launches on that, wherever the tensors are."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _try_out(self) -> None:
        """Run every kernel once: what does not run on this GPU is an error now, and not in a control loop."""
        zeros = torch.zeros(self.model.config.observation_dim, dtype=torch.int64)
        try:
            with torch.inference_mode(), self.cores():
                self.prefill([zeros], [zeros] if self.model.config.goal else None, [NoiseKey()])
                self._run_every_kernel()
                self._wait()
        except EngineError:
            raise
        except Exception as error:  # of the driver, of Triton's compilers, of a launch: they have no common parent
            raise EngineError(
                f"engine='triton' does not run on {describe(self.device)}: {type(error).__name__}: {error}. Is the "
                "driver as new as PyTorch's CUDA, is there a C compiler? engine='reference' works there, 'cpp' on the "
                "CPU"
            ) from error
        self._memory.forget()

    def _run_every_kernel(self) -> None:
        """A round of a search that `prefill` began, whatever it finds."""
        beams = self.config.beam_width
        if self.config.objective == "likelihood":
            first = torch.zeros(1, beams, dtype=torch.int64, device=self.device)
            self.next_log_probabilities()
            self.branch(first, first)
            return
        self.expand(self.config.expand)
        kept = self.select_beams(self._memory.candidates.score, beams)[1]
        self.take(kept[:, :1].contiguous())
        self.select(kept)
        self.observe()

    def prefill(self, prefixes: Sequence[Tensor], goals: Sequence[Tensor] | None, keys: Sequence[NoiseKey]) -> None:
        """Begin B searches: tell the device what they are; the first `expand` computes."""
        self._memory = self._remember(len(prefixes))
        if self._memory.awaits_prefill:  # what was said last was never computed
            self._memory.forget()
        self._memory.awaits_prefill = True
        K, N = self.model.config.transition_dim, self.model.config.observation_dim
        wanted = goals or [torch.empty(0, dtype=torch.int64)] * len(prefixes)
        for b, (prefix, goal, key) in enumerate(zip(prefixes, wanted, keys, strict=True)):
            tokens = prefix.numpy()[max(0, len(prefix) // K - self._memory.transitions) * K :]
            self._memory.stage(b, tokens, goal.numpy(), key)
        now = torch.stack([prefix[-N:] for prefix in prefixes])
        self._memory.staged.host["start"][:] = self._host_discretizer.decode(now).numpy()
        self._begin()

    def _remember(self, problems: int) -> Memory:
        """Memory for so many problems: kept, or new."""
        memory = self._memories.pop(problems, None)
        while memory is None and len(self._memories) >= KEPT_SIZES:
            del self._memories[next(iter(self._memories))]
        arguments = (self.model.config, self.shape, self.search, self.discretizer, self.config, self.device)
        try:
            memory = memory or self._make_memory(problems, *arguments)
        except EngineError:
            if not self._memories:
                raise
        if memory is None:  # outside of `except`: the error holds what was allocated before there was too little
            self._memories.clear()  # other numbers of problems hold what is missing
            self._kept = self._score = torch.empty(0)
            del self._memory
            memory = self._make_memory(problems, *arguments)
        self._memories[problems] = memory  # the last used is the last
        return memory

    def _begin(self) -> None:
        self._memory.staged.upload()
        self._round = self._token = 0
        self._beams = 1

    def run(self, search: Callable[[], tuple[Candidates, Tensor]], *, anytime: bool) -> tuple[Candidates, Tensor]:
        """Search, replaying the graph if there is one, and return what was found, on the CPU.

        Raises:
            NonFiniteError: NaN or infinity in logits or in a score; the message names the round.
            EngineError: the search cannot be captured.
        """
        self._waits = anytime
        if self.config.objective == "likelihood":
            return self._run_likelihood(search)
        if anytime or not self.config.graph or not captures(self.device):
            search()
        else:
            if self._memory.graph is None:
                search()  # compiles the kernels, which a capture may not
                self._begin()
                self._memory.graph = self._capture(search)
                self._begin()
            self._memory.graph.replay()
            self._round = self.config.horizon
        return self._fetch()

    def _run_likelihood(self, search: Callable[[], tuple[Candidates, Tensor]]) -> tuple[Candidates, Tensor]:
        """Search token by token, kernels launched one by one: what a token's beams are is ranked by PyTorch."""
        beams, score = search()
        staged = self._memory.staged.device
        self._raise_for(int(staged["fault"]))
        self.counters = self._count_likelihood(int(staged["slots"].sum()))
        return beams.cpu(), score.cpu()

    def _capture(self, search: Callable[[], tuple[Candidates, Tensor]]) -> torch.cuda.CUDAGraph:
        torch.cuda.synchronize(self.device)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        try:
            # PyTorch's own stream for captures is of the GPU that captured first; other threads may go on with theirs
            with torch.cuda.graph(graph, stream=torch.cuda.Stream(self.device), capture_error_mode="thread_local"):
                search()
        except RuntimeError as error:
            raise EngineError(
                f"the search cannot be captured in a CUDA graph: {error}. An objective has to compute on the device, "
                "with tensors of fixed shapes and without .item(); or plan with graph=False"
            ) from error
        finally:
            torch.cuda.set_stream(stream)  # PyTorch leaves its stream in place of it if a capture cannot be ended
        return graph

    def _fetch(self) -> tuple[Candidates, Tensor]:
        """One copy to the host, and what it says."""
        memory = self._memory
        memory.found_on_host.copy_(memory.found, non_blocking=True)
        self._wait()
        found, start = (numbers.copy() for numbers in (memory.found_on_host.numpy(), memory.staged.host["start"]))
        self.counters = self._count(self._round, *found[:, -2:].sum(axis=0).tolist())
        self._raise_for(int(found[0, -3]))
        return self._read(torch.from_numpy(found), torch.from_numpy(start), self._host_discretizer)

    def _raise_for(self, fault: int) -> None:
        """Raise if the code is one of something that went wrong."""
        if not 0 <= fault < self._records.NO_FAULT.value:
            return
        self._memory.forget()
        token, round = fault // 2, fault // 2 // self.model.config.transition_dim
        what = "the objective returned" if fault % 2 else "the model's logits hold"
        hint = "" if fault % 2 else f", at token {token} of the plan; check the weights with `ttengine info`"
        raise NonFiniteError(f"{what} NaN or infinity in round {round}{hint}")

    def _read(self, found: Tensor, start: Tensor, discretizer: Discretizer) -> tuple[Candidates, Tensor]:
        """Beams [B, 1, ...] and scores [B, 1] that `take` gathered."""
        H, K, M = self.config.horizon, self.model.config.transition_dim, self.model.config.action_dim
        numbers = found[:, None, H * K :].view(torch.float32)
        tokens = found[:, None, : (self._round - 1) * K + M + 2]
        beams = Candidates(tokens, numbers[..., : self._round], numbers[..., H], start, discretizer, M)
        return beams, numbers[..., H + 1]

    def expand(self, copies: int) -> Candidates:
        """Copy each beam, decode an action, a reward and a value."""
        memory = self._memory
        if copies != self.search.expand:
            raise ConfigError(
                f"expand({copies}): this engine's kernels are compiled for {self.search.expand} copies of a beam"
            )
        if self._round == 0:
            self._prefill()
        rows, tile = memory.candidates.returns.numel(), memory.candidates_of_a_tile
        first_page = memory.first_page + self._round % memory.turns * rows
        self._launch(
            self._segments.expand, -(-rows // tile), memory.beams, memory.candidates, memory.problems,
            self._round, rows, first_page, TILE=tile,
        )  # fmt: skip
        self._round += 1
        if self._waits:
            self._wait()
        K, M = self.model.config.transition_dim, self.model.config.action_dim
        return DeviceCandidates(
            memory.candidates.tokens[:, :, : (self._round - 1) * K + M + 2],
            memory.candidates.rewards[:, :, : self._round],
            memory.candidates.value,
            memory.staged.device["start"],
            self.discretizer,
            M,
            self,
        )

    def _prefill(self) -> None:
        """Compute what `prefill` was told."""
        memory = self._memory
        longest, columns = (memory.staged.host[name].shape[1] for name in ("prefix", "table"))
        self._launch(self._segments.prefill, len(memory.episodes), memory.beams, memory.problems, longest, columns)
        memory.awaits_prefill = False

    def select_beams(self, score: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Keep the `width` highest scores: `kernels.reference.select_beams`, by rank, in one kernel."""
        if self.config.objective == "likelihood":  # every token of every beam is ranked: too many to compare in pairs
            return ops.select_beams(score, width)
        code = (self._round - 1) * self.model.config.transition_dim * 2 + 1
        fault = self._memory.problems.fault
        self._score, kept = self._select.select_beams_into(score.float(), width, fault, code)
        return self._score, kept

    def select(self, kept: Tensor) -> None:
        """Keep some candidates as beams; `observe` takes them over."""
        self._kept = kept

    def observe(self) -> None:
        """Decode the next observation of each beam."""
        memory = self._memory
        rows, tile = self._kept.numel(), memory.beams_of_a_tile
        self._launch(
            self._segments.observe, -(-rows // tile), memory.beams, memory.candidates, memory.problems, self._kept,
            self._round - 1, rows, memory.staged.host["prefix"].shape[1], TILE=tile,
        )  # fmt: skip

    def take(self, kept: Tensor) -> Candidates:
        """Gather one candidate of each problem, with the score that `select_beams` gave it. kept [B, 1] int64."""
        memory = self._memory
        self._segments.take[(len(kept),)](
            memory.candidates, memory.problems, kept, self._score, memory.found, self._round, self.shape, self.search,
            enable_fp_fusion=False,
        )  # fmt: skip
        return self._read(memory.found, memory.staged.device["start"], self.discretizer)[0]

    def next_log_probabilities(self) -> Tensor:
        """Return [B, W, V+1] log-probabilities, filtered as the token's segment says."""
        if self._token == 0:
            self._prefill()
        model = self.model.config
        logits = self._newest.logits[:, : self._beams, : self.shape.vocabulary]
        return log_probabilities(logits, sampling_of(model.observation_dim + self._token, model, self.config))

    def planned(self) -> Tensor:
        """Return the beams' tokens after the current observation, [B, W, ...] int64."""
        tokens: Tensor = self._newest.tokens
        return tokens[:, : self._beams, : self._token]

    def branch(self, beams: Tensor, tokens: Tensor) -> None:
        """Replace the beams."""
        memory = self._memory
        rows = (memory.beams, memory.candidates)
        source, target = rows[self._token % 2], rows[(self._token + 1) % 2]
        turn = self._token // self.model.config.transition_dim * 2 + self._token % 2
        first_page = memory.first_page + turn % memory.turns * memory.beams.returns.numel()
        self._launch(
            self._branch.branch, beams.numel(), source, target, memory.problems, beams.contiguous(),
            tokens.contiguous(), self._token, beams.shape[1], first_page, memory.staged.host["prefix"].shape[1],
        )  # fmt: skip
        self._token += 1
        self._beams = beams.shape[1]

    @property
    def _newest(self) -> Rows:
        """The set of beams that was written last, of a likelihood search."""
        return self._memory.candidates if self._token % 2 else self._memory.beams

    def _launch(self, kernel: Any, programs: int, *arguments: Any, **constants: int) -> None:
        options = {"num_warps": WARPS, "num_stages": self.shape.stages, "enable_fp_fusion": False}
        kernel[(programs,)](
            self._packed, self._memory.pages, *arguments, SHAPE=self.shape, SEARCH=self.search, **constants, **options
        )

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def _count_likelihood(self, slots: int) -> Counters:
        """Work done: a row a beam and token, and what was computed before or anew."""
        memory, fields = self._memory, self._records
        state = memory.staged.host["state"]
        computed = memory.slots * state[:, fields.ENTRIES.value] - state[:, fields.BEGIN.value]
        rows = int(computed.sum()) + self._token * self._beams * len(state) + slots
        return Counters(token_steps=1 + self._token, logical_rows=rows, physical_rows=rows, prefills=len(state))

    def _count(self, rounds: int, tiles: int, slots: int) -> Counters:
        """Work done, which follows from the lengths; the kernels count tiles of observations and slots of windows."""
        memory, model, search, fields = self._memory, self.model.config, self.search, self._records
        N, M, K = model.observation_dim, model.action_dim, model.transition_dim
        state = memory.staged.host["state"]
        transitions = state[:, fields.TRANSITIONS.value]
        computed = memory.slots * state[:, fields.ENTRIES.value] - state[:, fields.BEGIN.value]
        beams = len(state) * search.beam_width
        decoded = rounds * beams * search.expand * (M + 1) + (rounds - 1) * beams * (N + 1)
        again = 0
        if search.window:  # every beam's window, values aside: no token sees them
            windows = transitions[:, None] + np.arange(1, rounds)
            again = search.beam_width * int(windows.clip(max=search.entries - 2).sum()) * (K - 1)
        return Counters(
            token_steps=1 + rounds * (M + 1) + (rounds - 1) * (N + 1),
            logical_rows=int((transitions * K + N).sum()) + decoded + again,
            physical_rows=int(computed.sum()) + decoded + slots,
            prefills=len(state) + (beams * (rounds - 1) if search.window else 0),
            observe_tiles=tiles,
        )


@dataclass(frozen=True, eq=False)
class DeviceCandidates(Candidates):
    """Candidates that stay on the device, whose scores are already there."""

    engine: TritonEngine

    def discounted_return(self, discount: float) -> Tensor:
        """[B, C], as the kernel computed it."""
        memory = self.engine._memory
        same = discount == self.engine.config.discount
        return memory.candidates.score if same else super().discounted_return(discount)

    def check_finite(self, score: Tensor) -> None:
        """Nothing waits for the host here: the ranking looks at every score, and the plan says what it saw."""

    def take(self, index: Tensor) -> Candidates:
        """Keep some candidates; one a problem is gathered by a kernel."""
        return self.engine.take(index) if index.shape[1] == 1 else super().take(index)
