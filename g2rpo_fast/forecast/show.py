"""A forecast as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator

from g2rpo_fast.config import Config
from g2rpo_fast.forecast.forecast import Disk, Forecast, Time, Work
from g2rpo_fast.forecast.memory import Memory
from g2rpo_fast.progress import clock

MIB = 1 << 20
DAY_S = 24 * 3600
PARTS = {
    "program": "Python, libraries and data",
    "weights": "weights",
    "reference": "weights of the reference policy",
    "moments": "the optimiser's moments",
    "gradients": "gradients",
    "kept": "kept for backward, largest micro-batch",
    "loss": "the loss: a chunk of logits, d head",
    "cache": "sampling: weights once more, keys, values, logits",
}


def as_text(found: Forecast, config: Config, *, free: int, disk_free: int) -> str:
    """Some twenty lines.

    Args:
        free: bytes of memory that the run may have in all.
        disk_free: bytes where its directory will be.
    """
    lines = [
        *_work(found.work, config),
        *_memory(found.memory, free),
        *_time(found.time, found.work, config),
        *_disk(found.disk, disk_free),
    ]
    return "\n".join(lines)


def brief(found: Forecast, *, free: int, disk_free: int) -> str:
    """Two lines, for the beginning of a run."""
    took, memory = found.time, found.memory
    before = [
        f"{name} {clock(seconds)}"
        for name, seconds in (("guidance profile up to", took.profile_s), ("evaluation", took.evaluation_s))
        if seconds >= 1
    ]
    return (
        f"estimate: {_seconds(took.step_s)} a step if all groups have a signal, {_seconds(took.rollout_s)} "
        f"of it sampling; {_span(took.run_s)} in all"
        + (f"; {', '.join(before)}" if before else "")
        + f"\nestimate: memory {_size(memory.peak)}{_fits(memory.peak, free, 'memory')}, disk up to "
        f"{_size(found.disk.run)}{_fits(found.disk.run, disk_free, 'disk')}"
    )


def _work(work: Work, config: Config) -> Iterator[str]:
    guided = f", {work.guided_rows} of them guided" if work.guided_rows else ""
    yield (
        f"a step      {work.prompts} prompts, {work.groups} groups, {work.rows} rollouts{guided}"
        + ("; further rounds may ask for more" if work.asks_again else "")
    )
    ended = f"{work.ended} of {work.sampled} ended by themselves in the calibration"
    yield f"responses   {work.response_tokens:.0f} tokens sampled on average ({ended})"
    ratio = work.unshared_tokens / max(work.shared_positions or work.positions, 1)
    if work.shared_positions is None:
        trees = f"{work.positions:,} as prefix trees ({ratio:.2f} times less)"
    else:
        trees = (
            f"encoded row by row; as prefix trees, which this run does not share, {work.shared_positions:,} "
            f"({ratio:.2f} times less)"
        )
    yield f"tokens      {work.unshared_tokens:,} in rows, {trees}, if every group has a signal"
    if work.trained_positions is not None:
        yield f"            {work.trained_positions:,} in the groups that have one in the first step"
    plural = "es" if work.micro_batches != 1 else ""
    yield (
        f"update      {work.optimizer_steps} optimiser step{'s' if work.optimizer_steps != 1 else ''}, "
        f"{work.micro_batches} micro-batch{plural} of up to {config.tree.token_budget:,} positions"
    )
    passes = work.passes
    looks = f"{passes.looks} without gradient (old or reference policy), " if passes.looks else ""
    recomputed = ", layers computed again" if config.model.gradient_checkpointing else ""
    yield (
        f"passes      of every position: {looks}{passes.forwards:g} forward, {passes.backwards:g} backward"
        f"{recomputed}; products with the LM head: {passes.head_products:g}"
    )


def _memory(memory: Memory, free: int) -> Iterator[str]:
    for index, (name, what) in enumerate(PARTS.items()):
        size = getattr(memory, name)
        if size:
            yield f"{'memory' if not index else '':<12}{_size(size):>9}  {what}"
    before = ", before the first step" if memory.peak == memory.so_far else ""
    fits = _fits(memory.peak, free, "memory")
    yield f"            {_size(memory.peak):>9}  at its peak{before}{fits}"


def _time(took: Time, work: Work, config: Config) -> Iterator[str]:
    signal = (
        "every group with a signal; without one it costs nothing"
        if work.trained_positions is None
        else "with the signal of the first step"
    )
    yield f"time        {_seconds(took.rollout_s):>9}  sampling of a step, by {config.rollout.engine}"
    yield f"            {_seconds(took.update_s):>9}  update, {signal}"
    if took.sync_s >= 0.01:
        yield f"            {_seconds(took.sync_s):>9}  weights to the engine"
    if took.evaluations:
        yield f"            {_seconds(took.evaluation_s):>9}  an evaluation, {took.evaluations} of them"
    if took.profile_s:
        yield f"            {_seconds(took.profile_s):>9}  guidance profile, at most"
    counted = f"{took.steps} steps and all of this, but for rewards and saving"
    yield f"            {_span(took.run_s):>9}  {counted}"
    if config.run.ahead:
        yield "                       less where sampling and training overlap (run.ahead = 1)"


def _disk(disk: Disk, free: int) -> Iterator[str]:
    yield (
        f"disk        {_size(disk.checkpoint):>9}  a checkpoint ({_size(disk.moments)} of it moments), "
        f"{disk.checkpoints} at once; the model {_size(disk.model)}"
    )
    yield f"            {_size(disk.run):>9}  at most{_fits(disk.run, free, 'disk')}"


def _fits(wanted: int, free: int, what: str) -> str:
    if not free:
        return ""
    if wanted <= free:
        return f" ({_size(free)} of {what} are there)"
    return f": DOES NOT FIT, {_size(free)} of {what} are there"


def _size(size: float) -> str:
    return f"{size / MIB:.0f} MiB" if size < 1024 * MIB else f"{size / (1024 * MIB):.1f} GiB"


def _span(seconds: float) -> str:
    return clock(seconds) if seconds < 2 * DAY_S else f"{seconds / DAY_S:.1f} days"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 100 else clock(seconds)
