"""Other people's implementations: taken where they are installed and run on the device at hand.

A peer may be missing, refuse a device, dtype or shape, or fail to compile; then the record says so instead of
giving its figures. Only what is not ours is asked this way: an error of ours is an error.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from timing import Deadline


@dataclass(frozen=True)
class Peer:
    """An implementation to compare with."""

    make: Callable[..., Any]
    """Imports what it needs and returns what to call or measure."""
    needs: str | None = None
    """Package that must be installed, by its import name."""
    cuda_only: str | None = None
    """Why it is not asked on a CPU; None = it is."""


def usable(
    peers: Mapping[str, Peer], deadline: Deadline, probe: Callable[[Any], object] = lambda run: run()
) -> tuple[dict[str, Any], dict[str, str]]:
    """(what the peers made that `probe` ran on this device, why the others are left out)."""
    made: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for name, peer in peers.items():
        why = unasked(peer, deadline)
        if why is None:
            try:
                made[name] = peer.make()
                probe(made[name])
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
            except Exception as error:  # a peer may fail in any way: that is a result
                made.pop(name, None)
                why = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:200]
        if why is not None:
            skipped[name] = why
    return made, skipped


def unasked(peer: Peer, deadline: Deadline) -> str | None:
    """Why a peer is not even tried; None = it is."""
    if peer.needs is not None and importlib.util.find_spec(peer.needs) is None:
        return f"{peer.needs} is not installed"
    if peer.cuda_only is not None and not torch.cuda.is_available():
        return peer.cuda_only
    return "no time left" if deadline.passed() else None
