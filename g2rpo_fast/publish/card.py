"""The model card: by what method and data a model was trained, what was measured, and how to load it.

Files and directories are named without the path to them: a card is for others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData

from g2rpo_fast.config import Config, plain
from g2rpo_fast.data.sources import is_hub_id
from g2rpo_fast.methods import find, load_methods
from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.model_source import StoredRun
from g2rpo_fast.versions import versions

FIGURES = {
    "eval/accuracy": "held-out accuracy",
    "rollout/unguided/accuracy": "accuracy of unguided rollouts",
    "rollout/length": "tokens of a response",
    "guidance/length": "tokens of guidance",
}
"""Metric of a step -> what the card calls it."""
PLACES = (
    "run.dir",
    "model.path",
    "data.path",
    "data.eval_path",
    "data.eval_rows",
    "run.threads",
    "run.device",
)
"""Keys that say where a run was, or what the card tells elsewhere."""
MOST_ROWS = 12
"""Of the table of figures."""


def model_card(run: StoredRun, step: int | None, name: str, dtype: torch.dtype | None) -> str:
    """Text of the README.md.

    Args:
        step: of the checkpoint; None = the finished run's model.
        name: of the directory that the model is in.
        dtype: of its weights; None = they are adapters.
    """
    base = _base_model(run)
    data = ModelCardData(
        library_name="transformers" if dtype is not None else "peft",
        pipeline_tag="text-generation",
        tags=["reinforcement-learning", "g2rpo-fast"],
        base_model=base if "/" in base else None,
    )
    sections = {
        "Method": _method(run),
        "Data": _data(run),
        "Figures": _figures(run, step),
        "Settings": _settings(run),
        "How to load": _loading(name, dtype),
        "Versions": "\n".join(f"- {package} {number}" for package, number in versions().items()),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n{_begun(run, step, base)}\n\n{body}\n"


def _base_model(run: StoredRun) -> str:
    """A hub id, or the last part of a path."""
    path = run.values.get("model", {}).get("path")
    if path is None:
        return "the tiny Qwen3 of g2rpo-fast's embedded task"
    local = Path(path).exists() or path.startswith(("/", ".", "~")) or path.count("/") > 1
    return Path(path).name if local else path


def _begun(run: StoredRun, step: int | None, base: str) -> str:
    steps = run.values["run"].get("steps")
    state = f"The checkpoint after step {step}" if step is not None else "The model after the last step"
    return (
        f"{state} of a run of {steps} steps: {base}, trained by reinforcement learning on rewards that can "
        "be checked, with g2rpo-fast."
    )


def _method(run: StoredRun) -> str:
    key = run.values.get("method")
    terms, credit = (_named(run.values.get(name, [])) for name in ("terms", "credit"))
    pieces = f"Terms of the loss: {terms}. Credit: {credit or 'raw rewards'}."
    guided = run.values.get("guidance", {}).get("enabled", True)
    told = "A share of the rollouts began with tokens of a reasoning trace." if guided else "No guidance."
    if key is None:
        return f"GRPO. {pieces} {told}"
    try:
        method = find(key, load_methods())
    except ValueError:  # a file of the user's own
        return f"{key}. {pieces} {told}"
    paper = f"arXiv {method.arxiv}" if method.arxiv else method.source
    return f"{method.name} ({paper}). {pieces} {told}"


def _named(pieces: Any) -> str:
    return ", ".join(str(piece.get("use")) if isinstance(piece, Mapping) else str(piece) for piece in pieces)


def _data(run: StoredRun) -> str:
    data = run.values.get("data", {})
    train, held_out = (data.get(key) for key in ("path", "eval_path"))
    names = [_places(train) if train else "g2rpo-fast's embedded task: sort digits step by step"]
    names += [f"held out: {_places(held_out)}"] if held_out else []
    lines = [f"- {name}{_rows(run, key)}" for name, key in zip(names, ("data.path", "data.eval_path"))]
    if data.get("template"):
        lines.append(f"- template: `{json.dumps(data['template'], ensure_ascii=False)}`")
    elif data.get("chat"):
        lines.append("- by the tokenizer's chat template")
    reward = run.values.get("reward", {})
    lines.append(f"- rewards: {', '.join(reward.get('functions', ['math']))}")
    return "\n".join(lines)


def _places(path: str | list[str]) -> str:
    """Files by their names, hub ids whole."""
    places = [path] if isinstance(path, str) else path
    return ", ".join(place if is_hub_id(place) else Path(place).name for place in places)


def _rows(run: StoredRun, key: str) -> str:
    file = run.path / "content.json"
    if not file.is_file():
        return ""
    rows = json.loads(file.read_text()).get("content", {}).get(key, {}).get("rows")
    return f" ({rows} rows)" if rows is not None else ""


def _figures(run: StoredRun, step: int | None) -> str:
    file = run.path / "metrics.jsonl"
    records = read_metrics(file) if file.is_file() else []
    known = [r for r in records if step is None or r["step"] <= step]
    if not known:
        return "None were recorded."
    names = {key: title for key, title in FIGURES.items() if any(r.get(key) is not None for r in known)}
    head = ["step", *names.values()]
    rows = [[str(r["step"]), *(_number(r.get(key)) for key in names)] for r in _spread(known)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _spread(records: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """At most `MOST_ROWS`, evenly, first and last among them; those with an evaluation if there are any."""
    chosen = [r for r in records if r.get("eval/accuracy") is not None] or list(records)
    count = min(MOST_ROWS, len(chosen))
    places = {round(i * (len(chosen) - 1) / max(1, count - 1)) for i in range(count)}
    return (chosen[place] for place in sorted(places))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _settings(run: StoredRun) -> str:
    """What differs from the program's defaults."""
    defaults = plain(Config())
    changed = {}
    for name, value in run.values.items():
        usual = defaults.get(name)
        if isinstance(value, Mapping) and isinstance(usual, Mapping):
            keys = {k: v for k, v in value.items() if v != usual.get(k) and f"{name}.{k}" not in PLACES}
            changed |= {f"{name}.{key}": given for key, given in keys.items()}
        elif value != usual and name != "method":
            changed[name] = value
    lines = "\n".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in changed.items())
    return f"Those that differ from g2rpo-fast's defaults:\n\n```\n{lines or 'none'}\n```"


def _loading(name: str, dtype: torch.dtype | None) -> str:
    if dtype is None:
        return f"""Adapters, for the model that `base_model_name_or_path` in adapter_config.json names:

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```"""
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto")  # {dtype}
tokenizer = AutoTokenizer.from_pretrained("{name}")
```"""
