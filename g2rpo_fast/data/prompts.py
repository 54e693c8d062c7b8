"""Problems to prompts: template or chat template, then tokens, once.

Prompt and trace are joined as ids, so guidance of any length is a prefix of the same ids in every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from g2rpo_fast.data.config import DataConfig
from g2rpo_fast.data.hints import hinted
from g2rpo_fast.data.json_lines import BadRow
from g2rpo_fast.data.levels import level_of, levels_of
from g2rpo_fast.data.messages import text_of
from g2rpo_fast.data.render import check_template, render
from g2rpo_fast.data.rows import Problem, read_problems, read_rows, sift
from g2rpo_fast.data.sources import NamedRows, Source
from g2rpo_fast.data.tail import chat_tail
from g2rpo_fast.data.tokens import encode
from g2rpo_fast.types import Longs, Prompt, opening_tag

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ReferenceCheck = Callable[[str, Mapping[str, Any]], str | None]
"""(reference answer, the row's other columns) -> why it can never be judged; None = it can."""


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """The usable prompts of a source, in its order, or of several, one after the other."""

    prompts: tuple[Prompt, ...]
    path: str
    """The file, or what the rows are called."""
    num_rows: int
    """Rows that can be used."""
    skipped: tuple[BadRow, ...]
    """Rows that cannot, where `on_bad_row = "skip"`."""
    sizes: tuple[int, ...]
    """How many of the prompts are of each source."""
    level_P: Longs | None = field(default=None, compare=False)
    """Of a curriculum, each prompt's level from 0 (`data.order_column`); None = none, or to evaluate on."""

    @property
    def num_too_long(self) -> int:
        """Rows left out because their prompt has more than `max_prompt_tokens` tokens."""
        return self.num_rows - len(self.prompts)


def load_prompts(
    path: Source | Sequence[Source],
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    split: str,
    trace_required: bool = True,
    checks: Mapping[str, ReferenceCheck] = MappingProxyType({}),
) -> PromptSet:
    """Reads, checks and tokenises a source, or several.

    Ids are `split:line`, of several sources `split:source:line`. `split="eval"` takes the first `eval_rows`
    rows of each, and may lack the trace column, which only guided training needs. Raises ValueError for a
    missing file, rows that cannot be used (unless `on_bad_row` skips them), a tokenizer that does not fit, or
    when no prompt is short enough.

    Args:
        trace_required: a row to train on without the trace column is malformed.
        checks: by name of a reward, for every row's reference.
    """
    if not isinstance(path, str | NamedRows):
        load = partial(load_prompts, split=split, trace_required=trace_required, checks=checks)
        return _together([load(one, config, tokenizer) for one in path], config, split)
    evaluation = split == "eval"
    key = "data.eval_path" if evaluation else "data.path"
    limit = config.eval_rows if evaluation else 0
    needed = trace_required and not evaluation
    problems, malformed = read_rows(path, config, key=key, limit=limit, trace_required=needed)
    problems, unjudged = sift(
        path, config, problems, partial(_unjudged, checks), what="rows whose reference cannot be judged"
    )
    unordered: list[BadRow] = []
    if config.order_column is not None and not evaluation:
        problems, unordered = sift(
            path, config, problems, partial(_unordered, config.order_column), what="rows without an order"
        )
    problems, unrendered = sift(
        path, config, problems, partial(_unrendered, config, tokenizer), what="rows that cannot be rendered"
    )
    prompts, apart = prompts_of(problems, config, tokenizer, split=split)
    torn: list[BadRow] = []
    if not evaluation:
        problems, torn = sift(
            path, config, problems, partial(_torn, apart, config), what="rows whose trace cannot be tokenised"
        )
    short = _short_enough([prompts[problem.line] for problem in problems], path, config)
    return PromptSet(
        prompts=short,
        sizes=(len(short),),
        level_P=_levels(short, config, split),
        path=str(path),
        num_rows=len(problems),
        skipped=tuple(
            sorted((*malformed, *unjudged, *unordered, *unrendered, *torn), key=lambda row: row.line)
        ),
    )


def _together(sets: Sequence[PromptSet], config: DataConfig, split: str) -> PromptSet:
    """Sources are numbered from 1, as lines are; a single one is as if it were not in a list."""
    if len(sets) == 1:
        return sets[0]
    prompts = tuple(
        replace(prompt, id=prompt.id.replace(split, f"{split}:{number}", 1))
        for number, one in enumerate(sets, start=1)
        for prompt in one.prompts
    )
    return PromptSet(
        prompts=prompts,
        sizes=tuple(len(one.prompts) for one in sets),
        level_P=_levels(prompts, config, split),
        path=", ".join(one.path for one in sets),
        num_rows=sum(one.num_rows for one in sets),
        skipped=tuple(
            replace(row, reason=f"{one.path}: {row.reason}") for one in sets for row in one.skipped
        ),
    )


def prompts_of(
    problems: Sequence[Problem], config: DataConfig, tokenizer: PreTrainedTokenizerBase, *, split: str
) -> tuple[dict[int, Prompt], set[int]]:
    """Prompts by the lines of their problems, and the lines of those whose trace no tokens read on from the
    prompt: they have none."""
    check_template(config, tokenizer)
    texts = [render(problem.prompt, config, tokenizer) for problem in problems]
    tails = _tails(texts, config, tokenizer)
    encoded = encode(texts, [problem.trace for problem in problems], tokenizer, chat=bool(config.chat))
    hints = [()] * len(problems) if split == "eval" else hinted(problems, config, tokenizer)
    prompts = {
        problem.line: _prompt(problem, split, text, tail, ids, trace or (), its_hints)
        for problem, text, tail, (ids, trace), its_hints in zip(
            problems, texts, tails, encoded, hints, strict=True
        )
    }
    return prompts, {p.line for p, (_, trace) in zip(problems, encoded, strict=True) if trace is None}


def _short_enough(prompts: Sequence[Prompt], path: Source, config: DataConfig) -> tuple[Prompt, ...]:
    short = tuple(prompt for prompt in prompts if len(prompt.token_ids) <= config.max_prompt_tokens)
    if not short:
        shortest = min(len(prompt.token_ids) for prompt in prompts)
        raise ValueError(
            f"data.max_prompt_tokens: wanted at least {shortest} (the shortest prompt of {path}), "
            f"got {config.max_prompt_tokens}"
        )
    return short


def _unjudged(checks: Mapping[str, ReferenceCheck], problem: Problem) -> str | None:
    for name, check in checks.items():
        try:
            reason = check(problem.answer, problem.row)
        except Exception as error:  # a user's function may raise anything
            raise ValueError(
                f"reward.functions: check_reference of {name!r} failed on {problem.unit} {problem.line}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if reason is not None:
            return f"reference {problem.answer[:80]!r}: {reason} (reward {name})"
    return None


def _levels(prompts: Sequence[Prompt], config: DataConfig, split: str) -> Longs | None:
    if config.order_column is None or split == "eval":
        return None
    return levels_of(prompts, config.order_column)


def _unordered(column: str, problem: Problem) -> str | None:
    try:
        level_of(problem.row, column)
    except ValueError as error:
        return str(error)
    return None


def _unrendered(config: DataConfig, tokenizer: PreTrainedTokenizerBase, problem: Problem) -> str | None:
    """A conversation that the chat template does not take; of single messages it takes all or none."""
    if isinstance(problem.prompt, str) or not config.chat:
        return None
    try:
        render(problem.prompt, config, tokenizer)
    except ValueError as error:
        return str(error)
    return None


def _torn(apart: set[int], config: DataConfig, problem: Problem) -> str | None:
    if problem.line not in apart:
        return None
    return f"no tokens of column {config.trace_column!r} read as one text with the prompt before them"


def read_texts(
    sources: Sequence[Source], config: DataConfig, *, trace_required: bool = True
) -> Iterator[str]:
    """Prompt, trace and answer of every row, as they are: what a tokenizer can be made from."""
    read = partial(read_problems, config=config, key="data.path", limit=0, trace_required=trace_required)
    problems = (problem for source in sources for problem in read(source))
    return (text for problem in problems for text in (text_of(problem.prompt), problem.trace, problem.answer))


def _tails(texts: Sequence[str], config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Of each prompt's text, what it already says of the response."""
    if not (config.chat and texts):
        return [opening_tag(text) for text in texts]
    tail = chat_tail(tokenizer, config.system_prompt, config.template_kwargs)
    return [tail if text.endswith(tail) else "" for text in texts]


def _prompt(
    problem: Problem,
    split: str,
    text: str,
    tail: str,
    token_ids: tuple[int, ...],
    trace_ids: tuple[int, ...],
    hinted_ids: tuple[tuple[int, ...], ...],
) -> Prompt:
    return Prompt(
        id=f"{split}:{problem.line}",
        text=text,
        tail=tail,
        token_ids=token_ids,
        answer=problem.answer,
        trace_ids=trace_ids,
        hinted_ids=hinted_ids,
        problem=problem.prompt,
        row=problem.row,
    )
