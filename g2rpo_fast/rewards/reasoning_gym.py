"""The reward "reasoning_gym": a task's own scorer, for data of `reasoning_gym:TASK`."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Mapping
from typing import Any

from g2rpo_fast.rewards.config import RewardConfig
from g2rpo_fast.rewards.final_answer import final_text, marked_answer
from g2rpo_fast.types import Rollout


class ReasoningGym:
    """What the task's `score_answer` gives the final answer, from 0 to 1; 0 where there is none.

    The final answer is where `final_answer` finds a mark, else all text after the thought. Scorers may pay a
    part for a part: `reward.success = 0.99` counts whole answers alone as successes.
    """

    def __init__(self, config: RewardConfig) -> None:
        """Raises ValueError without the package."""
        self.pay_truncated = config.pay_truncated
        try:
            self._gym = importlib.import_module("reasoning_gym")
        except ImportError as error:
            raise ValueError(
                'reward.functions: wanted the package of reasoning_gym (pip install "g2rpo-fast'
                f'[reasoning-gym]"), got {error}'
            ) from error
        self._entry = functools.lru_cache(maxsize=1024)(self._made)

    def __call__(self, response: str, answer: str, rollout: Rollout) -> float:
        final = self.final_answer(response, rollout)
        if final is None:
            return 0.0
        made = rollout.prompt.row["reasoning_gym"]
        dataset, entry = self._entry(json.dumps(made, sort_keys=True))
        return float(dataset.score_answer(final, entry))

    def final_answer(self, response: str, rollout: Rollout | None) -> str | None:
        text = final_text(response, rollout, pay_truncated=self.pay_truncated)
        if text is None:
            return None
        marked = marked_answer(text)
        return text.strip() if marked is None else marked

    def check_reference(self, answer: str, row: Mapping[str, Any]) -> str | None:
        made = row.get("reasoning_gym")
        if isinstance(made, Mapping) and {"task", "settings", "index"} <= set(made):
            return None
        return "the row has no column 'reasoning_gym', as data of reasoning_gym:TASK have"

    def _made(self, made: str) -> tuple[Any, Any]:
        """The task and its entry, made again."""
        values = json.loads(made)
        dataset = self._gym.create_dataset(values["task"], **values["settings"])
        return dataset, dataset[values["index"]]
