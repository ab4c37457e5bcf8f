"""What the Triton kernels take of a GPU, compiled ahead of time, without one: a regression check of their speed.

    python bench/compiled_resources.py             compile, print the table, compare with the committed one
    python bench/compiled_resources.py --update    write bench/results/triton/resources.json anew

Registers and stack (spilled registers) of a thread, shared memory of a program and its matrix instructions, for sm_80,
sm_90, sm_100 and gfx942, at the size of the paper's hopper model. Exits with 1 if a kernel takes more than the
committed table says, or has other matrix instructions; with another version of Triton than the table's that is only
printed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # kernels are to be compiled here

import triton
import triton.language as tl
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ttengine.engines.triton import WARPS
from ttengine.kernels import attention, branch, sampling, segments, select
from ttengine.kernels.records import Problems, Rows, Search
from ttengine.kernels.sampling import Rule
from ttengine.kernels.transformer import Model, Shape

COMMITTED = Path(__file__).parent / "results" / "triton" / "resources.json"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
ACTION, TOP = Rule(cdf=0.6), Rule(k=1)


ROOMS = {"small": 64 * 1024, "roomy": 227 * 1024}
"""Bytes of shared memory of a program: gfx942 has no more, GPUs for the desktop hardly more; a Hopper has as much."""


def shape_of(dtype: str, window: bool = False, **others: Any) -> Shape:
    """The paper's model for hopper, rotary or, for a window, absolute."""
    others |= {"places": 159} if window else {"rotary": True, "sight": 5, "places": 16}
    return Shape(11, 3, 100, 4, 4, 128, dtype=tl.dtype(dtype), **others)


def search_of(window: bool = False) -> Search:
    """The paper's search for hopper."""
    entries = 6 if window else 7
    shape = shape_of("bf16", window)
    pieces, context_pages = shape.pieces(entries), 5 * shape.layers + 1
    return Search(15, 128, 2, window, entries, context_pages, ACTION, TOP, TOP, TOP, share=window, pieces=pieces)


ROWS = Rows("*i64", "*fp32", "*fp32", "*i32", "*fp32", "*fp32", "*fp32", "*i32")
PROBLEMS = Problems(*["*i64"] * 6, *["*fp32"] * 3, *["*i64"] * 4)


def segment(words: list[str], room: str | None) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A segment's kernel, the types of its arguments and its constants."""
    name, dtype, window = words[0], words[-1], "window" in words
    shape = shape_of(dtype, window, **({"room": ROOMS[room]} if room else {}))
    number, part = f"*{dtype}", "*bf16" if dtype == "bf16" else "*fp16"
    types: dict[str, Any] = {"model": Model(part, "*fp32", number, "*fp32"), "pages": part, "beams": ROWS}
    types |= {"candidates": ROWS, "problems": PROBLEMS, "kept": "*i64", "score": "*fp32", "out": "*i32"}
    types |= dict.fromkeys(("round", "rounds", "rows", "first_page", "longest", "columns"), "i32")
    constants = {"SHAPE": shape, "SEARCH": search_of(window), "TILE": 1 if window or "alone" in words else 16}
    types |= {"source": ROWS, "target": ROWS, "tokens": "*i64", "token": "i32", "count": "i32"}
    kernel = getattr(branch if name == "branch" else segments, name)
    constants = {argument: value for argument, value in constants.items() if argument in kernel.arg_names}
    signature = {argument: types.get(argument, "constexpr") for argument in kernel.arg_names}
    return kernel, signature, constants


def other(name: str) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A kernel beside the segments, for float32."""
    if name == "select_beams":
        types = dict.fromkeys(("score", "kept_score"), "*fp32") | {"kept": "*i64", "fault": "*i64"}
        types |= dict.fromkeys(("fault_code", "count", "width"), "i32")
        return select._select_beams, types | {"BLOCK": "constexpr"}, {"BLOCK": select.BLOCK}
    if name == "sample_topk":
        types = {"logits": "*fp32", "noise": "*fp32", "tokens": "*i64", "rows": "i32", "stride": "i32"}
        constants = {"VOCAB": 101, "PADDED": 128, "RULE": ACTION, "ROWS": sampling.ROWS}
        return sampling._sample_topk, types | dict.fromkeys(constants, "constexpr"), constants
    types = dict.fromkeys(("query", "keys", "values", "out"), "*bf16") | {"table": "*i32", "lengths": "*i32"}
    types |= {"rows": "i32", "entries": "i32", "scale": "fp32"}
    constants = {"SLOTS": 15, "HEADS": 4, "HEAD": 32, "ROWS": attention.ROWS}
    constants |= {"GROUP": attention.GROUP, "KEYS": attention.KEYS}
    constants["STAGES"] = attention.STAGES
    return attention._paged_attention, types | dict.fromkeys(constants, "constexpr"), constants


CASES: dict[str, tuple[str, ...]] = {
    **{f"{name} bf16": tuple(TARGETS) for name in ("prefill", "expand", "observe")},
    **{f"{name} fp32": ("sm_80", "sm_90", "sm_100") for name in ("prefill", "expand", "observe")},
    **{f"{name} roomy fp32": ("sm_90",) for name in ("expand", "observe")},
    **{f"{name} alone bf16": ("sm_80", "sm_90", "sm_100") for name in ("expand", "observe")},
    **{f"{name} alone fp16": ("sm_90",) for name in ("expand", "observe")},
    "observe alone fp32": ("sm_80", "sm_90", "sm_100"),
    "observe alone roomy fp32": ("sm_90",),
    "expand small bf16": ("sm_80",),
    "observe alone small bf16": ("sm_80",),
    "observe window bf16": ("sm_90",),
    "branch bf16": ("sm_90",),
    "branch window bf16": ("sm_90",),
    "take fp32": ("sm_90",),
    **dict.fromkeys(("select_beams", "sample_topk", "paged_attention"), ("sm_90",)),
}
"""Kernel, variant -> targets. Tiles are of 16 candidates or beams, or of one that is alone."""


def alignments(signature: dict[str, Any]) -> dict[tuple[int, ...], list[list[Any]]]:
    """Say of every pointer what a launch finds out: it is a multiple of 16 bytes, so that loads can be wide."""
    aligned: dict[tuple[int, ...], list[list[Any]]] = {}
    for place, kind in enumerate(signature.values()):
        members = {(place, i): each for i, each in enumerate(kind)} if isinstance(kind, tuple) else {(place,): kind}
        aligned |= {path: [["tt.divisibility", 16]] for path, each in members.items() if each.startswith("*")}
    return aligned


def compile_case(case: str, target: str) -> dict[str, int]:
    """Return registers, stack, shared memory and matrix instructions."""
    words = case.split()
    room = "small" if target.startswith("gfx") else next((word for word in words if word in ROOMS), None)
    kernel, signature, constants = segment(words, room) if len(words) > 1 else other(words[0])
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=alignments(signature))
    is_segment = words[0] in ("prefill", "expand", "observe", "branch")
    warps, stages = (WARPS, constants["SHAPE"].stages) if is_segment else (4, 1)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False}
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    if target.startswith("gfx"):
        text = compiled.asm["amdgcn"]
        number = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)$", text, re.M)}
        registers, stack = number["vgpr_count"], number["private_segment_fixed_size"]
        matrix = len(re.findall(r"\bv_mfma", text))
    else:
        registers, stack = resource_usage(compiled.asm["cubin"])
        matrix = len(re.findall(r"\bmma\.sync|\bwgmma\.mma|\btcgen05\.mma", compiled.asm["ptx"]))
    return {"registers": registers, "stack": stack, "shared": compiled.metadata.shared, "matrix_instructions": matrix}


def resource_usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of the kernel in a cubin."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2])


def main() -> int:
    """Compile, print, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the committed table anew")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    committed = json.loads(COMMITTED.read_text()) if COMMITTED.is_file() else {"triton": None, "kernels": {}}
    jobs = [(case, target) for case, targets in CASES.items() for target in targets]
    with ProcessPoolExecutor(arguments.processes) as pool:
        found = dict(
            zip((" ".join(job) for job in jobs), pool.map(compile_case, *zip(*jobs, strict=True)), strict=True)
        )
    table = Table("kernel", "registers", "stack, bytes", "shared, bytes", "matrix instructions", "committed")
    worse = []
    for name, usage in found.items():
        limit = committed["kernels"].get(name)
        fine = limit is not None and (
            all(usage[key] <= limit[key] for key in ("registers", "stack", "shared"))
            and usage["matrix_instructions"] == limit["matrix_instructions"]
        )
        if not fine:
            worse.append(name)
        table.add_row(name, *map(str, usage.values()), "as said" if fine else f"[red]{limit}")
    Console().print(table)
    if arguments.update:
        COMMITTED.parent.mkdir(parents=True, exist_ok=True)
        COMMITTED.write_text(json.dumps({"triton": triton.__version__, "kernels": found}, indent=1) + "\n")
        return 0
    if committed["triton"] != triton.__version__:
        print(f"the committed table is of Triton {committed['triton']}, this is {triton.__version__}: not compared")
        return 0
    if worse:
        print(f"other than committed in {COMMITTED.name}: {', '.join(worse)}", file=sys.stderr)
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
