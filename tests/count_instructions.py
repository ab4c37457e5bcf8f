"""Plans under valgrind's callgrind, counting nothing but the plans; `test_performance.py` runs it.

    valgrind --tool=callgrind --instr-atstart=no python tests/count_instructions.py switch.so model.safetensors cpp 2

Counting is switched on and off by a library of two functions around valgrind's client requests (`SWITCH`), after the
imports and a first plan, so that start-up does not count.
"""

from __future__ import annotations

import ctypes
import sys

SWITCH = """
#include <valgrind/callgrind.h>
void counting_on(void) { CALLGRIND_START_INSTRUMENTATION; }
void counting_off(void) { CALLGRIND_STOP_INSTRUMENTATION; }
"""
"""C source of the library that is the script's first argument."""


def main(library: str, model: str, engine: str, plans: int) -> None:
    """Plan, and print how many rows passed through the model while counting."""
    import numpy as np
    import torch

    from ttengine.config import PlanConfig
    from ttengine.context import Context
    from ttengine.engines import CppEngine
    from ttengine.planner import Planner

    torch.set_num_threads(1)
    planner = Planner(model, PlanConfig(horizon=2, beam_width=4, context_kind="window", engine=engine, threads=1))
    if engine == "cpp":  # not what this machine does best: the count must be the same on all of them
        planner.engine = CppEngine(planner.model, planner.discretizer, planner.config, isa="avx2")
    N, M = planner.model.config.observation_dim, planner.model.config.action_dim
    steps = np.arange(planner.context_capacity, dtype=np.float32)[:, None]
    context = Context(
        np.sin(steps + np.arange(N)), np.cos(steps + np.arange(M)), np.sin(steps[:, 0]), planner.context_capacity
    )
    observation = np.sin(np.arange(N, dtype=np.float32))
    planner.plan(observation, context)
    switch = ctypes.CDLL(library)
    rows = 0
    switch.counting_on()
    for step in range(1, plans + 1):
        rows += planner.plan(observation, context, step=step).counters.physical_rows
    switch.counting_off()
    print(rows)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
