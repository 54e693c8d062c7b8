"""Settings of the data stage."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from g2rpo_fast.bounds import Ge, Table, check_fields, objects_too


def is_rows(given: Any) -> bool:
    """Rows that Python has already: a list of dicts, or a datasets.Dataset."""
    if isinstance(given, list | tuple):
        return bool(given) and all(isinstance(row, Mapping) for row in given)
    return _kind(given) == "Dataset"


RESERVED = ("messages", "conversation", "add_generation_prompt", "continue_final_message", "tokenize")
"""What a chat template is given anyway."""

if TYPE_CHECKING:
    PathOrRows = PathsOrRows = Any
else:
    PathOrRows = Annotated[str | None, objects_too(is_rows)]
    PathsOrRows = Annotated[str | tuple[str, ...] | None, objects_too(is_rows)]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where prompts come from and how they become tokens."""

    path: PathsOrRows = None
    """What to train on: a file of JSON lines, a JSON array (.json), CSV (all but Parquet also .gz, .zst) or
    Parquet, a folder or hub id that the package datasets loads, or reasoning_gym:TASK, whose generator makes
    it; several of the others are read as one. From Python also a datasets.Dataset or a list of dicts. None =
    the embedded task."""
    subset: str | None = None
    """Of a hub id, its configuration (such as main); of `path` and `eval_path`."""
    split: str | None = None
    """Of a folder or hub id, the split to train on; none = train."""
    eval_path: PathOrRows = None
    """What to evaluate on, one of these; none = no evaluation (the embedded task and those of reasoning-gym
    bring their own)."""
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
    seed: Annotated[int, Ge(0)] | None = None
    """Of that order; none = run.seed."""

    def __post_init__(self) -> None:
        for key in ("path", "eval_path"):
            _refuse_objects(getattr(self, key), f"data.{key}")
        check_fields(self, "data")
        if self.path == ():
            raise ValueError("data.path: wanted a place of rows, or rows, got none")
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
    path, eval_path = (
        f"{len(given)} rows from Python" if is_rows(given) else given
        for given in (config.path, config.eval_path)
    )
    return replace(config, path=path, eval_path=eval_path)


def _kind(given: Any) -> str | None:
    """Which class of the package datasets it is of; nothing is, where that was never imported."""
    package = sys.modules.get("datasets")
    kinds = ("Dataset", "IterableDataset", "DatasetDict", "IterableDatasetDict")
    return next((k for k in kinds if package and isinstance(given, getattr(package, k))), None)


def _refuse_objects(given: Any, key: str) -> None:
    kind = _kind(given)
    if isinstance(given, list | tuple) and len({isinstance(row, Mapping) for row in given}) > 1:
        odd = next(row for row in given if not isinstance(row, Mapping))
        raise ValueError(f"{key}: wanted paths alone, or dicts alone, got {odd!r} among dicts")
    if kind in ("IterableDataset", "IterableDatasetDict"):
        raise ValueError(
            f"{key}: wanted a datasets.Dataset, got {kind}: a stream cannot be visited in an order that a "
            "run goes on with (load it with streaming=False)"
        )
    if kind == "DatasetDict":
        raise ValueError(
            f"{key}: wanted one split, such as dataset[{next(iter(given), 'train')!r}], got {kind}"
        )
    if kind == "Dataset" and not len(given):
        raise ValueError(f"{key}: wanted rows, got a Dataset without any")
