"""Log-probabilities of tokens from logits of any leading shape.

Dimension key: T rows (leading dimensions flattened), V vocabulary, J tokens of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from g2rpo_kernels.checks import check_floating, check_tensors
from g2rpo_kernels.logprob import logprob
from g2rpo_kernels.logprob.checks import Impl, check_index


def token_logprobs(
    logits: Tensor,
    ids: Tensor,
    temperature: float = 1.0,
    row_mask: Tensor | None = None,
    *,
    impl: Impl | None = None,
) -> Tensor:
    """log softmax(logits / temperature) at `ids`: TRL's `selective_log_softmax`, verl's
    `logprobs_from_logits`.

    Logits narrower than float32 are computed in float32, and float32 is returned: their plain PyTorch does
    both in the logits' dtype.

    Args:
        logits: [..., V] floating; differentiable. Leading dimensions that do not flatten into a view are
            copied.
        ids: int64 or int32 in [0, V): [...], one token of each row, or [..., J], J of them.
        temperature: > 0.
        row_mask: [...]; rows where it is 0 are not read (nor are their `ids`) and give 0 and no gradient.
            `torch.compile`, to which their number would be a graph break, computes them as rows of zeros.
        impl: as in `logprob`.

    Returns:
        The shape of `ids`, float32 (float64 for float64 logits). The gradient has the logits' dtype.

    Raises:
        ValueError, naming the argument: shapes, dtypes or devices that do not fit; as `logprob`.
    """
    check_tensors({"logits": logits, "ids": ids, "row_mask": row_mask})
    check_floating({"logits": logits})
    if not logits.dim():
        raise ValueError("logits: wanted [..., V], got []")
    if ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"ids: wanted int64 or int32, got {ids.dtype}")
    lead = logits.shape[:-1]
    single = ids.shape == lead
    if not single and ids.shape[:-1] != lead:
        raise ValueError(f"ids: wanted {list(lead)} or {[*lead, 'J']}, got {list(ids.shape)}")
    logits_TV = logits.reshape(-1, logits.shape[-1])
    ids_TJ = ids.reshape(len(logits_TV), 1 if single else ids.shape[-1])
    if row_mask is None:
        return _of_rows(logits_TV, ids_TJ, temperature, impl).reshape(ids.shape)
    if row_mask.shape != lead:
        raise ValueError(f"row_mask: wanted {list(lead)}, got {list(row_mask.shape)}")
    if torch.compiler.is_compiling():
        masked_T1 = row_mask.reshape(-1, 1) == 0
        logits_TV, ids_TJ = logits_TV.masked_fill(masked_T1, 0.0), ids_TJ.masked_fill(masked_T1, 0)
        logp_TJ = _of_rows(logits_TV, ids_TJ, temperature, impl)
        return logp_TJ.masked_fill(masked_T1, 0.0).reshape(ids.shape)
    row_A = row_mask.reshape(-1).nonzero().squeeze(1)
    logp_AJ = _of_rows(logits_TV.index_select(0, row_A), ids_TJ.index_select(0, row_A), temperature, impl)
    return logp_AJ.new_zeros(ids_TJ.shape).index_copy(0, row_A, logp_AJ).reshape(ids.shape)


def _of_rows(logits_TV: Tensor, ids_TJ: Tensor, temperature: float, impl: Impl | None) -> Tensor:
    """[T, J]"""
    check_index("ids", ids_TJ.reshape(-1), logits_TV.shape[1])
    if ids_TJ.shape[1] == 1:
        return logprob(logits_TV, ids_TJ[:, 0], temperature=temperature, impl=impl).logp_T[:, None]
    lse_T = logprob(logits_TV, ids_TJ.new_zeros(len(ids_TJ)), temperature=temperature, impl=impl).lse_T
    picked_TJ = logits_TV.gather(1, ids_TJ.long()).to(lse_T.dtype)
    return picked_TJ / temperature - lse_T[:, None]
