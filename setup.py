"""Builds `g2rpo_fast._C` from csrc/ and `g2rpo_kernels._cpu` from csrc/kernels/.

pybind11, C++17, compiled in parallel (pybind11's ParallelCompile).
"""

from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

ParallelCompile("G2RPO_BUILD_JOBS").install()

EXTENSIONS = {"g2rpo_fast._C": "csrc/*.cpp", "g2rpo_kernels._cpu": "csrc/kernels/*.cpp"}

setup(
    ext_modules=[
        Pybind11Extension(
            name,
            sorted(glob(sources)),
            depends=sorted(glob("csrc/**/*.h", recursive=True)),
            cxx_std=17,
            extra_compile_args=["-O3", "-Wall", "-Wextra"],
        )
        for name, sources in EXTENSIONS.items()
    ],
    cmdclass={"build_ext": build_ext},
)
