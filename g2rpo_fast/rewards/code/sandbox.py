"""A sandbox by bubblewrap: what is in it, and a judgement of a program by two of them.

Each is a Python without packages in namespaces of its own (user, processes, network, mounts, IPC, host name),
as nobody, without capabilities, under the filter of `seccomp`. Its files are the system's libraries and
Python's own, read-only, and an empty /tmp of bounded size; there is no /proc, no /etc, no home, no shell.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import Literal

from g2rpo_fast.rewards.code.seccomp import filter_program

PROGRAM = Path(__file__).with_name("inside.py")
LIBRARIES = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libx32", "/lib", "/lib32", "/lib64", "/libx32")
DEVICES = ("null", "zero", "full", "random", "urandom")
PREFIX = "/python"
PYTHON = f"{PREFIX}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
"""Where Python is in a sandbox."""
NOBODY = "65534"
MOST_SAID = 4096
"""Bytes of a verdict, and of what bubblewrap may say of itself."""
ENDED_BY_LIMIT = (128 + 24, 128 + 9)
"""Statuses of a process over its CPU time: SIGXCPU, and SIGKILL where it ignores that."""

Verdict = Literal["passed", "failed", "timed_out"]


class SandboxError(RuntimeError):
    """A sandbox could not be made; nothing was run without it."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of each of the two processes."""

    cpu_s: int
    memory: int
    """Bytes of address space."""
    disk: int
    """Bytes of /tmp, and of a file."""
    open_files: int
    threads: int
    output: int
    """Bytes of one result."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A program and its test."""

    program: str
    entry: str
    """The function that is tested."""
    problem: str
    """Code that the test may use, run before it; "" for none."""
    test: str
    """Asserts, and where it defines one a `check(candidate)`, which is called."""


def judge(task: Task, limits: Limits, timeout_s: float) -> Verdict:
    """Raises SandboxError where there is none."""
    deadline_s = time.monotonic() + timeout_s
    requests, asked = os.pipe()
    answered, replies = os.pipe()
    ours = {requests, asked, answered, replies}

    def close(*numbers: int) -> None:
        for number in numbers:
            ours.discard(number)
            os.close(number)

    orders = {"limits": asdict(limits), "entry": task.entry}
    try:
        with started("run", [], requests, replies, limits) as running:
            close(requests, replies)
            _order(asked, {**orders, "program": task.program})
            give, take = os.pipe(), os.pipe()
            ours.update((*give, *take))
            with started("check", [asked, answered], give[0], take[1], limits) as checking:
                close(asked, answered, give[0], take[1])
                _order(give[1], {**orders, "problem": task.problem, "test": task.test})
                said = _lines(take[0], deadline_s)
                return _verdict(said, running, checking)
    finally:
        close(*list(ours))


def _order(to: int, orders: dict[str, object]) -> None:
    """One line; a process that is not there to read it is found out by what it does not say."""
    data = json.dumps(orders).encode() + b"\n"
    with suppress(BrokenPipeError):
        while data:
            data = data[os.write(to, data) :]


def _verdict(
    said: list[str] | None, running: subprocess.Popen[bytes], checking: subprocess.Popen[bytes]
) -> Verdict:
    """Of what the checking process said until it ended; None: until its time was over."""
    if said is None:
        return "timed_out"
    if not said or said[-1] == "broken":
        failed = running if said else checking
        raise SandboxError(f"bubblewrap failed: {_complaint(failed)}")
    if said[-1] == "passed":
        return "passed"
    by_limit = checking.wait() in ENDED_BY_LIMIT or _soon(running) in ENDED_BY_LIMIT
    return "timed_out" if by_limit else "failed"


def _soon(running: subprocess.Popen[bytes]) -> int | None:
    """The status of a process that may be about to end; None where it goes on."""
    with suppress(subprocess.TimeoutExpired):
        return running.wait(0.05)
    return None


def _complaint(process: subprocess.Popen[bytes]) -> str:
    process.kill()
    assert process.stderr is not None
    told = process.stderr.read(MOST_SAID).decode(errors="replace").strip()
    return " / ".join(told.splitlines()) or f"it ended with {process.wait()}"


def _lines(source: int, deadline_s: float) -> list[str] | None:
    """What is said until the end of the file, at most; None where the deadline comes first."""
    data = b""
    with DefaultSelector() as selector:
        selector.register(source, EVENT_READ)
        while len(data) < MOST_SAID:
            if not selector.select(max(0.0, deadline_s - time.monotonic())):
                return None
            more = os.read(source, MOST_SAID)
            if not more:
                break
            data += more
    return [line.strip('"') for line in data.decode(errors="replace").splitlines()]


@contextmanager
def started(
    role: str, channels: Sequence[int], source: int, sink: int, limits: Limits
) -> Iterator[subprocess.Popen[bytes]]:
    """A sandbox with Python in it; at the end all that runs in it is killed."""
    reader, writer = os.pipe()
    try:
        os.write(writer, filter_program())
    finally:
        os.close(writer)
    try:
        process = subprocess.Popen(
            [
                *command(limits, reader), PYTHON, "-s", "-S", "-P", "-B", "-c", PROGRAM.read_text(),
                role, *map(str, channels),
            ],
            stdin=source,
            stdout=sink,
            stderr=subprocess.PIPE,
            pass_fds=[reader, *channels],
            cwd="/",
            start_new_session=True,  # Ctrl-C is the run's, which may finish its step
            env={"LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "LD_LIBRARY_PATH": f"{PREFIX}/lib"},
        )  # fmt: skip
    except OSError as error:
        raise SandboxError(f"bubblewrap could not be started: {error}") from error
    finally:
        os.close(reader)
    try:
        yield process
    finally:
        process.kill()  # and with it, by --die-with-parent and the namespace of processes, all in it
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def command(limits: Limits, filter_from: int) -> list[str]:
    """Of bubblewrap, up to what it is to run."""
    found = shutil.which("bwrap")
    if found is None:
        raise SandboxError("there is no bwrap on the PATH (Debian's package is bubblewrap)")
    words = [found, "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    words += ["--unshare-cgroup-try", "--uid", NOBODY, "--gid", NOBODY, "--hostname", "sandbox"]
    words += ["--cap-drop", "ALL", "--new-session", "--die-with-parent", "--seccomp", str(filter_from)]
    for path in LIBRARIES:
        if os.path.islink(path):
            words += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            words += ["--ro-bind", path, path]
    for path, place in _pythons_own().items():
        words += ["--ro-bind", path, place]
        for packages in ("site-packages", "dist-packages"):
            if os.path.isdir(os.path.join(path, packages)):
                words += ["--tmpfs", f"{place}/{packages}", "--remount-ro", f"{place}/{packages}"]
    for device in DEVICES:
        words += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    words += ["--perms", "1777", "--size", str(limits.disk), "--tmpfs", "/tmp"]
    return [*words, "--remount-ro", "/", "--chdir", "/tmp", "--"]


def _pythons_own() -> dict[str, str]:
    """The interpreter, its library and the standard library, not the environment's, and where in the sandbox
    each is: so that no path of the user's is in it."""
    base = {"base": sys.base_prefix, "platbase": sys.base_prefix}
    base |= {f"installed_{name}": sys.base_prefix for name in base}
    found = {os.path.realpath(getattr(sys, "_base_executable", sys.executable)): PYTHON}
    for name in ("stdlib", "platstdlib"):
        path = sysconfig.get_path(name, vars=base)
        found[path] = os.path.join(PREFIX, os.path.relpath(path, sys.base_prefix))
    directory, library = map(sysconfig.get_config_var, ("LIBDIR", "INSTSONAME"))
    if library and ".so" in library:
        found[os.path.join(directory, library)] = f"{PREFIX}/lib/{library}"
    return {path: place for path, place in found.items() if os.path.exists(path)}
