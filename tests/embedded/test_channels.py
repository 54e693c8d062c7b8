"""The embedded task's reward channels, and the warm start that may leave thoughts out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from g2rpo_fast.embedded import EmbeddedConfig, prepare
from g2rpo_fast.embedded.channels import faithful, permutation, progress, right_digits
from g2rpo_fast.embedded.task import ALPHABET, ANSWER_MARKER, draw_rows, response_text
from g2rpo_fast.embedded.tokenizer import build_tokenizer
from g2rpo_fast.embedded.warm_start import IGNORED, batches
from g2rpo_fast.rewards import RewardConfig
from g2rpo_fast.rewards.loading import load_rewards
from g2rpo_fast.rewards.scoring import score
from g2rpo_fast.types import Prompt, Rollout

CHANNELS = tuple(
    f"g2rpo_fast.embedded.channels:{f.__name__}" for f in (progress, right_digits, permutation, faithful)
)
FORMAT = "([0-9]>[0-9]+(;[0-9]>[0-9]+)*)?#[0-9]+"


def rollout_of(text: str, digits: str = "2914") -> Rollout:
    """Of the number 2914: 1>294;2>94;4>9#1249."""
    prompt = Prompt(id="train:0", text=f"{digits}:", token_ids=(1,), answer="".join(sorted(digits)))
    return Rollout(
        prompt=prompt,
        group=0,
        member=0,
        training_prompt_ids=(1,),
        sampling_prompt_ids=(1,),
        response_ids=(2,),
        guidance_len=0,
        loss_mask=np.ones(1, np.bool_),
        rollout_logp=np.zeros(1, np.float32),
        text=text,
        finish_reason="stop",
        weight_version=0,
    )


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("1>294;2>94;4>9#1249", (1, 1, 1, 1)),
        ("1>294;2>94;4>9", (1, 0, 0, 0)),
        ("1>294;2>49;4>9#1249", (1 / 3, 1, 1, 1)),
        ("1>294;2>94#1249", (2 / 3, 1, 1, 0)),
        ("1>294;2>94#1294", (2 / 3, 0.5, 1, 1)),
        ("2>914;1>94;4>9#2149", (0, 0.5, 1, 1)),
        ("1>294;2>94;4>9;9>9#12499", (1, 0, 0, 1)),
        ("#1249", (0, 1, 1, 0)),
        ("#124", (0, 0.75, 0, 0)),
        ("1>294;2>94;4>9#", (1, 0, 0, 0)),
        ("", (0, 0, 0, 0)),
        (";;>>#", (0, 0, 0, 0)),
        ("1>2#3#1249", (0, 1, 1, 0)),
    ],
)  # fmt: skip
def test_channels_by_hand(text: str, want: tuple[float, ...]) -> None:
    rollout = rollout_of(text)
    rewards = score(load_rewards(RewardConfig(functions=CHANNELS)), [rollout])
    assert rewards.reward_RK[0].tolist() == pytest.approx(want)
    assert rewards.channel("progress").tolist() == pytest.approx([want[0]])


def test_perfect_transcripts_have_all_of_every_channel_and_the_format() -> None:
    rewards = load_rewards(
        RewardConfig(
            functions=("exact_match", "format", *CHANNELS), answer_marker=ANSWER_MARKER, format_pattern=FORMAT
        )
    )
    rows = draw_rows(np.random.default_rng(0), (2, 5, 8), 20)
    perfect = [rollout_of(response_text(row), row["prompt"].rstrip(":")) for row in rows]
    assert score(rewards, perfect).reward_RK.tolist() == [[1.0] * 6] * 20


def test_an_empty_thought_has_the_format() -> None:
    """Of the embedded task, and the one with tags."""
    embedded = load_rewards(RewardConfig(functions=("format",), format_pattern=FORMAT))
    texts = ["#1249", "1>294;2>94#9", "1>294;#9", "1249", "#", "##1", ""]
    got = score(embedded, [rollout_of(text) for text in texts]).total_R.tolist()
    assert got == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    tagged = load_rewards(RewardConfig(functions=("format",)))
    texts = [
        "<think></think>1249",
        "<think>\n\n</think>\n1249",
        "<think>x</think>1249",
        "1249",
        "<think></think>",
    ]
    got = score(tagged, [rollout_of(text) for text in texts]).total_R.tolist()
    assert got == [1.0, 1.0, 1.0, 0.0, 0.0]


def transcripts(empty_thoughts: float, number: int = 4) -> list[str]:
    """Responses of the warm start's first batches."""
    tokenizer = build_tokenizer(ALPHABET)
    stream = batches(tokenizer, set(), seed=5, empty_thoughts=empty_thoughts)
    targets = [target for _ in range(number) for target in next(stream)[1]]
    return [str(tokenizer.decode(target[target != IGNORED][:-1].tolist())) for target in targets]


def test_thought_dropout_leaves_out_its_share_of_traces() -> None:
    always, never, half = (transcripts(share) for share in (1.0, 0.0, 0.5))
    assert all(text.startswith("#") and text[1:].isdigit() for text in always)
    assert all(">" in text and text.partition("#")[2] for text in never)
    empty = [text.startswith("#") for text in half]
    assert 0.5 - 0.13 < np.mean(empty) < 0.5 + 0.13  # of 256: four standard deviations either way


def test_no_dropout_draws_nothing() -> None:
    tokenizer = build_tokenizer(ALPHABET)
    one, other = (next(batches(tokenizer, set(), seed=5, **given)) for given in ({}, {"empty_thoughts": 0.0}))
    assert torch.equal(one[0], other[0])
    first = tokenizer.decode(one[1][0][one[1][0] != IGNORED][:-1].tolist())
    assert first == "4>7786;6>778;7>78;7>8#46778"


def test_the_share_is_part_of_what_a_directory_was_made_from(tmp_path: Path) -> None:
    lines: list[str] = []
    for share in (0.0, 0.5):
        config = EmbeddedConfig(train_rows=2, eval_rows=2, warm_start_steps=0, empty_thoughts=share)
        prepare(tmp_path, config, seed=0, report=lines.append)
        assert lines
        lines.clear()
        prepare(tmp_path, config, seed=0, report=lines.append)
        assert not lines
    with pytest.raises(ValueError, match=r"embedded\.empty_thoughts: wanted at most 1, got 1\.5"):
        EmbeddedConfig(empty_thoughts=1.5)
