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
    """Float32 but for rounding, bfloat16 nearly; in tiles of one and of more the same bytes; no race, no overrun."""
    done = run(virtual, str(repository / "tests" / "compiled_plans.py"))
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    executed: dict[str, Any] = report.pop("executed")  # type: ignore[assignment]
    assert all(plan["same_actions"] and plan["off"] < 1e-4 for plan in report["rolling fp32"])
    assert sum(plan["same_actions"] and plan["off"] < 0.1 for plan in report["window bf16"]) >= 2
    assert all(plan["same_bytes"] for plans in report.values() for plan in plans)
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


def test_ptx_that_is_not_known_is_refused_with_its_line(virtual: dict[str, str]) -> None:
    """Never run as something else."""
    text = ".visible .entry f(\n)\n{\n.reg .b32 %r<2>;\ntanh.approx.f32 %r1, %r0;\nret;\n}"
    program = f"from virtual_gpu import ptx; ptx.translate(ptx.parse({text!r}))"
    done = run(virtual, "-c", program)
    assert done.returncode != 0
    assert "UnknownPTXError: line 5: tanh.approx.f32 %r1, %r0" in done.stderr


def test_a_command_plans_on_the_virtual_gpu(virtual: dict[str, str]) -> None:
    """Its kernels are run, and not the interpreter or another engine."""
    plan = ("--plan.engine", "triton", "--plan.horizon", "1", "--plan.beam-width", "2", "--plan.precision", "bf16")
    steps = ("--episodes", "1", "--max-steps", "1", "--json")
    done = run({**virtual, "TRITON_INTERPRET": "1"}, "-m", "virtual_gpu", "evaluate", "hopper", *plan, *steps)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["plan"]["engine"] == "triton"
    assert "virtual GPU: 1 prefill 1 expand 1 _select_beams 1 take" in done.stderr
