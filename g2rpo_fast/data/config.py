"""Settings of the data stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from g2rpo_fast.bounds import Ge, check_fields


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where prompts come from and how they become tokens."""

    path: str | None = None
    """JSON lines to train on, or reasoning_gym:TASK, whose generator makes them; none = the embedded task."""
    eval_path: str | None = None
    """JSON lines to evaluate on; none = no evaluation (the embedded task brings its own)."""
    format: Literal["columns", "gsm8k"] = "columns"
    """columns: a JSON object a row with the columns below. gsm8k: `question`, `answer` with `#### final`."""
    prompt_column: str = "prompt"
    """Column with the problem (format columns)."""
    answer_column: str = "answer"
    """Column with the reference answer (format columns)."""
    trace_column: str | None = "trace"
    """Column with ground-truth reasoning, which guidance takes its prefixes from; none = no traces. It is
    taken as it is: prompt + trace reads as one text, so a leading space or newline belongs to the trace.
    Null in a row = that row cannot be guided; without guidance the column may be missing."""
    template: str | None = None
    """Text around the problem; `{prompt}` stands for it. None = the problem itself
    (gsm8k without chat: "Question: {prompt}\\nAnswer:")."""
    chat: bool | None = None
    """Send the problem through the tokenizer's chat template as a user's message. None = if it has one, no
    template is given, and the file's problems have no special tokens of it in them yet."""
    system_prompt: str | None = None
    """System message before it (with chat)."""
    hint_columns: tuple[str, ...] = ()
    """Columns with hints, from little help to much; a row may lack one (null). Rounds that give hints sample
    from the prompt with one of them in it; evaluation never does."""
    hint_template: str = "{prompt}\nHint: {hint}"
    """What stands for the problem where a hint is given."""
    max_prompt_tokens: Annotated[int, Ge(1)] = 1024
    """Longer prompts are left out, and counted."""
    on_bad_row: Literal["refuse", "skip"] = "refuse"
    """Rows that cannot be used (malformed, or with a reference that a reward cannot read): refuse the file,
    or leave them out, and say how many and the first five."""
    eval_rows: Annotated[int, Ge(0)] = 256
    """Rows of eval_path to use, from the top; 0 = all."""
    shuffle: bool = True
    """A new order every epoch; otherwise the order of the file."""
    seed: Annotated[int, Ge(0)] | None = None
    """Of that order; none = run.seed."""

    def __post_init__(self) -> None:
        check_fields(self, "data")
        if self.template is not None and "{prompt}" not in self.template:
            raise ValueError(f"data.template: wanted a text with {{prompt}} in it, got {self.template!r}")
        if self.system_prompt is not None and not self.chat:
            raise ValueError(f"data.system_prompt: needs data.chat = true, got {self.chat}")
        if "{prompt}" not in self.hint_template or "{hint}" not in self.hint_template:
            raise ValueError(
                "data.hint_template: wanted a text with {prompt} and {hint} in it, got "
                f"{self.hint_template!r}"
            )
