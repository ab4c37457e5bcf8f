"""What is installed, what it asks for, and that the pins hold together."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import tomllib
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ttengine
import ttengine.kernels
from ttengine import demo, native

installed_only = pytest.mark.skipif(
    os.environ.get("TTENGINE_TEST_INSTALLED") != "1", reason="not the installed package (make test sets this up)"
)


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    """The [project] table of pyproject.toml."""
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


def read_pins(path: Path) -> dict[str, Requirement]:
    """Return the requirement on each line of a pin file by normalised name."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    requirements = [Requirement(line) for line in lines]
    assert len(requirements) > 10
    pins = {canonicalize_name(requirement.name): requirement for requirement in requirements}
    assert len(pins) == len(requirements), f"{path.name} names a package twice"
    return pins


def asked_for(requirements: list[str]) -> list[Requirement]:
    """Parse requirements, leaving out those on the project's own extras."""
    return [r for r in map(Requirement, requirements) if r.name != "ttengine"]


def test_core_dependencies_are_few(project: dict[str, Any]) -> None:
    assert {Requirement(line).name for line in project["dependencies"]} == {
        "torch",
        "numpy",
        "safetensors",
        "tyro",
        "rich",
    }


@pytest.mark.parametrize("name", ["pinned.txt", "optional.txt", "baselines.txt"])
def test_pins_are_exact_and_fit_for_a_constraints_file(repository: Path, name: str) -> None:
    for pin in read_pins(repository / "requirements" / name).values():
        versions = list(pin.specifier)
        assert len(versions) == 1 and versions[0].operator == "==", f"{pin} is not one exact version"
        assert "+" not in versions[0].version, f"{pin} names a local build"
        assert not pin.extras and not pin.url and not pin.marker, f"{pin} is more than a name and a version"


def test_every_dependency_has_a_pin_that_satisfies_it(repository: Path, project: dict[str, Any]) -> None:
    pinned = read_pins(repository / "requirements" / "pinned.txt")
    optional = read_pins(repository / "requirements" / "optional.txt")
    assert not pinned.keys() & optional.keys()
    build = tomllib.loads((repository / "pyproject.toml").read_text())["build-system"]["requires"]
    late = {extra: project["optional-dependencies"][extra] for extra in ("ray", "triton")}
    early = [line for extra, lines in project["optional-dependencies"].items() if extra not in late for line in lines]
    for requirement in asked_for([*project["dependencies"], *build, *early]):
        pin = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(next(iter(pin.specifier)).version), f"{pin} is not {requirement}"
    for requirement in asked_for([line for lines in late.values() for line in lines]):
        pin = (pinned | optional)[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(next(iter(pin.specifier)).version), f"{pin} is not {requirement}"


def test_extras_that_errors_name_exist(repository: Path, project: dict[str, Any]) -> None:
    named = set(demo.NEEDED.values())  # the demo asks for each of these by name at its start
    for folder in ("ttengine", "kernels"):
        for path in (repository / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "require":
                    _, extra = node.args
                    if isinstance(extra, ast.Constant):
                        named.add(extra.value)
                    else:
                        assert path.name == "demo.py", f"{path.name}:{node.lineno} names its extra in a variable"
    assert len(named) > 3, "no call of require() was found"
    assert named <= set(project["optional-dependencies"])


def test_the_extra_all_holds_every_extra_of_a_user(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    (everything,) = map(Requirement, extras["all"])
    assert everything.extras == set(extras) - {"all", "dev"}


def test_the_installed_metadata_is_the_projects(project: dict[str, Any]) -> None:
    installed = distribution("ttengine")
    assert installed.version == project["version"]
    assert set(installed.metadata.get_all("Provides-Extra") or []) == set(project["optional-dependencies"])
    scripts = {point.name: point.value for point in installed.entry_points if point.group == "console_scripts"}
    assert scripts == {"ttengine": "ttengine.cli:main"}
    assert scripts["ttengine"].split(":")[0].split(".")[0] == project["name"]


@installed_only
def test_tests_run_against_the_installed_package_and_not_the_source(repository: Path) -> None:
    for module in (ttengine, ttengine.kernels, native):
        path = Path(str(module.__file__))
        assert "site-packages" in path.parts
        assert repository / "ttengine" not in path.parents
        assert repository / "kernels" not in path.parents


@installed_only
def test_the_wheel_carries_every_source_and_data_file_and_the_core(repository: Path) -> None:
    files = distribution("ttengine").files
    assert files is not None
    installed = {file.as_posix() for file in files if "__pycache__" not in file.parts}
    expected = {p.relative_to(repository).as_posix() for p in (repository / "ttengine").rglob("*.py")}
    expected |= {f"ttengine/{p.relative_to(repository).as_posix()}" for p in (repository / "kernels").rglob("*.py")}
    expected |= {p.relative_to(repository).as_posix() for p in (repository / "ttengine").rglob("*.safetensors")}
    expected |= {"ttengine/py.typed", "ttengine/_native.pyi"}
    assert "ttengine/data/behaviours/hopper.safetensors" in expected
    assert expected <= installed, f"missing in the wheel: {sorted(expected - installed)}"
    assert [name for name in installed if name.startswith("ttengine/_native.") and name.endswith(".so")]
    strangers = {name.split("/")[0] for name in installed} - {
        "ttengine",
        "..",
        f"ttengine-{ttengine_version()}.dist-info",
    }
    assert not strangers, f"the wheel brings more than ttengine: {sorted(strangers)}"


def ttengine_version() -> str:
    """Return the installed version."""
    return distribution("ttengine").version


def test_no_build_file_asks_for_the_builders_own_processor(repository: Path) -> None:
    names = ("CMakeLists.txt", "CMakePresets.json", "setup.py", "Makefile", "cmake/arm64.cmake")
    for name in (*names, "tests/cpp/CMakeLists.txt"):
        text = "\n".join(line for line in (repository / name).read_text().splitlines() if not line.startswith("#"))
        assert "march=native" not in text and "mtune=native" not in text, name


# --- the build matrix ----------------------------------------------------------------------------------------------


def test_make_runs_every_cmake_workflow(repository: Path) -> None:
    workflows = {each["name"] for each in json.loads((repository / "CMakePresets.json").read_text())["workflowPresets"]}
    run = set(re.findall(r"--workflow --preset ([\w-]+)", (repository / "Makefile").read_text()))
    assert run == workflows >= {"release", "asan-ubsan", "tsan", "clang", "arm64"}


@pytest.fixture
def bare_machine(tmp_path: Path) -> Path:
    """A folder to be the PATH of a machine with a shell and no compiler, whose user is not root."""
    shell = shutil.which("sh")
    assert shell is not None
    (tmp_path / "sh").symlink_to(shell)
    make_program(tmp_path / "id", "echo 1000")
    return tmp_path


def make_program(path: Path, body: str) -> None:
    """Write a shell script that can be run."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def see_to_compilers(repository: Path, path: Path) -> str:
    """Run the script that sees to the compilers, with a PATH of one folder, and return what it said."""
    command = [str(path / "sh"), str(repository / "requirements" / "compilers.sh")]
    return subprocess.run(command, env={"PATH": str(path)}, capture_output=True, text=True, check=True).stdout


COMPILERS = " clang g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user"


def test_compilers_that_cannot_be_installed_are_named_and_are_no_failure(repository: Path, bare_machine: Path) -> None:
    said = see_to_compilers(repository, bare_machine)
    assert said == f"compilers are missing and were not installed, there is no apt-get (Debian's names):{COMPILERS}\n"
    make_program(bare_machine / "apt-get", "echo it ran")
    make_program(bare_machine / "clang++", "")
    said = see_to_compilers(repository, bare_machine)
    assert "only root can install them" in said and "it ran" not in said
    assert said.endswith(f":{COMPILERS.replace(' clang', '')}\n")


def test_compilers_are_installed_by_root_and_a_failure_is_said(repository: Path, bare_machine: Path) -> None:
    make_program(bare_machine / "id", "echo 0")
    make_program(bare_machine / "apt-get", 'echo apt-get "$@"')
    said = see_to_compilers(repository, bare_machine)
    assert f"install -y --no-install-recommends{COMPILERS}\n" in said
    assert "were not installed" not in said
    make_program(bare_machine / "apt-get", "exit 100")
    assert "were not installed, apt-get failed" in see_to_compilers(repository, bare_machine)
    for name in ("clang++", "aarch64-linux-gnu-g++", "qemu-aarch64-static"):
        make_program(bare_machine / name, "")
    assert see_to_compilers(repository, bare_machine) == ""
