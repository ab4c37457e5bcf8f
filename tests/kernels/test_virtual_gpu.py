"""What the compiler made of the kernels plans as the reference engine does, and touches no memory that it must not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not (shutil.which("clang++") or shutil.which("g++")), reason="needs a C++ compiler"
)


@pytest.fixture(scope="module")
def virtual(repository: Path) -> dict[str, str]:
    """The environment of programs that run on the virtual GPU."""
    folders = [str(repository / "tests"), str(repository / "bench"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}


def run(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python."""
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, env=environment)


def test_compiled_plans_are_the_reference_engines(repository: Path, virtual: dict[str, str]) -> None:
    """Float32 but for rounding, bfloat16 nearly; no race, no overrun.

    The same bytes come from a graph that is replayed with other contexts and noise, and from kernels launched one by
    one, in tiles of one and of more.
    """
    done = run(virtual, str(repository / "tests" / "compiled_plans.py"))
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    executed: dict[str, Any] = report.pop("executed")  # type: ignore[assignment]
    exact = report["rolling fp32"] + report["objective fp32"]
    assert all(plan["same_actions"] and plan["off"] < 1e-4 for plan in exact)
    assert sum(plan["same_actions"] and plan["off"] < 0.1 for plan in report["window bf16"]) >= 2
    for plan in (plan for plans in report.values() for plan in plans):
        captured, *others = plan["graphs"]
        assert plan["same_bytes"] and captured and not any(others)
    assert any(name.startswith("mma.sync") for name in executed["expand"])


KERNELS = """
import torch, triton, triton.language as tl, sys
from virtual_gpu.driver import VirtualGPU, install
install(VirtualGPU(checks=True))

@triton.jit
def shift(x, y, count, BARRIER: tl.constexpr, BEYOND: tl.constexpr):
    at = tl.arange(0, 256)
    tl.store(y + at, tl.load(x + at), mask=at < count)
    if BARRIER:
        tl.debug_barrier()
    tl.store(x + at, tl.load(y + (at + 37) % 256 + BEYOND))

x, y = torch.arange(256.0), torch.zeros(256)
shift[(1,)](x, y, 256, sys.argv[1] == "barrier", int(sys.argv[2]))
assert torch.equal(x, (torch.arange(256.0) + 37) % 256)
"""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("barrier", "0"), None), (("none", "0"), "race: "), (("barrier", "8"), "outside of the tensors")],
)
def test_races_and_overruns_are_found(
    arguments: tuple[str, str], says: str | None, virtual: dict[str, str], tmp_path: Path
) -> None:
    """Warps that read what others wrote need a barrier; past its tensors a kernel reads nothing."""
    program = tmp_path / "program.py"
    program.write_text(KERNELS)
    done = run({**virtual, "TRITON_INTERPRET": "0"}, str(program), *arguments)
    assert (done.returncode == 0) == (says is None), done.stderr[-2000:]
    assert says is None or says in done.stderr


GRAPH = """
import torch, triton, triton.language as tl, sys
from virtual_gpu.driver import VirtualGPU, VirtualGPUError, install
from virtual_gpu.graph import provide
gpu = VirtualGPU()
install(gpu)
provide(gpu)

@triton.jit
def double(x, y):
    at = tl.arange(0, 32)
    tl.store(y + at, 2 * tl.load(x + at))

def work():
    inner = x + 1
    double[(1,)](inner, y)
    return y * 10

x, y = torch.zeros(32), torch.zeros(32)
work()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
    out = work()
assert float(y[0]) == 2.0, "a kernel ran while it was captured"
for value in (3.0, 5.0):
    x.fill_(value)
    graph.replay()
    assert float(out[0]) == 20 * (value + 1), out
assert gpu.launched == ["double"] * 3
try:
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        x.sum().item()
except RuntimeError as error:
    print(error)
double[(1,)](x, y)
with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
    double[(1,)](x, y)
del x
try:
    graph.replay()
except VirtualGPUError as error:
    print(error)
"""


def test_a_graph_is_what_was_launched(virtual: dict[str, str], tmp_path: Path) -> None:
    """Replayed with new numbers at the old addresses; nothing is waited for, nothing read that was freed."""
    program = tmp_path / "program.py"
    program.write_text(GRAPH)
    done = run({**virtual, "TRITON_INTERPRET": "0"}, str(program))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "not permitted when stream is capturing" in done.stdout
    assert "double: launched with memory that was freed" in done.stdout


def test_ptx_that_is_not_known_is_refused_with_its_line(virtual: dict[str, str]) -> None:
    """Never run as something else."""
    text = ".visible .entry f(\n)\n{\n.reg .b32 %r<2>;\ntanh.approx.f32 %r1, %r0;\nret;\n}"
    program = f"from virtual_gpu import ptx; ptx.translate(ptx.parse({text!r}))"
    done = run(virtual, "-c", program)
    assert done.returncode != 0
    assert "UnknownPTXError: line 5: tanh.approx.f32 %r1, %r0" in done.stderr


def test_a_command_plans_on_the_virtual_gpu(virtual: dict[str, str]) -> None:
    """Its kernels are run, and not the interpreter or another engine: launched one by one, then by the graph."""
    plan = ("--plan.engine", "triton", "--plan.horizon", "1", "--plan.beam-width", "2", "--plan.precision", "bf16")
    steps = ("--episodes", "1", "--max-steps", "1", "--json")
    done = run({**virtual, "TRITON_INTERPRET": "1"}, "-m", "virtual_gpu", "evaluate", "hopper", *plan, *steps)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["plan"]["engine"] == "triton"
    assert "virtual GPU: 2 prefill 2 expand 2 _select_beams 2 take" in done.stderr
