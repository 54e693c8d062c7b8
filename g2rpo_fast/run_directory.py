"""A run's directory: what is in it, and whether it may be continued with a given configuration.

config.json              the configuration, resolved; written when all that it names was found to hold
content.json             digests of the data and models that it was made from, and changes accepted since
changes.json             settings that a continuation changed, and after which step; where the run was forked
metrics.jsonl            one record a step
samples.jsonl            some of its rollouts, every so often
vllm.log                 output of the rollout engine's process
guidance_profile.json    success against the share of the trace given, before training
checkpoints/step_*/      whole or absent; transformers loads each
embedded/                the embedded default's model and data
model/                   the trained model, in transformers' format
lock                     held by the process that runs
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import shlex
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from g2rpo_fast.config import Config, plain, renamed
from g2rpo_fast.cpu import free_threads
from g2rpo_fast.files import write_text
from g2rpo_fast.fingerprint import Fingerprint, changes
from g2rpo_fast.fork import checkpoint_of, fork

MAY_CHANGE = (
    "run.dir",
    "run.steps",
    "run.accept_changes",
    "model.save_dtype",
    "model.path",  # these three by content
    "data.path",
    "data.eval_path",
    "checkpoint.",
    "evaluate.",
    "samples.",
    "log.",
    "run.threads",
    "run.device",
    "run.fork",
    "optim.lr",
    "optim.min_lr_ratio",
    "optim.warmup_steps",
    "optim.schedule",
    "optim.max_grad_norm",
    "optim.max_bad_steps",
    "tree.",
    "optim.in_backward",
    "model.gradient_checkpointing",
    "model.checkpointed_layers",
    "model.offload_activations",
    "reward.workers",
    "rollout.engine",
    "rollout.max_rows",
    "vllm.start_timeout_s",
    "vllm.stall_s",
    "vllm.sync_timeout_s",
    "vllm.gpu_memory_utilization",
    "vllm.kv_cache_mib",
    "vllm.checksum",
)
"""Keys in which a continuation may differ from the run that it continues."""
UNTOLD = ("run.dir", "run.fork", "run.accept_changes", "model.path", "data.path", "data.eval_path")
"""Of these, those whose change is not a change of settings."""
REASONS = {
    "data": "the prompts and their order are the run's",
    "embedded": "the model and its data were made with it",
    "adapter": "the trained adapters are of that shape",
    "model": "the weights and the optimiser's moments are of the model as it was",
    "optim": "the optimiser's state was made with it",
    "reward": "rewards before and after could not be compared",
    "rollout": "what is sampled before and after could not be compared",
    "vllm": "what is sampled before and after could not be compared",
    "guidance": "its controller's state belongs to it",
    "run": "the order of prompts and all sampling follow from it",
}
"""Section -> why its other keys may not change. Of all others: they are the method."""
METHOD = "the method is the run's"


_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""A file system that cannot lock: then nothing keeps two processes apart."""


class RunDirectory(NamedTuple):
    """A directory that this process may use until `lock` is closed."""

    path: Path
    config: Config
    """With what "auto" meant when the run began: a continuation uses as many threads and as large
    micro-batches as its run did, or sums would round differently, and its seed of the data's order. In a new
    run tree.token_budget and data.chat may still be None: it takes the model to know."""
    created: bool
    lock: TextIO
    changed: tuple[str, ...] = ()
    """Settings in which it goes on otherwise than it began, as lines."""


def open_directory(config: Config, show: Callable[[str], None] = lambda line: None) -> RunDirectory:
    """Makes the run directory, or finds the run in it; no other process gets it meanwhile.

    Raises:
        ValueError: it cannot be used, another process uses it, or it holds a run with other settings (names
            each key, wanted and got).
    """
    forked = _forked(config)
    with _usable(config.run.dir):
        path, created = _directory(config.run.dir)
        lock = _locked(path)
        stored, changed = _stored(path), []
    if stored is None and forked is None and any((path / "checkpoints").glob("step_*")):
        raise ValueError(
            f"run.dir: wanted a run or no run, got {path} with checkpoints and without config.json, as a "
            "stopped fork leaves it: give --run.fork again, or another run.dir"
        )
    resolved = _resolved(config, path, stored)
    if stored is not None:
        changed = _changed(renamed(stored), plain(resolved), path, show)
        for line in changed:
            show(f"note: goes on with another {line} (recorded in changes.json)")
    elif forked is not None:
        fork(forked, path)
        changed = [f"run: forked from {forked}"]
    return RunDirectory(path, resolved, created, lock, tuple(changed))


def check_settings(config: Config) -> None:
    """What `open_directory` would refuse of the run that goes on, or of the one that is forked; looks only.

    Raises:
        ValueError: likewise.
    """
    with _usable(config.run.dir):
        _forked(config)
        path = Path(config.run.dir or "")
        stored = None if config.run.dir is None else _stored(path)
    if stored is not None:
        _changed(renamed(stored), plain(_resolved(config, path, stored)), path, lambda line: None)


def _forked(config: Config) -> Path | None:
    """The checkpoint that a new run goes on from."""
    begun = config.run.dir is not None and _stored(Path(config.run.dir)) is not None
    return None if config.run.fork is None or begun else checkpoint_of(config.run.fork)


def _resolved(config: Config, path: Path, stored: Mapping[str, Any] | None) -> Config:
    """With what "auto" means in a new run, or meant when the stored one began."""
    resolved = _with_run(config, dir=str(path))
    resolved = dataclasses.replace(resolved, data=dataclasses.replace(config.data, seed=config.order_seed))
    if config.run.threads is None:
        threads = stored["run"]["threads"] if stored else free_threads()
        resolved = _with_run(resolved, threads=threads)
    if stored is not None and config.tree.token_budget is None:
        resolved = with_budget(resolved, stored.get("tree", {}).get("token_budget"))
    if stored is not None and config.data.chat is None:
        chat = stored.get("data", {}).get("chat", False)
        resolved = dataclasses.replace(resolved, data=dataclasses.replace(resolved.data, chat=chat))
    return resolved


def continuing(directory: Path) -> str:
    """The command that goes on with the run in it: its settings are those that it holds."""
    return f"g2rpo-fast train --run.dir {shlex.quote(str(directory))}"


@contextmanager
def removed_on_error(run: RunDirectory) -> Iterator[None]:
    """Around what may find that the run cannot begin: then a directory made for it goes, but for a log."""
    try:
        yield
    except BaseException as error:
        if run.created and not (run.path / "vllm.log").exists():
            shutil.rmtree(run.path, ignore_errors=True)
        run.lock.close()
        if isinstance(error, KeyboardInterrupt):
            error.add_note("this was before any training: nothing is lost")
        raise


def store_config(run: RunDirectory, *, step: int = 0) -> None:
    """From now on the directory holds this run, changed after this step. Raises WriteError."""
    if run.changed:
        file = run.path / "changes.json"
        record = json.loads(file.read_text()) if file.exists() else []
        record.append({"after_step": step, "changes": run.changed})
        write_text(file, json.dumps(record, indent=1))
    write_text(run.path / "config.json", json.dumps(plain(run.config), indent=1))


def check_content(run: RunDirectory, found: Fingerprint, *, step: int, show: Callable[[str], None]) -> None:
    """Compares data and models with those of the run so far, and stores what they are.

    Args:
        step: of the checkpoint that is continued; recorded with accepted changes.

    Raises:
        ValueError: something changed, and run.accept_changes is false.
    """
    file = run.path / "content.json"
    record: dict[str, Any] = {"content": found, "accepted": []}
    if file.exists():
        record = json.loads(file.read_text())
        changed = changes(record["content"], found)
        if not changed:
            return
        if not run.config.run.accept_changes:
            raise ValueError(
                f"run.dir: {run.path} holds a run of other data or another model ({'; '.join(changed)}). "
                "Put back what it was, or continue with run.accept_changes = true"
            )
        show(f"warning: changed since the run began, and accepted: {'; '.join(changed)}")
        record["content"] = found
        record["accepted"].append({"after_step": step, "changes": changed})
    write_text(file, json.dumps(record, indent=1))


def with_budget(config: Config, token_budget: int | None) -> Config:
    """`config` with this tree.token_budget."""
    return dataclasses.replace(config, tree=dataclasses.replace(config.tree, token_budget=token_budget))


def _with_run(config: Config, **values: Any) -> Config:
    return dataclasses.replace(config, run=dataclasses.replace(config.run, **values))


@contextmanager
def _usable(name: str | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        wanted = "runs/ here" if name is None else name
        raise ValueError(
            f"run.dir: wanted a directory that can be made and written, got {wanted}: {error.strerror}"
        ) from error


def _directory(name: str | None) -> tuple[Path, bool]:
    """The directory and whether it was made; without a name one that no other process makes or has."""
    if name is not None:
        path = Path(name)
        new = not path.exists()
        path.mkdir(parents=True, exist_ok=True)
        return path, new
    stem = Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    stem.parent.mkdir(exist_ok=True)
    for number in range(1, 10_000):
        path = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path, True
    raise AssertionError(f"10,000 directories named {stem}")


def _locked(path: Path) -> TextIO:
    """The lock's file; closing it, or the end of the process, releases it."""
    file = (path / "lock").open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise ValueError(
            f"run.dir: wanted a directory that no other process uses, got {path}, used by {holder}"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _stored(path: Path) -> dict[str, Any] | None:
    """The configuration of the run in the directory; None = it holds none."""
    file = path / "config.json"
    if not file.exists():
        return None
    try:
        stored = json.loads(file.read_bytes())
        stored["run"]["threads"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"run.dir: wanted a run's configuration in {file}, got a damaged one") from error
    return stored


def _changed(
    stored: Mapping[str, Any], asked: Mapping[str, Any], directory: Path, show: Callable[[str], None]
) -> list[str]:
    """What goes on otherwise, a line a key. Raises ValueError where it may not, with the reason.

    A key that the run's version did not have yet counts as its default; one that is gone is told.
    """
    now, defaults = _flat(asked), _flat(plain(Config()))
    then = defaults | _flat(stored)
    gone = sorted(then.keys() - now.keys())
    if gone:
        show(f"warning: {directory}/config.json has keys of another version, which mean nothing now: {gone}")
    other = [key for key in sorted(now) if then[key] != now[key]]
    fixed = [
        f"{key}: wanted {then[key]!r}, got {now[key]!r}, but {REASONS.get(key.partition('.')[0], METHOD)}"
        for key in other
        if not key.startswith(MAY_CHANGE)
    ]
    if fixed:
        raise ValueError(
            f"run.dir: {directory} holds a run with other settings ({'; '.join(fixed)}). Give these settings "
            f"to continue it, another run.dir to begin anew, or --run.fork {directory} to go on from its "
            "checkpoint in a new directory"
        )
    return [f"{key}: {then[key]!r} -> {now[key]!r}" for key in other if not key.startswith(UNTOLD)]


def _flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    """section.key -> its value; a chain of pieces is one."""
    tables = {name: value for name, value in sections.items() if isinstance(value, dict)}
    whole = {name: value for name, value in sections.items() if name not in tables}
    return {f"{name}.{key}": value for name, table in tables.items() for key, value in table.items()} | whole
