"""Real input end to end: GSM8K's own files, guidance from the worked solutions, evaluation, a resumed run.

The model is far too small to learn it; what is shown is that the pipeline carries real text.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from g2rpo_fast.cli import main
from g2rpo_fast.metrics import read_metrics

DATA = Path(__file__).parents[2] / "shared" / "data"
TRAIN, TEST = DATA / "gsm8k_train.jsonl", DATA / "gsm8k_test.jsonl"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A byte-level BPE tokenizer trained on the questions, and a random Qwen3."""
    if not TRAIN.exists():
        assert os.environ.get("CI") != "true", f"{TRAIN} is missing"
        pytest.skip(f"{TRAIN} is not here")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    lines = [json.loads(line) for line in TRAIN.read_text().splitlines()]
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=["<pad>", "<eos>"], show_progress=False)
    bpe.train_from_iterator((row[k] for row in lines for k in ("question", "answer")), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<eos>")
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, intermediate_size=128, max_position_embeddings=1024,
        tie_word_embeddings=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("gsm8k_model")
    Qwen3ForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _train(model_dir: Path, run_dir: Path, steps: int) -> list[dict]:
    arguments = [
        "train", "gsm8k", "--model.path", str(model_dir), "--data.path", str(TRAIN),
        "--data.eval-path", str(TEST), "--data.eval-rows", "6", "--data.max-prompt-tokens", "200",
        "--run.dir", str(run_dir), "--run.steps", str(steps), "--run.prompts-per-step", "3",
        "--rollout.group-size", "4", "--rollout.max-tokens", "96",
        "--guidance.length-init", "40", "--guidance.length-max", "64", "--guidance.share", "0.5",
        "--reward.functions", "math", "format", "--reward.weights", "format", "0.1",
        "--reward.format-pattern", ".*[a-m]", "--optim.lr", "1e-3",
        "--evaluate.profile-prompts", "2", "--evaluate.profile-samples", "2", "--run.threads", "1",
    ]  # fmt: skip
    assert main(arguments) == 0
    return read_metrics(run_dir / "metrics.jsonl")


@pytest.mark.slow
def test_gsm8k_trains_evaluates_checkpoints_and_resumes(model_dir, tmp_path, capsys):
    records = _train(model_dir, tmp_path / "run", steps=2)
    assert [r["step"] for r in records] == [0, 1, 2]
    assert "over data.max_prompt_tokens left out" in capsys.readouterr().out
    resumed = _train(model_dir, tmp_path / "run", steps=4)
    assert [r["step"] for r in resumed] == [0, 1, 2, 3, 4]
    assert resumed[:3] == records
    for record in resumed[1:]:
        assert 0 < record["rollout/guidance_tokens"] <= 3 * 2 * 40
        assert record["rollout/guided/share"] == 0.5
        assert np.isfinite(record["loss"])
        assert {"reward/math", "reward/format"} <= set(record)
    assert resumed[-1]["eval/length"] > 0
    assert any(record["optim/grad_norm"] > 0 for record in resumed[1:])
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
