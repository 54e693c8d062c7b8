"""What a loss knows of a padded batch beside the policy's own log-probabilities.

Dimension key: B sequences, L positions of each.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from g2rpo_kernels.checks import check_tensors

NumItems = Tensor | float | None


class Names(NamedTuple):
    """What the caller's signature calls these arguments."""

    mask: str = "mask"
    advantages: str = "advantages"
    old_logp: str = "old_logp"
    ref_logp: str = "ref_logp"
    importance: str = "importance_ratio"


PLAIN = Names()


class PaddedBatch(NamedTuple):
    mask_BL: Tensor
    """Nonzero = counted."""
    advantage_BL: Tensor
    """[B, L] or [B, 1], floating."""
    old_logp_BL: Tensor | None = None
    ref_logp_BL: Tensor | None = None
    importance_BL: Tensor | None = None
    """[B, L] or [B, 1], >= 0. vespo multiplies those of all positions, masked ones included."""
    num_items: NumItems = None
    names: Names = PLAIN


def checked_batch(
    mask_BL: Tensor,
    advantages: Tensor,
    old_logp_BL: Tensor | None,
    ref_logp_BL: Tensor | None,
    importance: Tensor | None,
    num_items: NumItems,
    names: Names = PLAIN,
) -> PaddedBatch:
    """Vectors [B] of advantages and importance ratios become [B, 1]. Nothing keeps a gradient.

    Raises ValueError for shapes, dtypes and devices that do not fit the mask, by the names of the caller. The
    tensors' values are for `problem_of` to see.
    """
    given = (mask_BL, advantages, old_logp_BL, ref_logp_BL, importance)
    check_tensors(dict(zip(names, given, strict=True)))
    if mask_BL.dim() != 2:
        raise ValueError(f"{names.mask}: wanted [B, L], got {list(mask_BL.shape)}")
    for name, value in ((names.old_logp, old_logp_BL), (names.ref_logp, ref_logp_BL)):
        if value is not None and (value.shape != mask_BL.shape or not value.dtype.is_floating_point):
            wanted, got = list(mask_BL.shape), list(value.shape)
            raise ValueError(f"{name}: wanted {wanted} floating, got {got} {value.dtype}")
    _check_num_items(num_items)
    return PaddedBatch(
        mask_BL=mask_BL,
        advantage_BL=_per_row(names.advantages, advantages, mask_BL),
        old_logp_BL=None if old_logp_BL is None else old_logp_BL.detach(),
        ref_logp_BL=None if ref_logp_BL is None else ref_logp_BL.detach(),
        importance_BL=None if importance is None else _per_row(names.importance, importance, mask_BL),
        num_items=num_items,
        names=names,
    )


def _per_row(name: str, value: Tensor, mask_BL: Tensor) -> Tensor:
    rows, length = mask_BL.shape
    value_BL = value[:, None] if value.dim() == 1 else value
    if list(value_BL.shape) not in ([rows, 1], [rows, length]) or not value.is_floating_point():
        raise ValueError(
            f"{name}: wanted [{rows}], [{rows}, 1] or [{rows}, {length}] floating,"
            f" got {list(value.shape)} {value.dtype}"
        )
    return value_BL.detach()


def _check_num_items(num_items: NumItems) -> None:
    """Of a number its value; 0 is for a batch that counts no token. Of a tensor that it holds one number."""
    if isinstance(num_items, Tensor):
        check_tensors({"num_items_in_batch": num_items})
        if num_items.numel() != 1:
            raise ValueError(f"num_items_in_batch: wanted one number, got {list(num_items.shape)}")
    elif num_items is not None and not num_items >= 0:
        raise ValueError(f"num_items_in_batch: wanted > 0, got {num_items}")
