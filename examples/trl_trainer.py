"""TRL's GRPOTrainer with the fused linear loss: one method overridden.

    trainer = FusedGRPOTrainer(model=..., reward_funcs=..., args=GRPOConfig(...), train_dataset=...)
    trainer.train()

The LM head runs on the counted completion tokens only, in row chunks, forward and backward in one pass of
three matrix products (TRL's chunked head takes four). Values and gradients are TRL's for every `loss_type`.
Written against TRL 1.16.
"""

from __future__ import annotations

from typing import Any

import torch
from g2rpo_kernels import FusedLinearGRPOLoss
from trl import GRPOTrainer


class FusedGRPOTrainer(GRPOTrainer):
    """Text models with a plain LM head (a final softcap is taken over), on one device or under DDP."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        refuse_what_is_missing(self)
        mode = "train" if self.model.training else "eval"
        accumulated = self.current_gradient_accumulation_steps if mode == "train" else 1
        micro_batches = self.args.steps_per_generation if mode == "train" else 1
        with self.accelerator.autocast():
            hidden = completion_hidden_states(model, inputs)
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        loss, metrics = loss_of_trainer(self)(
            hidden,
            head.weight,
            inputs["completion_ids"],
            inputs["completion_mask"] * inputs.get("tool_mask", 1),
            inputs["advantages"],
            bias=head.bias,
            ref_per_token_logps=inputs.get("ref_per_token_logps"),
            old_per_token_logps=inputs.get("old_per_token_logps"),
            vllm_is_ratio=inputs.get("importance_sampling_ratio"),
            num_items_in_batch=inputs["num_items_in_batch"] / micro_batches,
        )
        names = ["kl"] * (self.beta != 0) + ["entropy", "clip_ratio/region_mean"]
        for name, value in zip(names, metrics, strict=True):
            self._metrics[mode][name].append(self.accelerator.gather(value).nanmean().item())
        return loss / accumulated


def loss_of_trainer(trainer: GRPOTrainer) -> FusedLinearGRPOLoss:
    """The loss that the trainer's arguments describe."""
    args, config = trainer.args, trainer.model.config.get_text_config()
    return FusedLinearGRPOLoss(
        beta=trainer.beta,
        use_ref_model=trainer.beta != 0,
        epsilon_low=trainer.epsilon_low,
        epsilon_high=trainer.epsilon_high,
        loss_type=trainer.loss_type,
        max_completion_length=trainer.max_completion_length,
        importance_sampling_level=trainer.importance_sampling_level,
        sapo_temperature_pos=args.sapo_temperature_pos,
        sapo_temperature_neg=args.sapo_temperature_neg,
        temperature=trainer.temperature,
        delta=args.delta,
        use_bias_correction_kl=args.use_bias_correction_kl,
        vespo_k_pos=args.vespo_k_pos,
        vespo_lambda_pos=args.vespo_lambda_pos,
        vespo_k_neg=args.vespo_k_neg,
        vespo_lambda_neg=args.vespo_lambda_neg,
        entropy_coef=trainer.entropy_coef,
        luspo_over_padding=False,
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def completion_hidden_states(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """[B, L, D] last hidden states, position t predicting completion token t.

    Through the model's own forward, whatever wraps it; one row of logits is the least that it computes.
    """
    out = model(
        input_ids=torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
        attention_mask=torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
        output_hidden_states=True,
        logits_to_keep=1,
        use_cache=False,
    )
    length = inputs["completion_ids"].shape[1]
    return out.hidden_states[-1][:, -length - 1 : -1]


def refuse_what_is_missing(trainer: GRPOTrainer) -> None:
    """Raise ValueError for options of TRL that the overridden method would drop."""
    wanted = {
        "top_entropy_quantile": (trainer.top_entropy_quantile, 1.0),
        "off_policy_mask_threshold": (trainer.off_policy_mask_threshold, None),
        "use_adaptive_entropy": (trainer.use_adaptive_entropy, False),
        "router_aux_loss_coef of a mixture of experts": (trainer.aux_loss_enabled, False),
    }
    for name, (value, only) in wanted.items():
        if value != only:
            raise ValueError(f"{name}: wanted {only} with the fused loss, got {value}")
