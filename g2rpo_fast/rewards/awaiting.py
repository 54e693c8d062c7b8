"""Async reward functions: what they returned is awaited, many at a time, on one event loop a run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from g2rpo_fast.rewards.calls import Call
from g2rpo_fast.rewards.error import RewardError
from g2rpo_fast.rewards.time_limit import Overrun, Watchdog

BEAT_S = 0.5


class Awaiter:
    """Awaits at most `concurrency` calls at once. The loop lives on from batch to batch, so that clients
    which a function keeps stay usable."""

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self._runner: asyncio.Runner | None = None

    def results(self, calls: Sequence[tuple[Call, Awaitable[Any]]], watchdog: Watchdog) -> list[Any]:
        """What each call's awaitable gives, in order.

        Raises RewardError at the first that fails or takes longer than the watchdog's limit; the others are
        cancelled. Where the caller is itself inside an event loop (a notebook), another thread awaits.
        """
        gathered = _gathered(calls, self.concurrency, watchdog)
        name = f"an async reward function ({len(calls)} calls)"
        try:
            return watchdog.call(name, lambda: self._run(gathered))
        except BaseException:
            self.close()
            gathered.close()
            raise

    def close(self) -> None:
        """Cancels what is left of a batch and ends the loop; the next batch gets a new one."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def _run(self, work: Coroutine[Any, Any, list[Any]]) -> list[Any]:
        if _inside_a_loop():
            return _in_a_thread(lambda: asyncio.run(work))
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(work)


async def _gathered(
    calls: Sequence[tuple[Call, Awaitable[Any]]], concurrency: int, watchdog: Watchdog
) -> list[Any]:
    slots = asyncio.Semaphore(concurrency)
    beat = asyncio.create_task(_beats(watchdog))
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_result(call, slots, watchdog.limit_s)) for call in calls]
    except BaseExceptionGroup as failed:  # its first failure cancelled the rest
        first = failed.exceptions[0]
        raise first from first.__cause__
    finally:
        beat.cancel()
    return [task.result() for task in tasks]


async def _beats(watchdog: Watchdog) -> None:
    """While the loop turns, no single call blocks it: the watchdog's limit is for one that does."""
    while True:
        watchdog.extend()
        await asyncio.sleep(BEAT_S)


async def _result(made: tuple[Call, Awaitable[Any]], slots: asyncio.Semaphore, limit_s: float | None) -> Any:
    call, awaitable = made
    async with slots:
        limit = asyncio.timeout(limit_s)
        try:
            async with limit:
                return await awaitable
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException as error:  # the user's function may raise anything
            late = limit.expired() or isinstance(error, Overrun)
            raise call.error(_problem(error, limit_s if late else None)) from error


def _problem(error: BaseException, limit_s: float | None) -> str:
    return f"{type(error).__name__}: {error}" if limit_s is None else over(limit_s)


def over(limit_s: float | None) -> str:
    """What a RewardError says of a call that took too long."""
    return f"took longer than reward.timeout_s = {limit_s:g}"


def _inside_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _in_a_thread(work: Callable[[], Any]) -> Any:
    """`work()` in a thread that has no event loop yet."""
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except RewardError as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
