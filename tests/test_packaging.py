"""The two packages: each builds from its source distribution alone, holds every module and data file, asks
for what it needs and no more, and works away from the sources; the ops with nothing but PyTorch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SOURCES = [
    "g2rpo_fast",
    "kernels",
    "csrc",
    "pyproject.toml",
    "setup.py",
    "README.md",
    "LICENSE",
    "MANIFEST.in",
]
BUILT = ("g2rpo_fast", "g2rpo_kernels")

USE = """
import numpy as np
import g2rpo_fast.tree, g2rpo_kernels
from g2rpo_fast.types import Sequences

rows = [[1, 5, 6, 7, 8, 11, 2], [1, 5, 6, 7, 12, 2]]
sequences = Sequences(
    ids_N=np.array([token for row in rows for token in row], dtype=np.int32),
    ptr_R1=np.array([0, 7, 13], dtype=np.int64),
    trained_N=np.array([0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1], dtype=np.bool_),
    group_R=np.zeros(2, dtype=np.int32),
)
(plan,) = g2rpo_fast.tree.plan_trees(sequences, impl="cpp")
print(plan.token_S.tolist())
print(g2rpo_fast.tree.__file__)
print(g2rpo_kernels.__file__)
"""

OPS = """
from importlib.util import find_spec

import torch
from g2rpo_kernels import FusedLinearGRPOLoss, _cpu, cascade_plan, tree_attention

torch.manual_seed(0)
hidden = torch.randn(2, 3, 8, requires_grad=True)
weight = torch.randn(11, 8, requires_grad=True)
ids = torch.tensor([[1, 2, 3], [4, 5, 10]])
mask = torch.ones(2, 3)
loss_function = FusedLinearGRPOLoss(beta=0.0, use_ref_model=False)
loss, _ = loss_function(hidden, weight, ids, mask, torch.tensor([1.0, -1.0]))
loss.backward()
print(bool(hidden.grad.isfinite().all()), float(weight.grad.abs().sum()) > 0)
end = torch.tensor([4, 4, 3, 4])
q = torch.randn(4, 2, 16, requires_grad=True)
tree_attention(q, q, q, end, scale=0.25, plan=cascade_plan(end)).sum().backward()
print(bool(q.grad.isfinite().all()))
print(find_spec("numpy") or find_spec("g2rpo_fast"), _cpu.__file__)
"""


def called(*command: str | Path, where: Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=where,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def pip(*arguments: str | Path, where: Path) -> None:
    called(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments, where=where)


def copied(to: Path) -> Path:
    """The sources, so that nothing compiled or left over in the tree can get in. Not optimised: that takes
    less than half the time."""
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info", "build", "dist")
            shutil.copytree(path, to / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(path, to / name)
    for setup in (to / "setup.py", to / "kernels" / "setup.py"):
        assert '"-O3"' in setup.read_text()
        setup.write_text(setup.read_text().replace('"-O3"', '"-O0"'))
    return to


def sdist(package: Path, to: Path) -> Path:
    code = f"import setuptools.build_meta as backend; print(backend.build_sdist({str(to)!r}))"
    return to / called(sys.executable, "-c", code, where=package).splitlines()[-1]


pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By the package's name, each built from its source distribution."""
    source = copied(tmp_path_factory.mktemp("source"))
    folder = tmp_path_factory.mktemp("wheels")
    packed = [sdist(package, folder) for package in (source, source / "kernels")]
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, *packed, where=folder)
    return {name: next(folder.glob(f"{name}-*.whl")) for name in BUILT}


@pytest.fixture(scope="module")
def installed(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--target", target, *wheels.values(), where=target)
    return target


def needed(wheel: Path) -> list[Requirement]:
    """Without extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert str(metadata.get_payload()).strip(), "the page of the package is empty"
    found = map(Requirement, metadata.get_all("Requires-Dist") or [])
    return [one for one in found if "extra" not in str(one.marker or "")]


@pytest.mark.parametrize(("name", "extension"), [("g2rpo_fast", "_C"), ("g2rpo_kernels", "_cpu")])
def test_a_wheel_holds_the_extension_and_every_module_and_data_file(wheels, name, extension):
    names = set(zipfile.ZipFile(wheels[name]).namelist())
    parent = ROOT if name == "g2rpo_fast" else ROOT / "kernels"
    wanted = {
        path.relative_to(parent).as_posix()
        for path in (parent / name).rglob("*")
        if path.suffix in {".py", ".pyi", ".toml", ".html", ".css"} or path.name == "py.typed"
    }
    assert {f"{name}/__init__.py", f"{name}/py.typed"} <= wanted
    assert wanted - names == set()
    assert [one for one in names if one.startswith(f"{name}/{extension}.") and one.endswith(".so")]
    assert [one for one in names if one.endswith(".dist-info/licenses/LICENSE")]
    tops = {one.split("/")[0] for one in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {name}


def test_the_ops_need_torch_and_triton_and_the_trainer_needs_the_ops_and_no_build_tools(wheels):
    kernels, trainer = (needed(wheels[name]) for name in ("g2rpo_kernels", "g2rpo_fast"))
    assert {one.name: str(one.marker or "") for one in kernels} == {
        "torch": "",
        "triton": 'platform_system == "Linux"',
    }
    (ops,) = (one for one in trainer if one.name == "g2rpo-kernels")
    assert (str(ops.specifier), ops.url) == (f"=={version('g2rpo-kernels')}", None)
    assert {"pybind11", "ninja", "setuptools"} & {one.name for one in trainer} == set()


def test_wheels_work_outside_the_source_tree(installed: Path, tmp_path: Path):
    tokens, trainer, kernels = called(
        sys.executable, "-c", USE, where=tmp_path, PYTHONPATH=str(installed)
    ).splitlines()
    assert tokens == "[1, 5, 6, 7, 8, 11, 12]"
    assert Path(trainer).is_relative_to(installed)
    assert Path(kernels).is_relative_to(installed)


def with_needs(name: str) -> set[str]:
    """An installed distribution and what it needs here, by the names of their distributions."""
    found, left = set(), [name]
    while left:
        one = left.pop().lower().replace("_", "-")
        if one not in found:
            found.add(one)
            wanted = map(Requirement, distribution(one).requires or [])
            left += [w.name for w in wanted if w.marker is None or w.marker.evaluate({"extra": ""})]
    return found


def test_the_ops_work_where_there_is_nothing_but_torch(wheels: dict[str, Path], tmp_path: Path):
    """In a folder of their own with PyTorch and what that needs, and no other folder on the path."""
    pip("install", "--no-deps", "--target", tmp_path / "only", wheels["g2rpo_kernels"], where=tmp_path)
    for name in with_needs("torch"):
        here = Path(str(distribution(name).locate_file("")))
        for top in {file.parts[0] for file in distribution(name).files or [] if file.parts[0] != ".."}:
            if not (tmp_path / "only" / top).exists():
                (tmp_path / "only" / top).symlink_to(here / top)
    loss, attention, extension = called(
        sys.executable, "-S", "-c", OPS, where=tmp_path, PYTHONPATH=str(tmp_path / "only")
    ).splitlines()
    assert (loss, attention) == ("True True", "True")
    others, file = extension.split()
    assert others == "None"
    assert Path(file).is_relative_to(tmp_path / "only")


def test_a_checkout_brings_its_own_ops_where_they_are_not_installed(tmp_path: Path):
    """A version that no index has, nor this environment: what `pip install .` then asks for."""
    source = copied(tmp_path)
    for file in (source / "pyproject.toml", source / "kernels" / "pyproject.toml"):
        file.write_text(file.read_text().replace("0.1.0", "0.0.1.dev7"))
    (source / "told").mkdir()
    asked = "prepare_metadata_for_build_wheel('told')"
    called(sys.executable, "-c", f"import setuptools.build_meta as m; m.{asked}", where=source)
    (file,) = source.glob("told/*.dist-info/METADATA")
    found = Parser().parsestr(file.read_text()).get_all("Requires-Dist") or []
    ops = [one for one in found if one.startswith("g2rpo-kernels")]
    assert ops == [f"g2rpo-kernels @ {(source / 'kernels').as_uri()}"]
