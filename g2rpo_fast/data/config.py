"""Settings of the data stage."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from g2rpo_fast.bounds import Ge, Gt, Table, check_fields, objects_too
from g2rpo_fast.data.places import has_rows, is_rows, named_place, places_of, refuse_others

RESERVED = ("messages", "conversation", "add_generation_prompt", "continue_final_message", "tokenize")
"""What a chat template is given anyway."""

if TYPE_CHECKING:
    PathOrRows = PathsOrRows = Any
else:
    PathOrRows = Annotated[str | None, objects_too(is_rows)]
    PathsOrRows = Annotated[str | tuple[str, ...] | None, objects_too(has_rows)]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where prompts come from and how they become tokens."""

    path: PathsOrRows = None
    """What to train on: a file of JSON lines, a JSON array (.json), CSV (all but Parquet also .gz, .zst) or
    Parquet, a folder or hub id that the package datasets loads, or generated:sums or reasoning_gym:TASK,
    whose generators make it; several of the others are read as one, or by `weights`. From Python also a
    datasets.Dataset or a list of dicts, or several. None = the embedded task."""
    weights: tuple[Annotated[float, Gt(0)], ...] = ()
    """Of several places in `path`, each above 0: what share of the prompts taken is from each, exactly over
    their turns; each has its own epochs. () = as one place."""
    subset: str | None = None
    """Of a hub id, its configuration (such as main); of `path` and `eval_path`."""
    split: str | None = None
    """Of a folder or hub id, the split to train on; none = train."""
    eval_path: PathOrRows = None
    """What to evaluate on, one of these; none = no evaluation (the embedded task and generated ones bring
    their own)."""
    eval_split: str | None = None
    """The split to evaluate on, of `eval_path` or, without one, of `path`; none = test, of `eval_path`."""
    format: Literal["columns", "gsm8k"] = "columns"
    """columns: a JSON object a row with the columns below. gsm8k: `question`, `answer` with `#### final`."""
    prompt_column: str = "prompt"
    """Column with the problem (format columns): a text, or a list of messages with role and content, the last
    of which asks; templates and hints go around that one."""
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
    """System message before it (with chat), unless a list of messages begins with one of its own."""
    template_kwargs: Table = field(default_factory=dict)
    """Handed to the chat template, which must read these names: {enable_thinking = false}."""
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
    """Rows to evaluate on, from the top; 0 = all."""
    shuffle: bool = True
    """A new order every epoch; otherwise the order of the file."""
    order_column: str | None = None
    """A curriculum: every epoch is in the ascending order of this column, of numbers or else of texts; equal
    rows stay in the order that they would have without it."""
    seed: Annotated[int, Ge(0)] | None = None
    """Of that order; none = run.seed."""

    def __post_init__(self) -> None:
        for key in ("path", "eval_path"):
            refuse_others(getattr(self, key), f"data.{key}")
        check_fields(self, "data")
        if self.path == ():
            raise ValueError("data.path: wanted a place of rows, or rows, got none")
        if self.weights and len(self.weights) != (places := len(places_of(self.path))):
            raise ValueError(
                f"data.weights: wanted one for each of {places} places of data.path, got {len(self.weights)}"
            )
        if self.template is not None and "{prompt}" not in self.template:
            raise ValueError(f"data.template: wanted a text with {{prompt}} in it, got {self.template!r}")
        if self.system_prompt is not None and not self.chat:
            raise ValueError(f"data.system_prompt: needs data.chat = true, got {self.chat}")
        try:
            json.dumps(self.template_kwargs)
        except TypeError as error:
            raise ValueError(f"data.template_kwargs: wanted values that JSON has, got {error}") from error
        if reserved := [name for name in RESERVED if name in self.template_kwargs]:
            raise ValueError(f"data.template_kwargs: wanted names of the template's own, got {reserved[0]!r}")
        if "{prompt}" not in self.hint_template or "{hint}" not in self.hint_template:
            raise ValueError(
                "data.hint_template: wanted a text with {prompt} and {hint} in it, got "
                f"{self.hint_template!r}"
            )


def named_data(config: DataConfig) -> DataConfig:
    """As a record of the run has it: rows by how many there are."""
    return replace(config, path=named_place(config.path), eval_path=named_place(config.eval_path))
