"""Embedded default: task, tokenizer, model, warm start, files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from g2rpo_fast.data import DataConfig
from g2rpo_fast.data.prompts import load_prompts
from g2rpo_fast.embedded import EmbeddedConfig, EmbeddedPaths, prepare
from g2rpo_fast.embedded.model import build_model
from g2rpo_fast.embedded.task import (
    ALPHABET,
    ANSWER_MARKER,
    draw_digits,
    draw_rows,
    response_text,
    selection_sort_row,
)
from g2rpo_fast.embedded.tokenizer import EOS_ID, PAD_ID, UNKNOWN, build_tokenizer
from g2rpo_fast.embedded.warm_start import IGNORED, collate, warm_start
from g2rpo_fast.rewards import RewardConfig
from g2rpo_fast.rewards.loading import load_rewards
from g2rpo_fast.rewards.scoring import score
from g2rpo_fast.types import FinishReason, Prompt, Rollout

STEPS = 10
CONFIG = EmbeddedConfig(train_rows=300, eval_rows=64, warm_start_steps=STEPS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedPaths:
    torch.set_num_threads(1)
    return prepare(tmp_path_factory.mktemp("embedded"), CONFIG, seed=3, report=lambda line: None)


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_row_of_the_documented_example() -> None:
    row = selection_sort_row("29141777")
    assert row == {
        "prompt": "29141777:",
        "trace": "1>2941777;1>294777;2>94777;4>9777;7>977;7>97;7>9",
        "answer": "11247779",
    }
    assert len(row["trace"]) == 48
    assert len(response_text(row)) == 57


@given(st.text("0123456789", min_size=2, max_size=10))
def test_trace_contains_the_answer(digits: str) -> None:
    row = selection_sort_row(digits)
    steps = [step.split(">") for step in row["trace"].split(";")]
    assert "".join(smallest for smallest, _ in steps) + steps[-1][1] == row["answer"]
    assert row["answer"] == "".join(sorted(digits))
    assert set(row["prompt"] + response_text(row)) <= set(ALPHABET)


@given(st.text(ALPHABET, max_size=80))
def test_tokenizer_round_trip(text: str) -> None:
    tokenizer = build_tokenizer(ALPHABET)
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id == 2
    assert all(token > 2 for token in ids)  # no special token


def test_tokenizer_survives_saving(made: EmbeddedPaths) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made.model_dir)
    text = "29141777:1>2941777;7>9#11247779"
    ids = tokenizer.encode(text)
    assert ids == build_tokenizer(ALPHABET).encode(text)
    assert ids[:3] == [5, 12, 4]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, EOS_ID, PAD_ID], skip_special_tokens=True) == text
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (PAD_ID, EOS_ID)
    assert tokenizer.decode(tokenizer.encode("1a")) == f"1{UNKNOWN}"


def rollout_of(row: dict[str, str], text: str, finish: FinishReason = "stop") -> Rollout:
    return Rollout(
        prompt=Prompt(id="eval:1", text=row["prompt"], token_ids=(3,), answer=row["answer"]),
        group=0,
        member=0,
        training_prompt_ids=(3,),
        sampling_prompt_ids=(3,),
        response_ids=(),
        guidance_len=0,
        loss_mask=np.zeros(0, dtype=np.bool_),
        rollout_logp=np.zeros(0, dtype=np.float32),
        text=text,
        finish_reason=finish,
        weight_version=0,
    )


def test_verifier_accepts_gold_and_rejects_corruptions() -> None:
    rewards = load_rewards(RewardConfig(functions=("exact_match",), answer_marker=ANSWER_MARKER))
    rng = np.random.default_rng(0)
    for row in draw_rows(rng, (6, 7, 8), 50):
        gold = response_text(row)
        answer = row["answer"]
        swapped = row["trace"] + "#" + answer[::-1]
        wrong = [gold[:-1], gold + "0", gold.replace("#", ""), gold + "#", row["trace"], ""]
        wrong += [swapped] if answer != answer[::-1] else []
        judged = [rollout_of(row, gold), rollout_of(row, gold, "length")]
        judged += [rollout_of(row, text) for text in wrong]
        assert score(rewards, judged).total_R.tolist() == [1.0] + [0.0] * (len(wrong) + 1)


def test_splits_are_disjoint_and_load_as_prompts(made: EmbeddedPaths) -> None:
    train, held_out = read(made.train_path), read(made.eval_path)
    assert (len(train), len(held_out)) == (300, 64)
    assert len({row["prompt"] for row in train + held_out}) == 364
    assert {len(row["answer"]) for row in held_out} == {8}
    lengths = [len(row["answer"]) for row in train]
    assert set(lengths) == {6, 7, 8}
    assert 0.55 < lengths.count(8) / 300 < 0.78  # 2/3, four standard deviations either way
    tokenizer = AutoTokenizer.from_pretrained(made.model_dir)
    prompts = load_prompts(str(made.train_path), DataConfig(), tokenizer, split="train")
    assert prompts.num_too_long == 0
    first = prompts.prompts[0]
    assert tokenizer.decode(first.token_ids + first.trace_ids) == train[0]["prompt"] + train[0]["trace"]


def test_draw_rows_leaves_out_what_is_excluded() -> None:
    exclude = {f"{n:02d}:" for n in range(90)}
    rows = draw_rows(np.random.default_rng(0), (2,), 10, exclude)
    assert sorted(row["prompt"] for row in rows) == [f"{n}:" for n in range(90, 100)]
    assert draw_digits(np.random.default_rng(5), 8) == "68084562"


def test_collate_trains_on_responses_only() -> None:
    tokenizer = build_tokenizer(ALPHABET)
    rows = [selection_sort_row("21"), selection_sort_row("312")]
    ids_RS, target_RS = collate(tokenizer, rows)
    for row, ids_S, target_S in zip(rows, ids_RS, target_RS, strict=True):
        kept = target_S != IGNORED
        assert target_S[kept].tolist() == [*tokenizer.encode(response_text(row)), EOS_ID]
        assert int(kept.nonzero()[0]) == len(row["prompt"]) - 1  # predicted by the prompt's last token
        text = row["prompt"] + response_text(row)
        assert tokenizer.decode(ids_S[: len(text)].tolist()) == text
        assert set(ids_S[len(text) :].tolist()) <= {PAD_ID}


def test_warm_start_lowers_the_loss_deterministically() -> None:
    torch.set_num_threads(1)
    tokenizer = build_tokenizer(ALPHABET)
    runs = []
    for seed, num_steps in ((0, STEPS), (0, STEPS), (1, 1)):
        model = build_model(vocab_size=len(tokenizer), seed=seed)
        lines: list[str] = []
        state = torch.random.get_rng_state()
        losses = warm_start(
            model, tokenizer, num_steps=num_steps, seed=seed, exclude=set(), report=lines.append
        )
        assert torch.equal(torch.random.get_rng_state(), state)  # nobody else's randomness is spent
        assert len(lines) == 1
        runs.append((losses, model.state_dict()))
    (first, weights), (again, same_weights), (other, _) = runs
    assert first[0] == pytest.approx(np.log(17), abs=0.15)  # an untrained model is uniform over 17 ids
    assert first[-1] < first[0] - 0.4
    assert again == first
    assert other[0] != first[0]
    assert all(torch.equal(weights[name], same_weights[name]) for name in weights)


def test_prepare_is_deterministic_and_reuses_what_is_complete(made: EmbeddedPaths, tmp_path: Path) -> None:
    lines: list[str] = []
    again = prepare(tmp_path, CONFIG, seed=3, report=lines.append)
    assert again.train_path.read_bytes() == made.train_path.read_bytes()
    assert again.eval_path.read_bytes() == made.eval_path.read_bytes()
    one, two = (AutoModelForCausalLM.from_pretrained(p.model_dir).state_dict() for p in (made, again))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert sum(tensor.numel() for tensor in one.values()) < 3_000_000
    assert lines
    lines.clear()
    stamp = again.train_path.stat().st_mtime_ns
    assert prepare(tmp_path, CONFIG, seed=3, report=lines.append) == again
    assert not lines
    assert again.train_path.stat().st_mtime_ns == stamp
    other = prepare(
        tmp_path, EmbeddedConfig(train_rows=5, eval_rows=5, warm_start_steps=0), seed=3, report=lines.append
    )
    assert len(read(other.train_path)) == 5
    (tmp_path / "embedded.json").unlink()  # killed half-way: everything is made again
    lines.clear()
    prepare(
        tmp_path, EmbeddedConfig(train_rows=5, eval_rows=5, warm_start_steps=0), seed=3, report=lines.append
    )
    assert lines


def test_saved_model_ends_at_the_end_token(made: EmbeddedPaths) -> None:
    model = AutoModelForCausalLM.from_pretrained(made.model_dir)
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == EOS_ID
    assert model.config.tie_word_embeddings


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"train_rows": 0}, "train_rows"),
        ({"eval_rows": 0}, "eval_rows"),
        ({"warm_start_steps": -1}, "warm_start_steps"),
    ],
)
def test_config_refuses_what_cannot_work(values: dict[str, int], key: str) -> None:
    with pytest.raises(ValueError, match=rf"embedded\.{key}: wanted at least"):
        EmbeddedConfig(**values)
