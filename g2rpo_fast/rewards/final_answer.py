"""Where a response says its final answer: text in, text out, nothing computed.

What counts is the text after the thought; an answer inside a thought that never closes is not final. In this
order: the last \\boxed{} or \\fbox{}, the last <answer>...</answer>, the line after the last "####", the
clause after the last "answer is" or "Answer:".
"""

from __future__ import annotations

import re

from g2rpo_fast.types import Rollout

THOUGHT = re.compile(r"<(/?)(?:think|thinking|thought|reasoning)>|\[(/?)THINK\]", re.IGNORECASE)
_BOX = re.compile(r"\\f?box(?:ed)?\s*(?=\{)|\\boxed (?=[^\s{])")
_ANSWER_TAG = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)
_PHRASE = re.compile(r"\banswer[*_`]{0,3}\s*(?:is|:|=)(?:\s*:)?", re.IGNORECASE)
_CLAUSE_END = re.compile(
    r"\n|[.!?](?=\s|$)|[,;](?=\s)|\s\(|\s(?:since|because|as|which|so|where|but|for)\s", re.IGNORECASE
)

_REASON = re.compile(r"\s(?:since|because|as|which|so|where)\s|(?<=[\d}$*)])[.!?]\s", re.IGNORECASE)


def after_thought(response: str, opened: bool = False) -> str | None:
    """What stands after the last thought, all where there is none; None when a thought is still open.

    `opened`: the prompt itself opened one.
    """
    start = 0
    for mark in THOUGHT.finditer(response):
        opened = not (mark[1] or mark[2])
        start = start if opened else mark.end()
    return None if opened else response[start:]


def opens_thought(prompt_tail: str) -> bool:
    """Whether a thought is open where the response begins."""
    return after_thought(prompt_tail) is None


def final_text(response: str, rollout: Rollout | None, *, pay_truncated: bool) -> str | None:
    """Where to look for a final answer: after the thought. None when there can be none: the response was cut
    off before its end, or its thought never closes."""
    if rollout is not None and rollout.finish_reason != "stop" and not pay_truncated:
        return None
    return after_thought(response, isinstance(rollout, Rollout) and opens_thought(rollout.prompt.opening))


def marked_answer(text: str) -> str | None:
    """The final answer where `text` marks one; "" for a mark with nothing behind it (or a box that never
    closes); None without a mark."""
    boxes = list(_BOX.finditer(text))
    if boxes:
        return _boxed(text, boxes[-1].end())
    tagged = _ANSWER_TAG.findall(text)
    if tagged:
        return tagged[-1].strip()
    _, marker, final = text.rpartition("####")
    if marker:
        return _REASON.split(_first_line(final), maxsplit=1)[0]
    phrases = list(_PHRASE.finditer(text))
    if phrases:
        return _clause(text[phrases[-1].end() :])
    return None


def _boxed(text: str, start: int) -> str:
    """The content of the braces that open at `start`; the next word where none do."""
    if text[start] != "{":
        return re.split(r"[\s$]", text[start:], maxsplit=1)[0]
    depth = 0
    for index in range(start, len(text)):
        escaped = text[index - 1] == "\\" and text[index - 2] != "\\"
        depth += 0 if escaped else {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[start + 1 : index].strip()
    return ""


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].strip()


def _clause(text: str) -> str:
    """Up to the end of the clause; markdown's stars may stand before it."""
    text = text.lstrip(" \t*_`:\n")
    return _CLAUSE_END.split(text, maxsplit=1)[0].strip()
