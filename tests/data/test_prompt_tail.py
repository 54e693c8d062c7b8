"""What a prompt already says of its response, and the reward that reads it: from file to reward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from g2rpo_fast.data import DataConfig
from g2rpo_fast.data.prompts import load_prompts
from g2rpo_fast.engine import text_decoder
from g2rpo_fast.rewards import RewardConfig
from g2rpo_fast.rewards.loading import load_rewards
from g2rpo_fast.rewards.scoring import score
from g2rpo_fast.rollout.groups import plain_asks, rollouts_of
from g2rpo_fast.types import Completion, Prompt, Sampling
from tiny_tokenizers import CHATML, CHATML_TAGS, CHATML_THINK, byte_level

THOUGHTS_OF_THE_PAST = (
    "{%- for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{%- endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""A reasoning model's that puts an empty thought into the last reply."""
NO_THOUGHT = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}")
SYSTEM_IN_THE_LAST_QUESTION = (
    "{%- for m in messages %}{%- if m['role'] == 'user' %}"
    "[INST]{% if loop.last %}Be brief. {% endif %}{{ m['content'] }}[/INST]"
    "{%- else %}{{ m['content'] }}</s>{%- endif %}{%- endfor %}"
)
ONE_TURN_ONLY = (
    "{%- if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}"
    "User: {{ messages[0]['content'] }}\nAssistant: <think>"
)


def prompt_of(tmp_path: Path, tokenizer: Any, problem: str = "1+1=", **config: Any) -> Prompt:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": problem, "answer": "2", "trace": None}) + "\n")
    (prompt,) = load_prompts(str(path), DataConfig(**config), tokenizer, split="train").prompts
    assert prompt.text.endswith(prompt.tail)
    return prompt


@pytest.mark.parametrize(
    ("template", "tail"),
    [
        (CHATML, ""),
        (CHATML_THINK, "<think>\n"),
        (CHATML_THINK.replace("<think>\n{%", "<think>\nLet me see.{%"), "<think>\nLet me see."),
        (THOUGHTS_OF_THE_PAST, "<think>\n"),
        (NO_THOUGHT, "<think>\n\n</think>\n\n"),
        (SYSTEM_IN_THE_LAST_QUESTION, ""),
        (ONE_TURN_ONLY, "<think>"),
        ("{{ messages[0]['content'] }}\nAnswer:", ""),
    ],
)
def test_the_tail_is_what_the_template_puts_behind_the_turns_header(
    tmp_path: Path, template: str, tail: str
) -> None:
    tokenizer = byte_level(CHATML_TAGS, eos_token="<|endoftext|>", template=template)
    for problem in ("1+1=", "Say <think> and </think>. Now <think>"):
        assert prompt_of(tmp_path, tokenizer, problem, chat=True).tail == tail


def test_a_system_prompt_changes_nothing(tmp_path: Path) -> None:
    tokenizer = byte_level(CHATML_TAGS, eos_token="<|endoftext|>", template=CHATML_THINK)
    assert prompt_of(tmp_path, tokenizer, chat=True, system_prompt="Use <think>.").tail == "<think>\n"


@pytest.mark.parametrize(
    ("template", "tail"),
    [
        ("{prompt}\n<think>\n", "<think>\n"),
        ("Put thoughts between <think> and </think>. {prompt}", ""),
        ("Begin with <think>. {prompt}", ""),
        ("<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n", ""),
        ("{prompt}<|im_start|>", ""),
    ],
)
def test_the_tail_of_a_raw_prompt_is_an_opening_tag_at_its_end(
    tmp_path: Path, template: str, tail: str
) -> None:
    tokenizer = byte_level(CHATML_TAGS, eos_token="<|endoftext|>")
    assert prompt_of(tmp_path, tokenizer, template=template).tail == tail


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    ("template", "response", "paid"),
    [
        (CHATML_THINK, "1 and 1\n</think>\n\n2<|im_end|>", 1.0),
        (CHATML_THINK, "<think>\n1 and 1\n</think>\n\n2<|im_end|>", 0.0),
        (CHATML_THINK, "2<|im_end|>", 0.0),
        (CHATML, "<think>1 and 1</think>\n2<|im_end|>", 1.0),
        (CHATML, "1 and 1</think>\n2<|im_end|>", 0.0),
        (CHATML, "<think>1 and 1</think><|im_end|>", 0.0),
    ],
)
def test_format_reads_thoughts_whether_their_tags_are_special_tokens_or_the_prompts(
    tmp_path: Path, template: str, response: str, paid: float, special: bool
) -> None:
    tags = CHATML_TAGS if special else CHATML_TAGS[:3]
    tokenizer = byte_level(tags, eos_token="<|endoftext|>", template=template)
    prompt = prompt_of(tmp_path, tokenizer, chat=True)
    ids = tuple(tokenizer(response, add_special_tokens=False)["input_ids"])
    done = Completion(
        token_ids=ids, logp=np.zeros(len(ids), np.float32), finish_reason="stop", weight_version=0
    )
    sampling = Sampling(stop_token_ids=(2,))
    asks = plain_asks([prompt], [1], max_tokens=len(ids))
    rollouts = rollouts_of(asks, [done], sampling=sampling, decode=text_decoder(tokenizer))
    assert rollouts[0].text + "<|im_end|>" == response
    rewards = load_rewards(RewardConfig(functions=("format",)))
    assert score(rewards, rollouts).total_R.tolist() == [paid]
