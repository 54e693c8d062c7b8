"""Which tokens end a response, and which of them rewards never read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from g2rpo_fast.assemble import assemble
from g2rpo_fast.config import Config, config_from_dict
from g2rpo_fast.embedded.model import build_model
from g2rpo_fast.engine import sampling_of, text_decoder
from g2rpo_fast.rollout.groups import plain_asks, requests_of
from g2rpo_fast.types import Prompt
from tiny_tokenizers import CHATML, CHATML_TAGS, CHATML_THINK, byte_level

GEMMA = (
    "{{ bos_token }}{%- for m in messages %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] }}<end_of_turn>\n"
    "{%- endfor %}{%- if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI = (
    "{%- for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{%- endfor %}"
    "{%- if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def model_with(tokenizer: Any, config: Any = None, generation: Any = None) -> Any:
    model = build_model(vocab_size=len(tokenizer), seed=0)
    model.config.eos_token_id = config
    model.generation_config.eos_token_id = generation
    return model


def config_of(**rollout: Any) -> Config:
    return config_from_dict({"rollout": rollout})


def test_the_end_tokens_of_tokenizer_and_both_configs_stop() -> None:
    tokenizer = byte_level(CHATML_TAGS, eos_token="<|endoftext|>", template=CHATML)
    ends = [
        sampling_of(config_of(**more), tokenizer, model_with(tokenizer, config, generation)).stop_token_ids
        for config, generation, more in (
            (None, None, {}),
            (None, [0, 2], {}),
            (2, None, {}),
            (2, 7, {"stop_token_ids": (9, 0)}),
        )
    ]
    assert ends == [(0,), (0, 2), (0, 2), (0, 7, 2, 9)]


def test_a_tokenizer_without_an_end_is_fine_where_something_else_ends() -> None:
    tokenizer = byte_level(("<|end|>",))
    assert sampling_of(config_of(), tokenizer, model_with(tokenizer, 0)).stop_token_ids == (0,)
    assert sampling_of(config_of(stop_strings=("#",)), tokenizer, model_with(tokenizer)).stop_token_ids == ()
    with pytest.raises(ValueError, match=r"wanted an end-of-sequence token .* got none"):
        sampling_of(config_of(), tokenizer, model_with(tokenizer))


@pytest.mark.parametrize(
    ("config", "generation", "more", "message"),
    [
        (900, None, (), r"model.path: eos_token_id of config.json: wanted ids in \[0, 261\), got 900"),
        (None, [0, 261], (), r"model.path: eos_token_id of generation_config.json: .*got 261"),
        (None, None, (5, 300), r"rollout.stop_token_ids: wanted ids in \[0, 261\), got 300"),
    ],
)
def test_a_stop_token_that_the_model_lacks_is_named(
    config: Any, generation: Any, more: tuple[int, ...], message: str
) -> None:
    tokenizer = byte_level(CHATML_TAGS, eos_token="<|endoftext|>")
    model = model_with(tokenizer, config, generation)
    with pytest.raises(ValueError, match=message):
        sampling_of(config_of(stop_token_ids=more), tokenizer, model)


def test_a_run_samples_with_all_stop_tokens(tmp_path: Path) -> None:
    tokenizer = byte_level(CHATML_TAGS, eos_token="<|endoftext|>", template=CHATML)
    source = tmp_path / "model"
    model_with(tokenizer).save_pretrained(source)
    tokenizer.save_pretrained(source)
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2], "pad_token_id": 0}))
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "1+1=", "answer": "2", "trace": "2"}) + "\n")
    parts = assemble(
        config_from_dict(
            {
                "run": {"dir": str(tmp_path / "run"), "steps": 1, "prompts_per_step": 1, "threads": 1},
                "model": {"path": str(source)},
                "data": {"path": str(data)},
                "rollout": {"stop_token_ids": (9,), "max_tokens": 40},
                "guidance": {"length_init": 1, "length_max": 2, "reserve": 4},
            }
        ),
        print,
    )
    assert parts.sampler.sampling.stop_token_ids == (0, 2, 9)
    assert parts.sampler.decode(tokenizer("7<|im_end|><think>")["input_ids"]) == "7<think>"


def test_requests_say_how_much_of_them_is_guidance() -> None:
    prompt = Prompt(id="train:1", text="", token_ids=(1, 2), answer="", trace_ids=(3, 4, 5))
    asks = plain_asks([prompt], [3], max_tokens=12)
    given = [replace(ask, given_ids=prompt.trace_ids[:n]) for ask, n in zip(asks, (0, 2, 9), strict=True)]
    requests = requests_of(given, seed=0, step=1)
    assert [r.given_ids for r in requests] == [(), (3, 4), (3, 4, 5)]


@pytest.mark.parametrize(
    ("special", "template", "shown"),
    [
        (("<|endoftext|>", "<|im_start|>", "<|im_end|>"), CHATML, ""),
        (("<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"), GEMMA, ""),
        (("<eos>", "<|user|>", "<|assistant|>", "<|end|>", "<|python_tag|>"), PHI, "<|python_tag|>"),
        (("<eos>", "<|im_start|>", "<think>", "</think>"), None, "<|im_start|><think></think>"),
        (CHATML_TAGS, CHATML_THINK, "<think></think>"),
        (("<eos>", "<|im_end|>"), "{{ raise_exception('not for you') }}", "<|im_end|>"),
    ],
)
def test_structure_shows_as_nothing_and_content_shows(
    tmp_path: Path, special: tuple[str, ...], template: str | None, shown: str
) -> None:
    names = {"bos_token": "<bos>"} if "<bos>" in special else {}
    tokenizer = byte_level(special, template=template, eos_token=special[0], **names)
    ids = tokenizer("é" + "".join(special) + " .", add_special_tokens=False)["input_ids"]
    assert len(ids) == len(special) + 4
    assert text_decoder(tokenizer)(ids) == f"é{shown} ."
    tokenizer.save_pretrained(tmp_path)  # as the vLLM engine's process gets it
    assert text_decoder(AutoTokenizer.from_pretrained(tmp_path)).hidden == text_decoder(tokenizer).hidden
