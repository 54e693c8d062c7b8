"""Sweeps of the CPU paths over many rows of logits: their sums, and d loss / d logits.

float32 goes through C++ (csrc/kernels/logit_rows.h) where the extension was built, as installing the package
does: one pass for the maximum, one for all else. Everything else goes block by block through `rows`.

Dimension key: C rows, V vocabulary.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from g2rpo_kernels.extension import EXTENSION, loaded
from g2rpo_kernels.logprob.partials import RowPartials
from g2rpo_kernels.logprob.rows import (
    RowGradients,
    RowStats,
    dlogits_,
    row_divisor,
    row_factors,
    row_partials,
    tiles,
)


def extension_for(*logits_CV: Tensor) -> ModuleType | None:
    """The C++ sweeps, if they are there and take these logits: float32 rows without gaps."""
    for value_CV in logits_CV:
        gaps = value_CV.shape[1] > 1 and value_CV.stride(1) != 1
        if value_CV.dtype != torch.float32 or gaps or not value_CV.numel():
            return None
    return loaded(EXTENSION)


def _blocks(held_CV: Tensor) -> list[slice]:
    return tiles(len(held_CV), held_CV.shape[1] * held_CV.element_size())


def chunk_partials(
    held_CV: Tensor,
    target_C: Tensor,
    temperature: float,
    softcap: float | None,
    *,
    keep_exp: bool = False,
    some_elsewhere: bool = False,
) -> RowPartials:
    """Sums of rows of held logits (see `rows.squash_`); leaves these as they are.

    `keep_exp`, which wants every target inside, leaves exp(z - max) instead, and -rest in the target's
    column: d loss / d logits but for the factor of the row that `exp_factors` gives.
    """
    native = extension_for(held_CV)
    sums = RowPartials(*(held_CV.new_empty(len(held_CV)) for _ in range(4)))
    if native is None:
        options = {"keep_exp": keep_exp, "some_elsewhere": some_elsewhere}
        blocks = _blocks(held_CV)
        scratch_CV = torch.empty_like(held_CV[blocks[0]]) if blocks else held_CV
        for tile in blocks:
            scratch = scratch_CV[: tile.stop - tile.start]
            given = (held_CV[tile], target_C[tile], temperature, softcap)
            for out_C, value_C in zip(sums, row_partials(*given, scratch_CV=scratch, **options), strict=True):
                out_C[tile] = value_C
        return sums
    native.row_sums(
        torch.to_dlpack(held_CV),
        torch.to_dlpack(target_C.contiguous()),
        row_divisor(temperature, softcap),
        keep_exp,
        *map(torch.to_dlpack, sums),
        torch.get_num_threads(),
    )
    return sums


def chunk_dlogits(
    held_CV: Tensor,
    target_C: Tensor,
    stats: RowStats,
    upstream: RowGradients,
    temperature: float,
    softcap: float | None,
    *,
    some_elsewhere: bool = False,
    out_CV: Tensor,
) -> None:
    """d loss / d raw logits of rows of held logits, to `out_CV`, which may be the held logits themselves."""
    native = extension_for(held_CV, out_CV)
    if native is None:
        for tile in _blocks(held_CV):
            given = (target_C[tile], stats.rows(tile), upstream.rows(tile), temperature, softcap)
            if out_CV is held_CV:
                dlogits_(held_CV[tile], *given, some_elsewhere)
            else:
                out_CV[tile] = dlogits_(held_CV[tile].clone(), *given, some_elsewhere)
        return
    scale_C, at_target_C, e_C = row_factors(stats, upstream, temperature)
    factors = [
        None if value_C is None else torch.to_dlpack(value_C.contiguous())
        for value_C in (stats.max_C, stats.log_sum_C, scale_C, e_C, at_target_C)
    ]
    native.row_gradients(
        torch.to_dlpack(held_CV),
        torch.to_dlpack(target_C.contiguous()),
        row_divisor(temperature, softcap),
        softcap is not None,
        *factors,
        torch.to_dlpack(out_CV),
        torch.get_num_threads(),
    )
