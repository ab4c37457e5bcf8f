"""What benches share: facts about the machine, its matrix-product peak, percentiles, fits, memory and JSON."""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
CODE = ("ttengine", "kernels", "csrc", "setup.py", "CMakeLists.txt", "bench/*.py")
"""What a measurement depends on, inside the repository."""

MB = 1e6
"""Bytes in a megabyte."""


@functools.cache
def commit() -> str:
    """Return the commit at the first call, `-dirty` if other code may have been measured, `unknown` without git.

    A file under `CODE` that git does not know makes it dirty as well.
    """
    try:
        head = _git("rev-parse", "HEAD")
        return f"{head}-dirty" if _git("status", "--porcelain", "--", *CODE) else head
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, text=True, capture_output=True).stdout.strip()


def versions() -> dict[str, str]:
    """Return the versions that a measurement depends on."""
    packages = {name: version(name) for name in ("ttengine", "numpy")}
    return {"python": platform.python_version(), "torch": torch.__version__, **packages}  # with what it is built for


def machine() -> dict[str, Any]:
    """Return what the measurement ran on, its load included: on a busy machine the numbers mean less."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_1_minute": round(os.getloadavg()[0], 2),
    }


def gpu_machine() -> dict[str, Any]:
    """Return what a measurement on a GPU ran on and with; without one it says so. Needs PyTorch and Triton alone."""
    import triton

    facts = {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__}
    facts |= {"commit": commit(), "device": "cpu, interpreted"}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts |= {"device": properties.name, "multiprocessors": properties.multi_processor_count}
        facts |= {"memory_gib": round(properties.total_memory / 2**30, 1), "cuda": torch.version.cuda}
        smi = shutil.which("nvidia-smi")
        if smi:
            query = [smi, "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader"]
            done = subprocess.run(query, capture_output=True, text=True, check=False)
            facts["driver_and_clock"] = done.stdout.strip()
    return facts


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = cpuinfo.read_text().split("model name\t: ")[1:] if cpuinfo.is_file() else []
    return names[0].splitlines()[0] if names else platform.processor() or platform.machine()


def matmul_gflops(size: int = 2048, repeats: int = 8) -> float:
    """Return the fastest of several float32 products of two square matrices, in GFLOP/s, on PyTorch's threads."""
    left, right = torch.rand(size, size), torch.rand(size, size)
    fastest = math.inf
    with torch.inference_mode():
        for _ in range(repeats + 1):  # the first may wait for threads to start; it can only be slower
            started = time.perf_counter()
            torch.mm(left, right)
            fastest = min(fastest, time.perf_counter() - started)
    return 2 * size**3 / fastest / 1e9


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of all values do not exceed: always one that was measured."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(round(share * len(ordered), 9)) - 1)]


def linear_fit(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Fit y = slope * x + intercept by least squares; return slope, intercept and R^2 (1 for a constant y)."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    intercept = mean_y - slope * mean_x
    residual = sum((b - slope * a - intercept) ** 2 for a, b in zip(x, y, strict=True))
    total = sum((b - mean_y) ** 2 for b in y)
    return slope, intercept, 1.0 if total == 0 else 1 - residual / total


def resident_mb() -> float:
    """Return the resident memory of this process in MB."""
    import psutil  # type: ignore[import-untyped]  # what is measured on GPUs needs no more than PyTorch and Triton

    return int(psutil.Process().memory_info().rss) / MB


def significant(value: float | None, digits: int = 4) -> float | None:
    """Round to so many significant digits; None stays None."""
    return None if value is None else float(f"{value:.{digits}g}")


def write_json(path: Path, content: Any) -> None:
    """Write JSON, making the folder if need be; NaN and infinity are errors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
