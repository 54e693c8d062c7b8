"""How this process uses the machine's cores and memory."""

from __future__ import annotations

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MIB = 1 << 20


def free_threads() -> int:
    """Cores that this process may use, less the ones that others keep busy: two programs on one core spin."""
    available = len(os.sched_getaffinity(0))
    return max(1, available - round(os.getloadavg()[0]))


def keep_freed_memory() -> bool:
    """Asks glibc not to hand freed memory back to the system. True where it was asked (Linux with glibc).

    A step allocates and frees the same megabytes again and again. Returned each time, every page faults
    anew: a tenth of an update on a small model. Process-wide; 32 MiB is the highest threshold glibc takes.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = {
        _M_MMAP_THRESHOLD: 32 * _MIB,
        _M_TRIM_THRESHOLD: 2**31 - 1,
        _M_TOP_PAD: 64 * _MIB,
    }
    accepted = [libc.mallopt(name, value) for name, value in settings.items()]
    return all(accepted)
