"""Every operation of the search: its meaning in plain PyTorch (`reference`), and its fast versions in Triton.

Some serve anyone's model and can be imported from here: `paged_attention`, `sample_topk`, `select_beams`. They need
`pip install 'ttengine[triton]'` and a GPU, or TRITON_INTERPRET=1.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {"paged_attention": "attention", "sample_topk": "sampling", "select_beams": "select"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_HOMES)}")
    try:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise ImportError(
            f"{name} is a Triton kernel, and Triton is not here: pip install 'ttengine[triton]'"
        ) from error
