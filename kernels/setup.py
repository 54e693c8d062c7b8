"""Builds `g2rpo_kernels._cpu` from csrc/kernels/ (pybind11, C++17), a compiler for each core."""

from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

ParallelCompile("G2RPO_BUILD_JOBS").install()

setup(
    ext_modules=[
        Pybind11Extension(
            "g2rpo_kernels._cpu",
            sorted(glob("csrc/kernels/*.cpp")),
            depends=sorted(glob("csrc/**/*.h", recursive=True)),
            cxx_std=17,
            extra_compile_args=["-O3", "-fno-trapping-math", "-Wall", "-Wextra"],
        )
    ],
    cmdclass={"build_ext": build_ext},
)
