"""Build ttengine: the Python package, the kernels mapped into it, and the compiled core through CMake.

Everything that is plain data stands in pyproject.toml.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def find_cmake() -> str:
    """Return the path of CMake: the one that pip installed beside setuptools, else the system's."""
    if importlib.util.find_spec("cmake") is not None:
        import cmake

        return str(Path(cmake.CMAKE_BIN_DIR) / "cmake")
    found = shutil.which("cmake")
    if found is None:
        raise SystemExit("CMake is not installed, and the native core needs it: pip install cmake")
    return found


class BuildWithCMake(build_ext):
    """Hands each extension to CMake; its sources are listed in CMakeLists.txt."""

    def build_extension(self, ext: Extension) -> None:
        """Configure and build `ttengine._native` where setuptools expects it."""
        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        cmake = find_cmake()
        configure = [
            cmake,
            f"-S{ROOT}",
            f"-B{build}",
            "-DTTENGINE_PYTHON=ON",
            f"-DTTENGINE_VERSION={self.distribution.get_version()}",
            f"-DTTENGINE_MODULE_DIR={module.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
        ]
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(build), "--parallel", str(self.parallel or os.cpu_count())], check=True)
        if not module.exists():
            raise SystemExit(f"CMake ended well and did not write {module}")


setup(
    packages=[*find_packages(include=["ttengine", "ttengine.*"]), "ttengine.kernels"],
    # the top-level name `kernels` belongs to another package, so the folder is installed inside ours
    package_dir={"ttengine.kernels": "kernels"},
    ext_modules=[Extension("ttengine._native", sources=[])],
    cmdclass={"build_ext": BuildWithCMake},
    zip_safe=False,
)
