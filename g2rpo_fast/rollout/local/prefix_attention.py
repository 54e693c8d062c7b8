"""Attention of one decoding step over keys that many rows share, with its log-sum-exp.

    out = softmax(scale q k^T) v,   lse = log sum exp(scale q k^T)      (natural logarithm)

All queries of a family's rows that read one KV head are one matrix, so the family's keys are read once.
With softcap c the scores are c tanh(scale q k^T / c).

Dimension key: F families of one call, M queries of a family (rows x query heads per KV head), L keys,
K KV heads, E head width.
"""

from __future__ import annotations

import torch


def fused(
    q_FKME: torch.Tensor,
    k_FKLE: torch.Tensor,
    v_FKLE: torch.Tensor,
    hidden_F1ML: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out_FMKE, lse_FMK) by PyTorch's flash attention for CPUs. Every query must see a key.

    `hidden_F1ML` is added to the scores: 0, or -inf for keys out of sight.
    """
    out_FKME, lse_FKM = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_FKME, k_FKLE, v_FKLE, 0.0, False, attn_mask=hidden_F1ML, scale=scale
    )
    return out_FKME.transpose(1, 2), lse_FKM.transpose(1, 2)


def explicit(
    q_FKME: torch.Tensor,
    k_FKLE: torch.Tensor,
    v_FKLE: torch.Tensor,
    hidden_F1ML: torch.Tensor | None,
    scale: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same on any device; a query that sees no key gets output 0 and lse -inf."""
    score_FKML = scores(q_FKME.flatten(0, 1), k_FKLE.flatten(0, 1).transpose(1, 2), scale, softcap)
    score_FKML = score_FKML.unflatten(0, q_FKME.shape[:2])
    if hidden_F1ML is not None:
        score_FKML += hidden_F1ML
    lse_FKM = torch.logsumexp(score_FKML, -1)
    weight_FKML = (score_FKML - lse_FKM.clamp(min=torch.finfo(lse_FKM.dtype).min).unsqueeze(-1)).exp_()
    out_FKME = torch.matmul(weight_FKML.to(v_FKLE.dtype), v_FKLE)
    return out_FKME.transpose(1, 2), lse_FKM.transpose(1, 2)


def scores(q_XME: torch.Tensor, k_XEL: torch.Tensor, scale: float, softcap: float | None) -> torch.Tensor:
    """scale q k^T with softcap, [X, M, L], at least float32 whatever the operands are."""
    if q_XME.dtype in (torch.bfloat16, torch.float16):
        score_XML = torch.bmm(q_XME, k_XEL, out_dtype=torch.float32).mul_(scale)
    else:
        score_XML = torch.bmm(q_XME, k_XEL).mul_(scale)
    return score_XML if softcap is None else score_XML.div_(softcap).tanh_().mul_(softcap)
