"""Samples of a model: what `g2rpo-fast sample` and `g2rpo_fast.sample` do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from g2rpo_fast.data.sources import Source, fetched
from g2rpo_fast.evaluation.asked import SamplesSize, Spelling
from g2rpo_fast.evaluation.problems import check_file, shown_problems, typed_problems
from g2rpo_fast.evaluation.ready import ready
from g2rpo_fast.evaluation.show import Shown, samples_of
from g2rpo_fast.model.gguf import converted
from g2rpo_fast.model.vocabulary import load_tokenizer
from g2rpo_fast.model_source import ModelSource
from g2rpo_fast.progress import Progress
from g2rpo_fast.types import Prompt


def sampled(
    source: ModelSource,
    asked: Sequence[str] | None,
    data: Any,
    size: SamplesSize,
    sections: Mapping[str, Any],
    *,
    spelled: Spelling,
    key: str,
    first: int = 0,
) -> Iterator[Shown]:
    """Samples of each problem, in order, as they are done.

    Args:
        asked: problems as texts; None: those of `data`, a place as `data.path` is, or rows.
        sections: as `starting_sections` has them.
        spelled: how the caller spells the settings, for errors; key: what `data` is called.
        first: rows of `data` to take, from the top; 0 = all.

    Raises:
        ValueError: what cannot be sampled from; nothing was.
        FloatingPointError: the model's logits are not finite.
    """
    rollout, config = sections["rollout"], sections["data"]
    rows = None if asked is not None else fetched(data, config, key=key)
    if rows is not None:
        check_file(rows, config, key=key, answers=False)
    with Progress().phase(f"loading {source.name}"):
        source = replace(source, path=converted(source.path))
        tokenizer = load_tokenizer(source.path)
        if asked is not None:
            prompts = typed_problems(asked, config, tokenizer, key=spelled("prompt"))
        else:
            assert rows is not None
            prompts = _of_rows(rows, config, tokenizer, size, spelled=spelled, key=key, first=first)
        loaded = ready(source, tokenizer, sections, prompts)
    return samples_of(
        loaded,
        prompts,
        samples=size.n,
        guidance=size.guidance_tokens,
        max_tokens=rollout.max_tokens,
        seed=sections["run"].seed,
        rows=rollout.max_rows,
    )


def _of_rows(
    rows: Source,
    config: Any,
    tokenizer: PreTrainedTokenizerBase,
    size: SamplesSize,
    *,
    spelled: Spelling,
    key: str,
    first: int,
) -> list[Prompt]:
    prompts = shown_problems(rows, config, tokenizer, key=key)[: first or None]
    if size.guidance_tokens and not any(prompt.trace_ids for prompt in prompts):
        raise ValueError(
            f"{spelled('guidance_tokens')}: wanted 0, or rows with a trace in column {config.trace_column!r} "
            f"(data.trace_column), got {size.guidance_tokens} and no trace in {rows}"
        )
    return prompts
