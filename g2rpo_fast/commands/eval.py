"""`g2rpo-fast eval MODEL DATA`: how often a model is right, greedily and in samples. Never guided."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from g2rpo_fast.commands.common import loading, names_and_options, note, telling_interrupts
from g2rpo_fast.evaluation.asked import EvaluationSize, as_option
from g2rpo_fast.usage import print_to_pipe

if TYPE_CHECKING:
    from g2rpo_fast.model_source import ModelSource


@dataclass(frozen=True, kw_only=True)
class EvalOptions(EvaluationSize):
    """What is measured, and where it goes."""

    out: str | None = None
    """File for a JSON line a problem: prompt, responses, rewards, vote. It is there once all are done; until
    then they are in FILE.partial."""
    json: bool = False
    """Print the summary as JSON."""


def run(words: Sequence[str]) -> int:
    names, options = names_and_options("eval", words, ("MODEL", "DATA"))
    from g2rpo_fast.config.some_keys import SAMPLING_KEYS, read_options
    from g2rpo_fast.evaluation.settings import starting_sections
    from g2rpo_fast.model_source import ModelSource, find_model

    source = find_model(names[0]) if names else ModelSource(name="MODEL", path="MODEL")
    sections, notes = starting_sections(source)
    offered = {
        "data": (
            "subset", "eval_split", "format", "prompt_column", "answer_column", "template", "chat",
            "system_prompt", "template_kwargs", "max_prompt_tokens", "on_bad_row", "eval_rows",
        ),
        "reward": tuple(sections["reward"].__dataclass_fields__),
        **SAMPLING_KEYS,
    }  # fmt: skip
    asked, sections = read_options(
        options,
        EvalOptions(),
        sections,
        offered,
        prog="g2rpo-fast eval MODEL DATA",
        description="Accuracy of a model (a directory, a hub id, or RUN, RUN:STEP, RUN:best) on DATA, a "
        "file, a folder or a hub id, as data.eval_path is. Values start from the run's configuration, or "
        "from the defaults.",
    )
    asked.check(sections["rollout"].temperature, as_option)
    for line in notes:
        note(line)
    loading("g2rpo_fast.evaluation.evaluate")
    with telling_interrupts():
        _evaluate(source, names[1], asked, sections)
    return 0


def _evaluate(source: ModelSource, data: str, asked: EvalOptions, sections: dict[str, Any]) -> None:
    from g2rpo_fast.evaluation.evaluate import evaluated
    from g2rpo_fast.evaluation.write import item_lines

    with item_lines(asked.out) as write:
        found = evaluated(
            source, data, asked, sections, key="DATA", on_item=lambda item: write(item.to_dict())
        )
    print_to_pipe(json.dumps(found.to_dict(), indent=1) if asked.json else str(found))
