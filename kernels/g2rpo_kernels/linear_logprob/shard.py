"""A vocabulary split over the ranks of a process group: row statistics of the whole from those of the parts.

Each rank holds head_VD (and bias_V) of its own columns; hidden states, targets and all results are the same
on every rank. Four floats of a row are reduced: the maxima of its logits and of the target's logit (-inf
where another rank has it), then the two sums of `logprob/partials.py` relative to that maximum. A rank's d
logits and d head are complete; its d hidden is one term of a sum over ranks, which the ops take (as the
backward of Megatron's column-parallel output layer does).

Inside `torch.compile` a group goes by its name, as with PyTorch's functional collectives.

Dimension key: T rows, V columns of this rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from g2rpo_kernels.logprob.partials import RowPartials
from g2rpo_kernels.packing import Packing

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True, kw_only=True)
class VocabShard:
    """Which columns of the vocabulary this rank holds.

    Example: 151,936 tokens over 4 ranks: rank 2 has VocabShard(group=g, start=75_968, size=151_936) and a
    head of 37,984 rows. Shards may differ in size; rows per chunk follow the mean.
    """

    group: ProcessGroup
    start: int
    """Token id of the first column."""
    size: int
    """Tokens of the whole vocabulary."""

    @property
    def mean_columns(self) -> int:
        """The same on every rank, so that all cut the same chunks and meet in the same collectives."""
        return -(-self.size // self.group.size())

    def local_target(self, target_T: Tensor, columns: int) -> Tensor:
        """Targets as columns of this rank; -1 where another rank has them."""
        local_T = target_T - self.start
        return torch.where((local_T >= 0) & (local_T < columns), local_T, -1)


def _packed(shard: VocabShard | None) -> tuple[str | None, int, int]:
    return (None, 0, 0) if shard is None else (shard.group.group_name, shard.start, shard.size)


def _unpacked(name: str | None, start: int, size: int) -> VocabShard | None:
    if name is None:
        return None
    from torch.distributed import distributed_c10d

    group = distributed_c10d._resolve_process_group(name)  # pyright: ignore
    return VocabShard(group=group, start=start, size=size)


SHARD = Packing(("str? group", "SymInt start", "SymInt size"), _packed, _unpacked)
"""As arguments of an operator: a group by its name."""


def reduce_partials(part: RowPartials, group: ProcessGroup) -> RowPartials:
    """Partial sums of whole rows, the same on every rank. Two all-reduces, no host synchronisation."""
    largest_2T = torch.stack((part.max_T, part.target_logit_T))
    torch.distributed.all_reduce(largest_2T, torch.distributed.ReduceOp.MAX, group)
    max_T, target_logit_T = largest_2T
    mine = part.rebased(max_T)
    sums_2T = torch.stack((mine.sumexp_T, mine.sum_z_exp_T))
    # A rank whose columns are all impossible has nothing to add, and may have NaN sums.
    sums_2T = torch.where(part.max_T > -torch.inf, sums_2T, 0.0)
    torch.distributed.all_reduce(sums_2T, group=group)
    sumexp_T, sum_z_exp_T = sums_2T
    return RowPartials(max_T, sumexp_T, sum_z_exp_T, target_logit_T)
