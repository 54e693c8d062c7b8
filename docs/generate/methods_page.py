"""Every method of the catalogue: a table by status, then an entry each."""

from __future__ import annotations

from collections.abc import Iterator

from g2rpo_fast.methods import EVIDENCE, STATUS, Method, load_methods
from g2rpo_fast.methods.show import command_of, settings_toml
from generate.as_markdown import block, code, prose, table

ARXIV = "https://arxiv.org/abs/"


def methods_page() -> str:
    methods = load_methods().values()
    labels = [(code(label), prose(meaning)) for label, meaning in EVIDENCE.items()]
    parts = ["## What an equation rests on", table(("evidence", "meaning"), labels)]
    for status, meaning in STATUS.items():
        some = [method for method in methods if method.status == status]
        if some:
            parts += [f"## {status}: {len(some)} ({meaning})", overview(some)]
    parts += ["## Each of them"]
    for method in methods:
        parts += [f"### {method.key}", *entry(method)]
    return "\n\n".join(parts)


def overview(methods: list[Method]) -> str:
    rows = [
        (f"[{code(m.key)}](#{m.key})", prose(m.name), paper(m), m.evidence, prose(m.summary)) for m in methods
    ]
    return table(("key", "name", "paper", "evidence", "what it does differently"), rows)


def paper(method: Method) -> str:
    return f"[{method.arxiv}]({ARXIV}{method.arxiv})" if method.arxiv else prose(method.source)


def entry(method: Method) -> Iterator[str]:
    """What `g2rpo-fast methods NAME` prints."""
    known_as = f", also {prose(', '.join(method.aliases))}" if method.aliases else ""
    yield f"**{prose(method.name)}** ({paper(method)}){known_as}: {prose(method.summary)}."
    marks = f"Status: {method.status} ({STATUS[method.status]}). Evidence: {method.evidence}"
    yield f"{marks} ({prose(EVIDENCE[method.evidence])})."
    if method.arxiv and method.source:
        yield f"Source: {prose(method.source)}"
    if method.why_not:
        yield prose(method.why_not)
    if method.equation:
        yield block(method.equation)
    for title, items in (
        ("Differs from GRPO", method.differs),
        ("Constants", (method.default,) if method.default else ()),
        ("Cost", (method.cost,)),
        ("Needs", method.needs or ("nothing more",)),
        ("Refuses", method.refuses or ("nothing",)),
        ("Not to be confused with", method.namesakes),
    ):
        if len(items) == 1:
            yield f"{title}: {prose(items[0])}"
        elif items:
            yield f"{title}:\n\n" + "\n".join(f"- {prose(item)}" for item in items)
    if method.watch:
        yield f"Watch the metric {code(method.watch)}."
    if method.settings:
        yield f"Its settings:\n\n```toml\n{settings_toml(method)}\n```"
    if method.runnable:
        yield f"Run it: {code(command_of(method))}"
