"""Rewards that look at the text only."""

from __future__ import annotations

import re

from g2rpo_fast.rewards.config import RewardConfig
from g2rpo_fast.rewards.final_answer import final_text
from g2rpo_fast.rewards.function import RewardFunction
from g2rpo_fast.types import Rollout

OPEN, CLOSE = "<think>", "</think>"

_NUMERAL = re.compile(r"([-+]?) ?[$]? ?([-+]?)(\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d*)(?:\.(\d*))?")


class ExactMatch:
    """The reward "exact_match": 1 when the response ended by itself and the text after its last marker is the
    answer, else 0. A marker such as <answer> ends at its </answer>.

    Spaces around both do not count, nor in a number: a dollar sign, the separators of thousands, a plus sign,
    zeros after the decimals, a last point. Leading zeros do. An empty reference earns nothing.
    """

    def __init__(self, config: RewardConfig) -> None:
        self.marker = config.answer_marker
        self.pay_truncated = config.pay_truncated

    def __call__(self, response: str, answer: str, rollout: Rollout | None) -> float:
        final, wanted = self.final_answer(response, rollout), one_spelling(answer)
        return float(final is not None and wanted != "" and final == wanted)

    def final_answer(self, response: str, rollout: Rollout | None) -> str | None:
        """What is compared, in one spelling; None where the response gives no answer."""
        if final_text(response, rollout, pay_truncated=self.pay_truncated) is None:
            return None
        _, marker, final = response.rpartition(self.marker)
        if marker.startswith("<") and marker.endswith(">"):
            final = final.partition(f"</{marker[1:]}")[0]
        return one_spelling(final) if marker else None

    def check_reference(self, answer: str, row: object = None) -> str | None:
        """Why this reference cannot be compared with; None when it can."""
        return None if one_spelling(answer) else "the reference answer is empty"


def one_spelling(text: str) -> str:
    """A text without the spaces around it; of a number, sign and digits only, and the decimals it needs."""
    text = text.strip().replace("\\$", "$").replace("−", "-")
    found = _NUMERAL.fullmatch(text)
    if not found or not (found[3] or found[4]):
        return text
    whole, decimals = re.sub("[ ,]", "", found[3]), (found[4] or "").rstrip("0")
    sign = "-" if "-" in (found[1], found[2]) and (whole + decimals).strip("0") else ""
    return sign + (whole or "0") + (f".{decimals}" if decimals else "")


def format_match(config: RewardConfig) -> RewardFunction:
    """1 when the response is a thought and then an answer (`thinks_then_answers`), else 0.

    A `<think>` that the prompt ends with (`Prompt.opening`) belongs to it: the response then is the rest of
    the thought, `</think>` and the answer. A `format_pattern` of one's own must match the whole response by
    itself. A response that was cut off counts as far as it goes.
    """
    pattern = None if config.format_pattern is None else re.compile(config.format_pattern, re.DOTALL)

    def reward(response: str, answer: str, rollout: Rollout | None) -> float:
        if pattern is not None:
            return float(pattern.fullmatch(response) is not None)
        tail = rollout.prompt.opening if isinstance(rollout, Rollout) else ""
        return float(thinks_then_answers(tail[tail.find(OPEN) :] + response if OPEN in tail else response))

    return reward


def thinks_then_answers(text: str) -> bool:
    """Whether a text is one `<think>...</think>` and something after it, with nothing but space before."""
    before, _, rest = text.partition(OPEN)
    _, closed, answer = rest.partition(CLOSE)
    once = OPEN not in rest and CLOSE not in before + answer
    return bool(closed) and once and not before.strip() and bool(answer.strip())
