"""A model measured on some rows: what `g2rpo-fast eval` and `g2rpo_fast.evaluate` do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from g2rpo_fast.data.sources import fetched
from g2rpo_fast.evaluation.asked import EvaluationSize
from g2rpo_fast.evaluation.items import Item, measure
from g2rpo_fast.evaluation.problems import check_file, judged_problems
from g2rpo_fast.evaluation.ready import ready
from g2rpo_fast.evaluation.settings import config_of
from g2rpo_fast.evaluation.summary import as_text, powers_of_two, summarize
from g2rpo_fast.model.gguf import converted
from g2rpo_fast.model.vocabulary import load_tokenizer
from g2rpo_fast.model_source import ModelSource
from g2rpo_fast.progress import Progress
from g2rpo_fast.rewards.loading import load_rewards
from g2rpo_fast.versions import versions

KEPT = ("max_tokens", "temperature", "top_p", "top_k", "stop_strings", "stop_token_ids")
"""Keys of `[rollout]` that the figures depend on."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How often a model is right. `print(evaluation)` shows it as `g2rpo-fast eval` does."""

    model: str
    """As it was named."""
    step: int | None
    """Of the run's checkpoint; None = a run's final model, or no run."""
    data: str
    settings: Mapping[str, Any]
    """What the figures depend on: lengths, temperature, stop strings, seed, reward functions."""
    device: str
    versions: Mapping[str, Any]
    items: tuple[Item, ...]
    """One for each problem, in the rows' order."""
    left_out: Mapping[str, int]
    """Rows that were not asked: `too_long` for data.max_prompt_tokens; `cannot_be_used` (with
    data.on_bad_row = "skip")."""
    summary: Mapping[str, Any]
    """`problems`; `greedy`: accuracy with its interval, reward, length; with samples also `sampled`: pass@k
    and the majority's vote, each with its interval. None where nothing is to be said."""

    def to_dict(self) -> dict[str, Any]:
        """All but the items, as JSON has it."""
        named = ("model", "step", "data", "settings", "device", "versions", "left_out")
        return {name: getattr(self, name) for name in named} | dict(self.summary)

    def __str__(self) -> str:
        told = [
            f", {count} {why.replace('_', ' ')} left out" for why, count in self.left_out.items() if count
        ]
        count = f"{len(self.items)} problems{''.join(told)}"
        return f"{self.model} on {self.data}: {count}, without guidance\n{as_text(dict(self.summary))}"


def evaluated(
    source: ModelSource,
    data: Any,
    size: EvaluationSize,
    sections: Mapping[str, Any],
    *,
    key: str,
    on_item: Callable[[Item], None],
) -> Evaluation:
    """Asks each problem greedily and in samples, never guided.

    Args:
        data: a place as `data.path` is, or rows.
        sections: as `starting_sections` has them.
        key: what `data` is called, for errors.
        on_item: is given each problem's item when it is done.

    Raises:
        ValueError: what cannot be measured; nothing was sampled.
        RewardError: a reward function failed.
        FloatingPointError: the model's logits are not finite.
    """
    config = config_of(sections)
    rows = fetched(data, config.data, key=key)
    check_file(rows, config.data, key=key, answers=True)
    rewards = load_rewards(config.reward)
    with Progress().phase(f"loading {source.name}"):
        source = replace(source, path=converted(source.path))
        tokenizer = load_tokenizer(source.path)
        found = judged_problems(rows, config.data, tokenizer, rewards)
        loaded = ready(source, tokenizer, sections, found.prompts)
    items: list[Item] = []
    with Progress().phase("evaluating", len(found.prompts), "problems") as told:
        for item in measure(
            loaded,
            rewards,
            found.prompts,
            samples=size.samples,
            max_tokens=config.rollout.max_tokens,
            seed=config.run.seed,
            rows=config.rollout.max_rows,
        ):
            on_item(item)
            items.append(item)
            told(len(items))
    asked = {name: getattr(sections["rollout"], name) for name in KEPT}
    return Evaluation(
        model=source.name,
        step=source.step,
        data=str(rows),
        settings={**asked, "seed": config.run.seed, "reward": list(config.reward.channels)},
        device=loaded.device,
        versions=versions(),
        items=tuple(items),
        left_out={"too_long": found.num_too_long, "cannot_be_used": len(found.skipped)},
        summary=summarize(items, size.k or powers_of_two(size.samples), votes=rewards.finds_answers),
    )
