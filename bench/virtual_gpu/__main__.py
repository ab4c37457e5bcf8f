"""`ttengine`, with the triton engine's plans on the virtual GPU: what a command plans in this process.

At last it says which kernels were launched how often.

In this repository's folder `bench`:

    python -m virtual_gpu evaluate hopper --plan.engine triton --plan.precision bf16 --episodes 4 --batch 4 --json
"""

from __future__ import annotations

import os
import sys
from collections import Counter

os.environ.pop("TRITON_INTERPRET", None)

import find_ttengine  # noqa: F401 - finds it

from ttengine.cli import main

from .driver import VirtualGPU, plan_on

if __name__ == "__main__":
    gpu = VirtualGPU()
    plan_on(gpu)
    try:
        sys.exit(main())
    finally:
        print("virtual GPU:", *(f"{n} {name}" for name, n in Counter(gpu.launched).items()), file=sys.stderr)
