"""Processes that score (`reward.workers`), each one call at a time; a call's values do not depend on which.

A call that takes too long is ended with its process, whatever it does. One whose process dies is made once
more in a new one; when that dies too, its rollouts go without the channel, which is counted and told.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import sys
import time
import weakref
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from g2rpo_fast.rewards.awaiting import over
from g2rpo_fast.rewards.calls import Call
from g2rpo_fast.rewards.config import RewardConfig
from g2rpo_fast.rewards.error import RewardError
from g2rpo_fast.rewards.trl import Place

START_LIMIT_S = 600.0
ATTEMPTS = 2


@dataclass(frozen=True, kw_only=True)
class Request:
    """A call, and what of the process that asks its values may depend on."""

    call: Call
    """Its rows count from 0, over its own rollouts."""
    place: Place
    threads: int


@dataclass(frozen=True, kw_only=True)
class Reply:
    values: list[float] | RewardError
    """A number for each rollout of the call."""
    counts: Mapping[str, int]
    """What the call added to `RewardSet.counts`."""


@dataclass(eq=False)
class Worker:
    process: BaseProcess
    connection: Connection
    ready: bool = False
    index: int | None = None
    """Of the call that it makes."""
    deadline_s: float = math.inf

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


@dataclass
class Batch:
    """Calls that are being made."""

    calls: Sequence[Call]
    limits_s: Sequence[float | None]
    place: Place
    waiting: deque[int] = field(init=False)
    values: dict[int, list[float] | RewardError] = field(default_factory=dict)
    deaths: Counter[int] = field(default_factory=Counter)
    first_failure: float = math.inf

    def __post_init__(self) -> None:
        self.waiting = deque(range(len(self.calls)))

    def fail(self, index: int, error: RewardError) -> None:
        """Calls before it still count: the first failure is the same however many processes there are."""
        self.values[index] = error
        self.first_failure = min(index, self.first_failure)
        self.waiting = deque(i for i in self.waiting if i < index)


class Workers:
    """They start at once, and end with this object, with `close` and with this process, however it ends."""

    def __init__(self, config: RewardConfig) -> None:
        """Raises ValueError for a function that another process cannot be given."""
        for function in config.functions:
            try:
                pickle.dumps(function)
            except Exception as error:  # pickle raises what it likes
                raise ValueError(
                    f"reward.workers: wanted functions that another process can import, got {function!r} "
                    f"({type(error).__name__}: {error})"
                ) from error
        self.config = config
        self.counts: Counter[str] = Counter(crashed=0)
        self._context = multiprocessing.get_context("spawn")
        # A worker dies with the thread that started it: this one lives as long as they may.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="reward-workers")
        self._workers: list[Worker] = []
        self._end = weakref.finalize(self, _end, self._workers)
        self._workers += [self._started() for _ in range(config.workers)]

    def values(
        self, calls: Sequence[Call], limits_s: Sequence[float | None], place: Place
    ) -> list[list[float]]:
        """A number for each rollout of each call; NaN where its channel does not apply.

        Raises:
            RewardError: of the first call, in their order, that fails or takes too long.
        """
        batch = Batch(calls, limits_s, place)
        try:
            while batch.waiting or self._busy(before=batch.first_failure):
                self._hand_out(batch)
                self._collect(batch)
            return [_numbers(batch.values[index]) for index in sorted(batch.values)]
        except BaseException:
            self._replace(self._busy())
            raise

    def close(self) -> None:
        self._end()
        self._starter.shutdown(wait=False)

    def _busy(self, before: float = math.inf) -> list[Worker]:
        """Those that make a call, of an index below this one."""
        return [worker for worker in self._workers if worker.index is not None and worker.index < before]

    def _started(self) -> Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(theirs, self.config, os.getpid()), name="reward-worker", daemon=True
        )
        self._starter.submit(process.start).result()
        theirs.close()
        return Worker(process, ours, deadline_s=time.monotonic() + START_LIMIT_S)

    def _replace(self, workers: Sequence[Worker]) -> None:
        for worker in workers:
            worker.kill()
            self._workers[self._workers.index(worker)] = self._started()

    def _hand_out(self, batch: Batch) -> None:
        for worker in self._workers:
            if not worker.ready or worker.index is not None or not batch.waiting:
                continue
            index = batch.waiting.popleft()
            call = batch.calls[index]
            request = Request(
                call=replace(call, rows=tuple(range(len(call.rollouts)))),
                place=batch.place,
                threads=torch.get_num_threads(),
            )
            limit_s = batch.limits_s[index]
            worker.index = index
            worker.deadline_s = math.inf if limit_s is None else time.monotonic() + limit_s
            with suppress(BrokenPipeError):  # it died between two calls; then it is heard to be dead
                worker.connection.send(request)

    def _collect(self, batch: Batch) -> None:
        """What the workers say until the first of them must have answered."""
        left_s = min(worker.deadline_s for worker in self._workers) - time.monotonic()
        said = wait(
            [worker.connection for worker in self._workers], None if left_s == math.inf else max(0.0, left_s)
        )
        for worker in list(self._workers):
            if worker.connection in said:
                self._hear(worker, batch)
            elif worker.deadline_s < time.monotonic():
                self._overdue(worker, batch)

    def _hear(self, worker: Worker, batch: Batch) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            self._dead(worker, batch)
            return
        if not isinstance(message, Reply):
            if message != "ready":
                raise ValueError(f"reward.workers: a process could not begin: {message}")
            worker.ready, worker.deadline_s = True, math.inf
            return
        assert worker.index is not None
        self.counts.update(message.counts)
        if isinstance(message.values, RewardError):
            batch.fail(worker.index, message.values)
        else:
            batch.values[worker.index] = message.values
        worker.index, worker.deadline_s = None, math.inf

    def _dead(self, worker: Worker, batch: Batch) -> None:
        worker.process.join()
        code, index = worker.process.exitcode, worker.index
        if not worker.ready:
            raise RuntimeError(f"reward.workers: a process ended with {code} before it could score")
        self._replace([worker])
        if index is None:
            return
        batch.deaths[index] += 1
        if batch.deaths[index] < ATTEMPTS:
            batch.waiting.appendleft(index)
            return
        call = batch.calls[index]
        self.counts["crashed"] += 1
        batch.values[index] = [math.nan] * len(call.rollouts)
        problem = call.error(f"its process ended with {code}, {ATTEMPTS} times: the channel does not apply")
        print(f"warning: {problem}", file=sys.stderr, flush=True)

    def _overdue(self, worker: Worker, batch: Batch) -> None:
        if worker.index is None:
            raise RuntimeError(f"reward.workers: a process was not ready after {START_LIMIT_S:g} s")
        index = worker.index
        self._replace([worker])
        batch.fail(index, batch.calls[index].error(over(batch.limits_s[index])))


def _numbers(values: list[float] | RewardError) -> list[float]:
    if isinstance(values, RewardError):
        raise values
    return values


def _serve(connection: Connection, config: RewardConfig, parent: int) -> None:
    """What a worker runs; imported there only, since it needs all that needs this module."""
    from g2rpo_fast.rewards.worker import serve

    serve(connection, config, parent)


def _end(workers: list[Worker]) -> None:
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.join()
        worker.connection.close()
