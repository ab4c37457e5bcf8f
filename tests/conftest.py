"""Fixtures that every test file may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

pytest_plugins = ["interpreted"]

# machines that run tests are shared and slow at times; a failing example prints how to run it again
settings.register_profile("ttengine", deadline=None, print_blob=True)
settings.load_profile("ttengine")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder with setup.py."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Stronger policies and foreign data, kept beside the repository; skips where they are absent."""
    path = Path(os.environ.get("TTENGINE_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no shared data in {path}; name its folder in TTENGINE_SHARED_DATA")
    return path
