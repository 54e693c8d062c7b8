"""Prompts and traces as tokens: traces read on from their prompts, and a prompt has one BOS."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from g2rpo_fast.data import DataConfig
from g2rpo_fast.data.prompts import load_prompts
from g2rpo_fast.embedded.task import ALPHABET
from g2rpo_fast.embedded.tokenizer import build_tokenizer
from g2rpo_fast.rollout.text_decoder import text_decoder
from g2rpo_fast.types import Prompt

TEXTS = [
    "Question: how many apples are there?\nAnswer: there are 312 of them.",
    "Sort 312. Steps:\n1 then 32, then 321\nDone.",
    "[user]What is 1+1=?[model]Two. It's 2 (two)!",
]
BOS, EOS, TURN = "<s>", "</s>", "<turn>"
BYTES = [f"<0x{i:02X}>" for i in range(256)]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<turn>{% endfor %}"
    "{% if add_generation_prompt %}model:{% endif %}"
)


def finished(tokenizer: Tokenizer, special: list[str]) -> PreTrainedTokenizerFast:
    """Trained on TEXTS, with a BOS that it puts in front."""
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if len(special) == 4 else [],
        show_progress=False,
        max_token_length=6,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, unk_token="<unk>",
        additional_special_tokens=[TURN],
    )  # fmt: skip
    fast.chat_template = CHAT_TEMPLATE
    return fast


def byte_level(*, prefix_space: bool = False) -> PreTrainedTokenizerFast:
    """As GPT-2, Llama 3, Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    return finished(tokenizer, ["<unk>", BOS, EOS, TURN])


def sentence_piece(scheme: str) -> PreTrainedTokenizerFast:
    """As Llama 2 and Gemma; "normalizer" is Llama 2's older form, without a pre-tokenizer."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if scheme == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return finished(tokenizer, ["<unk>", BOS, EOS, TURN, *BYTES])


class SlowTokenizer(PreTrainedTokenizer):
    """In Python: characters, a space before every text, a BOS before every prompt."""

    def __init__(self) -> None:
        self.ids = {text: i for i, text in enumerate(["<unk>", *map(chr, range(32, 127)), "\n"])}
        super().__init__(bos_token=BOS, eos_token=EOS, unk_token="<unk>", additional_special_tokens=[TURN])
        self.chat_template = CHAT_TEMPLATE

    @property
    def vocab_size(self) -> int:
        return len(self.ids)

    def get_vocab(self) -> dict[str, int]:
        return {**self.ids, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return list(text if text.startswith(" ") else f" {text}")

    def _convert_token_to_id(self, token: str) -> int:
        return self.ids.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return list(self.ids)[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens).removeprefix(" ")

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        assert isinstance(self.bos_token_id, int)
        return [self.bos_token_id, *token_ids_0]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        return 1


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "byte-level": byte_level,
    "byte-level, add_prefix_space": lambda: byte_level(prefix_space=True),
    "metaspace always": lambda: sentence_piece("always"),
    "metaspace first": lambda: sentence_piece("first"),
    "metaspace never": lambda: sentence_piece("never"),
    "prepending normalizer": lambda: sentence_piece("normalizer"),
    "in Python": SlowTokenizer,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return TOKENIZERS[request.param]()


def load(directory: Path, tokenizer: PreTrainedTokenizerBase, rows: Any, **config: Any) -> list[Prompt]:
    path = directory / "d.jsonl"
    path.write_text("".join(json.dumps({"answer": "2", "trace": None, **row}) + "\n" for row in rows))
    return list(load_prompts(str(path), DataConfig(**config), tokenizer, split="train").prompts)


def read(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> str:
    text = tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


PAIRS = [
    ("Answer:", " there are 312"), ("Steps:\n", "1 then 32"), ("Steps: ", "1 then"), ("Steps:", "  1"),
    ("app", "les"), ("x=", "= 2"), ("3", "12"), ("<turn>model", "Two."), ("a <turn>", "Two."), ("(", "two)"),
    ("it'", "s"), ("Steps:", "\n\n1"), ("Steps:", "=" * 40),
]  # fmt: skip


def test_trace_decodes_after_its_prompt_to_its_text(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    for prompt, (text, trace) in zip(
        load(tmp_path, tokenizer, [{"prompt": p, "trace": t} for p, t in PAIRS]), PAIRS, strict=True
    ):
        assert read(tokenizer, prompt.token_ids + prompt.trace_ids) == (
            read(tokenizer, prompt.token_ids) + trace
        )
        assert (
            list(prompt.token_ids) == tokenizer(text)["input_ids"]
        )  # as it is sampled from without guidance


@pytest.mark.parametrize("name", ["byte-level", "byte-level, add_prefix_space", "in Python"])
def test_trace_has_the_tokens_of_the_whole_text(name: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name]()
    (prompt,) = load(tmp_path, tokenizer, [{"prompt": "Sort 312. Steps:\n", "trace": "1 then 32"}])
    whole = tokenizer("Sort 312. Steps:\n1 then 32")["input_ids"]
    assert list(prompt.token_ids + prompt.trace_ids) == whole


@pytest.mark.parametrize("name", ["byte-level", "metaspace never"])
def test_trace_of_a_tokenizer_without_prefix_is_its_own_tokens(name: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name]()
    for prompt, (_, trace) in zip(
        load(tmp_path, tokenizer, [{"prompt": p, "trace": t} for p, t in PAIRS]), PAIRS, strict=True
    ):
        assert list(prompt.trace_ids) == tokenizer(trace, add_special_tokens=False)["input_ids"]


def test_embedded_ids_stay_as_they_are(tmp_path: Path) -> None:
    (prompt,) = load(tmp_path, build_tokenizer(ALPHABET), [{"prompt": "312:", "trace": "1>32;2>3"}])
    assert (prompt.token_ids, prompt.trace_ids) == ((6, 4, 5, 13), (4, 14, 6, 5, 15, 5, 14, 6))


def test_trace_that_no_tokens_continue_is_named(tmp_path: Path) -> None:
    words = Tokenizer(
        models.WordPiece({"<unk>": 0, "app": 1, "les": 2, "##les": 3, "of": 4}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<unk>")
    rows = [{"prompt": "app of", "trace": " apples"}, {"prompt": "app", "trace": "of"}]
    with pytest.raises(ValueError, match=r"1 rows whose trace .*\n  line 2: .*'trace'"):
        load(tmp_path, tokenizer, rows)
    (left,) = load(tmp_path, tokenizer, rows, on_bad_row="skip")
    assert (left.id, left.trace_ids) == ("train:1", (1, 3))


def test_one_bos_however_the_prompt_was_made(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "1+1="}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    row = {"prompt": "1+1=", "trace": "Two."}
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (row, {}),
        (row, {"chat": True}),
        (row, {"template": "<s>Q: {prompt}\nA:"}),
        ({**row, "prompt": rendered}, {}),
        ({**row, "prompt": f"<s>{rendered}"}, {}),
        ({**row, "prompt": f"\n{rendered}"}, {}),
    ]
    prompts = [load(tmp_path, tokenizer, [row], **config)[0] for row, config in cases]
    assert [prompt.token_ids.count(tokenizer.bos_token_id) for prompt in prompts] == [1] * len(cases)
    assert [prompt.trace_ids.count(tokenizer.bos_token_id) for prompt in prompts] == [0] * len(cases)
    assert list(prompts[0].token_ids) == tokenizer("1+1=")["input_ids"]
    assert [list(prompts[i].token_ids) for i in (1, 3, 4)] == [ids] * 3


def test_bos_that_is_also_the_end_may_separate_texts(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.eos_token = BOS  # as in OPT
    (prompt,) = load(tmp_path, tokenizer, [{"prompt": "1+1=2<s>1+2="}])
    assert prompt.token_ids[0] == tokenizer.bos_token_id
    assert prompt.token_ids.count(tokenizer.bos_token_id) == 2


def test_ids_of_a_padded_vocabulary_are_no_text(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("1+1", add_special_tokens=False)["input_ids"]
    decode = text_decoder(tokenizer)
    assert decode([*ids, 100_000, *ids]) == decode([*ids, *ids])
    assert decode([100_000]) == ""
