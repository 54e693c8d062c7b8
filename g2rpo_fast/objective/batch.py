"""Rollouts and advantages → what the update reads: ragged sequences with an advantage and a weight per token.

Rows whose advantages are all zero carry no gradient when there is neither a KL nor an entropy term: they are
left out here, before a single token of theirs is encoded, while the weights still count them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from g2rpo_fast.objective.weights import token_weights
from g2rpo_fast.types import SOURCES, Bools, Doubles, Floats, Ints, Longs, Rollout, Sequences


@dataclass(frozen=True, kw_only=True)
class TrainBatch:
    """The rows of one optimiser step. Per-token arrays run along `sequences.ids_N`."""

    sequences: Sequences
    advantage_N: Floats | Doubles
    weight_N: Floats | Doubles
    """0 outside trained tokens. Already normalised over the whole batch: micro-batches add."""
    rollout_logp_N: Floats
    """NaN where nothing was sampled."""
    rollout_R: Ints
    """For each row, its index among the step's rollouts."""
    source_R: Longs
    """Index into `types.SOURCES`."""
    num_rollouts: int
    """Rows of the optimiser step, those left out of the update included. Likewise:"""
    num_groups: int
    unit_N: Longs | None = None
    """The unit of its row that each token belongs to (see `pieces.Units`); None = rows are whole."""

    def tokens_of(self, rows: Sequence[int]) -> Longs:
        """Where the tokens of some rows lie in `sequences.ids_N`."""
        ptr_R1 = self.sequences.ptr_R1
        return _join([np.arange(ptr_R1[row], ptr_R1[row + 1]) for row in rows], np.int64)

    def keep(self, rows: Sequence[int]) -> TrainBatch:
        """Some of the rows, in the order given; the numbers of rollouts and groups stay those of the step."""
        index_N, ptr_R1 = self.tokens_of(rows), self.sequences.ptr_R1
        chosen = np.asarray(rows, np.int64)
        return replace(
            self,
            sequences=Sequences(
                ids_N=self.sequences.ids_N[index_N],
                ptr_R1=_pointers(np.diff(ptr_R1)[chosen].tolist()),
                trained_N=self.sequences.trained_N[index_N],
                group_R=self.sequences.group_R[chosen],
            ),
            advantage_N=self.advantage_N[index_N],
            weight_N=self.weight_N[index_N],
            rollout_logp_N=self.rollout_logp_N[index_N],
            unit_N=None if self.unit_N is None else self.unit_N[index_N],
            rollout_R=self.rollout_R[chosen],
            source_R=self.source_R[chosen],
        )


def split_groups(rollouts: Sequence[Rollout], parts: int) -> list[list[int]]:
    """Indices of the rollouts in each of `parts` runs of whole groups, of nearly equal group counts."""
    groups = sorted({r.group for r in rollouts})
    part_of = {g: i * parts // len(groups) for i, g in enumerate(groups)}
    split: list[list[int]] = [[] for _ in range(parts)]
    for index, rollout in enumerate(rollouts):
        split[part_of[rollout.group]].append(index)
    return [indices for indices in split if indices]


def make_batch(
    rollouts: Sequence[Rollout],
    indices: Sequence[int],
    advantages: Doubles | Sequence[Doubles],
    *,
    aggregation: str,
    constant_length: int,
    keep_all: bool,
    units: Sequence[Longs] | None = None,
) -> TrainBatch:
    """Builds the batch of the rollouts at `indices`.

    Args:
        advantages: for each of `rollouts` a number, or [len(response_ids)] one a token.
        keep_all: keep rows without advantage (a KL or entropy term gives them a gradient).
        units: for each of `rollouts` the unit of each token of its response; None = rows are whole.

    Raises:
        ValueError: advantages of a row that are neither.
    """
    chosen = [rollouts[i] for i in indices]
    trained = [_trained(r) for r in chosen]
    weights = token_weights(
        np.concatenate(trained),
        _pointers([len(t) for t in trained]),
        aggregation,
        num_rollouts=len(chosen),
        constant_length=constant_length,
    )
    pieces = np.split(weights, np.cumsum([len(t) for t in trained])[:-1])
    credit = [_credit(rollouts[i], advantages[i]) for i in indices]
    kept = [k for k, t in enumerate(trained) if t.any() and (keep_all or credit[k][t].any())]
    lengths = [len(trained[k]) for k in kept]
    return TrainBatch(
        sequences=Sequences(
            ids_N=_join(
                [np.asarray(chosen[k].training_prompt_ids + chosen[k].response_ids) for k in kept], np.int32
            ),
            ptr_R1=_pointers(lengths),
            trained_N=_join([trained[k] for k in kept], np.bool_),
            group_R=np.asarray([chosen[k].group for k in kept], np.int32),
        ),
        advantage_N=_join([credit[k] for k in kept], np.float32),
        weight_N=_join([pieces[k] for k in kept], np.float32),
        rollout_logp_N=_join([_rollout_logp(chosen[k]) for k in kept], np.float32),
        unit_N=None
        if units is None
        else _join([_units(chosen[k], units[indices[k]]) for k in kept], np.int64),
        rollout_R=np.asarray([indices[k] for k in kept], np.int32),
        source_R=np.asarray([SOURCES.index(chosen[k].source) for k in kept], np.int64),
        num_rollouts=len(chosen),
        num_groups=len({rollout.group for rollout in chosen}),
    )


def _trained(rollout: Rollout) -> Bools:
    prompt = np.zeros(len(rollout.training_prompt_ids), dtype=np.bool_)
    return np.concatenate([prompt, rollout.loss_mask])


def _credit(rollout: Rollout, advantage: float | Doubles) -> Doubles:
    """Along the row's tokens; 0 over the prompt."""
    length = len(rollout.response_ids)
    if np.shape(advantage) not in ((), (length,)):
        raise ValueError(
            f"advantages: wanted a number or [{length}] numbers for member {rollout.member} of prompt "
            f"{rollout.prompt.id}, got {list(np.shape(advantage))}"
        )
    return np.concatenate([np.zeros(len(rollout.training_prompt_ids)), np.broadcast_to(advantage, length)])


def _rollout_logp(rollout: Rollout) -> Floats:
    prompt = np.full(len(rollout.training_prompt_ids), np.nan, dtype=np.float32)
    return np.concatenate([prompt, rollout.rollout_logp])


def _units(rollout: Rollout, unit: Longs) -> Longs:
    """Along the row's tokens; 0 over the prompt."""
    return np.concatenate([np.zeros(len(rollout.training_prompt_ids), np.int64), unit])


def _pointers(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _join(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(arrays).astype(dtype) if arrays else np.zeros(0, dtype)
