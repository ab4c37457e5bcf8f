"""Errors have one parent, and a missing extra says what to install."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest

from ttengine import errors


def test_every_error_is_a_ttengine_error() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]
    assert len(kinds) > 8
    for kind in kinds:
        assert issubclass(kind, errors.TTEngineError | UserWarning), kind


def test_a_missing_extra_names_the_install_that_mends_it() -> None:
    with pytest.raises(errors.MissingExtraError, match=r"pip install 'ttengine\[mujoco\]'"):
        errors.require("a_package_that_nobody_wrote.submodule", "mujoco")


def test_a_package_that_is_there_but_broken_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_package.py").write_text("import a_package_that_nobody_wrote\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError) as caught:
        errors.require("broken_package", "mujoco")
    assert not isinstance(caught.value, errors.MissingExtraError)
    sys.modules.pop("broken_package", None)
