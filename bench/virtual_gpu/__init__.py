"""A GPU for Triton's kernels on a machine without one: what was compiled runs on the CPU, instruction by instruction.

Triton's interpreter runs the source of a kernel. Here runs what the compiler made of it: layouts, shared memory,
barriers, copies in flight, matrix instructions, bfloat16. `driver.install()` makes Triton believe in such a GPU;
`ptx.py` turns PTX into C++, `machine.h` runs it. Time means nothing here, but what was executed is counted.
"""
