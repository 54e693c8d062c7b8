"""`g2rpo-fast export`: a directory that plain transformers loads, with a card, whole or not at all."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from commands import called, printed, refusal


def logits(directory: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize(("step", "inside"), [("", "model"), (":2", "checkpoints/step_00000002")])
def test_plain_transformers_computes_the_same(step, inside, trained, tmp_path, capsys):
    text = printed(["export", f"{trained}{step}", tmp_path / "made"], capsys)
    assert text.startswith(f"{trained}{step}: 0.40M parameters in float32, ")
    assert torch.equal(logits(tmp_path / "made"), logits(trained / inside))
    weights = load_file(tmp_path / "made" / "model.safetensors")
    assert "lm_head.weight" not in weights  # tied
    assert AutoTokenizer.from_pretrained(tmp_path / "made")("12:")["input_ids"] == [4, 5, 13]
    assert GenerationConfig.from_pretrained(tmp_path / "made").eos_token_id == 1
    assert not list(tmp_path.glob(".*"))


def test_dtype_and_shards(trained, tmp_path, capsys):
    made = tmp_path / "made"
    made.mkdir()
    printed(["export", trained, made, "--dtype", "bfloat16", "--max-shard-size", "300KB"], capsys)
    shards = sorted(made.glob("*.safetensors"))
    assert len(shards) > 1
    assert max(shard.stat().st_size for shard in shards) < 320_000
    assert {t.dtype for shard in shards for t in load_file(shard).values()} == {torch.bfloat16}
    assert json.loads((made / "config.json").read_text())["dtype"] == "bfloat16"
    half: Any = AutoModelForCausalLM.from_pretrained(trained / "model")
    half.to(torch.bfloat16)
    loaded = AutoModelForCausalLM.from_pretrained(made)
    assert loaded.dtype == torch.bfloat16
    for name, weight in half.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name])


def test_chat_template_goes_with_it(trained, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    tokenizer = AutoTokenizer.from_pretrained(copy / "model")
    tokenizer.chat_template = "{{ messages[0].content }}:"
    tokenizer.save_pretrained(copy / "model")
    printed(["export", copy, tmp_path / "made"], capsys)
    made = AutoTokenizer.from_pretrained(tmp_path / "made")
    assert made.apply_chat_template([{"role": "user", "content": "21"}], tokenize=False) == "21:"


def test_card_says_what_it_is_and_nothing_of_where_it_was(trained, tmp_path, capsys):
    printed(["export", f"{trained}:2", tmp_path / "made"], capsys)
    card = (tmp_path / "made" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\n")
    assert "# made\n\nThe checkpoint after step 2 of a run of 4 steps" in card
    assert "Terms of the loss: clip. Credit: center, std." in card
    assert "- rewards: runs:wobble" in card
    assert "(64 rows)" in card
    assert "\nrollout.group_size = 6\n" in card
    assert "| step | held-out accuracy |" in card
    steps = [line.split(" | ")[0] for line in card.splitlines() if line.startswith("| ")]
    assert steps == ["| step", "| ---", "| 0", "| 2"]
    assert 'from_pretrained("made", dtype="auto")  # torch.float32' in card
    assert "- torch " in card
    assert str(tmp_path) not in card
    assert str(trained) not in card


def test_method_and_files_are_named_without_their_places(trained, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    values = json.loads((copy / "config.json").read_text())
    values |= {"method": "gspo", "model": values["model"] | {"path": "/home/me/Qwen3-0.6B"}}
    values["data"] |= {"path": "/home/me/gsm8k/train.jsonl", "eval_path": "/home/me/gsm8k/test.jsonl"}
    (copy / "config.json").write_text(json.dumps(values))
    printed(["export", copy, tmp_path / "made"], capsys)
    card = (tmp_path / "made" / "README.md").read_text()
    assert "GSPO" in card
    assert "arXiv 2507.18071" in card
    assert "steps: Qwen3-0.6B, trained" in card
    assert "- train.jsonl (64 rows)\n- held out: test.jsonl (8 rows)\n" in card
    assert "/home" not in card
    assert "base_model" not in card


BAD = {
    "no directory": ("{run}", "export: wanted RUN[:STEP] DIR first, then options, got no DIR"),
    "full directory": (
        "{run} {run}",
        "DIR: wanted a new or an empty directory, got {run}, which holds",
    ),
    "a file": (
        "{run} {run}/config.json",
        "DIR: wanted a new or an empty directory, got {run}/config.json",
    ),
    "no run": (
        "{run}/model {tmp}/made",
        "RUN: wanted the directory of a run, got {run}/model, which is",
    ),
    "no such run": ("{tmp}/none {tmp}/made", "RUN: wanted a model's directory, a hub id, or RUN[:STEP]"),
    "no such step": ("{run}:7 {tmp}/made", "RUN: wanted a step with a checkpoint in {run}, got 7"),
    "no such dtype": ("{run} {tmp}/made --dtype int8", "invalid choice 'int8' for argument '--dtype'"),
    "no size": (
        "{run} {tmp}/made --max-shard-size big",
        "--max-shard-size: wanted a whole number with KB",
    ),
    "no login": (
        "{run} {tmp}/made --push me/model",
        "--push: wanted a login to the hub (`hf auth login`",
    ),
    "no name": ("{run} {tmp}/made --push a/b/c", "--push: wanted NAME or USER/NAME, got 'a/b/c'"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_one_line_and_leave_nothing(name, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    words, message = BAD[name]
    known = {"run": trained, "tmp": tmp_path}
    line = refusal(["export", *words.format(**known).split()], capsys)
    assert line.startswith(message.format(**known)), line
    assert list(tmp_path.iterdir()) == []


def test_a_login_that_the_hub_cannot_confirm_is_refused_before_anything_is_written(
    trained, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    line = refusal(["export", trained, tmp_path / "made", "--push", "me/model"], capsys)
    assert line.startswith("--push: wanted a hub that takes this login, got: ")
    assert line.endswith("nothing was written")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_a_dtype_cannot_hold_are_refused(trained, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    model: Any = AutoModelForCausalLM.from_pretrained(copy / "model")
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] = 1e5
    model.save_pretrained(copy / "model")
    line = refusal(["export", copy, tmp_path / "made", "--dtype", "float16"], capsys)
    assert line.startswith("--dtype: wanted one that holds every weight (model.embed_tokens.weight reaches")
    printed(["export", copy, tmp_path / "made", "--dtype", "bfloat16"], capsys)


def test_a_full_disk_leaves_no_half_of_it(trained, tmp_path, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
    try:
        status, out, err = called(["export", trained, tmp_path / "made"], capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (status, out) == (1, "")
    assert f"{tmp_path}/made could not be written" in err
    assert list(tmp_path.iterdir()) == []
