"""The cpp engine: whole segments of a search in native code, on the CPU's cores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ttengine.config import PlanConfig
from ttengine.discretizer import Discretizer
from ttengine.engines.protocol import Candidates, Counters, EagerEngine, NoiseKey
from ttengine.engines.reference import window_tokens
from ttengine.errors import ConfigError
from ttengine.model import TrajectoryTransformer


class CppEngine(EagerEngine):
    """Plans natively: shared pages, packed weights, rows split over threads, the interpreter lock released.

    The weights are copied: a model that is trained further needs a new engine. With a rolling context, pages of the
    transitions still in sight are kept for the next plan, which may be of another problem: they are found by their
    tokens.

    Args:
        model: float32, on the CPU.
        isa: instruction set, of `ttengine.native.available_isas()`; None takes the fastest that this machine can run.
    Raises:
        ConfigError: the model is not float32 on the CPU.
        NonFiniteError: a weight is NaN or infinite; the message names the first such tensor.
        EngineError: the core is not built, or the machine lacks the instruction set.
    """

    def __init__(
        self, model: TrajectoryTransformer, discretizer: Discretizer, config: PlanConfig, *, isa: str | None = None
    ) -> None:
        from ttengine.native import Search

        for name, tensor in model.state_dict().items():
            if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
                raise ConfigError(
                    f"engine='cpp' computes in float32 on the CPU; the model's {name} is {tensor.dtype} on "
                    f"{tensor.device}. Convert the model, or use engine='reference'"
                )
        self.model = model
        self.discretizer = discretizer
        self.config = config
        self.counters = Counters()
        self._search = Search(
            model.config,
            {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in model.state_dict().items()},
            discretizer.edges[-2].numpy(),
            discretizer.edges[-1].numpy(),
            config,
            window_tokens(model.config, config) if config.context_kind == "window" else 0,
            torch.get_num_threads() if config.threads is None else config.threads,
            isa,
        )
        self._observation = torch.empty(0)

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return self._search.isa

    @contextmanager
    def cores(self) -> Iterator[None]:
        """Keep PyTorch to the calling thread: its pool spins after each use, on a core that this engine needs."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def prefill(self, prefixes: Sequence[Tensor], goals: Sequence[Tensor] | None, keys: Sequence[NoiseKey]) -> None:
        """Begin B searches."""
        N = self.model.config.observation_dim
        self._observation = self.discretizer.decode(torch.stack([prefix[-N:] for prefix in prefixes]))
        self._search.prefill(
            [prefix.tolist() for prefix in prefixes],
            [goal.tolist() for goal in goals or []],
            [(key.seed, key.plan) for key in keys],
        )
        self._count()

    def expand(self, copies: int) -> Candidates:
        """Copy each beam, decode an action, a reward and a value."""
        tokens, rewards, values = (torch.from_numpy(array) for array in self._search.expand(copies))
        self._count()
        return Candidates(tokens, rewards, values, self._observation, self.discretizer, self.model.config.action_dim)

    def select(self, kept: Tensor) -> None:
        """Keep some candidates as beams."""
        self._search.select(kept.numpy())

    def observe(self) -> None:
        """Decode the next observation of each beam."""
        self._search.observe()
        self._count()

    def next_log_probabilities(self) -> Tensor:
        """Return [B, W, V+1] log-probabilities, filtered as the token's segment says."""
        result = torch.from_numpy(self._search.next_log_probabilities())
        self._count()
        return result

    def planned(self) -> Tensor:
        """Return the beams' tokens after the current observation, [B, W, ...] int64."""
        return torch.from_numpy(self._search.planned())

    def branch(self, beams: Tensor, tokens: Tensor) -> None:
        """Replace the beams."""
        self._search.branch(beams.numpy(), tokens.numpy())

    def _count(self) -> None:
        self.counters = Counters(**self._search.counters())
