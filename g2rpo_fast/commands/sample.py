"""`g2rpo-fast sample MODEL`: what a model says to a prompt, or to the rows of a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from g2rpo_fast.commands.common import loading, names_and_options, note, telling_interrupts
from g2rpo_fast.evaluation.asked import SamplesSize, as_option
from g2rpo_fast.progress import Progress
from g2rpo_fast.usage import print_to_pipe

if TYPE_CHECKING:
    from g2rpo_fast.model_source import ModelSource


@dataclass(frozen=True, kw_only=True)
class SampleOptions(SamplesSize):
    """What is asked."""

    prompt: str | None = None
    """The problem. The template or chat template is put around it."""
    file: str | None = None
    """Rows with problems, and traces for guidance, as data.eval_path has them; answers are not needed."""
    rows: int = 0
    """Rows of the file, from the top; 0 = all."""
    json: bool = False
    """Print a JSON line a problem, token ids included."""

    def check_options(self, max_tokens: int) -> None:
        """Raises ValueError."""
        if (self.prompt is None) == (self.file is None):
            got = "neither" if self.prompt is None else "both"
            raise ValueError(f"sample: wanted --prompt TEXT or --file FILE, got {got}")
        if self.rows < 0:
            raise ValueError(f"--rows: wanted at least 0, got {self.rows}")
        self.check(max_tokens, as_option, key="--file", rows=self.file is not None)


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
    asked.check_options(sections["rollout"].max_tokens)
    for line in notes:
        note(line)
    loading("g2rpo_fast.evaluation.sample")
    with telling_interrupts():
        _sample(source, asked, sections)
    return 0


def _sample(source: ModelSource, asked: SampleOptions, sections: dict[str, Any]) -> None:
    from g2rpo_fast.evaluation.sample import sampled
    from g2rpo_fast.evaluation.show import as_text

    typed = None if asked.prompt is None else [asked.prompt]
    shown = sampled(
        source, typed, asked.file, asked, sections, spelled=as_option, key="--file", first=asked.rows
    )
    while True:
        with Progress().phase("sampling"):
            one = next(shown, None)
        if one is None:
            return
        print_to_pipe(json.dumps(one.to_dict(), ensure_ascii=False) if asked.json else as_text(one))
