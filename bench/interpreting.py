"""What Triton's interpreter needs for kernels to come out on a CPU as on a GPU."""

from __future__ import annotations

import numpy as np


def round_alike() -> None:
    """Let a row's dot product not depend on where the row lies: on some CPUs NumPy's does, in the last bit.

    Sums of float32 are taken in float64 and rounded once. On a GPU rows of a tile are alike by construction.
    """
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    as_it_was = InterpreterBuilder.create_dot

    def create_dot(self: object, a: TensorHandle, b: TensorHandle, d: TensorHandle, *options: object) -> TensorHandle:
        if a.data.dtype not in (np.float32, np.float16) or d.data.dtype != np.float32:
            return as_it_was(self, a, b, d, *options)
        product = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64))
        return TensorHandle(product.astype(np.float32) + d.data, d.dtype.scalar)

    InterpreterBuilder.create_dot = create_dot
