"""The policy loss of the GRPO family, from hidden states and the LM head.

Dimension key: S positions, D width, V vocabulary, T trained edges.
"""

from __future__ import annotations

from torch import Tensor

from g2rpo_kernels.linear_logprob.chunks import checked_linear
from g2rpo_kernels.linear_policy_loss.cpu import linear_policy_loss_cpu
from g2rpo_kernels.linear_policy_loss.reference import linear_policy_loss_reference
from g2rpo_kernels.logprob.checks import Impl, choose_impl
from g2rpo_kernels.policy_loss.records import Edges, Objective, PolicyLoss, checked_edges

__all__ = ["linear_policy_loss"]


def linear_policy_loss(
    hidden_SD: Tensor,
    head_VD: Tensor,
    target_T: Tensor,
    edges: Edges,
    objective: Objective,
    *,
    source_T: Tensor | None = None,
    bias_V: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk_bytes: int = 128 << 20,
    impl: Impl | None = None,
) -> PolicyLoss:
    """`policy_loss` of logits = hidden @ head^T + bias, in one pass that never stores the logits.

    `cpu` computes the gradients during forward (three products per row chunk; two where the head is frozen;
    one where nothing needs a gradient) and multiplies them by the loss's gradient on backward, in place: it
    can run backward once, without `retain_graph`. Rows without gradient (clipped, or of zero weight) are
    left out of the gradient products. Sequence ratios with old_logp or importance weights take a fourth
    product.

    Args:
        hidden_SD: [S, D] floating; differentiable.
        head_VD: [V, D] floating; differentiable.
        target_T: [T] int64 or int32 in [0, V).
        edges: per-edge constants (see `Edges`), taken to the accumulation dtype.
        objective: which loss (see `Objective`).
        source_T: [T] int64 or int32 in [0, S), the position that edge t predicts from; may repeat. None = T
            is S.
        bias_V: [V] floating, or None; differentiable.
        temperature, softcap: as in `linear_logprob`.
        chunk_bytes: most bytes of logits that `cpu` holds at once (one row at least). Beside them it holds d
            hidden and d head in the accumulation dtype, and a float32 copy of narrower inputs.
        impl: `reference` (logits materialised, plain autograd) or `cpu`.
            None = `cpu` for CPU tensors narrower than float64, else `reference`.

    Returns:
        `PolicyLoss` as of `policy_loss`, in float32 (float64 when an input is float64). Gradients reach
        hidden, head and bias in their own dtypes.

    Raises:
        ValueError: as `linear_logprob` and `policy_loss`.
        RuntimeError: a second backward through a `cpu` result.
    """
    linear = checked_linear(hidden_SD, head_VD, target_T, source_T, bias_V, temperature, softcap)
    checked_edges(edges, objective, len(target_T))
    impls = {"reference": linear_policy_loss_reference, "cpu": linear_policy_loss_cpu}
    return impls[choose_impl(impl, hidden_SD)](linear, edges, objective, chunk_bytes)
