"""What a method is made of: pieces that a training step calls in turn, and what they may know.

    selection ─► rounds: first ─► sample ─► score ─┐ ─► shaping ─► credit ─► token credit, weights ─► terms
    prompts,       ▲   (again, until none asks)    │    rewards    a_R       a_N, w_N                 loss
    group sizes    └───────── settle ◄─────────────┘    units: rows cut into items, turns, ...

A piece is a frozen dataclass: its fields are its settings, its docstring the equation and its source, its
method the mathematics. One plain dict in each folder lists the pieces of a kind by the name in `use`, and a
method is a file that names some of them. State between steps is data of two kinds, both in the checkpoint:
`memory`, one plain JSON value a piece, and the `PromptStore`, columns over all prompts. Pieces change neither
and return new ones. A setting that moves (a coefficient under control, an annealed weight) is memory too:
`at` makes of a piece the one of this step, `observe` makes of its memory the one of the next.

Dimension key: R rows (rollouts), N trained tokens of rows end to end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import get_annotations
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias

import numpy as np

from g2rpo_fast.bounds import check_fields
from g2rpo_fast.order import Order
from g2rpo_fast.prompt_store import PromptStore
from g2rpo_fast.types import (
    AnswerOf,
    Ask,
    Doubles,
    Longs,
    Prompt,
    Rewards,
    Rollout,
    TextsOf,
    no_answer,
    no_texts,
)

if TYPE_CHECKING:
    from torch import Tensor

Memory = Any
"""A plain JSON value: numbers, text, lists, dicts. None = the piece keeps nothing."""
Ties = Literal["token", "row", "group", "batch"]
Stats: TypeAlias = "dict[str, tuple[Tensor, Tensor]]"
"""Name -> (sum, count), 0-dim."""


@dataclass(frozen=True, kw_only=True)
class Clock:
    """All that a piece may know of time."""

    step: int
    """Steps before this one."""
    total_steps: int
    """Of the run, at least 1."""
    seed: int
    """Of the run."""
    cursor: int = 0
    """Prompts that were taken before."""
    max_tokens: int = 1
    """Most tokens of a response."""
    order: Order = field(default_factory=Order)
    """Of the data's prompts."""

    @property
    def progress(self) -> float:
        """0 at the first step, towards 1."""
        return self.step / max(self.total_steps, 1)

    def generator(self, name: str) -> np.random.Generator:
        """Random numbers of this step, for the piece `name`: the same whenever they are drawn."""
        return np.random.default_rng([self.seed, self.step, *name.encode()])


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A prompt of this step, and how many rollouts its first round gets."""

    prompt: Prompt
    size: int


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A response in units."""

    unit_K: Longs
    """[len(response_ids)] the number of each token's unit; -1 = of none, such as the end of the response."""
    texts: tuple[str, ...]
    """Of the units 0, 1, ..., as rewards read them."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Rows with their rewards."""

    rollouts: tuple[Rollout, ...]
    rewards: Rewards
    """Of the rows, in their order."""
    clock: Clock
    answer_of: AnswerOf = field(default=no_answer, compare=False)
    texts_of: TextsOf = field(default=no_texts, compare=False)
    cuts: tuple[Cut, ...] | None = None
    """The rows in units (see `Units`), when they are settled on."""

    @property
    def answers(self) -> list[str | None]:
        """Each row's final answer, in one spelling, as the channel of accuracy finds it; None = no answer."""
        return [self.answer_of(rollout) for rollout in self.rollouts]

    @property
    def num_groups(self) -> int:
        """One more than the largest group: where the numbers of new groups begin."""
        return max((rollout.group for rollout in self.rollouts), default=-1) + 1

    @property
    def group_R(self) -> np.ndarray:
        """[R] int64: the group that a row's advantage is relative to."""
        return np.asarray([rollout.group for rollout in self.rollouts], np.int64)

    def keep(self, rows: Sequence[int]) -> Scored:
        """Some of the rows, in the order given."""
        chosen = np.asarray(rows, np.int64)
        return replace(
            self,
            rollouts=tuple(self.rollouts[row] for row in rows),
            rewards=self.rewards.keep(chosen),
            cuts=None if self.cuts is None else tuple(self.cuts[row] for row in rows),
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a step, for the pieces that learn from it."""

    scored: Scored
    """All its rows, as they were paid."""
    settled: Scored
    """Those that it trained on, with shaped rewards."""
    advantage_R: Doubles
    """Of the rows settled on."""
    stats: Mapping[str, float]
    """Metrics of the update, by the names in metrics.jsonl."""


class Piece:
    """Base of all pieces. Settings are checked when one is made: `ValueError`, one line, naming the key."""

    section: ClassVar[str]
    """Of the configuration."""
    use: ClassVar[str]
    """What a configuration calls it. Also a field that nothing sets: `asdict` shows it with the settings."""
    compares: ClassVar[bool] = False
    """Whether it reads `Scored.answers`."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """Columns of the store that another piece of the run must keep."""
    steers: ClassVar[str | None] = None
    """What it keeps near a value of its own: no two pieces of a run may steer the same."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if isinstance(cls.__dict__.get("use"), str):
            cls.__annotations__ = {"use": "str", **get_annotations(cls)}
            setattr(cls, "use", field(default=cls.use, init=False))  # noqa: B010

    def __post_init__(self) -> None:
        check_fields(self, f"{self.section}.{self.use}")

    def memory(self) -> Memory:
        """Before the first step."""
        return None

    def at(self, memory: Memory, clock: Clock) -> Self:
        """The piece with the settings that it has in a step: one that moves begins as it is given."""
        return self

    def observe(self, memory: Memory, outcome: Outcome) -> Memory:
        """The memory after a step."""
        return memory

    def notes(self, memory: Memory, clock: Clock) -> dict[str, float]:
        """Metrics of what a step begins with."""
        return {}

    def columns(self) -> dict[str, float]:
        """Columns of the store that it keeps, with every prompt's first value."""
        return {}

    def learned(self, store: PromptStore, outcome: Outcome) -> PromptStore:
        """The store after a step."""
        return store


class Selection(Piece, ABC):
    """Which prompts a step trains on, and how many rollouts each gets."""

    section = "selection"
    ordered: ClassVar[bool] = False
    """Whether it goes on from `Clock.cursor`: the prompts after those that a step began with are others."""

    @abstractmethod
    def choose(
        self, prompts: Sequence[Prompt], store: PromptStore, clock: Clock, *, count: int, size: int
    ) -> list[Chosen]:
        """The step's groups: `count` times `size` rollouts in all. A pure function of its arguments."""


More = Callable[[int], list[Ask]]
"""(count) -> the first asks of the next `count` prompts, in groups of their own."""


class Round(Piece):
    """What is asked of the engine, asked again, and kept. A method may chain several.

    `first` maps the asks made so far (to begin with, each prompt by itself, `size` times) to those of the
    first round. `again` maps what is scored so far to the asks of the next round; none ends it. `settle`
    chooses the rows and groups that are trained on. `memory` is this piece's own.
    """

    section = "rounds"
    repeats: ClassVar[bool] = False
    """Whether it may ask again: a round's rows are then scored before the next is asked for."""
    hints: ClassVar[bool] = False
    """Whether it samples from prompts with hints."""
    takes_more: ClassVar[bool] = False
    """Whether it asks for further prompts: of a selection that has an order, which never repeats itself."""

    def first(self, asks: Sequence[Ask], memory: Memory, clock: Clock) -> list[Ask]:
        return list(asks)

    def again(self, scored: Scored, memory: Memory, more: More) -> list[Ask]:
        """`round` of the asks is filled in by the loop."""
        return []

    def settle(self, scored: Scored, memory: Memory) -> Scored:
        return scored


class Shaping(Piece, ABC):
    """A step of the chain from the rewards paid to those that credit begins with."""

    section = "shaping"

    def channels(self) -> dict[str, str]:
        """Setting -> the channel that it names, of those that are read: of `reward.functions`, or of a piece
        before this one."""
        return {}

    @abstractmethod
    def __call__(self, scored: Scored) -> Rewards:
        """The rows' rewards: a channel more (`Rewards.plus`), or others in place of those there."""


class Credit(Piece, ABC):
    """A step of the chain from rewards to one advantage a row. It begins with the rows' total rewards."""

    section = "credit"

    @abstractmethod
    def __call__(self, a_R: Doubles, scored: Scored, store: PromptStore) -> Doubles:
        """[R] float64 -> [R] float64."""


class Units(Piece, ABC):
    """How a response is cut into the items, segments or turns that have a credit or a ratio of their own."""

    section = "units"
    cuts: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, scored: Scored) -> tuple[Cut, ...] | None:
        """Of each row; None = a row is one unit."""


@dataclass(frozen=True, kw_only=True)
class RowTokens:
    """The trained tokens of a step's rows, end to end, as token credit and weights see them."""

    id_N: np.ndarray
    row_N: np.ndarray
    """[N] index into the step's rows, ascending."""
    place_N: np.ndarray
    """[N] index into the row's response."""
    rollout_logp_N: Doubles
    """The engine's log-probability (nats); NaN where nothing was sampled."""
    unit_N: Longs | None = None
    """[N] unit of its row (see `Units`); None = a row is one."""
    old_logp_N: Doubles | None = None
    """Under the weights that the update starts from. This and those below: where some piece needs it."""
    entropy_N: Doubles | None = None
    """Of that policy's distribution of the token (nats)."""
    hot_logp_N: Doubles | None = None
    """As old_logp_N, at a second temperature."""
    influence_N: Doubles | None = None
    """How much a step on the token would raise its group's right rows (`learner.influence`)."""

    @property
    def of_rows(self) -> dict[int, np.ndarray]:
        """Row -> where its tokens are."""
        rows, first = np.unique(self.row_N, return_index=True)
        return dict(zip(rows.tolist(), np.split(np.arange(len(self.row_N)), first[1:]), strict=True))


class TokenPiece(Piece):
    """Base of pieces that read `RowTokens`."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """Of old_logp, entropy, hot_logp and influence, which cost a look at the old policy, those it reads."""
    of_units: ClassVar[bool] = False
    """Whether it reads what responses are cut into."""

    def hot_temperature(self) -> float:
        """Of `hot_logp`, where that is needed: in units of the policy's own temperature."""
        raise NotImplementedError(f"{self.section}.{self.use}: needs hot_logp without saying how hot")


class TokenCredit(TokenPiece, ABC):
    """A step of the chain from rows' advantages to tokens'. It begins with each row's, repeated."""

    section = "token_credit"

    @abstractmethod
    def __call__(self, a_N: Doubles, tokens: RowTokens, scored: Scored) -> Doubles:
        """[N] float64 -> [N] float64."""


class Weight(TokenPiece, ABC):
    """A factor of each trained token in everything that the loss sums."""

    section = "weights"

    @abstractmethod
    def __call__(self, tokens: RowTokens, scored: Scored) -> Doubles:
        """[N] float64. No gradient flows through it."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Trained tokens of whole rows, end to end, as a term sees them: tensors of one dtype and device."""

    row_N: Tensor
    """[N] int64 in [0, R), ascending."""
    group_R: Tensor
    """[R] int64 in [0, num_groups)."""
    num_groups: int
    advantage_N: Tensor
    weight_N: Tensor
    """Normalised over the optimiser step's whole batch: a term sums, and divides nothing by its tokens."""
    reward_R: Tensor
    """Total rewards."""
    batch_rows: int
    """Rows of the optimiser step's whole batch, those left out of the update included. Likewise: groups."""
    batch_groups: int
    source_R: Tensor
    """[R] int64: index into `g2rpo_fast.types.SOURCES`."""
    old_logp_N: Tensor
    """Under the policy that ratios are taken to; NaN = on-policy there: the ratio is 1 and its gradient that
    of the log-probability."""
    rollout_logp_N: Tensor
    """The engine's; NaN where nothing was sampled."""
    ref_logp_N: Tensor | None = None
    """Under the reference policy, where a term needs it."""
    unit_N: Tensor | None = None
    """[N] int64 in [0, num_units): the rows' units (see `Units`), end to end; None = each row is one."""
    num_units: int = 0


class Term(Piece, ABC):
    """A part of the loss: any function of the tokens' log-probabilities and entropies (nats)."""

    section = "terms"
    by_advantage: ClassVar[bool] = False
    """Rows without an advantage have no part in it."""

    @property
    def ties(self) -> Ties:
        """Over what its parts are not sums: "token" = each token's part depends on that token alone."""
        return "token"

    @property
    def needs(self) -> frozenset[str]:
        """Of old_logp and ref_logp, those that are read."""
        return frozenset()

    @abstractmethod
    def __call__(self, logp_N: Tensor, entropy_N: Tensor, tokens: Tokens) -> Tensor:
        """0-dim, to be minimised; differentiable in `logp_N` and `entropy_N`."""

    def stats(self, logp_N: Tensor, tokens: Tokens) -> Stats:
        """Metrics, with what is to be divided by what; nothing to differentiate."""
        return {}

    def kernel(self) -> dict[str, Any] | None:
        """Settings of `g2rpo_kernels.Objective` that compute this term; None = no kernel knows it."""
        return None
