"""Which charts a report has, in which sections, and what they say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from g2rpo_fast.metric_names import metric_of
from g2rpo_fast.report.runs import Run
from g2rpo_fast.report.series import Point, Series, points, profile, tokens_per_s, window


class Panel(NamedTuple):
    """A chart: one line a run."""

    title: str
    name: str
    """Of the metric."""
    unit: str = ""
    """"" = what the table of metrics says."""
    scale: str = ""
    """Panels of a section that share this word share their vertical axis."""
    log: bool = False
    x: str = "step"
    series: Series = points

    @property
    def sparse(self) -> bool:
        """Not of every step: its points are shown."""
        return self.x != "step" or self.name.startswith("eval/")

    @property
    def y_label(self) -> str:
        metric = metric_of(self.name)
        return self.unit or (metric.unit if metric else "") or "value"


class Section(NamedTuple):
    title: str
    lead: str
    """How to read it."""
    panels: Sequence[Panel]
    folded: bool = False


SECTIONS = (
    Section(
        "Does it learn?",
        "Held-out prompts are never guided: the first chart is the result. Bands are 95% intervals that take "
        "rollouts as independent. Guided rollouts begin with a part of a right solution: their lead over the "
        "others is what guidance gives.",
        (
            Panel("Held-out accuracy", "eval/accuracy", scale="accuracy"),
            Panel("Accuracy, unguided", "rollout/unguided/accuracy", scale="accuracy"),
            Panel("Accuracy, guided", "rollout/guided/accuracy", scale="accuracy"),
            Panel("Held-out reward", "eval/reward", scale="reward"),
            Panel("Reward, unguided", "rollout/unguided/reward", scale="reward"),
            Panel("Reward, guided", "rollout/guided/reward", scale="reward"),
            Panel("Reward after shaping", "reward/shaped"),
        ),
    ),
    Section(
        "Guidance",
        "The profile is success before training when a share of the solution is given: guidance can help "
        "where it rises from near zero. The length l falls as the policy needs less.",
        (
            Panel("Guidance length l", "guidance/length", "tokens, or share of the trace"),
            Panel("Guidance profile", "profile", "success", x="share of the trace given, %", series=profile),
            Panel("Guided share of rollouts", "rollout/guided/share"),
        ),
    ),
    Section(
        "Is there something to learn from?",
        "A silent group has no difference in reward, so its rollouts teach nothing. Responses that run into "
        "the limit are not finished.",
        (
            Panel("Silent groups", "rollout/zero_signal", "share of groups"),
            Panel("Length, unguided", "rollout/unguided/length", scale="length"),
            Panel("Length, guided", "rollout/guided/length", scale="length"),
            Panel("Held-out length", "eval/length", scale="length"),
            Panel("Finished by themselves", "rollout/finished", "share of rollouts"),
            Panel("Rollouts trained on", "rollout/trained_rows", "rollouts a step"),
        ),
    ),
    Section(
        "How the policy moves",
        "Entropy that falls to zero ends exploration. KL and clip share say how far an update went from the "
        "policy that sampled; a gradient norm that jumps is the first sign of trouble.",
        (
            Panel("Entropy", "update/entropy"),
            Panel("KL to the old policy", "update/approx_kl"),
            Panel("KL to the reference", "update/kl"),
            Panel("Clip share", "update/clipped", "share of tokens"),
            Panel("Gradient norm", "optim/grad_norm", "norm"),
            Panel("Loss", "loss"),
            Panel("Learning rate", "optim/lr", "rate"),
        ),
    ),
    Section(
        "Engine against trainer",
        "Both compute the log-probability of each sampled token; what differs is rounding, and "
        "with run.ahead the age of the weights. An effective sample size near 1 means that nothing needs "
        "correction.",
        (
            Panel("Mean difference", "mismatch/mean_abs", log=True),
            Panel("KL, engine to trainer", "mismatch/k3", log=True),
            Panel("Effective sample size", "mismatch/ess_raw"),
        ),
    ),
    Section(
        "Speed",
        "Tokens saved by sharing: how many times as many tokens padded rows would have encoded. Seconds "
        "depend on the machine and on what else it does.",
        (
            Panel("Seconds a step", "time/step_s"),
            Panel("Sampled tokens a second", "tokens/s", "tokens/s", series=tokens_per_s),
            Panel("Tokens saved by sharing", "update/token_ratio", "times as many, unshared"),
            Panel("Sampled while the engine generated", "engine/tokens_per_s"),
        ),
    ),
)
OWN = Section(
    "The methods' own numbers",
    "What each method's file names as the metric to watch, and the numbers that its pieces keep.",
    (),
)
REST = Section("All other metrics", "`g2rpo-fast metrics NAME` says what each of them is.", (), folded=True)
PIECES = ("credit/", "weights/", "shaping/", "terms/", "rounds/", "selection/", "rollout/horizon")
"""Where the names of pieces' own metrics begin."""
COUNTS = {f"reward/{name}" for name in ("abandoned", "crashed", "timed_out")}
"""What begins as a channel's name does, and is none."""


class Drawn(NamedTuple):
    """A panel with its lines."""

    panel: Panel
    lines: Sequence[tuple[Run, Sequence[Point]]]
    """Of the runs that have it."""
    watched: Sequence[str]
    """Methods of these runs that name it to be watched."""


def sections(runs: Sequence[Run]) -> Iterator[tuple[Section, list[Drawn]]]:
    """What there is something to draw for; every metric of the runs is in one of them."""
    watched = {run.method.watch for run in runs if run.method}
    placed = {panel.name for section in SECTIONS for panel in section.panels}
    left = sorted(set().union(*(run.names for run in runs)) - placed - TIMES)
    own = [name for name in left if name in watched or name.startswith(PIECES)]
    channels = [n for n in left if n.startswith("reward/") and n not in (*own, *COUNTS)]
    if all(len(run.names.intersection(channels)) < 2 for run in runs):
        channels = []  # each is its run's whole reward
    rest = [name for name in left if name not in (*own, *channels)]
    first, *others = SECTIONS
    first = first._replace(panels=(*first.panels, *(Panel(f"Channel {name[7:]}", name) for name in channels)))
    own, rest = (s._replace(panels=[Panel(n, n) for n in names]) for s, names in ((OWN, own), (REST, rest)))
    for section in (first, own, *others, rest):
        drawn = [made for panel in section.panels if (made := _drawn(panel, runs)).lines]
        if drawn:
            yield section, drawn


TIMES = {f"time/{phase}_s" for phase in ("rollout", "reward", "update", "sync", "evaluate")}
"""Shown as bars."""


def _drawn(panel: Panel, runs: Sequence[Run]) -> Drawn:
    steps = window(runs)
    lines = [(run, panel.series(run, panel.name, steps)) for run in runs]
    watching = [run.method.name for run in runs if run.method and run.method.watch == panel.name]
    having = [(run, line) for run, line in lines if any(point.value == point.value for point in line)]
    return Drawn(panel, having, list(dict.fromkeys(watching)))
