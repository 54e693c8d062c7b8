"""What a loss knows of a padded batch beside the policy's own log-probabilities.

Dimension key: B sequences, L positions of each.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

NumItems = Tensor | float | None


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


def checked_batch(
    mask_BL: Tensor,
    advantages: Tensor,
    old_logp_BL: Tensor | None,
    ref_logp_BL: Tensor | None,
    importance: Tensor | None,
    num_items: NumItems,
) -> PaddedBatch:
    """Vectors [B] of advantages and importance ratios become [B, 1]. Nothing keeps a gradient.

    Raises ValueError for shapes that do not fit the mask.
    """
    if mask_BL.dim() != 2:
        raise ValueError(f"mask: wanted [B, L], got {list(mask_BL.shape)}")
    for name, value in (("old_logp", old_logp_BL), ("ref_logp", ref_logp_BL)):
        if value is not None and value.shape != mask_BL.shape:
            raise ValueError(f"{name}: wanted {list(mask_BL.shape)}, got {list(value.shape)}")
    return PaddedBatch(
        mask_BL=mask_BL,
        advantage_BL=_per_row("advantages", advantages, mask_BL),
        old_logp_BL=None if old_logp_BL is None else old_logp_BL.detach(),
        ref_logp_BL=None if ref_logp_BL is None else ref_logp_BL.detach(),
        importance_BL=None if importance is None else _per_row("importance_ratio", importance, mask_BL),
        num_items=num_items,
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
