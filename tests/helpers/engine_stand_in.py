"""Runs as the engine process in the place of vLLM: speaks its protocol, and does what it is told.

python -m engine_stand_in SOCKET HEART PARENT
"""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VLLM = Path(__file__).parents[2] / "g2rpo_fast" / "rollout" / "vllm"


def module(name: str) -> Any:
    """A file of the package without the package, whose import takes seconds."""
    spec = importlib.util.spec_from_file_location(name, VLLM / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def spin(seconds: float) -> None:
    """In Python, so that other threads get the interpreter's lock."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def hold_lock(seconds: float) -> None:
    """In one call of C that keeps the interpreter's lock: no heartbeat."""
    began = time.monotonic()
    sum(range(10**7))
    sum(range(int(10**7 * seconds / (time.monotonic() - began))))


def sleep_with_lock(seconds: int) -> None:
    """Does nothing, and no other thread can."""
    ctypes.PyDLL(None).sleep(seconds)


def work_elsewhere(seconds: float) -> None:
    """Waits for another process of its group, which works."""
    subprocess.run([sys.executable, "-c", f"import engine_stand_in as e; e.spin({seconds})"], check=True)


def end_with(parent: int) -> None:
    """As vLLM's workers do."""
    while os.getppid() == parent:
        time.sleep(0.05)


def wait_for_stopped_worker() -> None:
    """Spins until a worker answers, which is stopped."""
    worker = multiprocessing.get_context("fork").Process(target=end_with, args=(os.getpid(),))
    worker.start()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    spin(1000)


KEPT: list[mmap.mmap] = []


def share(path: str) -> None:
    """Maps a file, which is made where it is not there, and never removes it."""
    with open(path, "a+b") as file:
        file.truncate(4096)
        KEPT.append(mmap.mmap(file.fileno(), 4096))


COMMANDS: dict[str, Callable[..., object]] = {
    "sleep": lambda seconds: time.sleep(seconds),
    "sleep_with_lock": sleep_with_lock,
    "spin": spin,
    "hold_lock": hold_lock,
    "work_elsewhere": work_elsewhere,
    "wait_for_stopped_worker": wait_for_stopped_worker,
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "answer": lambda size: bytes(size),
    "share": share,
}


def main() -> None:
    channel = module("channel").Channel(socket.socket(fileno=int(sys.argv[1])))
    channel.receive()
    module("liveness").start_heart(int(sys.argv[2]))
    channel.send(("done", None))
    while True:
        command, arguments = channel.receive()
        channel.send(("done", COMMANDS[command](**arguments)))


if __name__ == "__main__":
    main()
