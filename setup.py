"""Builds `g2rpo_fast._C` from csrc/ (pybind11, C++17), a compiler for each core."""

import sys
from glob import glob
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup
from setuptools.command.egg_info import egg_info

ParallelCompile("G2RPO_BUILD_JOBS").install()

KERNELS = "g2rpo-kernels"
OURS = Path(__file__).resolve().parent / "kernels"


def local(requirement: str) -> str:
    """What this is in a checkout: its own kernels, so that `pip install .` works where no index has them.

    Not where they are installed already, as `make` does, and not in a source distribution or in a wheel that
    is built from one: these ask for the published package."""
    name, _, wanted = requirement.partition("==")
    if name != KERNELS or "sdist" in sys.argv or not (OURS / "pyproject.toml").is_file():
        return requirement
    try:
        installed = version(KERNELS)
    except PackageNotFoundError:
        installed = None
    return requirement if installed == wanted else f"{KERNELS} @ {OURS.as_uri()}"


class EggInfo(egg_info):
    def finalize_options(self) -> None:
        for told in (self.distribution, self.distribution.metadata):
            told.install_requires = [local(str(one)) for one in told.install_requires]
        super().finalize_options()


setup(
    ext_modules=[
        Pybind11Extension(
            "g2rpo_fast._C",
            sorted(glob("csrc/*.cpp")),
            depends=sorted(glob("csrc/*.h")),
            cxx_std=17,
            extra_compile_args=["-O3", "-fno-trapping-math", "-fopenmp-simd", "-Wall", "-Wextra"],
        )
    ],
    cmdclass={"build_ext": build_ext, "egg_info": EggInfo},
)
