"""Data stage: rows, templates, tokens, order."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from g2rpo_fast.data import DataConfig
from g2rpo_fast.data.prompts import load_prompts
from g2rpo_fast.data.render import with_chat_settled
from g2rpo_fast.data.rows import listed, read_problems
from g2rpo_fast.embedded.tokenizer import build_tokenizer
from g2rpo_fast.rewards.math_answer import MathVerify

ASCII = "\n" + "".join(map(chr, range(32, 127)))
CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
GSM8K = Path(__file__).parents[3] / "shared/data/gsm8k_train.jsonl"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(ASCII)


def write(path: Path, *rows: Any) -> str:
    """Texts and bytes are written as they are."""
    lines = [row if isinstance(row, str | bytes) else json.dumps(row) for row in rows]
    path.write_bytes(b"".join((x.encode() if isinstance(x, str) else x) + b"\n" for x in lines))
    return str(path)


def good(**other: Any) -> dict[str, Any]:
    return {"prompt": "1+1=", "answer": "2", "trace": "one and one", **other}


def numeric(written: str) -> str:
    """A row with an answer as it is written in the file."""
    return f'{{"prompt": "x", "trace": null, "level": {{"answer": 5e-05}}, "n": 1e2, "answer": {written}}}'


def test_columns_become_prompts(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path / "d.jsonl", good(level=3), "", good(prompt="2+2=", answer=4, trace=None))
    loaded = load_prompts(path, DataConfig(), tokenizer, split="train")
    first, second = loaded.prompts
    assert (loaded.num_rows, loaded.num_too_long) == (2, 0)
    assert (first.id, second.id) == ("train:1", "train:3")  # lines of the file
    assert first.token_ids == tuple(tokenizer.encode("1+1="))
    assert len(first.token_ids) == 4
    assert tokenizer.decode(list(first.trace_ids)) == "one and one"
    assert (first.answer, second.answer, second.trace_ids) == ("2", "4", ())
    assert first.row == {"prompt": "1+1=", "answer": "2", "trace": "one and one", "level": 3}
    assert first.problem == "1+1="


def test_columns_and_template_are_configurable(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path / "d.jsonl", {"q": "{x}", "a": "2"})
    config = DataConfig(
        prompt_column="q", answer_column="a", trace_column=None, template="Q {prompt} {braces}\nA"
    )
    (prompt,) = load_prompts(path, config, tokenizer, split="train").prompts
    assert prompt.text == "Q {x} {braces}\nA" == tokenizer.decode(list(prompt.token_ids))
    assert prompt.trace_ids == ()


def test_evaluation_needs_no_trace_and_is_limited(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path / "d.jsonl", *[{"prompt": f"{i}", "answer": "2"} for i in range(9)])
    assert len(load_prompts(path, DataConfig(eval_rows=4), tokenizer, split="eval").prompts) == 4
    assert len(load_prompts(path, DataConfig(eval_rows=0), tokenizer, split="eval").prompts) == 9
    with pytest.raises(ValueError, match=r"line 1: no column 'trace'; the row has 'prompt', 'answer'"):
        load_prompts(path, DataConfig(), tokenizer, split="train")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"prompt": ', "not JSON"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (good(prompt="x\ud800"), "column 'prompt': half a surrogate pair"),
        ([1], "wanted a JSON object, got list"),
        ({"question": "x", "answer": "2"}, "no column 'prompt'; the row has 'question', 'answer'"),
        ({}, "the row has none"),
        (good(prompt=3), "column 'prompt': wanted text, got int"),
        (good(prompt=" \n"), "column 'prompt': empty prompt"),
        (good(answer=["2"]), "column 'answer': wanted text or a number, got list"),
        (good(answer=True), "column 'answer': wanted text or a number, got bool"),
        (good(trace=5), "column 'trace': wanted text, got int"),
        (good(answer=""), "column 'answer': empty answer"),
        (good(answer=" \n"), "column 'answer': empty answer"),
        (good(answer="x\udfff"), "column 'answer': half a surrogate pair"),
        (good(answer=float("nan")), "NaN is no number"),
        (good(level=[float("-inf")]), "-Infinity is no number"),
        (numeric("1e999"), "wanted numbers that a double holds, got 1e999"),
        (numeric("1e-999"), "wanted numbers that a double holds, got 1e-999"),
        (numeric("-" + "7" * 4301), "at most 4300 digits, got one of 4301"),
        (numeric("[" * 5000 + "]" * 5000), "nested too deep"),
        (numeric('{"x":' * 100_000), "nested too deep"),
        ("[", "an array? Wanted one object a line"),
    ],
)
def test_malformed_row_is_named(
    row: Any, message: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write(tmp_path / "d.jsonl", good(), row, good())
    with pytest.raises(ValueError) as caught:
        load_prompts(path, DataConfig(), tokenizer, split="train")
    assert f"{path}: 1 malformed rows\n  line 2: " in str(caught.value)
    assert message in str(caught.value)


def test_malformed_rows_are_collected_up_to_five(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path / "d.jsonl", good(), *["bad"] * 9)
    with pytest.raises(ValueError, match=r"5 malformed rows \(stopped there\)") as caught:
        load_prompts(path, DataConfig(), tokenizer, split="train")
    assert [f"line {n}:" in str(caught.value) for n in range(1, 8)] == [False] + [True] * 5 + [False]


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("0.00005", "0.00005"), ("5e-05", "0.00005"), ("1e16", "10000000000000000"), ("1.50", "1.50"),
        ("10000000000000000.0", "10000000000000000.0"), ("6.02E23", "602" + "0" * 21), ("-0.5", "-0.5"),
        ("12345678901234567890", "12345678901234567890"), ("3.0", "3.0"), ("-2e-3", "-0.002"),
        ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
        ("0e999999999", "0"), ("9" * 4300, "9" * 4300), ('"5e-05"', "5e-05"),
    ],
)  # fmt: skip
def test_numbers_keep_their_value_as_answers(
    written: str, answer: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write(tmp_path / "d.jsonl", numeric(written))
    (prompt,) = load_prompts(path, DataConfig(), tokenizer, split="train").prompts
    assert prompt.answer == answer
    others = {"level": {"answer": 5e-05}, "n": 100.0}
    assert prompt.row == {"prompt": "x", "trace": None, "answer": answer, **others}
    assert [type(x) for x in (prompt.row["n"], prompt.row["level"]["answer"])] == [float, float]


def test_byte_order_marks_are_accepted(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    mark = b"\xef\xbb\xbf"
    lines = [mark + json.dumps(good()).encode(), mark, mark + json.dumps(good(prompt="2+2=")).encode()]
    loaded = load_prompts(write(tmp_path / "d.jsonl", *lines), DataConfig(), tokenizer, split="train")
    assert [(prompt.id, prompt.text) for prompt in loaded.prompts] == [
        ("train:1", "1+1="),
        ("train:3", "2+2="),
    ]


def test_bad_rows_are_skipped_and_counted_where_asked(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [
        good(),
        *["bad"] * 7,
        good(answer=""),
        good(answer="\\text{}"),
        good(prompt="x" * 30),
        good(answer=4),
    ]
    path = write(tmp_path / "d.jsonl", *rows)
    config = DataConfig(on_bad_row="skip", max_prompt_tokens=10)
    checks = {"strict": lambda answer, row: "no text" if "text" in answer else None}
    loaded = load_prompts(path, config, tokenizer, split="train", checks=checks)
    assert [prompt.id for prompt in loaded.prompts] == ["train:1", "train:12"]
    assert (loaded.num_too_long, loaded.num_rows) == (1, 3)
    assert [row.line for row in loaded.skipped] == [*range(2, 11)]
    assert loaded.skipped[-1].reason == r"reference '\\text{}': no text (reward strict)"
    assert listed(loaded.skipped).count("\n  line ") == 5
    with pytest.raises(ValueError, match=r"data\.path: .* has no rows that can be used\n  line 1: not JSON"):
        load_prompts(write(tmp_path / "bad.jsonl", "bad"), config, tokenizer, split="train")


def test_references_that_cannot_be_judged_are_refused_by_line(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write(tmp_path / "d.jsonl", good(), *[good(answer="?", n=n) for n in range(9)])
    seen = []

    def check(answer: str, row: Any) -> str | None:
        seen.append(dict(row))
        return "not a number" if answer == "?" else None

    for split in ("train", "eval"):
        with pytest.raises(ValueError) as caught:
            load_prompts(path, DataConfig(), tokenizer, split=split, checks={"mine": check})
        first, *lines, last = str(caught.value).splitlines()
        assert last == '  data.on_bad_row = "skip" leaves such rows out'
        assert first == f"{path}: 5 rows whose reference cannot be judged (stopped there)"
        assert lines[0] == "  line 2: reference '?': not a number (reward mine)"
        assert [line.split(":")[0].strip() for line in lines] == [f"line {n}" for n in range(2, 7)]
    assert seen[:2] == [good(), good(answer="?", n=0)]
    config = DataConfig(on_bad_row="skip")
    (left,) = load_prompts(path, config, tokenizer, split="train", checks={"mine": check}).prompts
    assert left.id == "train:1"


@pytest.mark.parametrize(
    ("answer", "message"), [("just 3", "no #### before"), ("so it is\n#### ", "nothing after ####")]
)
def test_gsm8k_without_final_answer_is_named(
    answer: str, message: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write(tmp_path / "d.jsonl", {"question": "x", "answer": answer})
    with pytest.raises(ValueError, match=f"line 1: column 'answer': {message}"):
        load_prompts(path, DataConfig(format="gsm8k"), tokenizer, split="train")


def test_missing_and_empty_files_name_the_key(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    missing = str(tmp_path / "no.jsonl")
    for split, key in (("train", "data.path"), ("eval", "data.eval_path")):
        with pytest.raises(ValueError, match=f"{key}: wanted a file.*no.jsonl"):
            load_prompts(missing, DataConfig(), tokenizer, split=split)
    with pytest.raises(ValueError, match=r"data\.path: .* has no rows"):
        load_prompts(write(tmp_path / "d.jsonl"), DataConfig(), tokenizer, split="train")


def test_long_prompts_are_counted_never_cut(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path / "d.jsonl", *[good(prompt="x" * n) for n in (3, 9, 10, 11, 40)])
    loaded = load_prompts(path, DataConfig(max_prompt_tokens=10), tokenizer, split="train")
    assert [len(prompt.token_ids) for prompt in loaded.prompts] == [3, 9, 10]
    assert (loaded.num_too_long, loaded.num_rows) == (2, 5)
    assert [prompt.id for prompt in loaded.prompts] == ["train:1", "train:2", "train:3"]
    with pytest.raises(ValueError, match=r"data\.max_prompt_tokens: wanted at least 3 .*got 2"):
        load_prompts(path, DataConfig(max_prompt_tokens=2), tokenizer, split="train")


def test_chat_template_is_applied_once(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(ASCII)
    path = write(tmp_path / "d.jsonl", good())
    with pytest.raises(ValueError, match=r"data\.chat: wanted a tokenizer with a chat template"):
        load_prompts(path, DataConfig(chat=True), tokenizer, split="train")
    tokenizer.chat_template = CHAT_TEMPLATE
    config = DataConfig(chat=True, system_prompt="Be brief.", template="Solve: {prompt}")
    (prompt,) = load_prompts(path, config, tokenizer, split="train").prompts
    assert prompt.text == "[system]Be brief.<eos>[user]Solve: 1+1=<eos>[assistant]"
    assert prompt.token_ids == tuple(tokenizer.encode(prompt.text, add_special_tokens=False))
    assert prompt.token_ids.count(tokenizer.eos_token_id) == 2  # special tokens are single ids


def test_chat_template_is_used_unless_something_speaks_against_it(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", good())
    rendered = write(tmp_path / "r.jsonl", good(prompt="[user]1+1=<eos>[assistant]"))
    tokenizer = build_tokenizer(ASCII)

    def chat(path: str, **settings: Any) -> bool | None:
        return with_chat_settled(path, DataConfig(**settings), tokenizer).chat

    assert chat(path) is False  # it has no chat template
    tokenizer.chat_template = CHAT_TEMPLATE
    assert chat(path) is True
    assert (chat(path, chat=False), chat(path, template="Q: {prompt}"), chat(rendered)) == (False,) * 3
    assert chat(rendered, chat=True) is True


def test_hints_stand_in_the_prompt_and_never_in_evaluation(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(ASCII)
    rows = [good(tip="two"), good(tip=None), good()]
    path = write(tmp_path / "d.jsonl", *rows)
    config = DataConfig(
        hint_columns=("tip", "answer"), hint_template="{hint}, so {prompt}", template="<{prompt}>"
    )
    prompts = load_prompts(path, config, tokenizer, split="train").prompts
    shown = [[tokenizer.decode(list(ids)) for ids in prompt.hinted_ids] for prompt in prompts]
    assert shown == [["<two, so 1+1=>", "<2, so 1+1=>"], ["", "<2, so 1+1=>"], ["", "<2, so 1+1=>"]]
    assert {prompt.text for prompt in prompts} == {"<1+1=>"}
    assert prompts[0].most_tokens == len("<two, so 1+1=>")
    evaluated = load_prompts(path, config, tokenizer, split="eval").prompts
    assert {prompt.hinted_ids for prompt in evaluated} == {()}
    with pytest.raises(ValueError, match=r"data\.hint_columns: wanted a column with texts in it, got 'tipp'"):
        load_prompts(path, DataConfig(hint_columns=("tipp",)), tokenizer, split="train")
    with pytest.raises(
        ValueError, match=r"data\.hint_template: wanted a text with .prompt. and .hint. in it"
    ):
        DataConfig(hint_template="{prompt}")


def test_tokenizer_that_ends_prompts_is_refused(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(ASCII)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    with pytest.raises(ValueError, match="ends every raw prompt"):
        load_prompts(write(tmp_path / "d.jsonl", good()), DataConfig(), tokenizer, split="train")


def test_leading_special_token_belongs_to_the_prompt_only(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(ASCII)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<unk> $A", special_tokens=[("<unk>", tokenizer.unk_token_id)]
    )
    (prompt,) = load_prompts(
        write(tmp_path / "d.jsonl", good()), DataConfig(), tokenizer, split="train"
    ).prompts
    assert prompt.token_ids[0] == tokenizer.unk_token_id
    assert tokenizer.unk_token_id not in prompt.trace_ids


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"template": "no field"}, "data.template"),
        ({"system_prompt": "x"}, "data.system_prompt"),
        ({"max_prompt_tokens": 0}, "data.max_prompt_tokens"),
        ({"eval_rows": -1}, "data.eval_rows"),
        ({"seed": -1}, "data.seed"),
    ],
)
def test_config_refuses_what_cannot_work(values: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        DataConfig(**values)


def test_gsm8k_trace_continues_the_prompt(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    row = {
        "question": "How many? ",
        "answer": "She has 3*4=<<3*4=12>>12.\nSo $<<1000+2=1002>>1,002\n#### 1,002",
    }
    path = write(tmp_path / "d.jsonl", row)
    (prompt,) = load_prompts(path, DataConfig(format="gsm8k"), tokenizer, split="train").prompts
    whole = tokenizer.decode(list(prompt.token_ids + prompt.trace_ids))
    assert whole == "Question: How many?\nAnswer: She has 3*4=12.\nSo $1,002"
    assert prompt.answer == "1002"
    (chat,) = read_problems(path, DataConfig(format="gsm8k", chat=True), key="", limit=0, trace_required=True)
    assert (chat.prompt, chat.trace) == ("How many?", "She has 3*4=12.\nSo $1,002")


def test_gsm8k_file_parses_and_answers_equal_themselves(tokenizer: PreTrainedTokenizerFast) -> None:
    if not GSM8K.is_file():
        assert os.environ.get("CI") != "true", f"{GSM8K} is missing"
        pytest.skip(f"{GSM8K} is missing")
    config = DataConfig(format="gsm8k", max_prompt_tokens=4096)
    problems = read_problems(str(GSM8K), config, key="data.path", limit=0, trace_required=True)
    assert len(problems) == 7473
    assert all(problem.trace and "<<" not in problem.trace for problem in problems)
    judge = MathVerify()
    rollout: Any = None  # "math" looks at the texts alone
    try:
        answers = sorted({problem.answer for problem in problems})
        assert len(answers) == 866
        assert all(judge(f"The answer is ${answer}$.", answer, rollout) == 1.0 for answer in answers)
        assert all(judge(f"#### {answer}", answer, rollout) == 1.0 for answer in answers)
        assert judge("The answer is $73$.", "72", rollout) == 0.0
    finally:
        judge.close()
    limited = load_prompts(str(GSM8K), dataclasses.replace(config, eval_rows=50), tokenizer, split="eval")
    assert limited.num_rows == 50
