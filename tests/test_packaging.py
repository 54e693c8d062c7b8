"""The wheel: it builds from the sources alone, holds every module and data file, and works away from them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ["g2rpo_fast", "kernels", "csrc", "pyproject.toml", "setup.py", "README.md"]

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


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing compiled or left over in the source tree can get in. Not optimised:
    that takes less than half the time."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(path, source / name)
    setup = source / "setup.py"
    assert '"-O3"' in setup.read_text()
    setup.write_text(setup.read_text().replace('"-O3"', '"-O0"'))
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (built,) = folder.glob("g2rpo_fast-*.whl")
    return built


def test_wheel_holds_the_extension_and_every_module_and_data_file(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        path.relative_to(parent).as_posix()
        for parent, package in ((ROOT, "g2rpo_fast"), (ROOT / "kernels", "g2rpo_kernels"))
        for path in (parent / package).rglob("*")
        if path.suffix in {".py", ".pyi", ".toml", ".html", ".css"} or path.name == "py.typed"
    }
    assert {"g2rpo_fast/types.py", "g2rpo_kernels/__init__.py", "g2rpo_fast/presets/embedded.toml"} <= wanted
    assert wanted - names == set()
    for extension in ("g2rpo_fast/_C", "g2rpo_kernels/_cpu"):
        assert [name for name in names if name.startswith(extension) and name.endswith(".so")]
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"g2rpo_fast", "g2rpo_kernels"}


def test_wheel_works_outside_the_source_tree(wheel: Path, tmp_path: Path):
    target, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip("install", "--no-deps", "--target", target, wheel)
    done = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tokens, trainer, kernels = done.stdout.splitlines()
    assert tokens == "[1, 5, 6, 7, 8, 11, 12]"
    assert Path(trainer).is_relative_to(target)
    assert Path(kernels).is_relative_to(target)
