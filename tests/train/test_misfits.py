"""Tokenizer, model and rows that do not fit are found at load, by name; rows left out are told."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from g2rpo_fast.config import Config, config_from_dict
from g2rpo_fast.embedded.model import build_model
from g2rpo_fast.embedded.untrained import byte_pair_tokenizer
from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.model.vocabulary import load_tokenizer
from g2rpo_fast.train import train

TEXTS = ["how many apples are there? 12 + 30 = 42"] * 3


def length(response: str, answer: str, rollout: Any) -> float:
    return len(response) % 5 / 4


def make(
    directory: Path, *, rows: int = 0, added: tuple[str, ...] = (), eos: str | None = None, ends: Any = None
) -> tuple[Path, int]:
    """A model with `rows` more embeddings than its tokenizer had tokens before `added`; and their number."""
    tokenizer = byte_pair_tokenizer(TEXTS)
    num_tokens = len(tokenizer)
    torch.manual_seed(0)
    model = build_model(vocab_size=num_tokens + rows, seed=0)
    tokenizer.add_tokens(list(added))
    if eos is not None:
        tokenizer.eos_token = eos
    path = directory / "model_in"
    shutil.rmtree(path, ignore_errors=True)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    for name, value in (ends or {}).items():
        written = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps({**written, "eos_token_id": value}))
    return path, num_tokens


def config(directory: Path, model: Path, texts: list[tuple[str, str | None]], **data: Any) -> Config:
    rows = [json.dumps({"prompt": text, "trace": trace, "answer": "1"}) + "\n" for text, trace in texts]
    (directory / "d.jsonl").write_text("".join(rows))
    return config_from_dict(
        {
            "run": {"dir": str(directory / "run"), "steps": 1, "prompts_per_step": 2, "threads": 1},
            "model": {"path": str(model)},
            "data": {"path": str(directory / "d.jsonl"), **data},
            "rollout": {"group_size": 4, "max_tokens": 24},
            "guidance": {"enabled": False},
            "reward": {"functions": ["test_misfits:length"]},
            "evaluate": {"profile_prompts": 0},
        }
    )


def refused(directory: Path, model: Path, texts: list[tuple[str, str | None]], **data: Any) -> str:
    with pytest.raises(ValueError, match=r"^model\.path: ") as caught:
        train(config(directory, model, texts, **data), show=lambda line: None)
    assert not (directory / "run").exists()
    return str(caught.value)


def test_tokens_beyond_the_embeddings_are_named_with_both_sizes(tmp_path: Path) -> None:
    model, size = make(tmp_path, added=("<think>", "</think>"))
    plain: tuple[str, str | None] = ("1 + 1", " = 2")
    got = refused(tmp_path, model, [plain, plain, ("<think> 1 + 1", None)])
    assert (
        f"(ids below {size}; its tokenizer has {size + 2} tokens), got {size} (<think>) in the prompt" in got
    )
    assert got.endswith("of train:3")
    got = refused(tmp_path, model, [plain, ("1 + 1", " = </think>")])
    assert got.endswith(f"got {size + 1} (</think>) in the trace of train:2")
    held = tmp_path / "held.jsonl"
    held.write_text('{"prompt": "1 <think>", "answer": "1"}\n')
    got = refused(tmp_path, model, [plain, plain], eval_path=str(held))
    assert got.endswith("in the prompt of eval:1")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"eos": "<|im_end|>"}, "tokenizer.eos_token_id: wanted ids in [0, "),
        ({"ends": {"generation_config.json": [1, 9999]}}, "generation_config.json: wanted ids in [0, "),
        ({"ends": {"config.json": 5000}}, "config.json: wanted ids in [0, "),
    ],
)
def test_end_that_does_not_exist_is_refused(made: dict[str, Any], said: str, tmp_path: Path) -> None:
    model, size = make(tmp_path, **made)
    got = refused(tmp_path, model, [("1 + 1", None)] * 2)
    assert f"{said}{size})" in got


@pytest.mark.parametrize(("added", "padding"), [(("<image>",), 0), ((), 300)])
def test_unused_tokens_and_padded_vocabularies_train(
    added: tuple[str, ...], padding: int, tmp_path: Path
) -> None:
    model, size = make(tmp_path, added=added, rows=padding)
    result = train(config(tmp_path, model, [("1 + 1", " = 2"), ("2 + 2", " = 4")]), show=lambda line: None)
    assert read_metrics(result.metrics_path)[-1]["step"] == 1
    trained = AutoModelForCausalLM.from_pretrained(result.model_dir)
    assert trained.config.vocab_size == size + padding


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_directory_without_tokenizer_files_is_named(kind: str, tmp_path: Path) -> None:
    if kind == "qwen3":
        model: Any = build_model(vocab_size=300, seed=0)
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                num_attention_heads=2,
            )
        )  # fmt: skip
    model.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"model\.path: wanted a tokenizer .* it has no tokenizer files"
    ) as caught:
        load_tokenizer(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    byte_pair_tokenizer(TEXTS).save_pretrained(tmp_path)
    assert len(load_tokenizer(str(tmp_path))) == len(AutoTokenizer.from_pretrained(tmp_path)) > 256
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"model\.path: wanted a tokenizer "):
        load_tokenizer(str(tmp_path))


def test_rows_left_out_of_both_files_are_told(tmp_path: Path) -> None:
    model, _ = make(tmp_path)
    held = tmp_path / "held.jsonl"
    rows = ["1 + 1"] * 4 + ["apples " * 40] * 3 + [" "]
    held.write_text("".join(json.dumps({"prompt": text, "answer": "1"}) + "\n" for text in rows))
    texts: list[tuple[str, str | None]] = [(text, None) for text in [*["1 + 1"] * 3, "apples " * 40, ""]]
    lines: list[str] = []
    more = {"eval_path": str(held), "max_prompt_tokens": 20, "on_bad_row": "skip"}
    train(config(tmp_path, model, texts, **more), show=lines.append)
    (data,) = [line for line in "\n".join(lines).splitlines() if line.startswith("data:")]
    assert data == (
        "data: 3 prompts, 1 over data.max_prompt_tokens left out, 1 that cannot be used skipped; "
        "4 held out, 3 over data.max_prompt_tokens left out, 1 that cannot be used skipped"
    )
    warnings = [line for line in lines if line.startswith("warning: ") and "cannot be used" in line]
    assert warnings == [
        f"warning: {tmp_path / 'd.jsonl'}: rows that cannot be used\n  line 5: column 'prompt': empty prompt",
        f"warning: {held}: rows that cannot be used\n  line 8: column 'prompt': empty prompt",
    ]


def test_references_that_no_reward_can_judge_are_found_before_the_first_step(tmp_path: Path) -> None:
    model, _ = make(tmp_path)
    asked = config(tmp_path, model, [("1 + 1", None)] * 3)
    rows = [{"prompt": "1 + 1", "trace": None, "answer": answer} for answer in ("2", r"\text{}", "3")]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = dataclasses.asdict(asked)
    values["reward"]["functions"] = ["math"]
    with pytest.raises(ValueError, match=r"d\.jsonl: 1 rows whose reference cannot be judged\n  line 2: "):
        train(config_from_dict(values), show=lambda line: None)
    assert not (tmp_path / "run").exists()
    values["data"]["on_bad_row"] = "skip"
    lines: list[str] = []
    train(config_from_dict(values), show=lines.append)
    assert "data: 2 prompts, 1 that cannot be used skipped" in "\n".join(lines)
