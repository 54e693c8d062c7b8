"""Conversations as prompts, and what is handed to the chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from transformers import PreTrainedTokenizerFast

from g2rpo_fast.config.arguments import read_arguments
from g2rpo_fast.data import DataConfig
from g2rpo_fast.data.prompts import load_prompts, read_texts
from g2rpo_fast.data.render import with_chat_settled
from g2rpo_fast.data.sources import NamedRows
from g2rpo_fast.embedded.tokenizer import build_tokenizer

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'judge' %}{{ raise_exception('no judges') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if enable_thinking is defined and not enable_thinking %}"
    "<think></think>{% endif %}{% endif %}"
)
TURNS = [
    {"role": "user", "content": "1+1="},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "and 2+2=?"},
]
BRIEF = {"role": "system", "content": "Be brief."}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer("\n" + "".join(map(chr, range(32, 127))))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def rows(*prompts: Any) -> NamedRows:
    return NamedRows(name="rows", rows=[{"prompt": p, "answer": "4", "trace": " 4"} for p in prompts])


def load(source: Any, tokenizer: PreTrainedTokenizerFast, **settings: Any) -> Any:
    config = with_chat_settled(source, DataConfig(**settings), tokenizer)
    return load_prompts(source, config, tokenizer, split="train")


def test_conversations_are_rendered_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    first, second, third = load(rows(TURNS, [BRIEF, *TURNS], "2+2="), tokenizer).prompts
    turns = "[user]1+1=<eos>[assistant]2<eos>[user]and 2+2=?<eos>[assistant]"
    assert (first.text, second.text) == (turns, f"[system]Be brief.<eos>{turns}")
    assert third.text == "[user]2+2=<eos>[assistant]"  # a text is a single message
    assert first.token_ids == tuple(tokenizer.encode(turns, add_special_tokens=False))
    assert tokenizer.decode(list(first.token_ids + first.trace_ids)) == turns + " 4"
    assert (first.problem, third.problem) == (TURNS, "2+2=")
    assert first.row["prompt"] == TURNS


def test_templates_and_hints_go_around_the_last_message(tokenizer: PreTrainedTokenizerFast) -> None:
    settings: dict[str, Any] = {"hint_columns": ("answer",), "hint_template": "{prompt} ({hint})"}
    (prompt,) = load(rows(TURNS), tokenizer, template="Solve: {prompt}", **settings).prompts
    before = "[user]1+1=<eos>[assistant]2<eos>"
    assert prompt.text == before + "[user]Solve: and 2+2=?<eos>[assistant]"
    hinted = before + "[user]Solve: and 2+2=? (4)<eos>[assistant]"
    assert tokenizer.decode(list(prompt.hinted_ids[0])) == hinted


def test_a_row_s_own_system_message_stands_for_the_common_one(tokenizer: PreTrainedTokenizerFast) -> None:
    own, common = load(
        rows([BRIEF, TURNS[0]], TURNS[:1]), tokenizer, chat=True, system_prompt="Think."
    ).prompts
    assert own.text == "[system]Be brief.<eos>[user]1+1=<eos>[assistant]"
    assert common.text == "[system]Think.<eos>[user]1+1=<eos>[assistant]"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "column 'prompt': wanted messages, got none"),
        (["hello"], "message 1: wanted an object with role and content, got str"),
        ([{"content": "x"}], "message 1: wanted role and content, got no role"),
        ([TURNS[0], {"role": "user"}], "message 2: wanted role and content, got no content"),
        ([{**TURNS[0], "name": "Ann"}], "message 1: wanted role and content alone, got 'name' too"),
        ([{"role": "user", "content": [{"type": "text"}]}], "message 1: wanted text as content, got [{"),
        ([{"role": "", "content": "x"}], "message 1: wanted text as role, got ''"),
        ([{"role": 3, "content": "x"}], "message 1: wanted text as role, got 3"),
        (TURNS[:2], "wanted a last message that asks, such as a user's, got 'assistant'"),
        ([BRIEF], "wanted a last message that asks, such as a user's, got 'system'"),
        ([{"role": "user", "content": " "}], "column 'prompt': empty last message"),
        ([{"role": "user", "content": "\ud800"}], "column 'prompt': half a surrogate pair"),
        ([{"role": "judge", "content": "x"}], "one that says: no judges"),
    ],
)
def test_wrong_messages_are_refused_by_row(
    messages: list[Any], said: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ValueError) as caught:
        load(rows(TURNS, messages), tokenizer)
    assert "\n  row 2: " in str(caught.value)
    assert said in str(caught.value)
    loaded = load(rows(TURNS, messages), tokenizer, on_bad_row="skip")
    assert (len(loaded.prompts), [row.line for row in loaded.skipped]) == (1, [2])


def test_messages_want_a_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    plain = build_tokenizer("".join(map(chr, range(32, 127))))
    for other, settings in ((plain, {}), (tokenizer, {"chat": False})):
        with pytest.raises(
            ValueError, match=r"data\.chat: wanted true, and a tokenizer with a chat template"
        ):
            load(rows(TURNS), other, **settings)


def test_keys_that_parquet_adds_to_messages_are_none(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "d.parquet"
    table = [
        {"prompt": TURNS, "answer": "4", "trace": None},
        {"prompt": [{**TURNS[0], "name": "Ann"}], "answer": "2", "trace": None},
    ]
    pyarrow.parquet.write_table(pa.Table.from_pylist(table, schema=pa.schema([
        ("prompt", pa.list_(pa.struct([(key, pa.string()) for key in ("role", "content", "name")]))),
        ("answer", pa.string()), ("trace", pa.string()),
    ])), path)  # fmt: skip
    loaded = load(str(path), tokenizer, on_bad_row="skip")
    assert [prompt.problem for prompt in loaded.prompts] == [TURNS]
    assert [row.line for row in loaded.skipped] == [2]


def test_a_tokenizer_can_be_made_from_conversations() -> None:
    assert list(read_texts([rows([BRIEF, TURNS[0]])], DataConfig())) == ["Be brief.\n1+1=", " 4", "4"]


def test_the_template_is_given_its_arguments(tokenizer: PreTrainedTokenizerFast) -> None:
    (plain,) = load(rows("1+1="), tokenizer).prompts
    (given,) = load(rows("1+1="), tokenizer, template_kwargs={"enable_thinking": False}).prompts
    assert given.text == plain.text + "<think></think>" == "[user]1+1=<eos>[assistant]<think></think>"
    assert (plain.tail, given.tail) == ("", "<think></think>")
    for settings, said in (
        ({"template_kwargs": {"enable_thinkin": False}}, "reads, got 'enable_thinkin', which is not in it"),
        (
            {"template_kwargs": {"enable_thinking": False}, "chat": False},
            "wanted none without a chat template",
        ),
    ):
        with pytest.raises(ValueError, match=r"^data\.template_kwargs: ") as caught:
            load(rows("1+1="), tokenizer, **settings)
        assert said in str(caught.value)
    for wrong, said in (
        ({"messages": []}, "wanted names of the template's own, got 'messages'"),
        ({"x": {1}}, "wanted values that JSON has"),
        (["x"], "wanted a table, got"),
    ):
        with pytest.raises(ValueError, match=r"^data\.template_kwargs: ") as caught:
            DataConfig(template_kwargs=wrong)  # pyright: ignore[reportArgumentType] (that is the test)
        assert said in str(caught.value)


def test_the_command_line_takes_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model.path", "m", "--data.path", "d.jsonl", "--data.template-kwargs"]
    config = read_arguments([*words, '{enable_thinking = false, tools = ["a"]}'])
    assert config.data.template_kwargs == {"enable_thinking": False, "tools": ["a"]}
    file = tmp_path / "task.toml"
    file.write_text(f"[data]\ntemplate_kwargs = {{enable_thinking = {json.dumps(True)}}}\n")
    assert read_arguments([str(file)]).data.template_kwargs == {"enable_thinking": True}
    for word in ("enable_thinking", "3"):
        with pytest.raises(SystemExit):
            read_arguments([*words, word])
        assert "data.template-kwargs" in capsys.readouterr().err
