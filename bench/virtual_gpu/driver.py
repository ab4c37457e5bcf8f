"""Triton's driver for a GPU that is not there: kernels are compiled for it, and run on CPU tensors."""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime.driver import driver

from . import ptx
from .graph import Address, VirtualGraph, provide

SHARED_MEMORY = 232_448
"""Bytes that a block can have, on Hopper."""

MULTIPROCESSORS = 132
"""Of an H200."""

COMPILER = (
    *(("clang++", "-O2") if shutil.which("clang++") else ("g++", "-O0")),  # GCC would optimise for minutes
    *("-std=c++20", "-march=native", "-w", "-Wno-psabi", "-fPIC", "-shared"),
)
HEADER = Path(__file__).parent / "machine.h"


class VirtualGPUError(RuntimeError):
    """A kernel did what it must not do."""


@dataclass
class Kernel:
    """A compiled kernel, and what was executed of it so far."""

    text: str
    """PTX"""
    function: ptx.Function
    binary: ctypes.CDLL
    passes: Any
    launches: int = 0
    blocks: int = 0
    loaded: int = 0
    """bytes, from global memory"""
    stored: int = 0
    barriers: int = 0

    def executed(self) -> Counter[str]:
        """Instructions of warps, by opcode."""
        return self.function.count(list(self.passes))


@dataclass
class VirtualGPU:
    """Settings of the machine, and its kernels.

    Attributes:
        checks: look at every access to memory: is it inside a tensor of the launch, aligned, and ordered against those
            of other warps and blocks? Takes several times as long.
        shuffle: run blocks in another order at every launch.
        runs: False: compile and launch, but run nothing.
        graph: what is captured now.
    """

    checks: bool = False
    shuffle: random.Random | None = None
    runs: bool = True
    graph: VirtualGraph | None = None
    kernels: dict[str, Kernel] = field(default_factory=dict)
    """hash of the PTX -> kernel"""
    compiled: list[str] = field(default_factory=list)
    """names, as they were"""
    launched: list[str] = field(default_factory=list)

    def load(self, text: str) -> Kernel:
        """Translate and compile, or find what was compiled before."""
        key = hashlib.sha256("\0".join([text, HEADER.read_text(), *COMPILER]).encode()).hexdigest()[:24]
        if key not in self.kernels:
            function = ptx.parse(text)
            folder = Path(triton.knobs.cache.dir) / "virtual_gpu"
            library = folder / f"{key}.so"
            if not library.exists():
                folder.mkdir(parents=True, exist_ok=True)
                source = folder / f"{key}-{os.getpid()}.cpp"
                source.write_text(ptx.translate(function))
                made = source.with_suffix(".so")
                subprocess.run([*COMPILER, f"-I{HEADER.parent}", source, "-o", made], check=True)
                made.replace(library)
                source.unlink()
            passes = (ctypes.c_uint64 * len(function.blocks))()
            self.kernels[key] = Kernel(text, function, ctypes.CDLL(str(library)), passes)
        return self.kernels[key]

    def launch(self, name: str, *what: Any) -> None:
        """Launch a kernel, `what` as for `run`."""
        self.launched.append(name)
        if self.runs:
            self.run(*what)

    def run(self, kernel: Kernel, grid: Sequence[int], warps: int, shared: int, arguments: Sequence[Any]) -> None:
        """Run a kernel.

        Raises:
            VirtualGPUError: the kernel did what it must not do; the message says what and where.
        """
        if any(isinstance(each, Address) and each.freed for each in arguments):
            raise VirtualGPUError(f"{kernel.function.name}: launched with memory that was freed")
        words = [_word(each) for each in arguments]
        words += [0] * (kernel.function.parameters - len(words))  # scratch memory, of which none was asked for
        ranges = sorted({(each.begin, each.end) for each in arguments if isinstance(each, Address) and self.checks})
        flat = [edge for each in ranges for edge in each]
        count = grid[0] * grid[1] * grid[2]
        order = self.shuffle.sample(range(count), count) if self.shuffle else range(count)
        traffic, message = (ctypes.c_uint64 * 3)(), ctypes.create_string_buffer(500)
        failed = kernel.binary.launch(
            *(ctypes.c_uint32(each) for each in grid),
            (ctypes.c_uint64 * len(words))(*words),
            ctypes.c_uint32(warps),
            ctypes.c_uint32(shared),
            (ctypes.c_uint64 * len(flat))(*flat),
            ctypes.c_uint64(len(ranges)),
            (ctypes.c_uint32 * count)(*order),
            kernel.passes,
            traffic,
            message,
            ctypes.c_uint64(len(message)),
        )
        if failed:
            raise VirtualGPUError(f"{kernel.function.name}: {message.value.decode()}")
        kernel.launches += 1
        kernel.blocks += count
        kernel.loaded += traffic[0]
        kernel.stored += traffic[1]
        kernel.barriers += traffic[2]


def _word(argument: Any) -> int:
    """An argument as 64 bits."""
    if isinstance(argument, Address):
        return argument.begin
    if isinstance(argument, float):
        return int.from_bytes(struct.pack("<f", argument), "little")
    return int(argument) % 2**64


def _flat(kind: Any, argument: Any) -> Iterator[Any]:
    """Arguments that a kernel has, members of tuples one by one, of tensors where they lie."""
    if isinstance(kind, tuple):
        for inner, member in zip(kind, argument, strict=True):
            yield from _flat(inner, member)
    elif kind != "constexpr":
        yield Address(argument) if isinstance(argument, torch.Tensor) else argument


def install(gpu: VirtualGPU, capability: int = 90) -> None:
    """Let Triton compile for a GPU of that compute capability, and launch on this one."""

    class Launcher:
        def __init__(self, source: Any, metadata: Any) -> None:
            self.signature = tuple(source.signature.values())
            self.name, self.warps, self.shared = metadata.name, metadata.num_warps, metadata.shared

        def __call__(self, x: int, y: int, z: int, stream: int, kernel: Kernel, *others: Any) -> None:
            arguments = list(_flat(self.signature, others[-len(self.signature) :]))
            launch = partial(gpu.launch, self.name, kernel, (x, y, z), self.warps, self.shared, arguments)
            if gpu.graph is None:
                launch()
            else:
                gpu.graph.steps.append(launch)

    class Utils:
        text = ""

        def get_device_properties(self, device: int) -> dict[str, int]:
            return {"max_shared_mem": SHARED_MEMORY, "multiprocessor_count": MULTIPROCESSORS}

        def load_binary(self, name: str, *_: Any) -> tuple[int, Any, int, int, int]:
            gpu.compiled.append(name)
            return 1, gpu.load(self.text) if gpu.runs else 1, 0, 0, 1024

        def unload_module(self, module: Any) -> None:
            pass

    class Driver(CudaDriver):  # type: ignore[misc]
        def __init__(self) -> None:
            self.utils = Utils()
            self.launcher_cls = Launcher

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", capability, 32)

    stand_in = Driver()

    def remember(module: Any, function: Any, name: str, files: dict[str, str], hash: str) -> None:
        stand_in.utils.text = Path(files[f"{name}.ptx"]).read_text()

    triton.knobs.runtime.kernel_load_start_hook = remember
    driver.set_active(stand_in)


def plan_on(gpu: VirtualGPU) -> None:
    """`install`, and let the triton engine plan on it: with a model on the CPU."""
    from ttengine.engines import triton, triton_memory

    install(gpu)
    provide(gpu)
    triton.check_machine = lambda device: None
    triton.captures = lambda device: True
    triton_memory.room_on = lambda device: SHARED_MEMORY
