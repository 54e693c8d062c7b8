"""A loss of one's own in TRL's GRPOTrainer, from hidden states: no logits, whatever the loss.

    trainer = GMPOTrainer(model=..., reward_funcs=..., args=GRPOConfig(beta=0.0, ...), train_dataset=...)
    trainer.train()

The loss here is GMPO's (arXiv 2507.20673): the geometric mean of a completion's ratios, each clipped towards
the worse side, times its advantage. Another is another `own_loss`. Written against TRL 1.16.

Dimension key: B completions, L tokens of the longest, T counted tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from g2rpo_kernels import token_loss
from torch import Tensor
from trl import GRPOTrainer

from trl_trainer import completion_hidden_states, refuse_what_is_missing

LossFn = Callable[[Tensor, Tensor], Tensor]


def own_loss(row_T: Tensor, advantage_B: Tensor, old_logp_T: Tensor | None, log_clip: float = 0.4) -> LossFn:
    """The loss of one micro-batch as a function of its tokens; `old_logp_T` None = on-policy."""
    sign_T = advantage_B.sign()[row_T]
    count_B = torch.bincount(row_T, minlength=len(advantage_B)).clamp(min=1)

    def loss(logp_T: Tensor, entropy_T: Tensor) -> Tensor:
        log_ratio_T = sign_T * (logp_T - (logp_T.detach() if old_logp_T is None else old_logp_T))
        log_ratio_T = sign_T * log_ratio_T.clamp(max=log_clip)
        mean_B = torch.zeros_like(advantage_B).index_add(0, row_T, log_ratio_T) / count_B
        return -(advantage_B * mean_B.exp()).mean()

    return loss


class GMPOTrainer(GRPOTrainer):
    """Text models with a plain LM head, on one device or under DDP."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        refuse_what_is_missing(self)
        if self.beta or self.entropy_coef or "importance_sampling_ratio" in inputs:
            raise ValueError("beta, entropy_coef, vLLM's ratios: wanted none, as the loss does not have them")
        mode = "train" if self.model.training else "eval"
        mask_BL = (inputs["completion_mask"] * inputs.get("tool_mask", 1)).bool()
        row_T = mask_BL.nonzero()[:, 0]
        old_logp_BL = inputs.get("old_per_token_logps")
        old_logp_T = None if old_logp_BL is None else old_logp_BL[mask_BL]
        with self.accelerator.autocast():
            hidden_TD = completion_hidden_states(model, inputs)[mask_BL]
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        loss, _, entropy_T = token_loss(
            hidden_TD,
            head.weight,
            inputs["completion_ids"][mask_BL],
            own_loss(row_T, inputs["advantages"], old_logp_T),
            ties="row",
            row_T=row_T,
            bias_V=head.bias,
            temperature=self.temperature,
        )
        self._metrics[mode]["entropy"].append(self.accelerator.gather(entropy_T.mean()).nanmean().item())
        return loss / (self.current_gradient_accumulation_steps if mode == "train" else 1)
