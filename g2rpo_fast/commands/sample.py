"""`g2rpo-fast sample MODEL`: what a model says to a prompt, or to the rows of a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from g2rpo_fast.commands.common import loading, names_and_options, note, telling_interrupts
from g2rpo_fast.progress import Progress
from g2rpo_fast.usage import print_to_pipe

if TYPE_CHECKING:
    from g2rpo_fast.model_source import ModelSource


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """What is asked."""

    prompt: str | None = None
    """The problem. The template or chat template is put around it."""
    file: str | None = None
    """Rows with problems, and traces for guidance, as data.eval_path has them; answers are not needed."""
    rows: int = 0
    """Rows of the file, from the top; 0 = all."""
    guidance_tokens: int = 0
    """Tokens of each row's trace that its samples begin with; of a shorter trace all."""
    n: int = 1
    """Samples of each problem."""
    json: bool = False
    """Print a JSON line a problem, token ids included."""

    def check(self, max_tokens: int) -> None:
        """Raises ValueError."""
        if (self.prompt is None) == (self.file is None):
            got = "neither" if self.prompt is None else "both"
            raise ValueError(f"sample: wanted --prompt TEXT or --file FILE, got {got}")
        if self.n < 1:
            raise ValueError(f"--n: wanted at least 1, got {self.n}")
        if self.rows < 0:
            raise ValueError(f"--rows: wanted at least 0, got {self.rows}")
        if not 0 <= self.guidance_tokens < max_tokens:
            raise ValueError(
                f"--guidance-tokens: wanted from 0 to below --max-tokens = {max_tokens} (which counts them), "
                f"got {self.guidance_tokens}"
            )
        if self.guidance_tokens and self.file is None:
            raise ValueError(
                f"--guidance-tokens: wanted 0 with --prompt (guidance is of a row's trace: --file), got "
                f"{self.guidance_tokens}"
            )


def run(words: Sequence[str]) -> int:
    names, options = names_and_options("sample", words, ("MODEL",))
    from g2rpo_fast.config.some_keys import SAMPLING_KEYS, read_options
    from g2rpo_fast.evaluation.settings import starting_sections
    from g2rpo_fast.model_source import ModelSource, find_model

    source = find_model(names[0]) if names else ModelSource(name="MODEL", path="MODEL")
    sections, notes = starting_sections(source)
    data = (
        "subset", "eval_split", "format", "prompt_column", "trace_column", "template", "chat",
        "system_prompt", "template_kwargs",
    )  # fmt: skip
    asked, sections = read_options(
        options,
        SampleOptions(),
        sections,
        {"data": data, **SAMPLING_KEYS},
        prog="g2rpo-fast sample MODEL",
        description="Samples of a model (a directory, a hub id, or RUN, RUN:STEP, RUN:best). Values start "
        "from the run's configuration, or from the defaults. --temperature 0 is greedy.",
    )
    asked.check(sections["rollout"].max_tokens)
    for line in notes:
        note(line)
    loading("g2rpo_fast.evaluation.ready")
    with telling_interrupts():
        _sample(source, asked, sections)
    return 0


def _sample(source: ModelSource, asked: SampleOptions, sections: dict[str, Any]) -> None:
    from g2rpo_fast.data.sources import fetched
    from g2rpo_fast.evaluation.problems import check_file, one_problem, shown_problems
    from g2rpo_fast.evaluation.ready import ready
    from g2rpo_fast.evaluation.show import as_text, samples_of
    from g2rpo_fast.model.vocabulary import load_tokenizer

    rollout, data = sections["rollout"], sections["data"]
    rows = None if asked.file is None else fetched(asked.file, data, key="--file")
    if rows is not None:
        check_file(rows, data, key="--file", answers=False)
    with Progress().phase(f"loading {source.name}"):
        tokenizer = load_tokenizer(source.path)
        if rows is not None:
            prompts = shown_problems(rows, data, tokenizer)[: asked.rows or None]
        else:
            prompts = one_problem(asked.prompt or "", data, tokenizer)
        if asked.guidance_tokens and not any(prompt.trace_ids for prompt in prompts):
            raise ValueError(
                f"--guidance-tokens: wanted 0, or rows with a trace in column {data.trace_column!r} "
                f"(data.trace_column), got {asked.guidance_tokens} and no trace in {asked.file}"
            )
        loaded = ready(source, tokenizer, sections, prompts)
    shown = samples_of(
        loaded,
        prompts,
        samples=asked.n,
        guidance=asked.guidance_tokens,
        max_tokens=rollout.max_tokens,
        seed=sections["run"].seed,
        rows=rollout.max_rows,
    )
    while True:
        with Progress().phase("sampling"):
            one = next(shown, None)
        if one is None:
            return
        print_to_pipe(json.dumps(one.to_dict(), ensure_ascii=False) if asked.json else as_text(one))
