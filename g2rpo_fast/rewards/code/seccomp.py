"""The filter of system calls of a sandbox: a classic BPF program, as `bwrap --seccomp` reads it.

It refuses (EPERM) what starts processes, enters namespaces, mounts, traces, reaches the network, the kernel's
keys, clocks and modules, or holds memory that no limit counts; everything else is allowed, within what the
namespaces and limits leave. Threads are allowed. A call of another architecture's numbers ends the process.
"""

from __future__ import annotations

import errno
import platform
import struct

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER_AT, _ARCH_AT, _FLAGS_AT = 0, 4, 16
"""Offsets in `struct seccomp_data`; the flags of clone are the low half of its first argument."""
_X32 = 0x40000000
CLONE_THREAD, CLONE_NEW = 0x00010000, 0x7E020080
"""CLONE_NEW: all flags that make a namespace."""

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""`platform.machine()` -> its number in a filter, and its column below."""
REFUSED: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None), "vfork": (58, None), "unshare": (272, 97), "setns": (308, 268),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "kcmp": (312, 272), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "personality": (135, 92),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "socket": (41, 198), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "userfaultfd": (323, 282), "perf_event_open": (298, 241),
    "bpf": (321, 280), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "semget": (64, 190),
    "msgget": (68, 186), "mq_open": (240, 180), "vmsplice": (316, 75),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142), "swapon": (167, 224),
    "swapoff": (168, 225), "syslog": (103, 116), "acct": (163, 89), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "clock_adjtime": (305, 266), "adjtimex": (159, 171), "sethostname": (170, 161),
    "setdomainname": (171, 162), "vhangup": (153, 58), "modify_ldt": (154, None), "iopl": (172, None),
    "ioperm": (173, None), "uselib": (134, None), "lookup_dcookie": (212, 18), "nfsservctl": (180, 42),
}  # fmt: skip
"""Call -> its number on x86_64 and on aarch64."""
CLONE, CLONE3 = (56, 220), 435


def filter_program(machine: str = "") -> bytes:
    """For this machine, or one of `ARCHITECTURES`.

    Raises:
        ValueError: there are no numbers for it.
    """
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        raise ValueError(f"wanted one of {', '.join(ARCHITECTURES)}, got {machine}")
    architecture, column = ARCHITECTURES[machine]
    refused = [number for numbers in REFUSED.values() if (number := numbers[column]) is not None]
    checks = [(number, "refuse") for number in refused] + [(CLONE3, "absent"), (CLONE[column], "clone")]
    targets = ("allow", "clone", "flags", "threads", "a thread", "refuse", "absent", "kill")
    head = 5
    place = {name: head + len(checks) + index for index, name in enumerate(targets)}
    lines = [
        _line(_LOAD, _ARCH_AT),
        _line(_JUMP_EQUAL, architecture, 0, place["kill"] - 2),
        _line(_LOAD, _NUMBER_AT),
        _line(_JUMP_AT_LEAST, _X32, place["kill"] - 4, 0),
        _line(_LOAD, _NUMBER_AT),
        *(
            _line(_JUMP_EQUAL, number, place[target] - (head + index + 1), 0)
            for index, (number, target) in enumerate(checks)
        ),
        _line(_RETURN, _ALLOW),
        _line(_LOAD, _FLAGS_AT),
        _line(_JUMP_ANY_BIT, CLONE_NEW, place["refuse"] - place["flags"] - 1, 0),
        _line(_JUMP_ANY_BIT, CLONE_THREAD, 0, place["refuse"] - place["threads"] - 1),
        _line(_RETURN, _ALLOW),
        _line(_RETURN, _ERRNO | errno.EPERM),
        _line(_RETURN, _ERRNO | errno.ENOSYS),  # then the C library asks with clone, whose flags can be read
        _line(_RETURN, _KILL),
    ]
    return b"".join(lines)


def _line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One `struct sock_filter`."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
