"""Tiny real runs that several tests share."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from g2rpo_fast.config import Config, config_from_dict, load_config
from g2rpo_fast.embedded import prepare
from g2rpo_fast.types import Rollout

HELPERS = Path(__file__).parent
"""Where processes that tests start find the modules beside this one."""

TINY = {
    "run": {"steps": 4, "prompts_per_step": 4, "threads": 1},
    "embedded": {"warm_start_steps": 8, "train_rows": 64, "eval_rows": 8},
    "data": {"eval_rows": 8},
    "rollout": {"group_size": 6, "max_tokens": 40},
    "guidance": {"length_init": 16, "length_max": 24, "reserve": 8},
    "evaluate": {"every": 2, "profile_prompts": 4, "profile_samples": 2},
    "checkpoint": {"every": 2},
    "optim": {"updates_per_batch": 2},
    "reward": {"functions": ["runs:wobble"]},
}


def wobble(response: str, answer: str, rollout: Rollout) -> float:
    """Something for an untrained model to be rewarded for: groups are rarely all equal."""
    return len(response) % 3 / 2


def last_letter(response: str, rollout: Rollout) -> str | None:
    """What `wobble` takes for a final answer."""
    return response[-1:] or None


setattr(wobble, "final_answer", last_letter)  # noqa: B010


def rare(response: str, answer: str, rollout: Rollout) -> float:
    """Paid to one response in seven: many a group has none."""
    return float(len(response) % 7 == 0)


setattr(rare, "final_answer", last_letter)  # noqa: B010


def brevity(response: str, answer: str, rollout: Rollout) -> float | None:
    """A second channel; it does not apply to a response without a character."""
    return 1 / len(response) if response else None


def process(response: str, answer: str, rollout: Rollout) -> float:
    """A score of thoughts."""
    return len(response) % 5 / 4


def needs_of(method: str, paying: str = "runs:wobble") -> dict[str, dict[str, Any]]:
    """What a method needs of the embedded task, as sections: hints, reward channels beside `paying`."""
    channels = {
        "sgpo": ["g2rpo_fast.embedded.channels:progress"],
        "p_grpo": ["runs:process"],
        "surrogate_signals": ["format"],
        "crpo": ["format", "g2rpo_fast.embedded.channels:faithful"],
        "ton": ["format"],
        "prs": ["format"],
    }
    hints = {"data": {"hint_columns": ["trace"], "hint_template": "{hint}#{prompt}"}}
    reward = {"functions": [paying, *channels.get(method, [])]}
    return {"reward": reward, **(hints if method == "guide_grpo" else {})}


def quiet(line: str) -> None:
    """Where a run's lines go that no test reads."""


def tiny_config(directory: Path, **sections: dict[str, Any]) -> Config:
    """The embedded preset made tiny, with `sections` laid over it."""
    values = dataclasses.asdict(load_config("embedded"))
    for name, section in [*TINY.items(), ("run", {"dir": str(directory)}), *sections.items()]:
        values[name] |= section
    return config_from_dict(values)


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What must repeat bit for bit."""
    return [{k: v for k, v in record.items() if not k.startswith("time/")} for record in records]


@contextmanager
def busy_loops(number: int) -> Iterator[None]:
    """Processes that want the same cores."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def embedded_paths(directory: Path) -> dict[str, dict[str, Any]]:
    """The embedded task's model and data, made there: sections of a configuration."""
    made = prepare(directory, tiny_config(directory).embedded, seed=0, report=quiet)
    return {
        "model": {"path": str(made.model_dir)},
        "data": {"path": str(made.train_path), "eval_path": str(made.eval_path)},
    }
