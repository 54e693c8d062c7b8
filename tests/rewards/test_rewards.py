"""Rewards stage: channels, user functions, errors, and the process that compares mathematics."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from g2rpo_fast.config import load_config
from g2rpo_fast.rewards import RewardConfig, RewardError
from g2rpo_fast.rewards.loading import load_rewards
from g2rpo_fast.rewards.math_answer import MathVerify
from g2rpo_fast.rewards.scoring import score
from g2rpo_fast.types import FinishReason, Prompt, Rollout


def rollout_of(
    text: str, answer: str = "72", finish: FinishReason = "stop", member: int = 0, tail: str = ""
) -> Rollout:
    ids = tuple(range(len(text)))
    return Rollout(
        prompt=Prompt(id="train:5", text="q", token_ids=(1,), answer=answer, tail=tail, row={"level": 3}),
        group=0,
        member=member,
        training_prompt_ids=(1,),
        sampling_prompt_ids=(1,),
        response_ids=ids,
        guidance_len=0,
        loss_mask=np.ones(len(ids), dtype=np.bool_),
        rollout_logp=np.zeros(len(ids), dtype=np.float32),
        text=text,
        finish_reason=finish,
        weight_version=0,
    )


@pytest.fixture(scope="module")
def judge() -> Iterator[MathVerify]:
    judge = MathVerify(timeout_s=30.0)
    yield judge
    judge.close()


@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [
        ("so\n#### 72", "72", 1.0),
        ("so\n#### 1,000", "1000", 1.0),
        ("#### $72 dollars", "72", 1.0),
        ("#### \\$72", "72", 1.0),
        ("#### 72\n\nQuestion: 5 apples?", "72", 1.0),
        ("#### \\frac{1}{2}", "0.5", 1.0),
        ("#### 5 then #### 72", "72", 1.0),
        ("thus \\boxed{\\frac{1}{2}}", "0.5", 1.0),
        ("no, \\boxed{3}; yes, \\boxed{72}", "72", 1.0),
        ("\\boxed{72} beats #### 5", "72", 1.0),
        ("\\boxed{2+x}", "x+2", 1.0),
        ("it is 72.", "72", 1.0),
        ("\\boxed{1/3}", "\\frac{2}{6}", 1.0),
        ("#### 27", "72", 0.0),
        ("72 #### 73", "72", 0.0),
        ("\\boxed{72}, no, \\boxed{5}", "72", 0.0),
        ("", "72", 0.0),
        ("\\boxed{", "72", 0.0),
        ("\ud800", "72", 0.0),
    ],
)
def test_math_equality(judge: MathVerify, response: str, answer: str, expected: float) -> None:
    assert judge(response, answer, rollout_of(response, answer)) == expected


def test_math_survives_pathological_answers(judge: MathVerify, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = rollout_of("")
    before = judge.num_abandoned
    monkeypatch.setattr(judge, "timeout_s", 2.0)
    for response in ("\\boxed{x^{9^{9^{9}}}}", "\\boxed{x(((20!)!)!)!}"):
        start_s = time.monotonic()
        assert judge(response, "y^2", rollout) == 0.0
        assert time.monotonic() - start_s < 30
    monkeypatch.undo()
    assert judge.num_abandoned > before
    assert judge("\\boxed{\\sqrt{4}}", "2", rollout) == 1.0  # a fresh process took over


def test_math_works_outside_the_main_thread(judge: MathVerify) -> None:
    results: list[float] = []

    def work() -> None:
        results.append(judge("\\boxed{\\sqrt{4}}", "2", rollout_of("")))
        results.append(judge("\\boxed{\\sqrt{5}}", "2", rollout_of("")))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [0.0] * 4 + [1.0] * 4


def test_math_refuses_an_empty_reference(judge: MathVerify) -> None:
    with pytest.raises(ValueError, match="cannot parse the reference answer ''"):
        judge("72", "", rollout_of("72"))


def test_math_process_killed_from_outside_is_replaced(judge: MathVerify) -> None:
    assert judge("\\boxed{\\sqrt{4}}", "2", rollout_of("")) == 1.0
    judge._process.kill()
    judge._process.wait()
    before = judge.num_abandoned
    assert judge("\\boxed{\\sqrt{4}}", "2", rollout_of("")) == 1.0
    assert judge.num_abandoned == before


def test_math_process_ends_with_its_owner() -> None:
    judge = MathVerify()
    process = judge._process
    assert process.poll() is None
    del judge
    assert process.poll() is not None


CUT_OFF = [
    ("so #### 12", "12"),  # it was writing 1250
    ("\\boxed{12}", "12"),
    ("\\boxed{72} hm, no: \\boxed{", "72"),
    ("<think>Let me see. 6 * 3 = 18", "18"),
    ("1 2 3 4 5 6 7 8 9 10 11 12", "12"),
]


@pytest.mark.parametrize("function", ["math", "exact_match"])
@pytest.mark.parametrize(("text", "answer"), CUT_OFF)
def test_response_that_was_cut_off_earns_nothing(function: str, text: str, answer: str) -> None:
    rewards = load_rewards(RewardConfig(functions=(function,)))
    assert score(rewards, [rollout_of(text, answer, "length")]).total_R.tolist() == [0.0]


@pytest.mark.parametrize("function", ["math", "exact_match"])
def test_response_that_was_cut_off_is_paid_on_request(function: str) -> None:
    rewards = load_rewards(RewardConfig(functions=(function,), pay_truncated=True))
    rollouts = [rollout_of("so #### 12", "12", "length"), rollout_of("<think>#### 12", "12", "length")]
    assert score(rewards, rollouts).total_R.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("function", ["math", "exact_match"])
def test_answer_inside_a_thought_that_the_prompt_opened_is_not_final(function: str) -> None:
    (reward,) = load_rewards(RewardConfig(functions=(function,))).functions
    rollout = rollout_of("")
    thinking = replace(rollout, prompt=replace(rollout.prompt, tail="<think>\n"))
    for text, prefilled, plain in (
        ("so #### 72", 0.0, 1.0),
        ("so #### 5</think> #### 72", 1.0, 1.0),
        ("<think>#### 72", 0.0, 0.0),
        ("so #### 72</think>", 0.0, 0.0),
    ):
        assert (reward(text, "72", thinking), reward(text, "72", rollout)) == (prefilled, plain)


GSM8K_FINALS = [
    ("Randy has 60 * 2 + 10 trees.\n#### 1,450", "1450"),
    ("She earns 5,600 + 400.\n#### 6,000", "6000"),
    ("The house is now worth more.\n#### 1,000,000", "1000000"),
    ("It fell below zero.\n#### -10", "-10"),
    ("so\n#### $18", "18"),
    ("so\n#### $ 18.00 ", "18"),
    ("so\n#### 18.", "18"),
    ("so\n#### 2.50", "2.5"),
    ("so\n#### 1 000", "1,000"),
    ("so\n#### \u22125", "-5"),
    ("so\n#### 0.5", ".5"),
    ("so\n####18", "18"),
]


@pytest.mark.parametrize("function", ["math", "exact_match"])
def test_numbers_of_worked_solutions_are_right_however_they_are_written(function: str) -> None:
    """1,450 and -10 are the awkward forms of GSM8K's own solutions; all of them are in test_gsm8k_run.py."""
    rewards = load_rewards(RewardConfig(functions=(function,)))
    paid = score(rewards, [rollout_of(text, answer) for text, answer in GSM8K_FINALS]).total_R
    assert paid.tolist() == [1.0] * len(GSM8K_FINALS)


@pytest.mark.parametrize(
    ("text", "answer", "paid"),
    [
        ("#### 1", "", 0.0),
        ("####", "", 0.0),
        ("so", "", 0.0),
        ("####", "1", 0.0),
        ("#### 01", "1", 0.0),
        ("#### 18 19", "1819", 0.0),
        ("#### 1,23", "123", 0.0),
        ("#### 18 dollars", "18", 0.0),
        ("#### Tuesday", "Tuesday", 1.0),
    ],
)
def test_exact_match_is_of_text_and_of_no_empty_reference(text: str, answer: str, paid: float) -> None:
    (function,) = load_rewards(RewardConfig(functions=("exact_match",))).functions
    assert function(text, answer, rollout_of(text, answer)) == paid


def test_exact_match_ends_at_the_closing_tag_of_its_marker() -> None:
    (function,) = load_rewards(RewardConfig(functions=("exact_match",), answer_marker="<answer>")).functions
    for text in ("so <answer>72</answer>", "so <answer> 72", "<answer>72</answer> is right"):
        assert function(text, "72", rollout_of(text)) == 1.0


def test_gsm8k_preset_stops_before_a_question_of_the_models_own() -> None:
    assert load_config("gsm8k").rollout.stop_strings == ("\nQuestion:",)


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        ("a#72", "stop", 1.0),
        ("a#5#72 ", "stop", 1.0),
        ("a#72", "length", 0.0),
        ("a#72#", "stop", 0.0),
        ("a#721", "stop", 0.0),
        ("72", "stop", 0.0),
    ],
)
def test_exact_match_needs_marker_and_end(text: str, finish: FinishReason, expected: float) -> None:
    rewards = load_rewards(RewardConfig(functions=("exact_match",), answer_marker="#"))
    assert score(rewards, [rollout_of(text, finish=finish)]).total_R.tolist() == [expected]


@pytest.mark.parametrize(
    ("tail", "text", "expected"),
    [
        ("", "<think>a\nb</think>\n7", 1.0),
        ("", " <think></think>7", 1.0),
        ("", "<think>a</think> \n", 0.0),
        ("", "x<think>a</think>7", 0.0),
        ("", "<think>a 7", 0.0),
        ("", "a</think>7", 0.0),
        ("", "</think>a<think>7", 0.0),
        ("", "</think><think>a</think>7", 0.0),
        ("", "<think>a</think>7</think>8", 0.0),
        ("", "<think>a</think>7<think>b</think>8", 0.0),
        ("", "<think>a<think>b</think>8", 0.0),
        ("<think>\n", "a</think>7", 1.0),
        ("<think>\n", "<think>a</think>7", 0.0),
        ("<think>\n", "a 7", 0.0),
        ("<think>\n", "a</think>\n", 0.0),
        ("<think>\n\n</think>\n\n", "7", 1.0),
        ("<think>\n\n</think>\n\n", "<think>a</think>7", 0.0),
        (":\n", "<think>a</think>7", 1.0),
    ],
)
def test_format_is_one_thought_and_an_answer_with_what_the_prompt_opened(
    tail: str, text: str, expected: float
) -> None:
    rewards = load_rewards(RewardConfig(functions=("format",)))
    assert score(rewards, [rollout_of(text, tail=tail)]).total_R.tolist() == [expected]
    if not tail:
        assert rewards.functions[0](text, "72", None) == expected  # type: ignore[arg-type]


def test_a_prompt_that_was_made_by_hand_opens_what_its_text_ends_with() -> None:
    rewards = load_rewards(RewardConfig(functions=("format", "math")))
    made = rollout_of("a</think>72")
    made = replace(made, prompt=replace(made.prompt, text="<|im_start|>assistant\n<think>\n"))
    twice, unclosed = replace(made, text="<think>a</think>72"), replace(made, text="it is 72")
    assert score(rewards, [made, twice, unclosed]).reward_RK.tolist() == [[1, 1], [0, 1], [0, 0]]


def test_a_format_pattern_of_ones_own_must_match_the_response_by_itself() -> None:
    rewards = load_rewards(RewardConfig(functions=("format",), format_pattern=r"[a-z\s]*.</think>.+"))
    rollouts = [rollout_of("a\n</think>7", tail="<think>"), rollout_of("<think>a</think>7", tail="<think>")]
    assert score(rewards, rollouts).total_R.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("function", ["math", "exact_match"])
def test_an_answer_in_a_thought_that_the_prompt_opened_is_not_final(function: str) -> None:
    rewards = load_rewards(RewardConfig(functions=(function,)))
    texts = ["it is\n#### 72", "it is\n#### 7</think>\n#### 72"]
    rollouts = [rollout_of(text, tail="<think>\n") for text in texts]
    assert score(rewards, rollouts).total_R.tolist() == [0.0, 1.0]


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the current directory, which is not on the path."""
    name = "rewards_of_a_user"
    (tmp_path / f"{name}.py").write_text(
        "import math\n"
        "NUMBER = 3\n"
        "def length(response, answer, rollout):\n"
        "    return len(response) / 10 + rollout.prompt.row['level']\n"
        "def boolean(response, answer, rollout):\n"
        "    return response == answer\n"
        "def fails(response, answer, rollout):\n"
        "    return {}[response]\n"
        "def nan(response, answer, rollout):\n"
        "    return math.nan\n"
        "def text(response, answer, rollout):\n"
        "    return '1.0'\n"
        "def nothing(response, answer, rollout):\n"
        "    return None\n"
    )
    (tmp_path / "broken_of_a_user.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


def test_channels_are_weighted_and_summed(user_module: str) -> None:
    length, boolean = f"{user_module}:length", f"{user_module}:boolean"
    config = RewardConfig(functions=(length, boolean), weights={length: 0.5}, accuracy=boolean)
    rewards = score(load_rewards(config), [rollout_of("72"), rollout_of("other")])
    assert rewards.channels == (length, boolean)
    np.testing.assert_allclose(rewards.reward_RK, [[3.2, 1.0], [3.5, 0.0]], rtol=1e-15)
    np.testing.assert_allclose(rewards.total_R, [2.6, 1.75], rtol=1e-15)
    assert rewards.weight_K.tolist() == [0.5, 1.0]
    assert rewards.accuracy_R.tolist() == [1.0, 0.0]
    assert rewards.reward_RK.dtype == rewards.total_R.dtype == np.float64


def test_first_channel_is_accuracy_and_no_rollouts_are_fine(user_module: str) -> None:
    rewards = load_rewards(RewardConfig(functions=(f"{user_module}:length", f"{user_module}:boolean")))
    assert score(rewards, [rollout_of("72")]).accuracy_R.tolist() == [1.0]
    assert score(rewards, []).reward_RK.shape == (0, 2)


@pytest.mark.parametrize(
    ("function", "problem", "cause"),
    [
        ("fails", "KeyError: '72, wrong'", KeyError),
        ("nan", "wanted a finite number, got nan", type(None)),
        ("text", "wanted a number, got str", type(None)),
    ],
)
def test_failing_reward_names_prompt_channel_member_and_text(
    user_module: str, function: str, problem: str, cause: type
) -> None:
    channel = f"{user_module}:{function}"
    rollout = rollout_of("72, wrong", member=3)
    with pytest.raises(RewardError) as caught:
        score(load_rewards(RewardConfig(functions=(channel,))), [rollout])
    for part in (f"reward {channel!r}", "prompt train:5", "member 3", problem, "begins '72, wrong'"):
        assert part in str(caught.value)
    assert isinstance(caught.value.__cause__, cause)
    assert caught.value.rollout is rollout
    assert (caught.value.prompt_id, caught.value.channel) == ("train:5", channel)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("maths", "wanted math, exact_match, format, reasoning_gym, code or module:function, got 'maths'"),
        (":x", "got ':x'"),
        ("no_such_module_at_all:x", "importing 'no_such_module_at_all' .* ModuleNotFoundError"),
        ("broken_of_a_user:x", "importing 'broken_of_a_user' .* ZeroDivisionError"),
        (
            "rewards_of_a_user:absent",
            "wanted a function 'absent' in .*rewards_of_a_user.py, got no such name",
        ),
        ("rewards_of_a_user:NUMBER", "wanted a function 'NUMBER' in .*, got int"),
    ],
)
def test_function_that_cannot_be_loaded_is_named(user_module: str, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"reward\.functions: .*{message}"):
        load_rewards(RewardConfig(functions=(name,)))


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"functions": ()}, "functions"),
        ({"functions": ("math", "math")}, "functions"),
        ({"weights": {"format": 1.0}}, "weights"),
        ({"weights": {"math": math.inf}}, "weights.math"),
        ({"accuracy": "format"}, "accuracy"),
        ({"answer_marker": ""}, "answer_marker"),
        ({"success": math.nan}, "success"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"concurrency": 0}, "concurrency"),
        ({"format_pattern": "("}, "format_pattern"),
    ],
)
def test_config_refuses_what_cannot_work(values: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=rf"reward\.{key}: wanted"):
        RewardConfig(**values)
