"""CUDA graphs of a GPU that is not there: what is launched while one is captured is launched whenever it is replayed.

As with CUDA, a launch keeps its numbers and addresses, no kernel runs while it is captured, and what the host would
have to wait for is refused. PyTorch's operations do run then, so that their results lie somewhere; a replay puts new
ones there. The graph keeps those, and no other memory: a launch that would touch what was freed since is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from .driver import VirtualGPU

_WAITS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""Of PyTorch's operations whose result, or its size, the host has to see."""


class Address:
    """Where a tensor lies. The tensor is not kept."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.begin = tensor.data_ptr()
        self.end = self.begin + tensor.numel() * tensor.element_size()
        self._storage = StorageWeakRef(tensor.untyped_storage())

    @property
    def freed(self) -> bool:
        """Whether nobody keeps the memory any more."""
        return self._storage.expired()


class VirtualGraph:
    """In place of `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], None]] = []

    def replay(self) -> None:
        """Launch all that was captured, in the same order."""
        for step in self.steps:
            step()


class _Operations(TorchDispatchMode):
    """PyTorch's operations on tensors are steps of a graph."""

    def __init__(self, graph: VirtualGraph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _WAITS.intersection(operation.tags):
            raise RuntimeError(f"{operation}: operation not permitted when stream is capturing")
        again = partial(operation, *args, **(kwargs or {}))
        first = again()
        if not operation.is_view:
            self.graph.steps.append(partial(_repeat, again, first))
        return first


def _repeat(operation: Callable[[], Any], first: Any) -> None:
    """Put an operation's results where the first ones lie."""
    for target, result in zip(tree_leaves(first), tree_leaves(operation()), strict=True):
        if isinstance(target, torch.Tensor) and target.data_ptr() != result.data_ptr():
            target.copy_(result)


@contextmanager
def capturing(gpu: VirtualGPU, graph: VirtualGraph, **_: Any) -> Iterator[None]:
    """In place of `torch.cuda.graph`."""
    gpu.graph = graph
    try:
        with _Operations(graph):
            yield
    finally:
        gpu.graph = None


def provide(gpu: VirtualGPU) -> None:
    """Let PyTorch capture what is launched on that GPU; its streams are nothing."""
    torch.cuda.CUDAGraph = VirtualGraph  # type: ignore[assignment, misc]
    torch.cuda.graph = partial(capturing, gpu)  # type: ignore[assignment, misc]
    for name in ("Stream", "current_stream", "set_stream", "synchronize"):
        setattr(torch.cuda, name, lambda *_: None)
