"""Builds `g2rpo_fast._C` from csrc/: pybind11, C++17, compiled in parallel (pybind11's ParallelCompile)."""

from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

ParallelCompile("G2RPO_BUILD_JOBS").install()

setup(
    ext_modules=[
        Pybind11Extension(
            "g2rpo_fast._C",
            sorted(glob("csrc/*.cpp")),
            depends=sorted(glob("csrc/*.h")),
            cxx_std=17,
            extra_compile_args=["-O3", "-Wall", "-Wextra"],
        )
    ],
    cmdclass={"build_ext": build_ext},
)
