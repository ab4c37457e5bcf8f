"""What Triton's interpreter needs for kernels to come out on a CPU as on a GPU, and soon enough."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import triton.language as tl
    from triton.runtime import interpreter


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


def speed_up() -> None:
    """Make interpreted runs several times as fast.

    The language is patched once, not in nested functions; equal types and tensors' descriptions are made once; a
    reduction combines whole slices in place of single numbers, in the same order; integer sums may overflow.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    object.__setattr__(interpreter.interpreter_builder.options, "sanitize_overflow", False)
    interpreter._patch_lang = patched_once(interpreter._patch_lang, {"tl": tl, "core": tl.core})
    dtypes: dict[str, np.dtype] = {}
    types: dict[tuple[Any, ...], dict[str, Any]] = {}
    tensors_of: dict[str, dict[str, Any]] = {}
    look_up, make_type, make_tensor = interpreter._get_np_dtype, tl.block_type.__init__, tl.tensor.__init__

    def look_up_once(dtype: tl.dtype) -> np.dtype:
        if dtype.name not in dtypes:
            dtypes[dtype.name] = look_up(dtype)
        return dtypes[dtype.name]

    def make_type_once(self: tl.block_type, element_ty: tl.dtype, shape: Any) -> None:
        key = (element_ty.name, *[getattr(size, "value", size) for size in shape])
        if key not in types:
            make_type(self, element_ty, shape)
            types[key] = dict(vars(self))
        vars(self).update(types[key])

    def make_tensor_once(self: tl.tensor, handle: Any, type: tl.dtype) -> None:
        if type.name not in tensors_of:
            make_tensor(self, handle, type)
            tensors_of[type.name] = dict(vars(self))
        vars(self).update(tensors_of[type.name])
        self.handle = handle

    def reduce(self: interpreter.ReduceOps, tensors: tuple[tl.tensor, ...]) -> list[tl.tensor]:
        tensors, axis = self.unravel(tensors, self.axis)
        slices = [
            [self.to_tensor(part, tensor.dtype) for part in np.moveaxis(tensor.handle.data, axis, 0)]
            for tensor in tensors
        ]
        total = functools.reduce(lambda sums, more: self.combine_fn.fn(*sums, *more), zip(*slices, strict=True))
        shape = list(tensors[0].handle.data.shape)
        shape[axis : axis + 1] = [1] * self.keep_dims
        return [
            self.to_tensor(part.handle.data.reshape(shape)[()], tensor.dtype)
            for part, tensor in zip(total, tensors, strict=True)
        ]

    interpreter._get_np_dtype = look_up_once
    tl.block_type.__init__ = make_type_once
    tl.tensor.__init__ = make_tensor_once
    interpreter.ReduceOps.generic_reduce = reduce


def patched_once(patch: Callable[..., Any], modules: dict[str, Any]) -> Callable[..., Any]:
    """Wrap the interpreter's `_patch_lang`: what is patched already is left alone until whoever patched it is done."""
    patched: set[str] = set()

    class Nothing:
        def restore(self) -> None:
            """Whoever patched first undoes it."""

    def patch_once(function: Any) -> Any:
        used = {name for name, module in modules.items() if function.__globals__.get(name) is module}
        if patched >= used:
            return Nothing()
        patched.update(used)
        scope = patch(function)
        restore = scope.restore

        def restore_all() -> None:
            patched.clear()
            restore()

        scope.restore = restore_all
        return scope

    return patch_once
