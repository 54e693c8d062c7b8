"""What a user's reward function must not change, or must leave as it was."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from g2rpo_fast.types import Rollout


def _working_directory() -> str | None:
    """None where it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    (
        torch.get_default_device,
        lambda device: torch.set_default_device(None if device.type == "cpu" else device),
    ),
    (_working_directory, lambda path: path is None or os.chdir(path)),
)
"""(read, write) of what holds for the whole process or thread."""
SIGNALS = tuple(
    signal.Signals[f"SIG{name}"]
    for name in (
        "INT",
        "TERM",
        "HUP",
        "QUIT",
        "ALRM",
        "VTALRM",
        "PROF",
        "USR1",
        "USR2",
        "CHLD",
        "PIPE",
        "ABRT",
    )
)


@contextmanager
def process_state_kept() -> Iterator[None]:
    """Puts back, also after an error, the SETTINGS (grad mode, default dtype, threads, ...) and the handlers
    of SIGNALS, and stops an alarm that was left running."""
    settings = [(write, read, read()) for read, write in SETTINGS]
    in_main = threading.current_thread() is threading.main_thread()
    handlers = [(number, signal.getsignal(number)) for number in SIGNALS] if in_main else []
    alarm = signal.getitimer(signal.ITIMER_REAL)[0]
    try:
        yield
    finally:
        if in_main and not alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in handlers:
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        for write, read, value in settings:
            if read() != value:
                write(value)


def read_only(rollout: Rollout) -> Rollout:
    """The same rollout, without its experts; its arrays cannot be written."""
    versions = rollout.token_versions
    return replace(
        rollout,
        loss_mask=_read_only(rollout.loss_mask),
        rollout_logp=_read_only(rollout.rollout_logp),
        token_versions=None if versions is None else _read_only(versions),
        experts=None,
    )


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view
