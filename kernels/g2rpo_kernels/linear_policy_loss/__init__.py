"""The policy loss of the GRPO family, from hidden states and the LM head.

Dimension key: S positions, D width, V vocabulary, T trained edges.
"""

from __future__ import annotations

import torch
from torch import Tensor

from g2rpo_kernels.linear_logprob.linear import Linear, checked_linear, choose_linear_impl
from g2rpo_kernels.linear_logprob.shard import VocabShard
from g2rpo_kernels.linear_policy_loss.cpu import linear_policy_loss_cpu
from g2rpo_kernels.linear_policy_loss.reference import linear_policy_loss_reference
from g2rpo_kernels.logprob.checks import Impl
from g2rpo_kernels.policy_loss.records import Edges, Objective, PolicyLoss, checked_edges, explained

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
    shard: VocabShard | None = None,
    product_dtype: torch.dtype | None = None,
    chunk_bytes: int | None = None,
    impl: Impl | None = None,
) -> PolicyLoss:
    """`policy_loss` of logits = hidden @ head^T + bias, in one pass that never stores the logits.

    `cpu` and `triton` compute the gradients during forward: three products per row chunk; two where the head
    or the hidden states are frozen; one where nothing needs a gradient. Backward multiplies them by the
    loss's gradient. `cpu` does that in place, so it runs backward once, without `retain_graph`, and leaves
    rows without gradient (clipped, or of zero weight) out of the gradient products; `triton` does not know
    on the host which these are.

    Sequence ratios with old_logp or importance weights need a row's log-probabilities before its
    coefficients: a chunk then holds whole rows, cut at `edges.row_cuts`. Rows longer than a chunk take a
    fourth product; so do, with `triton`, members on the GPU without `row_cuts`, and an entropy term.

    Works under activation checkpointing. To `torch.compile` it is two operators and the objective between
    them: no graph break, any lengths, with `shard` too; there `cpu` copies a gradient that it multiplies.

    Args:
        hidden_SD: [S, D] floating; differentiable.
        head_VD: [V, D] floating; differentiable. It and bias_V may be DTensors, as in `linear_logprob`.
        target_T: [T] int64 or int32 in [0, V).
        edges: per-edge constants (see `Edges`), taken to the accumulation dtype.
        objective: which loss (see `Objective`).
        source_T: [T] int64 or int32 in [0, S), the position that edge t predicts from; may repeat. None = T
            is S.
        bias_V: [V] floating, or None; differentiable.
        temperature, softcap, shard: as in `linear_logprob`.
        product_dtype: of the operands of matrix products, which are rounded to it (bfloat16 or float16); sums
            and gradients stay as above. None = the wider of the two operands'.
        chunk_bytes: most bytes of logits and their gradient held at once (one row at least). None = 128 MiB
            for `cpu`, 1.5 GB for `triton`. Beside them are held d hidden and d head in the accumulation
            dtype and, by `cpu`, a float32 copy of narrower inputs.
        impl: `reference` (logits materialised, plain autograd), `cpu` or `triton`; None as in
            `linear_logprob`.

    Returns:
        `PolicyLoss` as of `policy_loss`, in float32 (float64 when an input is float64). Gradients reach
        hidden, head and bias in their own dtypes.

    Raises:
        ValueError: as `linear_logprob` and `policy_loss`. Hidden states of NaN are a loss of NaN.
        RuntimeError: a second backward through a `cpu` result.
    """
    tensors = (hidden_SD, head_VD, target_T, source_T, bias_V)
    linear = checked_linear(*tensors, temperature, softcap, shard, product_dtype)
    checked_edges(edges, objective, linear.num_rows)
    impls = {"reference": linear_policy_loss_reference, "cpu": linear_policy_loss_cpu, "triton": _triton}
    with torch.autocast(linear.hidden_SD.device.type, enabled=False):
        out = impls[choose_linear_impl(impl, linear)](linear, edges, objective, chunk_bytes)
    return explained(out, edges)


def _triton(linear: Linear, edges: Edges, objective: Objective, chunk_bytes: int | None) -> PolicyLoss:
    from g2rpo_kernels.linear_policy_loss.triton import linear_policy_loss_triton

    return linear_policy_loss_triton(linear, edges, objective, chunk_bytes)
