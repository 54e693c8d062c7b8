"""The embedded task: sort the digits of a number by selection, writing every step down.

    prompt  29141777:
    trace   1>2941777;1>294777;2>94777;4>9777;7>977;7>97;7>9      (smallest digit > what is left)
    answer  11247779                                              (after "#")

A row is solved when the response ends by itself and its text after the last "#" equals the answer. Guessing
has a chance of about zero, and the answer can be copied from a correct trace, so a prefix of it is real help.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

ALPHABET = "0123456789:>;#"
"""Every character that a row can contain."""
ANSWER_MARKER = "#"

Row = dict[str, str]


def selection_sort_row(digits: str) -> Row:
    """The columns `prompt`, `trace` and `answer` of one number.

    `prompt + trace + "#" + answer` is a perfect transcript.
    """
    left, steps = digits, []
    while len(left) > 1:
        smallest = min(left)
        left = left.replace(smallest, "", 1)
        steps.append(f"{smallest}>{left}")
    return {"prompt": f"{digits}:", "trace": ";".join(steps), "answer": "".join(sorted(digits))}


def response_text(row: Row) -> str:
    """What a perfect model answers to the row's prompt."""
    return f"{row['trace']}{ANSWER_MARKER}{row['answer']}"


def draw_digits(rng: np.random.Generator, length: int) -> str:
    """`length` independent uniform digits."""
    return "".join(map(str, rng.integers(0, 10, size=length)))


def draw_rows(
    rng: np.random.Generator, lengths: Sequence[int], count: int, exclude: Collection[str] = ()
) -> list[Row]:
    """`count` rows with distinct prompts, lengths drawn uniformly from `lengths` (repeat one to weight it).

    Prompts in `exclude` are never drawn.
    """
    seen, rows = set(exclude), []
    while len(rows) < count:
        row = selection_sort_row(draw_digits(rng, int(rng.choice(lengths))))
        if row["prompt"] not in seen:
            seen.add(row["prompt"])
            rows.append(row)
    return rows
