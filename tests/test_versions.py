"""The ranges of pyproject.toml are those that the pins, and this run, are within."""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RANGES = {found.name: found.specifier for found in map(Requirement, PROJECT["dependencies"])}
PINNED = ("torch", "triton", "transformers")
CONSTRAINTS = ("constraints.txt", "constraints-oldest.txt", "constraints-newest.txt")


def pins(name: str) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return dict(line.split("==") for line in lines if line)


def test_the_ops_are_a_package_of_the_same_version_and_need_the_same_torch_and_triton() -> None:
    kernels = tomllib.loads((ROOT / "kernels" / "pyproject.toml").read_text())["project"]
    needed = {found.name: found.specifier for found in map(Requirement, kernels["dependencies"])}
    assert needed == {name: RANGES[name] for name in ("torch", "triton")}
    assert PROJECT["version"] == kernels["version"]
    assert str(RANGES["g2rpo-kernels"]) == f"=={kernels['version']}"
    assert PROJECT["requires-python"] == kernels["requires-python"]
    assert PROJECT["classifiers"] == kernels["classifiers"]


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_pins_are_within_the_ranges(name: str) -> None:
    found = pins(name)
    assert found.keys() >= set(PINNED)
    for package in found.keys() & RANGES.keys():
        assert found[package] in RANGES[package], package


def test_oldest_pins_are_the_lower_ends() -> None:
    for package in PINNED:
        (low,) = (Version(part.version) for part in RANGES[package] if part.operator == ">=")
        pin = Version(pins("constraints-oldest.txt")[package])
        assert (pin.major, pin.minor) == (low.major, low.minor), package


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_newest_pins_are_the_upper_ends(package: str) -> None:
    """Triton's pin is what this torch takes; newer ones are `make test-triton`'s."""
    (end,) = (Version(part.version) for part in RANGES[package] if part.operator == "<")
    pin = Version(pins("constraints-newest.txt")[package])
    assert (pin.major, pin.minor + 1) == (end.major, end.minor)


@pytest.mark.parametrize("package", PINNED)
def test_tests_run_within_the_ranges(package: str) -> None:
    pytest.importorskip(package)
    assert Version(version(package)).base_version in RANGES[package]


def test_lowest_python_is_the_oldest_that_is_named() -> None:
    named = [
        line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if line.startswith("Programming Language")
    ]
    assert PROJECT["requires-python"] == f">={min(named, key=Version)}"
    assert sys.version_info >= tuple(map(int, named[0].split(".")))
