"""Imported before ttengine: where it is not installed, it is taken from beside this folder, its kernels too."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if importlib.util.find_spec("ttengine") is None:
    sys.path.append(str(ROOT))
if importlib.util.find_spec("ttengine.kernels") is None:
    import ttengine

    ttengine.__path__.append(str(ROOT))  # an installed package has `kernels` inside; here it lies beside the package
