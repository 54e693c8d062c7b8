"""Problems to prompts: template or chat template, then tokens, once.

A prompt and its trace are tokenised apart and joined as ids, so guidance of any length is a prefix of the
same ids in every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from g2rpo_fast.data.config import DataConfig
from g2rpo_fast.data.rows import Problem, read_problems
from g2rpo_fast.types import Prompt

GSM8K_TEMPLATE = "Question: {prompt}\nAnswer:"


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """The usable prompts of a file, in its order."""

    prompts: tuple[Prompt, ...]
    num_too_long: int
    """Rows left out because their prompt has more than `max_prompt_tokens` tokens."""
    num_rows: int
    """Rows read: `len(prompts) + num_too_long`."""


def load_prompts(
    path: str, config: DataConfig, tokenizer: PreTrainedTokenizerBase, *, split: str
) -> PromptSet:
    """Reads, checks and tokenises a file.

    Ids are `split:line`. `split="eval"` takes the first `eval_rows` rows, and may lack the trace column,
    which only training needs. Raises ValueError for a missing file, malformed rows, a tokenizer that does
    not fit, or when no prompt is short enough.
    """
    evaluation = split == "eval"
    key = "data.eval_path" if evaluation else "data.path"
    problems = read_problems(
        path,
        config,
        key=key,
        limit=config.eval_rows if evaluation else 0,
        trace_required=not evaluation,
    )
    texts = [render(problem.prompt, config, tokenizer) for problem in problems]
    prompt_ids = encode_prompts(texts, config, tokenizer)
    trace_ids = _encode([problem.trace for problem in problems], tokenizer, add_special_tokens=False)
    prompts = tuple(
        _prompt(problem, split, text, ids, trace)
        for problem, text, ids, trace in zip(problems, texts, prompt_ids, trace_ids, strict=True)
        if len(ids) <= config.max_prompt_tokens
    )
    if not prompts:
        shortest = min(map(len, prompt_ids))
        raise ValueError(
            f"data.max_prompt_tokens: wanted at least {shortest} (the shortest prompt of {path}), "
            f"got {config.max_prompt_tokens}"
        )
    return PromptSet(prompts=prompts, num_too_long=len(problems) - len(prompts), num_rows=len(problems))


def read_texts(path: str, config: DataConfig) -> Iterator[str]:
    """Prompt, trace and answer of every row, as they are: what a tokenizer can be made from."""
    problems = read_problems(path, config, key="data.path", limit=0, trace_required=True)
    return (text for problem in problems for text in (problem.prompt, problem.trace, problem.answer))


def render(problem: str, config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """The whole text of a prompt."""
    template = config.template
    if template is None:
        template = GSM8K_TEMPLATE if config.format == "gsm8k" and not config.chat else "{prompt}"
    content = template.replace("{prompt}", problem)
    if not config.chat:
        return content
    if tokenizer.chat_template is None:
        raise ValueError("data.chat: wanted a tokenizer with a chat template, got one without")
    messages = [{"role": "user", "content": content}]
    if config.system_prompt is not None:
        messages.insert(0, {"role": "system", "content": config.system_prompt})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    return text


def encode_prompts(
    texts: list[str], config: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> list[tuple[int, ...]]:
    """Token ids. A chat template writes its own special tokens; a raw prompt gets those that the tokenizer
    adds in front (a BOS), and a tokenizer that adds an end-of-sequence token is refused."""
    ids = _encode(texts, tokenizer, add_special_tokens=not config.chat)
    eos = tokenizer.eos_token_id
    for text, row in zip(texts, ids, strict=True):
        if eos is not None and row[-1:] == (eos,) and not text.endswith(str(tokenizer.eos_token)):
            raise ValueError(
                "data.chat: wanted true, or another tokenizer (this one ends every raw prompt with its "
                "end-of-sequence token, after which a model generates nothing), got false"
            )
    return ids


def _encode(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool
) -> list[tuple[int, ...]]:
    encoded = tokenizer(texts, add_special_tokens=add_special_tokens, return_attention_mask=False)[
        "input_ids"
    ]
    return [tuple(ids) for ids in encoded]  # type: ignore[arg-type]


def _prompt(
    problem: Problem, split: str, text: str, token_ids: tuple[int, ...], trace_ids: tuple[int, ...]
) -> Prompt:
    return Prompt(
        id=f"{split}:{problem.line}",
        text=text,
        token_ids=token_ids,
        answer=problem.answer,
        trace_ids=trace_ids,
        row=problem.row,
    )
