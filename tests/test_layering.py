"""Imports point one way, optional packages are imported late, and the core's headers stay plain C++."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

LAYERS = [
    layer.split()
    for layer in (
        "errors config discretizer",
        "kernels model dropout checkpoint importers context native _native",
        "engines objectives",
        "planner",
        "controller closed_loop data environments old_gym d4rl_gym training optimisation",
        "evaluation stages viz",
        "experiments demo cli",
        "__init__ __main__",
    )
]
"""From the bottom up: a module imports its own layer and those below it; `training` stands for `training_loop` too."""

LEAVES = {"errors": set(), "config": {"errors"}, "discretizer": {"errors"}, "kernels": {"kernels"}}
"""Modules that may import nothing of the package but these."""

CORE = {"torch", "numpy", "safetensors", "tyro", "rich", "ttengine"} | set(sys.stdlib_module_names)
"""What may be imported at the top of a file; everything else is an extra."""

NEED_AN_EXTRA = {
    "ttengine.old_gym": "it subclasses gymnasium.Env",
    "ttengine.data.train_behaviours": "a program, run with python -m",
    **dict.fromkeys(("ttengine.experiments.four_rooms", "ttengine.experiments.maze"), "it subclasses gymnasium.Env"),
    "ttengine.engines.triton_memory": "it lays memory out for Triton kernels",
    **dict.fromkeys(
        (
            f"ttengine.kernels.{name}"
            for name in (
                *("attention", "branch", "products", "records", "sampling", "segments", "select", "sharing"),
                "transformer",
            )
        ),
        "a Triton kernel is decorated when it is defined",
    ),
}
"""Files that may import an extra at their top, and why; in return nothing may import them at its own top."""

NOT_LIBRARY = {"tests", "bench", "examples", "conftest"}

HEADER_BAN = re.compile(r'#\s*include\s*[<"](pybind11/|Python\.h|torch/|ATen/|c10/)')


def find_layer(unit: str) -> int | None:
    """Return the layer of a top-level unit of the package, or None when no layer names it."""
    for layer, units in enumerate(LAYERS):
        if unit in units or any(unit.startswith(f"{family}_") for family in units):
            return layer
    return None


def imported_names(tree: ast.AST, module: str) -> Iterator[str]:
    """Yield the dotted name of everything imported anywhere in a file; relative imports are resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            # `from ttengine import planner` imports a module, `from ttengine.errors import require` a name in one
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def violations(module: str, source: str) -> list[str]:
    """Return what is wrong with the imports of one library file, as sentences."""
    tree = ast.parse(source)
    unit = module.split(".")[1] if "." in module else "__init__"
    layer = find_layer(unit)
    assert layer is not None, f"ttengine.{unit} stands in no layer; add it to LAYERS where DESIGN draws it"
    found = []
    for name in imported_names(tree, module):
        root, *rest = name.split(".")
        if root in NOT_LIBRARY:
            found.append(f"{module} imports {name}, which is no library code")
        if root != "ttengine" or not rest:
            continue
        target = rest[0]
        target_layer = find_layer(target)
        if target_layer is None:  # not a module but one of the public names, which only the top has
            target_layer = len(LAYERS) - 1
        if target_layer > layer:
            found.append(f"{module} imports {name}, which lies above it")
        elif unit in LEAVES and target not in LEAVES[unit] | {unit}:
            found.append(f"{module} is a leaf and imports {name}")
    return found


def early_imports(module: str, source: str) -> list[str]:
    """Return what a file imports when it is loaded although it needs an extra; type-only imports do not count."""
    found = []

    def visit(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
                visit(node.orelse)
                continue
            if isinstance(node, ast.Import | ast.ImportFrom):
                found.extend(imported_names(node, module))
            for block in ("body", "orelse", "finalbody"):
                visit(getattr(node, block, []))
            for handler in getattr(node, "handlers", []):
                visit(handler.body)

    visit(ast.parse(source).body)
    return [
        name
        for name in found
        if name.split(".")[0] not in CORE or any(f"{name}.".startswith(f"{late}.") for late in NEED_AN_EXTRA)
    ]


def library_files(repository: Path) -> list[tuple[str, Path]]:
    """Return every Python file of the package with its dotted module name; a package's own file ends in __init__."""
    files = [(("ttengine", *p.relative_to(repository / "ttengine").with_suffix("").parts), p)
             for p in sorted((repository / "ttengine").rglob("*.py"))]  # fmt: skip
    files += [(("ttengine", "kernels", *p.relative_to(repository / "kernels").with_suffix("").parts), p)
              for p in sorted((repository / "kernels").rglob("*.py"))]  # fmt: skip
    return [(".".join(parts), path) for parts, path in files]


def test_imports_point_downwards(repository: Path) -> None:
    files = library_files(repository)
    assert {"ttengine.planner", "ttengine.kernels.reference", "ttengine.__init__"} <= {module for module, _ in files}
    wrong = [line for module, path in files for line in violations(module, path.read_text())]
    assert not wrong, "\n".join(wrong)


def test_optional_packages_are_not_imported_at_the_top_of_a_file(repository: Path) -> None:
    files = [(module, path) for module, path in library_files(repository) if module not in NEED_AN_EXTRA]
    wrong = [f"{module}: {name}" for module, path in files for name in early_imports(module, path.read_text())]
    assert not wrong, "import these in the function that needs them, with ttengine.errors.require: " + ", ".join(wrong)


def test_headers_of_the_core_know_neither_python_nor_torch(repository: Path) -> None:
    files = sorted(path for path in (repository / "csrc").iterdir() if path.suffix in {".h", ".cpp"})
    knowing = [path.name for path in files if HEADER_BAN.search(path.read_text())]
    assert knowing == ["bindings.cpp"]


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("ttengine.planner", "from ttengine.controller import Controller", "lies above it"),
        ("ttengine.planner", "from ttengine import evaluation", "lies above it"),
        ("ttengine.planner", "import ttengine.cli", "lies above it"),
        ("ttengine.planner", "from ttengine import load", "lies above it"),
        ("ttengine.planner", "from .training import train", "lies above it"),
        ("ttengine.planner", "from ttengine.training_loop import run", "lies above it"),
        ("ttengine.engines.reference", "from ..planner import Planner", "lies above it"),
        ("ttengine.model", "def f():\n    from ttengine.planner import Planner", "lies above it"),
        ("ttengine.model", "if TYPE_CHECKING:\n    from ttengine.engines import Engine", "lies above it"),
        ("ttengine.discretizer", "from ttengine.config import ModelConfig", "is a leaf"),
        ("ttengine.kernels.reference", "from ttengine.model import TrajectoryTransformer", "is a leaf"),
        ("ttengine.data.load", "from tests.conftest import ROOT", "no library code"),
        ("ttengine.evaluation", "import bench.harness", "no library code"),
    ],
)
def test_a_made_up_violation_is_found(module: str, source: str, complaint: str) -> None:
    (found,) = violations(module, source)
    assert complaint in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ttengine.cli", "from ttengine.evaluation import evaluate\nfrom ttengine.data.load import load_dataset"),
        ("ttengine.engines.reference", "from .protocol import Engine\nfrom ttengine.kernels import reference"),
        ("ttengine.__init__", "from ttengine.planner import Planner"),
        ("ttengine.__main__", "from ttengine import load"),
        ("ttengine.training", "from ttengine.training_loop import run"),
        ("ttengine.discretizer", "import numpy\nfrom ttengine.errors import DataError"),
    ],
)
def test_a_downward_import_is_let_through(module: str, source: str) -> None:
    assert violations(module, source) == []


def test_a_module_without_a_layer_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"ttengine\.helpers stands in no layer"):
        violations("ttengine.helpers", "")


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import h5py", ["h5py"]),
        (
            "try:\n    from gymnasium.vector import VectorEnv\nexcept ImportError:\n    import gym",
            ["gymnasium.vector.VectorEnv", "gym"],
        ),
        ("from ttengine.old_gym import OldGymAdapter", ["ttengine.old_gym.OldGymAdapter"]),
        ("from ttengine import old_gym", ["ttengine.old_gym"]),
        ("from . import old_gym", ["ttengine.old_gym"]),
        ("class A:\n    import matplotlib.pyplot", ["matplotlib.pyplot"]),
        ("def f():\n    import h5py", []),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import h5py", []),
        ("import torch.nn.functional\nimport numpy as np\nfrom . import sibling", []),
    ],
)
def test_early_imports_are_told_from_late_ones(source: str, found: list[str]) -> None:
    assert early_imports("ttengine.made_up", source) == found


@pytest.mark.parametrize("line", ["#include <pybind11/numpy.h>", '# include "Python.h"', "#include <torch/torch.h>"])
def test_a_forbidden_include_is_found(line: str) -> None:
    assert HEADER_BAN.search(line)
