"""The records that stages exchange. Frozen: nobody fills in a field later.

A step of two prompts with a group of two, one member of each guided by two trace tokens:

    Prompt(id="train:0", token_ids=(1, 5, 6), trace_ids=(7, 8, 9), ...)
    Rollout(group=0, member=0, response_ids=(7, 8, 11, 2), guidance_len=2,   # 7 8 injected, 11 2 sampled
            loss_mask=(1, 1, 1, 1), rollout_logp=(nan, nan, -0.3, -0.1))
    Rollout(group=0, member=1, response_ids=(7, 12, 2),    guidance_len=0, ...)
    Sequences: ids_N = 1 5 6 7 8 11 2 | 1 5 6 7 12 2 | ...,  trained_N = 0 0 0 1 1 1 1 | 0 0 0 1 1 1 | ...
    TreePlan:  token_S = 1 5 6 7 8 11 12 ...   (each node once; the last trained token is only a target)

Dimension key: P prompts, R rollouts, K reward channels, N tokens of all sequences end to end,
S packed tree positions, Q their nodes, T trained edges, M (edge, member) pairs. A trailing 1 is "plus one".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Experts = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

FinishReason = Literal["stop", "length"]
Source = Literal["on_policy", "off_policy", "target"]
SOURCES: tuple[Source, ...] = get_args(Source)
_OPENING_TAG = re.compile(r"<[A-Za-z][\w-]*>\s*\Z")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One problem, tokenised once."""

    id: str
    """Stable over epochs, runs and resumes: the key of any per-prompt state."""
    text: str
    token_ids: tuple[int, ...]
    answer: str
    tail: str = ""
    """The end of `text` that already belongs to the response, such as `<think>`: what the chat template puts
    behind the header of the assistant's turn; of a raw prompt, an opening tag at its very end."""
    trace_ids: tuple[int, ...] = ()
    """Ground-truth reasoning that guidance takes its prefixes from; empty = cannot be guided."""
    hinted_ids: tuple[tuple[int, ...], ...] = ()
    """The prompt with a hint in it, for each level of hints; () = this prompt has none of the level."""
    problem: Any = None
    """The problem as the data has it, before templates: a text or a list of messages; None = `text`."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """The columns of the data row, for users' reward functions."""

    @property
    def most_tokens(self) -> int:
        """Of the prompt, with a hint or without."""
        return max(map(len, (self.token_ids, *self.hinted_ids)))

    @property
    def opening(self) -> str:
        """What the response begins with before its first token: `tail`, or a tag that `text` ends with."""
        return self.tail or opening_tag(self.text)


def opening_tag(text: str) -> str:
    """The opening tag that a text ends with, and the space after it; "" where it ends otherwise."""
    found = _OPENING_TAG.search(text)
    return found[0] if found else ""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One rollout to be sampled: from what, and how it will be trained on."""

    prompt: Prompt
    group: int
    """Index of its group in this step: the rows whose rewards its advantage is relative to."""
    member: int
    """Its number among the asks of the same prompt and round: part of the seed."""
    round: int = 0
    """Of the step: later rounds depend on what earlier ones brought. Part of the seed."""
    sampling_prompt_ids: tuple[int, ...]
    """Context of the sampling, given tokens excluded."""
    training_prompt_ids: tuple[int, ...]
    """Context of the loss. Another one where a hint is dropped for training."""
    given_ids: tuple[int, ...] = ()
    """Tokens that the response begins with and that are not sampled: guidance."""
    given_in_loss: bool = False
    max_tokens: int
    """Most tokens of the response, the given ones included."""
    hint_level: float = 0.0
    """Of hint ladders; 0 = none."""
    source: Source = "on_policy"
    """What its rows are to the loss: off_policy = sampled from another context than they are trained in;
    target = text to be learnt, whatever its probability."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn. `temperature=0` is greedy (log-probabilities are then those at temperature 1)."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 = off."""
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Request:
    """One sample to draw. Requests that share leading tokens share their prefill."""

    prompt_ids: tuple[int, ...]
    """All that the engine conditions on: sampling prompt, then guidance."""
    max_tokens: int
    seed: int
    """Fixes this request's draws whatever else is in the batch."""
    guidance_len: int | None = None
    """How many of the last prompt ids are guidance: a stop string may begin in them. None = not said; then it
    may begin anywhere in the prompt."""

    @property
    def given_ids(self) -> tuple[int, ...]:
        """The prompt ids that a stop string may begin in."""
        first = 0 if self.guidance_len is None else len(self.prompt_ids) - self.guidance_len
        return self.prompt_ids[first:]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What an engine answers to one request."""

    token_ids: tuple[int, ...]
    """Sampled tokens, the stop token included."""
    logp: Floats
    """Log-probability (nats) of each sampled token, temperature, top-p and top-k applied."""
    finish_reason: FinishReason
    weight_version: int
    """The oldest weights that drew a token of it."""
    token_versions: Ints | None = None
    """[len(token_ids)] the weights that drew each token; None = all by `weight_version`."""
    experts: Experts | None = None
    """[len(token_ids), layers with experts, experts of a token] those that predicted each token, where they
    are recorded."""


class EngineError(RuntimeError):
    """A rollout engine died, hangs, or refused an update; the message names phase, step and process."""


class Report(Protocol):
    """Is told how far a piece of work is; cheap, but not for every token."""

    def __call__(self, done: float, *, tokens: int = 0, total: int | None = None) -> None:
        """Units done, parts of them too; tokens sampled so far; all units, where they are known only now."""
        ...


class Engine(Protocol):
    """A rollout engine. `report` is told of requests done and tokens sampled."""

    def generate(
        self, requests: list[Request], sampling: Sampling, report: Report | None = None
    ) -> list[Completion]:
        """One completion per request, in the requests' order. Raises EngineError."""
        ...

    def submit(
        self, requests: list[Request], sampling: Sampling, report: Report | None = None
    ) -> Callable[[], list[Completion]]:
        """Starts what `generate` does; the function returned waits for it and gives the completions.

        An engine in a process of its own works meanwhile; `local` is done when `submit` returns. At most
        one batch is in flight."""
        ...

    def sync(self, version: int) -> None:
        """Make the trainer's present weights the ones that generation uses, as `version`.

        Rows in flight go on under them. Raises EngineError."""
        ...

    def release(self) -> None:
        """Generation pauses until the next `sync`: give back memory that only it needs. For the update."""
        ...

    def metrics(self) -> dict[str, float]:
        """What generation and syncs cost since the last call, for the step's record."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One member of a group, as training sees it: `training_prompt_ids` then `response_ids`."""

    prompt: Prompt
    group: int
    """Index of its group in this step; groups may have any size."""
    member: int
    training_prompt_ids: tuple[int, ...]
    """Context of the loss. Differs from what was sampled from when a hint is dropped for training."""
    sampling_prompt_ids: tuple[int, ...]
    """Context of the sampling, guidance excluded."""
    response_ids: tuple[int, ...]
    """Guidance, then sampled tokens."""
    guidance_len: int
    loss_mask: Bools
    """[len(response_ids)] which tokens may carry loss."""
    rollout_logp: Floats
    """[len(response_ids)] the engine's log-probabilities; NaN where nothing was sampled."""
    text: str
    """The response, guidance included, as rewards read it: without the stop token or stop string that ended
    it, pad, begin and end of sequence, and the chat template's turn markers. Other special tokens are in it
    (`<think>`, `<answer>`)."""
    finish_reason: FinishReason
    weight_version: int
    """The oldest weights that drew a token of it."""
    token_versions: Ints | None = None
    """[sampled_len] the weights that drew each sampled token; None = all by `weight_version`."""
    experts: Experts | None = None
    """See `Completion`."""
    hint_level: float = 0.0
    """Of hint ladders; 0 = none."""
    round: int = 0
    """Of the step, in which it was asked for."""
    source: Source = "on_policy"
    """See `Ask`."""

    @property
    def guided(self) -> bool:
        return self.guidance_len > 0

    @property
    def plain(self) -> bool:
        """Sampled from the prompt alone: without guidance, hint or another context."""
        return not self.guided and self.sampling_prompt_ids == self.prompt.token_ids

    @property
    def sampled_len(self) -> int:
        return len(self.response_ids) - self.guidance_len


AnswerOf = Callable[[Rollout], str | None]
"""The final answer of a response, in one spelling; None where it gives none."""


def no_answer(rollout: Rollout) -> str | None:
    """Where nothing can tell of answers."""
    return None


TextsOf = Callable[[Rollout], list[str]]
"""The text that each token of a response adds to those before it."""


def no_texts(rollout: Rollout) -> list[str]:
    """Where there is no tokenizer."""
    raise LookupError("texts_of: no tokenizer")


def channel_place(channels: Sequence[str], name: str) -> int:
    """Where among the channels one is, by its name or, of "module:function", by the function's alone.

    Raises:
        ValueError: none of that name, or several.
    """
    exact = [place for place, channel in enumerate(channels) if channel == name]
    found = exact or [place for place, channel in enumerate(channels) if channel.endswith(f":{name}")]
    if len(found) != 1:
        raise ValueError(f"wanted a reward channel from {', '.join(channels)}, got {name!r}")
    return found[0]


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """Named reward channels of R rollouts, and their weighted sum."""

    channels: tuple[str, ...]
    reward_RK: Doubles
    """NaN where a channel does not apply to the row."""
    weight_K: Doubles
    total_R: Doubles
    """Over the channels that apply."""
    accuracy_R: Doubles
    """1 where the rollout succeeded by the channel that counts as accuracy, else 0 (evaluation, profile,
    guidance controller); NaN where that channel does not apply."""

    def channel(self, name: str) -> Doubles:
        """[R] of one channel. Raises ValueError where there is none of that name (`channel_place`)."""
        return self.reward_RK[:, channel_place(self.channels, name)]

    def plus(self, name: str, reward_R: Doubles, weight: float = 1.0) -> Rewards:
        """With one more channel, which counts in the sum; NaN where it does not apply to a row."""
        return replace(
            self,
            channels=(*self.channels, name),
            reward_RK=np.column_stack([self.reward_RK, reward_R]),
            weight_K=np.append(self.weight_K, weight),
            total_R=self.total_R + weight * np.where(np.isnan(reward_R), 0.0, reward_R),
        )

    def only(self, name: str, reward_R: Doubles) -> Rewards:
        """With one more channel, which alone counts: the others weigh 0."""
        silent = replace(self, weight_K=np.zeros_like(self.weight_K), total_R=np.zeros_like(self.total_R))
        return silent.plus(name, reward_R)

    def changed(self, name: str, reward_R: Doubles) -> Rewards:
        """With other values of one channel, in the sum as well; accuracy stays."""
        place = channel_place(self.channels, name)
        reward_RK = self.reward_RK.copy()
        reward_RK[:, place] = reward_R
        paid_RK = np.where(np.isnan(reward_RK), 0.0, reward_RK) * self.weight_K
        return replace(self, reward_RK=reward_RK, total_R=paid_RK.sum(1))

    def keep(self, rows: npt.NDArray[np.int64]) -> Rewards:
        """Some of the rows, in the order given."""
        return replace(
            self,
            reward_RK=self.reward_RK[rows],
            total_R=self.total_R[rows],
            accuracy_R=self.accuracy_R[rows],
        )


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """R ragged token sequences end to end: row r is `ids_N[ptr_R1[r]:ptr_R1[r + 1]]`."""

    ids_N: Ints
    ptr_R1: Longs
    trained_N: Bools
    """Tokens whose log-probability enters the loss. Never the first of a row: it has no context."""
    group_R: Ints
    """Rows of one group become one tree (they may share any prefix, or none)."""

    @property
    def num_rows(self) -> int:
        return len(self.ptr_R1) - 1


@dataclass(frozen=True, kw_only=True)
class TreePlan:
    """One micro-batch: some groups' prefix trees, in depth-first order, as one stream of S positions.

    Query i sees key j iff `j <= i < end_S[j]`. An edge is (position that predicts, token predicted); its
    members are the row tokens that it stands for, as indices into `Sequences.ids_N`.
    """

    token_S: Ints
    position_S: Ints
    """Path length from the tree's root: the RoPE position."""
    end_S: Ints
    source_T: Ints
    target_T: Ints
    member_ptr_T1: Longs
    member_M: Longs
    row_B: Ints
    """The rows (indices into `Sequences`) in this plan."""
    last_B: Ints
    """For each of them, the stream position of its last encoded token. Rows that encode none are left out."""
    unshared_tokens: int
    """Tokens that the same rows would have encoded without sharing; over S, what the tree saves."""
    node_start_Q: Longs
    """First position of each node, ascending: a node is a run of positions with equal END, up to the next."""
    node_parent_Q: Longs
    """Index of the node that each continues; -1 = none, a tree begins."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished run leaves."""

    directory: Path
    model_dir: Path
    """In transformers' format: `AutoModelForCausalLM.from_pretrained` loads it."""
    metrics_path: Path
    best_accuracy: float | None
    """Best evaluation accuracy, that before the first step included."""
    no_signal: bool
    """No step, of `train.SIGNAL_STEPS` or more, had a group whose rewards differ."""
