"""The compiled core, or an error that says how to build it."""

from __future__ import annotations

from ttengine.errors import EngineError

try:
    from ttengine._native import BlockTable, PagePool, PagePoolError, Search, available_isas, build_info
except ImportError as error:
    # no fallback: whoever asked for native code must not be served something slower without knowing
    raise EngineError(
        f"the compiled core ttengine._native cannot be loaded ({error}); build it where setup.py lies: pip install . "
        "(pip install -e . when Python runs inside the repository, where it finds the source first)"
    ) from error

__all__ = ["BlockTable", "PagePool", "PagePoolError", "Search", "available_isas", "build_info"]
