"""Values of a padded batch that no loss can be made of: by which argument they came.

On the CPU they are an error, found in the coefficients of the finished problem at the cost of one sum. On a
GPU and inside `torch.compile`, where nothing waits for an answer, they make the loss NaN. What stands at
positions without a part in the loss is not looked at.

Dimension key: B sequences, L positions of each.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from g2rpo_kernels.checks import readable
from g2rpo_kernels.padded.batch import PaddedBatch


def usable_importance(importance_BL: Tensor) -> Tensor:
    """NaN where an importance ratio is negative."""
    return torch.where(importance_BL >= 0, importance_BL, torch.nan)


def refuse_values(batch: PaddedBatch, part_BL: Tensor) -> None:
    """Raise ValueError for the first value that is at fault, if there is one.

    Args:
        part_BL: [B, L] bool, positions that have a part in the loss.
    """
    for name, value_BL, bad_BL, wanted in _suspects(batch):
        at_BL = bad_BL.expand_as(part_BL) & part_BL
        if at_BL.any():
            row, position = at_BL.nonzero()[0].tolist()
            column = position if value_BL.shape[1] > 1 else 0
            got = float(value_BL[row, column])
            where = f"sequence {row}, position {position}, which {batch.names.mask} counts"
            raise ValueError(f"{name}: wanted {wanted}, got {got:g} at {where}")
    num_items = batch.num_items
    if num_items is None or (isinstance(num_items, Tensor) and not readable(num_items)):
        return
    if not float(num_items) > 0:
        raise ValueError(f"num_items_in_batch: wanted > 0 where tokens are counted, got {float(num_items):g}")


def _suspects(batch: PaddedBatch) -> Iterator[tuple[str, Tensor, Tensor, str]]:
    """(argument, values, which of them are at fault, what was wanted)."""
    names = batch.names
    for name, value_BL in (
        (names.advantages, batch.advantage_BL),
        (names.old_logp, batch.old_logp_BL),
        (names.ref_logp, batch.ref_logp_BL),
    ):
        if value_BL is not None and readable(value_BL):
            yield name, value_BL, ~value_BL.isfinite(), "finite"
    if batch.importance_BL is not None and readable(batch.importance_BL):
        value_BL = batch.importance_BL
        yield names.importance, value_BL, ~usable_importance(value_BL).isfinite(), ">= 0 and finite"
