"""A process that scores (`reward.workers`): one call after another, for the process that started it."""

from __future__ import annotations

import ctypes
import inspect
import os
import signal
import sys
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection

import torch

from g2rpo_fast.rewards.calls import Call
from g2rpo_fast.rewards.config import RewardConfig
from g2rpo_fast.rewards.error import RewardError
from g2rpo_fast.rewards.isolation import read_only
from g2rpo_fast.rewards.loading import RewardSet, load_rewards
from g2rpo_fast.rewards.scoring import awaited, numbers_of, returned
from g2rpo_fast.rewards.time_limit import Watchdog
from g2rpo_fast.rewards.workers import Reply, Request

_PR_SET_PDEATHSIG = 1


def serve(connection: Connection, config: RewardConfig, parent: int) -> None:
    """Until the other end closes. The first message is "ready", or why the functions cannot be loaded."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's, which ends its workers
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    try:
        rewards = load_rewards(replace(config, workers=0))
    except ValueError as error:
        connection.send(str(error))
        return
    connection.send("ready")
    try:
        while True:
            connection.send(reply(rewards, connection.recv()))
    except (EOFError, BrokenPipeError):
        return


def reply(rewards: RewardSet, request: Request) -> Reply:
    torch.set_num_threads(request.threads)
    rewards.place.step, rewards.place.total_steps = request.place.step, request.place.total_steps
    before = rewards.counts
    values: list[float] | RewardError
    try:
        values = _values(rewards, request.call)
    except RewardError as error:
        cause = error.__cause__
        if cause is not None:
            error.add_note("".join(traceback.format_exception(cause)))
        values = error
    after = rewards.counts
    return Reply(values=values, counts={name: after[name] - before[name] for name in after})


def _values(rewards: RewardSet, call: Call) -> list[float]:
    """No limit here: the parent ends a process that takes too long."""
    shown = [read_only(rollout) for rollout in call.rollouts]
    unlimited = Watchdog(None)
    value = returned(rewards, call, shown, unlimited)
    if inspect.isawaitable(value):
        (value,) = awaited(rewards, [(call, value)], unlimited)
    return numbers_of(value, call)
