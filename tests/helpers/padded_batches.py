"""A padded batch and its GRPO losses written out, one token at a time, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from g2rpo_kernels import FusedLinearGRPOLoss, GRPOOptions
from g2rpo_kernels.padded.options import Level, LossType
from torch import Tensor

from drawn import normal

B, L, D, V = 6, 5, 7, 13
TEMPERATURE, NUM_ITEMS = 0.7, 31.0
CLIPPED: tuple[LossType, ...] = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
LOSS_TYPES: tuple[LossType, ...] = (*CLIPPED, "cispo", "sapo", "vespo")
LEVELS: list[tuple[Level, LossType]] = [("token", name) for name in LOSS_TYPES]
LEVELS.extend(("sequence", name) for name in CLIPPED)


@dataclass(frozen=True)
class Batch:
    hidden: Tensor
    head: Tensor
    bias: Tensor
    ids: Tensor
    mask: Tensor
    advantages: Tensor
    old: Tensor
    ref: Tensor
    ratio: Tensor
    """Importance ratios [B, L]: some 0, 1 outside the mask."""


def make_batch(seed: int = 0) -> Batch:
    first = 100 * seed
    hidden, head, bias = normal(B, L, D, seed=first), normal(V, D, seed=first + 1), normal(V, seed=first + 2)
    ids = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(first + 3))
    mask = (torch.arange(L) < torch.tensor([5, 1, 3, 0, 2, 4])[:, None]).long()
    logp = torch.log_softmax((hidden @ head.T + bias) / TEMPERATURE, -1).gather(-1, ids[..., None])[..., 0]
    ratio = (0.5 * normal(B, L, seed=6)).exp().clamp(max=1.5)
    ratio[0, 1] = ratio[5, 0] = 0
    return Batch(
        hidden=hidden,
        head=head,
        bias=bias,
        ids=ids,
        mask=mask,
        advantages=torch.tensor([1.3, -0.7, 0.0, -1.9, 0.8, -0.2], dtype=torch.float64),
        old=logp + 0.4 * normal(B, L, seed=4),
        ref=logp + 0.4 * normal(B, L, seed=5),
        ratio=torch.where(mask == 1, ratio, 1.0),
    )


def by_sign(positive: Tensor, plus: float, minus: float) -> Tensor:
    return torch.full_like(positive, minus, dtype=torch.float64).masked_fill(positive, plus)


def phi(log_w: Tensor, advantage: Tensor, o: GRPOOptions) -> Tensor:
    k = by_sign(advantage >= 0, o.vespo_k_pos, o.vespo_k_neg)
    rate = by_sign(advantage >= 0, o.vespo_lambda_pos, o.vespo_lambda_neg)
    log_w = log_w.clamp(torch.tensor(1e-8).log().item(), 20)
    return torch.exp(rate + k * log_w - rate * log_w.exp())


def per_token(
    logp: Tensor, mask: Tensor, advantage: Tensor, old: Tensor, ratio: Tensor | None, o: GRPOOptions
) -> tuple[Tensor, Tensor]:
    """(policy term, ratio), [B, L] or [B, 1]; TRL 1.16, `_compute_loss`."""
    log_ratio = logp - old
    if o.importance_sampling_level == "sequence":
        log_ratio = (log_ratio * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    r = log_ratio.exp()
    if o.loss_type == "cispo":
        term = -r.clamp(max=o.epsilon_high).detach() * advantage * logp
    elif o.loss_type == "sapo":
        tau = by_sign(advantage > 0, o.sapo_temperature_pos, o.sapo_temperature_neg)
        term = -torch.sigmoid(tau * (r - 1)) * 4 / tau * advantage
    elif o.loss_type == "vespo":
        log_w = (log_ratio.clamp(-20, 20) * mask).sum(1, keepdim=True)
        if ratio is not None:
            log_w = log_w + ratio.log().clamp(torch.tensor(1e-8).log().item(), 20).sum(1, keepdim=True)
        term = -phi(log_w.detach(), advantage, o) * advantage * logp
    else:
        open_r = r if o.delta is None else r.clamp(max=o.delta)
        closed_r = r.clamp(1 - o.epsilon_low, 1 + o.epsilon_high)
        term = -torch.min(open_r * advantage, closed_r * advantage)
    return term if ratio is None or o.loss_type == "vespo" else term * ratio, r


def textbook(
    b: Batch, logits: Tensor, o: GRPOOptions, on_policy: bool, ratio: Tensor | None, num_items: float | None
) -> Tensor:
    mask = b.mask.double()
    logp_BLV = torch.log_softmax(logits / TEMPERATURE, -1)
    logp = logp_BLV.gather(-1, b.ids[..., None])[..., 0]
    old = logp.detach() if on_policy else b.old
    term, r = per_token(logp, mask, b.advantages[:, None], old, ratio, o)
    if o.beta:
        kl = torch.exp(b.ref - logp) - (b.ref - logp) - 1
        term = term + o.beta * (kl * r if o.use_bias_correction_kl else kl)
    rows = (term * mask).sum(1)
    tokens = mask.sum() if num_items is None else num_items
    loss = {
        "grpo": (rows / mask.sum(1).clamp(min=1)).mean(),
        "sapo": (rows / mask.sum(1).clamp(min=1)).mean(),
        "bnpo": rows.sum() / mask.sum(),
        "dr_grpo": rows.sum() / (B * (o.max_completion_length or 1)),
        "luspo": rows.mean(),
    }.get(o.loss_type, rows.sum() / tokens)
    entropy = -(logp_BLV.exp() * logp_BLV).sum(-1)
    return loss - o.entropy_coef * (entropy * mask).sum() / mask.sum()


def fused_of(o: GRPOOptions, **how: Any) -> FusedLinearGRPOLoss:
    settings: dict[str, Any] = {name: getattr(o, name) for name in o.__dataclass_fields__}
    return FusedLinearGRPOLoss(use_ref_model=o.beta != 0, temperature=TEMPERATURE, **settings, **how)


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def value_and_gradients(b: Batch, loss_of: Loss) -> tuple[Tensor, ...]:
    """Of three times the loss, with respect to hidden states, head and bias."""
    leaves = [x.clone().requires_grad_() for x in (b.hidden, b.head, b.bias)]
    loss = loss_of(*leaves)
    return loss.detach(), *torch.autograd.grad(3 * loss, leaves)


def fused_loss(
    b: Batch, o: GRPOOptions, on_policy: bool, ratio: Tensor | None, num: float | None, **how
) -> Loss:
    def loss(hidden: Tensor, head: Tensor, bias: Tensor) -> Tensor:
        return fused_of(o, **how)(
            hidden,
            head,
            b.ids,
            b.mask,
            b.advantages,
            bias=bias,
            ref_per_token_logps=b.ref,
            old_per_token_logps=None if on_policy else b.old,
            vllm_is_ratio=ratio,
            num_items_in_batch=num,
        )[0]

    return loss
