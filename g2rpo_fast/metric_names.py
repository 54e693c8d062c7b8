"""What every metric of metrics.jsonl and every column of the terminal means: one table.

A name may hold alternatives in braces, as a shell has them, and a word in capitals that stands for any name.
"""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Iterable
from itertools import product
from typing import NamedTuple


class Metric(NamedTuple):
    """One line of the table, or several by braces."""

    name: str
    unit: str
    what: str
    over: str = ""
    """What it is a mean over; "" = it is no mean."""
    source: str = ""
    """Where it is measured."""

    @property
    def names(self) -> list[str]:
        """With each alternative; a word in capitals stays."""
        parts = re.split(r"\{(.*?)\}", self.name)
        return ["".join(choice) for choice in product(*(part.split(",") for part in parts))]

    def explains(self, name: str) -> bool:
        return any(re.fullmatch(re.sub("[A-Z]{3,}", ".+", known), name) for known in self.names)


SPLITS = "rollout/{,guided/,unguided/}"
ROWS = "all rollouts of the step; guided/: those that begin with guidance, unguided/: the others"
TOKENS = "trained tokens with a weight, shared ones once"
TOKENS_OF_ROWS = "tokens of padded rows"
ACTIVE = "trained tokens with an advantage (sequence ratios: of each row)"
SAMPLED = "sampled tokens that carry loss"
SEEN = "old policy of the trainer against the engine, before the update"
ENGINE = "vllm engine, since the last record"

METRICS = (
    Metric("step", "steps", "rollout batches trained on; record 0 is of the weights before them", "", "loop"),
    Metric("loss", "", "the objective's value", "optimiser steps, each normalised over its batch", "update"),
    Metric("eval/accuracy", "share", "success without guidance", "held-out completions", "evaluation"),
    Metric("eval/reward", "reward", "weighted sum of the channels", "held-out completions", "evaluation"),
    Metric("eval/length", "tokens", "sampled tokens of a response", "held-out completions", "evaluation"),
    Metric("eval/finished", "share", "ended by themselves", "held-out completions", "evaluation"),
    Metric("eval/rows", "completions", "how many the other eval/ metrics are means over", "", "evaluation"),
    Metric(
        "guidance/length",
        "tokens, or share of the trace (guidance.unit)",
        "l, the length that the controller or schedule asks for; a shorter trace gives less",
        "",
        "guidance, as the step begins",
    ),
    Metric("reward/CHANNEL", "reward", "one channel as paid", "rows that the channel applies to", "rewards"),
    Metric("reward/shaped", "reward", "the sum that credit begins with", "rows trained on", "shaping"),
    Metric("reward/abandoned", "answers", "comparisons that took too long and count as wrong", "", "rewards"),
    Metric("reward/timed_out", "programs", "of the reward code, over its time", "", "rewards"),
    Metric("reward/crashed", "calls", "whose process died twice: the channel does not apply", "", "rewards"),
    Metric(SPLITS + "reward", "reward", "weighted sum of the channels, before shaping", ROWS, "rewards"),
    Metric(
        SPLITS + "reward_std",
        "reward",
        "standard deviation of that sum, over the same rollouts",
        "",
        "rewards",
    ),
    Metric(SPLITS + "accuracy", "share", "success by the channel that counts as accuracy", ROWS, "rewards"),
    Metric(SPLITS + "length", "tokens", "sampled tokens of a response, guidance apart", ROWS, "rollout"),
    Metric(SPLITS + "finished", "share", "ended by themselves, not by rollout.max_tokens", ROWS, "rollout"),
    Metric(SPLITS + "nll", "nats", "-log p of sampled tokens as sampled: estimates entropy", ROWS, "rollout"),
    Metric(SPLITS + "share", "share", "of the step's rollouts", ROWS, "rollout"),
    Metric("rollout/zero_signal", "share", "advantages all zero: they teach nothing", "groups", "credit"),
    Metric("rollout/rows", "rollouts", "sampled for the step, in all rounds", "", "rollout"),
    Metric("rollout/trained_rows", "rollouts", "those that the rounds settle on", "", "rounds"),
    Metric("rollout/guidance_tokens", "tokens", "of guidance, given and not sampled, in all", "", "rollout"),
    Metric("rollout/sampled_tokens", "tokens", "sampled, in all", "", "rollout"),
    Metric(
        "rollout/staleness",
        "updates",
        "between the weights that drew a token and those that the update starts from",
        "sampled tokens",
        "rollout",
    ),
    Metric("rollout/staleness_max", "updates", "the largest of these", "", "rollout"),
    Metric("rollout/horizon", "tokens", "most tokens of a response in this step", "", "rounds.horizon"),
    Metric("update/entropy", "nats", "of the policy's next-token distribution", TOKENS, "update"),
    Metric("update/logp", "nats", "log-probability under the policy in training", TOKENS, "update"),
    Metric("update/ratio", "", "policy over old policy, exp(logp - old_logp)", ACTIVE, "terms"),
    Metric("update/approx_kl", "nats", "k3 estimate of KL(old policy || policy)", ACTIVE, "terms"),
    Metric("update/clipped", "share", "with no gradient left, for the ratio is too far", ACTIVE, "terms"),
    Metric("update/kl", "nats", "estimate of KL(policy || reference policy)", TOKENS, "terms.kl"),
    Metric("update/importance_raw", "", "trainer over engine, exp(logp - rollout_logp)", SAMPLED, "update"),
    Metric("update/importance", "", "the same after the bounds, as it is used", SAMPLED, "update"),
    Metric("update/importance_outside", "share", "out of the bounds", SAMPLED, "update"),
    Metric("update/router_aux", "", "what balances experts, before its factor", TOKENS_OF_ROWS, "update"),
    Metric("update/positions", "tokens", "in the packed trees: what the backbone encodes", "", "tree"),
    Metric("update/micro_batches", "micro-batches", "of a pass over the batch", "", "tree"),
    Metric(
        "update/token_ratio",
        "",
        "tokens of padded rows over update/positions: what sharing saves",
        "",
        "tree",
    ),
    Metric(
        "update/ratio_if_shared",
        "",
        "the same, had the rows shared prefixes; where they do not",
        "",
        "tree.sharing",
    ),
    Metric("mismatch/mean_abs", "nats", "|old_logp - rollout_logp|", SAMPLED, SEEN),
    Metric("mismatch/max_abs", "nats", "the largest of these", "", SEEN),
    Metric("mismatch/k3", "nats", "estimate of KL(engine || trainer)", SAMPLED, SEEN),
    Metric("mismatch/routing", "share", "of (token, layer) that went to other experts", SAMPLED, SEEN),
    Metric("mismatch/ess_raw", "share", "effective sample size of the weights, before bounds", "", SEEN),
    Metric("mismatch/ess", "share", "effective sample size of the weights as they are used", "", SEEN),
    Metric("mismatch/outside", "share", "weights out of their bounds", "tokens or rows", SEEN),
    Metric("optim/lr", "", "learning rate", "", "optim"),
    Metric("optim/grad_norm", "", "norm of the last gradient, before it is cut", "", "optim"),
    Metric("optim/skipped", "optimiser steps", "left out: the gradient was not finite", "", "optim"),
    Metric("optim/bad_updates", "passes", "last ones in a row in which all were left out", "", "optim"),
    Metric("credit/rank_{mean,std}", "reward", "running averages over the steps so far", "", "credit.rank"),
    Metric("credit/entropy", "nats", "of the last update, as estimated", "", "token_credit.hotter"),
    Metric("weights/length_power", "", "exponent that is learned", "", "weights.learned_length"),
    Metric("shaping/length_budget", "tokens", "L, as it shrinks", "", "shaping.length_budget"),
    Metric("terms/kl_coef", "", "coefficient under control", "", "terms.kl_controlled"),
    Metric("engine/tokens_per_s", "tokens/s", "sampled while the engine generated", "", ENGINE),
    Metric("engine/sync_s", "s", "sending the weights", "", ENGINE),
    Metric("engine/pack_s", "s", "of these, packing them", "", ENGINE),
    Metric("engine/sync_bytes", "bytes", "of weights sent", "", ENGINE),
    Metric("engine/weight_version", "updates", "made to the weights that it samples by", "", ENGINE),
    Metric("engine/restarts", "engines", "started anew since the run or its continuation began", "", ENGINE),
    Metric("engine/rung_plan", "0 or 1", "1: weights go by the recorded plan of copies", "", ENGINE),
    Metric("time/rollout_s", "s", "sampling; with run.ahead = 1 waiting for it", "", "wall clock"),
    Metric("time/reward_s", "s", "decoding and rewards", "", "wall clock"),
    Metric("time/update_s", "s", "credit, forward, backward, optimiser", "", "wall clock"),
    Metric("time/sync_s", "s", "weights to the engine", "", "wall clock"),
    Metric("time/evaluate_s", "s", "held-out completions, when due", "", "wall clock"),
    Metric("time/step_s", "s", "all of these and what lies between", "", "wall clock"),
)


class Column(NamedTuple):
    """A column of the terminal."""

    heading: str
    reads: tuple[str, ...]
    what: str


COLUMNS = (
    Column("step", ("step",), "of how many"),
    Column("eval", ("eval/accuracy",), "held-out accuracy, where it was measured"),
    Column("accuracy", ("rollout/accuracy",), "of all rollouts"),
    Column("guided", ("rollout/guided/accuracy",), "of rollouts with guidance"),
    Column("alone", ("rollout/unguided/accuracy",), "of rollouts without"),
    Column("l", ("guidance/length",), "length of guidance asked for; - where there is none"),
    Column("length", ("rollout/length",), "sampled tokens of a response"),
    Column("no signal", ("rollout/zero_signal",), "groups that teach nothing"),
    Column("ratio", ("update/token_ratio",), "tokens of padded rows over tokens encoded"),
    Column(
        "tok/s",
        ("engine/tokens_per_s", "rollout/sampled_tokens", "time/rollout_s"),
        "sampled tokens a second: the engine's figure, or tokens over seconds of sampling",
    ),
    Column("s/step", ("time/step_s",), "seconds of the step"),
    Column("(roll upd)", ("time/rollout_s", "time/update_s"), "their shares of the step"),
    Column("left", (), "seconds until the last step, at the mean pace since this process began"),
)


def metric_of(name: str) -> Metric | None:
    """The line that explains a name of metrics.jsonl: one that says it in full before a pattern."""
    found = [metric for metric in METRICS if metric.explains(name)]
    return next((m for m in found if name in m.names), found[0] if found else None)


def explained(word: str | None, *, width: int) -> str:
    """All of it, or what a word means: a metric, the beginning of several, or a column.

    Raises:
        ValueError: nothing goes by the word; the nearest names are told.
    """
    columns = [column for column in COLUMNS if word in (None, column.heading)]
    exact = metric_of(word) if word else None
    metrics = [exact] if exact else [m for m in METRICS if word is None or _begins(m, word)]
    if not columns and not metrics:
        known = [name for metric in METRICS for name in metric.names] + [c.heading for c in COLUMNS]
        near = difflib.get_close_matches(str(word), known, n=3)
        hint = f"the nearest are {', '.join(near)}" if near else "`g2rpo-fast metrics` lists all"
        raise ValueError(f"metrics: wanted a metric, the beginning of one or a column, got {word!r}; {hint}")
    titles = ("metrics.jsonl: one record a step, null = nothing to measure", "columns of the terminal")
    parts = [_block(_metric_line(m, width) for m in metrics), _block(_column_line(c, width) for c in columns)]
    shown = zip(titles, parts, strict=True)
    return "\n\n".join(f"{title}\n\n{part}" if word is None else part for title, part in shown if part)


def _begins(metric: Metric, word: str) -> bool:
    return any(name.startswith(word) for name in metric.names)


def _block(lines: Iterable[str]) -> str:
    return "\n".join(lines)


def _metric_line(metric: Metric, width: int) -> str:
    unit = f" [{metric.unit}]" if metric.unit else ""
    over = f"; mean over {metric.over}" if metric.over else ""
    return _entry(f"{metric.name}{unit}", f"{metric.what}{over} ({metric.source})", width)


def _column_line(column: Column, width: int) -> str:
    reads = f" ({', '.join(column.reads)})" if column.reads else ""
    return _entry(column.heading, f"{column.what}{reads}", width)


def _entry(name: str, text: str, width: int) -> str:
    body = textwrap.fill(
        text, max(width, 40), initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False
    )
    return f"{name}\n{body}"
