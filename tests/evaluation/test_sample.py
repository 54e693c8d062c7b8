"""`g2rpo-fast sample`: what was given and what was sampled, apart and token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from commands import printed, refusal


@pytest.fixture
def rows(trained: Path) -> Path:
    return trained / "embedded" / "eval.jsonl"


def shown(words: list[str | Path], capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed([*words, "--json"], capsys).splitlines()]


def test_guidance_is_the_start_of_the_trace_and_the_rest_is_sampled(trained, rows, capsys):
    words: list[str | Path] = ["sample", trained, "--file", rows, "--rows", "2", "--guidance-tokens", "12"]
    found = shown([*words, "--n", "3"], capsys)
    tokenizer = AutoTokenizer.from_pretrained(trained / "model")
    for one, line in zip(found, rows.read_text().splitlines(), strict=False):
        row = json.loads(line)
        assert (one["prompt"], len(one["samples"])) == (row["prompt"], 3)
        assert one["prompt_ids"] == tokenizer(row["prompt"])["input_ids"]
        assert one["guidance_ids"] == tokenizer(row["trace"])["input_ids"][:12]
        assert one["guidance"] == row["trace"][:12]
        assert one["trace_tokens"] == len(row["trace"])
        for sample in one["samples"]:
            assert 0 < len(sample["token_ids"]) <= 40 - 12
            decoded = tokenizer.decode(sample["token_ids"])
            assert sample["text"] == decoded.replace("<eos>", "").replace("<pad>", "")
    assert len(found) == 2


def test_greedy_samples_are_those_of_plain_transformers(trained, rows, capsys):
    words: list[str | Path] = ["sample", f"{trained}:2", "--file", rows, "--guidance-tokens", "5"]
    found = shown([*words, "--temperature", "0"], capsys)
    model: Any = AutoModelForCausalLM.from_pretrained(trained / "checkpoints" / "step_00000002")
    for one in found:
        given = torch.tensor([one["prompt_ids"] + one["guidance_ids"]])
        seen = torch.ones_like(given)
        told = model.generate(given, attention_mask=seen, do_sample=False, max_new_tokens=40 - 5)
        assert one["samples"][0]["token_ids"] == told[0, given.shape[1] :].tolist()
    assert len(found) == 8


def test_a_person_sees_the_parts_apart(trained, rows, capsys):
    words: list[str | Path] = ["sample", trained, "--file", rows, "--rows", "1", "--guidance-tokens", "9"]
    text = printed(words, capsys)
    row = json.loads(rows.read_text().splitlines()[0])
    assert text.startswith(
        f"-- eval:1: prompt, 9 tokens\n   {row['prompt']}\n"
        f"-- guidance, given: 9 of the trace's 48 tokens\n   {row['trace'][:9]}\n-- sample 1, "
    )


def test_the_seed_decides_and_a_prompt_goes_through_the_template(trained, capsys):
    words: list[str | Path] = ["sample", trained, "--prompt", "3142", "--n", "2"]
    words += ["--data.template", "{prompt}:"]
    first, again, other = (shown([*words, "--seed", seed], capsys) for seed in ("1", "1", "2"))
    assert first == again != other
    assert (first[0]["prompt"], first[0]["guidance_ids"]) == ("3142:", [])
    assert first[0]["samples"][0] != first[0]["samples"][1]


def test_rows_need_no_answer_and_one_without_a_trace_is_not_guided(trained, tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "21:"}\n\n{"prompt": "43:", "trace": "3>4"}\n')
    found = shown(["sample", trained, "--file", data, "--guidance-tokens", "20"], capsys)
    assert [(one["id"], one["guidance"]) for one in found] == [("eval:1", ""), ("eval:3", "3>4")]


BAD = {
    "nothing to ask": ("", "sample: wanted --prompt TEXT or --file FILE, got neither"),
    "both": ("--prompt 1: --file {rows}", "sample: wanted --prompt TEXT or --file FILE, got both"),
    "guidance of no row": ("--prompt 1: --guidance-tokens 3", "--guidance-tokens: wanted 0 with --prompt"),
    "guidance that leaves nothing": (
        "--file {rows} --guidance-tokens 40",
        "--guidance-tokens: wanted from 0 to below --max-tokens = 40 (which counts them), got 40",
    ),
    "guidance of no trace": (
        "--file {rows} --guidance-tokens 4 --data.trace-column none",
        "--guidance-tokens: wanted 0, or rows with a trace in column None (data.trace_column), got 4",
    ),
    "no samples": ("--prompt 1: --n 0", "--n: wanted at least 1, got 0"),
    "no such file": ("--file {tmp}/none", "--file: wanted a file of JSON lines, got '{tmp}/none'"),
    "a broken row": ("--file {broken}", "--file: {broken}, line 2: not JSON"),
    "cold": ("--prompt 1: --temperature -1", "rollout.temperature: wanted at least 0, got -1"),
    "no chat template": (
        "--prompt 1: --data.chat",
        "data.chat: wanted a tokenizer with a chat template, got one",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_one_line(name, trained, rows, tmp_path, capsys):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "1:"}\n{\n')
    words, message = BAD[name]
    known = {"rows": rows, "tmp": tmp_path, "broken": broken}
    line = refusal(["sample", trained, *words.format(**known).split()], capsys)
    assert line.startswith(message.format(**known)), line
