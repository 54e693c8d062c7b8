"""`from g2rpo_fast import evaluate, sample`: a trained model measured and looked at, from Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from g2rpo_fast.config.choice import made, refuse_unknown, settings_of
from g2rpo_fast.data.places import is_rows, refuse_others
from g2rpo_fast.evaluation.asked import EvaluationSize, SamplesSize, as_argument
from g2rpo_fast.evaluation.evaluate import Evaluation, evaluated
from g2rpo_fast.evaluation.items import Item
from g2rpo_fast.evaluation.sample import sampled
from g2rpo_fast.evaluation.settings import USED, starting_sections
from g2rpo_fast.evaluation.show import Shown
from g2rpo_fast.model_source import ModelSource, find_model

Settings = Mapping[str, Any]
"""Keys of a section of the configuration, with values as `Config` takes them."""


def evaluate(
    model: str | Path,
    rows: Any,
    *,
    samples: int = 8,
    k: Sequence[int] = (),
    on_item: Callable[[Item], None] | None = None,
    **settings: Settings,
) -> Evaluation:
    """How often a model is right on some rows: greedily, by pass@k and by the majority. Never guided.

        evaluate("runs/a:best", "test.jsonl", samples=16, reward={"functions": [my_reward]})

    Args:
        model: a directory, a hub id, or a run of ours: RUN, RUN:STEP, RUN:best.
        rows: problems with answers: a file, a folder or a hub id, a list of dicts or a `Dataset`.
        samples: of each problem, beside the greedy response; 0 = that alone.
        k: of pass@k; none given: 1, 2, 4, ... up to `samples`.
        on_item: is given each problem's item when it is done.
        settings: sections run, model, data, rollout and reward, each a dict of some keys. A run's own are
            the defaults, except that all rows are used.

    Raises:
        ValueError: what cannot be measured, in one line; nothing was sampled.
        RewardError: a reward function failed.
        FloatingPointError: the model's logits are not finite.
    """
    size = EvaluationSize(samples=samples, k=tuple(k))
    source, sections = _starting(model, settings)
    size.check(sections["rollout"].temperature, as_argument)
    with _threads_kept():
        return evaluated(
            source, _place(rows), size, sections, key="rows", on_item=on_item or (lambda item: None)
        )


def sample(
    model: str | Path,
    prompt: str | Sequence[str] | None = None,
    *,
    rows: Any = None,
    n: int = 1,
    guidance_tokens: int = 0,
    **settings: Settings,
) -> list[Shown]:
    """What a model says to prompts, or to rows, where it may start from the first tokens of their traces.

        sample("runs/a", "What is 2 + 3?", n=4, rollout={"temperature": 0.7})
        sample("runs/a", rows="train.jsonl", guidance_tokens=40)

    Args:
        model: as for `evaluate`.
        prompt: a problem, or several; the template or the chat template is put around each.
        rows: instead: problems, and traces for guidance; they need no answers.
        n: samples of each problem. With `rollout={"temperature": 0}` they are greedy.
        guidance_tokens: of each row's trace, that its samples begin with; of a shorter trace all.
        settings: sections run, model, data and rollout, each a dict of some keys.

    Returns:
        For each problem its prompt, guidance and samples, as texts and as token ids.

    Raises:
        ValueError: what cannot be sampled from, in one line; nothing was.
        FloatingPointError: the model's logits are not finite.
    """
    if (prompt is None) == (rows is None):
        raise ValueError(f"sample: wanted prompt or rows, got {'neither' if prompt is None else 'both'}")
    size = SamplesSize(n=n, guidance_tokens=guidance_tokens)
    source, sections = _starting(model, settings)
    size.check(sections["rollout"].max_tokens, as_argument, key="rows", rows=rows is not None)
    asked = [prompt] if isinstance(prompt, str) else prompt
    place = None if rows is None else _place(rows)
    with _threads_kept():
        found = sampled(source, asked, place, size, sections, spelled=as_argument, key="rows")
        return list(found)


def _starting(model: str | Path, settings: Mapping[str, Settings]) -> tuple[ModelSource, dict[str, Any]]:
    """The model, and the sections that it starts with, changed as the caller wants."""
    source = find_model(str(model), "model")
    sections, _ = starting_sections(source)
    for name, given in settings.items():
        if name not in USED:
            raise ValueError(f"unknown section {name}; known: {', '.join(USED)}")
        if not isinstance(given, Mapping):
            raise ValueError(f"{name}: wanted a dict of its keys, got {given!r}")
        section = sections[name]
        refuse_unknown(given, type(section), f"{name}.")
        kept = {key: getattr(section, key) for key in settings_of(type(section))}
        sections[name] = made(type(section), {**kept, **given}, name)
    return source, sections


def _place(rows: Any) -> Any:
    """What names rows, or holds them."""
    if isinstance(rows, str | Path):
        return str(rows)
    refuse_others(rows, "rows")
    if not is_rows(rows):
        shown = type(rows).__name__ if rows else repr(rows)
        raise ValueError(
            f"rows: wanted a file, a folder, a hub id, a list of dicts or a datasets.Dataset, got {shown}"
        )
    return rows


@contextmanager
def _threads_kept() -> Iterator[None]:
    """PyTorch's threads are afterwards what they were: a whole program shares them."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
