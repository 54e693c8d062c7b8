"""Liger-Kernel's fused linear GRPO loss, on our ops: same arguments, values and gradients, and an entropy.

Dimension key: B sequences, L positions of each, D width, V vocabulary, T kept positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from g2rpo_kernels.checks import check_floating, check_tensors
from g2rpo_kernels.linear_logprob import linear_logprob
from g2rpo_kernels.linear_policy_loss import linear_policy_loss
from g2rpo_kernels.logprob.checks import Impl, check_index, check_scaling
from g2rpo_kernels.padded.batch import Names, NumItems, checked_batch
from g2rpo_kernels.padded.metrics import liger_metrics
from g2rpo_kernels.padded.options import GRPOOptions, Level, LossType
from g2rpo_kernels.padded.problem import Problem, problem_loss, problem_of, taking_part
from g2rpo_kernels.policy_loss.records import Edges
from g2rpo_kernels.sharded_head import whole

NAMES = Names("attention_mask", "advantages", "old_per_token_logps", "ref_per_token_logps", "vllm_is_ratio")


class FusedLinearGRPOLoss(nn.Module):
    """Drop-in for `liger_kernel.chunked_loss.LigerFusedLinearGRPOLoss` (0.8): LM head and GRPO loss in one.

    Masked positions are dropped before the head; logits exist for a chunk of rows at a time. Gradients are
    computed during forward, in three matrix products (see `linear_policy_loss` for when in four, and for
    when backward can run once only); KL and an entropy bonus together, which are normalised differently,
    take four. Sums are float32 (float64 for float64).

    To `torch.compile` it is one graph for any lengths and masks. How many positions are masked is data, so
    there none is dropped: masked ones are computed, of weight 0, and with `triton` sequence ratios take a
    fourth product. `torch.compiler.disable(loss)` drops them again, for a graph break.

    Args:
        beta ... vespo_lambda_neg: as Liger's, which are TRL's (see `GRPOOptions`; beta is 0.04 here).
        compiled, chunk_size: accepted for Liger's signature; nothing is compiled, and `chunk_bytes` bounds
            the memory.
        use_ref_model: whether a reference is wanted; without one the KL is 0.
        entropy_coef: weight of the mean entropy over the counted tokens, subtracted from the loss. With any
            number, 0 included, the entropy is among the metrics; None: Liger's metrics exactly.
        luspo_over_padding: True is Liger's luspo, False is TRL's (see `GRPOOptions`).
        softcap, chunk_bytes, impl: as in `linear_policy_loss`.

    Raises:
        ValueError: a setting out of range, by its name: epsilon_low outside [0, 1) and a negative
            epsilon_high where ratios are clipped, a temperature of 0 or less, a negative beta, a delta below
            1; sequence-level ratios with cispo, sapo or vespo; dr_grpo without max_completion_length.
    """

    def __init__(
        self,
        beta: float = 0.04,
        compiled: bool = True,
        use_ref_model: bool = True,
        chunk_size: int = 1,
        epsilon_low: float = 0.2,
        epsilon_high: float = 0.2,
        loss_type: LossType = "dapo",
        max_completion_length: int | None = None,
        importance_sampling_level: Level = "token",
        sapo_temperature_pos: float = 1.0,
        sapo_temperature_neg: float = 1.05,
        temperature: float = 1.0,
        delta: float | None = None,
        use_bias_correction_kl: bool = False,
        vespo_k_pos: float = 2.0,
        vespo_lambda_pos: float = 3.0,
        vespo_k_neg: float = 3.0,
        vespo_lambda_neg: float = 2.0,
        *,
        entropy_coef: float | None = None,
        luspo_over_padding: bool = True,
        softcap: float | None = None,
        chunk_bytes: int | None = None,
        impl: Impl | None = None,
    ) -> None:
        super().__init__()
        check_scaling(temperature, softcap)
        self.options = GRPOOptions(
            loss_type=loss_type,
            importance_sampling_level=importance_sampling_level,
            beta=beta,
            epsilon_low=epsilon_low,
            epsilon_high=epsilon_high,
            delta=delta,
            max_completion_length=max_completion_length,
            sapo_temperature_pos=sapo_temperature_pos,
            sapo_temperature_neg=sapo_temperature_neg,
            vespo_k_pos=vespo_k_pos,
            vespo_lambda_pos=vespo_lambda_pos,
            vespo_k_neg=vespo_k_neg,
            vespo_lambda_neg=vespo_lambda_neg,
            use_bias_correction_kl=use_bias_correction_kl,
            entropy_coef=entropy_coef or 0.0,
            luspo_over_padding=luspo_over_padding,
        )
        self.use_ref_model = use_ref_model
        self.returns_entropy = entropy_coef is not None
        self.scaling = {"temperature": temperature, "softcap": softcap}
        self.how = {"chunk_bytes": chunk_bytes, "impl": impl}

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        _input: Tensor,
        lin_weight: Tensor,
        selected_token_ids: Tensor,
        attention_mask: Tensor,
        advantages: Tensor,
        bias: Tensor | None = None,
        ref_per_token_logps: Tensor | None = None,
        old_per_token_logps: Tensor | None = None,
        ref_input: Tensor | None = None,
        ref_weight: Tensor | None = None,
        ref_bias: Tensor | None = None,
        vllm_is_ratio: Tensor | None = None,
        num_items_in_batch: NumItems = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(loss, metrics).

        Args:
            _input: [B, L, D] hidden states, position t predicting `selected_token_ids[:, t]`; differentiable.
            lin_weight: [V, D]; differentiable. It, bias and their reference may be DTensors (FSDP2's, a plan
                of tensor parallelism): all ranks gather them, and gradients come back in their placements, as
                means over the ranks (see `sharded_head`). Everything else is a plain tensor.
            selected_token_ids: [B, L] int64 or int32, in [0, V) where counted.
            attention_mask: [B, L]; nonzero = counted.
            advantages: [B], or [B, L] for one per token, floating.
            bias: [V], or None; differentiable.
            ref_per_token_logps: [B, L]; or instead of them
            ref_input, ref_weight, ref_bias: hidden states, head and bias of the reference.
            old_per_token_logps: [B, L]; None = on-policy, ratio 1.
            vllm_is_ratio: [B], [B, 1] or [B, L], >= 0: multiplies the surrogate; vespo takes it into its
                sequence's ratio: the product over all positions, masked ones included, as in Liger and TRL
                (whose trainer has 1 there); one per sequence counts once.
            num_items_in_batch: counted tokens of all micro-batches and ranks, for dapo, cispo and vespo;
                above 0 if any are; None = those of this batch on all ranks.

        Returns:
            loss: 0-dim float32 (float64 for float64 inputs). metrics: means over the counted positions,
            0-dim: the KL if beta is not 0, the entropy if entropy_coef is not None, the clipped fraction.

        Raises:
            ValueError, naming the argument: shapes, dtypes or devices that do not fit, a tensor on `meta`, a
                DTensor that is no head; no reference with use_ref_model; as `linear_policy_loss`. On the CPU,
                outside `torch.compile`, also values at counted positions: advantages, old and reference
                log-probabilities that are not finite, importance ratios below 0 or not finite,
                num_items_in_batch of 0 or less, tokens outside the vocabulary. Elsewhere, where asking would
                wait for the device, such a value makes the loss NaN (a token is reported by indexing). A
                number, as opposed to a tensor, is always checked. Hidden states of NaN are a loss of NaN.
        """
        lin_weight, bias = whole("lin_weight", lin_weight), whole("bias", bias)
        mask = {"attention_mask": attention_mask}
        _check_head({"_input": _input, "lin_weight": lin_weight, "bias": bias}, mask)
        _check_ids(selected_token_ids, attention_mask)
        part_BL = taking_part(attention_mask, self.options)
        hidden_TD = _rows(_input, part_BL)
        kept_T = _kept(part_BL)
        target_T = selected_token_ids.masked_fill(~part_BL, 0).reshape(-1)[kept_T]
        check_index("selected_token_ids", target_T, lin_weight.shape[0])
        reference = (ref_per_token_logps, ref_input, ref_weight, ref_bias)
        ref_logp_BL = self._reference(*reference, target_T, kept_T, part_BL)
        given = (old_per_token_logps, ref_logp_BL, vllm_is_ratio, num_items_in_batch)
        computed = ref_per_token_logps is None
        names = NAMES._replace(ref_logp="ref_input") if computed else NAMES
        batch = checked_batch(attention_mask, advantages, *given, names)
        problem = problem_of(batch, self.options, kept_T)
        arguments = {"source_T": _source(kept_T, part_BL), "bias_V": bias, **self.scaling, **self.how}
        if problem.entropy_weight_T is None:
            edges, objective = _cut_edges(problem, kept_T, part_BL), problem.objective
            out = linear_policy_loss(hidden_TD, lin_weight, target_T, edges, objective, **arguments)
        else:
            logp_T, entropy_T, _ = linear_logprob(hidden_TD, lin_weight, target_T, **arguments)
            out = problem_loss(logp_T, entropy_T, problem)
        kl, entropy, clipped = liger_metrics(out, problem, self.options)
        shown = (self.options.beta != 0, self.returns_entropy, True)
        return out.loss, tuple(m for m, show in zip((kl, entropy, clipped), shown, strict=True) if show)

    @torch.no_grad()
    def _reference(
        self,
        ref_logp_BL: Tensor | None,
        ref_input: Tensor | None,
        ref_weight: Tensor | None,
        ref_bias: Tensor | None,
        target_T: Tensor,
        kept_T: Tensor,
        part_BL: Tensor,
    ) -> Tensor | None:
        """[B, L] reference log-probabilities where they are kept, if they are wanted."""
        if not self.use_ref_model:
            return None
        if ref_logp_BL is None and (ref_input is None or ref_weight is None):
            raise ValueError(
                "ref_per_token_logps, ref_input with ref_weight: wanted one with use_ref_model=True, got none"
            )
        if ref_logp_BL is not None or self.options.beta == 0:
            return ref_logp_BL
        assert ref_input is not None
        ref_weight, ref_bias = whole("ref_weight", ref_weight), whole("ref_bias", ref_bias)
        assert ref_weight is not None
        head = {"ref_input": ref_input, "ref_weight": ref_weight, "ref_bias": ref_bias}
        _check_head(head, {"attention_mask": part_BL})
        check_index("selected_token_ids", target_T, ref_weight.shape[0])
        hidden_TD = _rows(ref_input, part_BL)
        arguments = {"source_T": _source(kept_T, part_BL), "bias_V": ref_bias}
        logp_T = linear_logprob(
            hidden_TD, ref_weight, target_T, **arguments, **self.scaling, **self.how
        ).logp_T
        return logp_T.new_zeros(part_BL.numel()).index_copy(0, kept_T, logp_T).view(part_BL.shape)


def _check_head(given: dict[str, Tensor | None], mask: dict[str, Tensor]) -> None:
    """Hidden states [B, L, D], head [V, D], bias [V] or None: floating, and where the mask [B, L] is."""
    check_tensors(mask | given)
    check_floating(given)
    (name, hidden), (head_name, head), (bias_name, bias) = given.items()
    assert hidden is not None
    assert head is not None
    lead = list(*(value.shape for value in mask.values()))
    if len(lead) != 2:
        raise ValueError(f"{next(iter(mask))}: wanted [B, L], got {lead}")
    if hidden.dim() != 3 or list(hidden.shape[:2]) != lead:
        raise ValueError(f"{name}: wanted {[*lead, 'D']}, got {list(hidden.shape)}")
    if head.dim() != 2 or head.shape[1] != hidden.shape[2]:
        raise ValueError(
            f"{head_name}: wanted ['V', {hidden.shape[2]}], as wide as {name}, got {list(head.shape)}"
        )
    if bias is not None and list(bias.shape) != [head.shape[0]]:
        raise ValueError(f"{bias_name}: wanted [{head.shape[0]}], got {list(bias.shape)}")


def _check_ids(ids_BL: Tensor, mask_BL: Tensor) -> None:
    check_tensors({"attention_mask": mask_BL, "selected_token_ids": ids_BL})
    if ids_BL.shape != mask_BL.shape or ids_BL.dtype not in (torch.int64, torch.int32):
        wanted, got = list(mask_BL.shape), list(ids_BL.shape)
        raise ValueError(f"selected_token_ids: wanted {wanted} int64 or int32, got {got} {ids_BL.dtype}")


def _kept(part_BL: Tensor) -> Tensor:
    """[T] int64 positions of the flattened batch that are computed, ascending."""
    if torch.compiler.is_compiling():
        return torch.arange(part_BL.numel(), device=part_BL.device)
    return part_BL.flatten().nonzero().squeeze(1)


def _rows(hidden: Tensor, part_BL: Tensor) -> Tensor:
    """[B L, D], finite wherever a position is computed that has no part in the loss."""
    if torch.compiler.is_compiling():
        hidden = hidden.masked_fill(~part_BL[..., None], 0.0)
    return hidden.reshape(-1, hidden.shape[-1])


def _source(kept_T: Tensor, part_BL: Tensor) -> Tensor | None:
    return None if kept_T.shape[0] == part_BL.numel() else kept_T


def _cut_edges(problem: Problem, kept_T: Tensor, part_BL: Tensor) -> Edges:
    """The problem's edges, with `row_cuts` between sequences where a ratio ties theirs together."""
    if problem.objective.ratio == "token" or torch.compiler.is_compiling():
        return problem.edges
    num_rows, length = part_BL.shape
    ends_B = torch.bincount(kept_T // length, minlength=num_rows).cumsum(0)
    return problem.edges._replace(row_cuts=tuple(sorted({*ends_B.tolist()} - {0})))
