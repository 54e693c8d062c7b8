"""Log-probability, entropy and log-sum-exp of target tokens, from hidden states and the LM head.

Dimension key: S positions, D width, V vocabulary, T rows (trained edges).
"""

from __future__ import annotations

import torch
from torch import Tensor

from g2rpo_kernels.linear_logprob.cpu import linear_logprob_cpu
from g2rpo_kernels.linear_logprob.linear import Linear, checked_linear, choose_linear_impl
from g2rpo_kernels.linear_logprob.reference import linear_logprob_reference
from g2rpo_kernels.linear_logprob.shard import VocabShard
from g2rpo_kernels.logprob.checks import Impl
from g2rpo_kernels.logprob.records import LogProb

__all__ = ["VocabShard", "linear_logprob"]


def linear_logprob(
    hidden_SD: Tensor,
    head_VD: Tensor,
    target_T: Tensor,
    *,
    source_T: Tensor | None = None,
    bias_V: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    shard: VocabShard | None = None,
    product_dtype: torch.dtype | None = None,
    chunk_bytes: int | None = None,
    impl: Impl | None = None,
) -> LogProb:
    """`logprob` of logits = hidden @ head^T + bias, without storing the logits.

    Products and sums are float32. `cpu` upcasts narrower inputs for it, the head as one copy; `triton`
    multiplies them as they are with float32 output. Both recompute the logits on backward (four products in
    all), sum in a fixed order, and ignore autocast. To `torch.compile` they are operators: no graph break,
    any lengths, with `shard` too. They work under activation checkpointing.

    Args:
        hidden_SD: [S, D] floating; differentiable.
        head_VD: [V, D] floating; differentiable. It and bias_V may be DTensors, which all ranks then gather
            (see `sharded_head`: the gradient comes back in their placements, as the mean over the ranks).
        target_T: [T] int64 or int32 in [0, V).
        source_T: [T] int64 or int32 in [0, S), the position that row t predicts from; may repeat (siblings
            share the last position of their prompt). None = row t is position t, and T = S.
        bias_V: [V] floating, or None; differentiable.
        temperature: divides the logits; > 0.
        softcap: Gemma's logit cap, applied after the bias and before the temperature; > 0, or None.
        shard: head_VD and bias_V are this rank's columns of a vocabulary split over a process group (see
            `VocabShard`); targets stay token ids of the whole. Everything else, results and the gradient of
            the results included, is the same on every rank; d hidden comes back summed over ranks. All
            ranks must call together, and run backward together.
        product_dtype: of the operands of matrix products, which are rounded to it (bfloat16 or float16); sums
            and gradients stay as above. None = the wider of the two operands'.
        chunk_bytes: most bytes of logits, and on backward of their gradient, held at once (one row at
            least). None = 128 MiB for `cpu`, 1.5 GB for `triton`.
        impl: `reference` (logits materialised; any device; twice differentiable), `cpu` (row chunks;
            backward skips rows whose upstream gradient is zero; once differentiable) or `triton` (row
            chunks on CUDA; once differentiable). None = `triton` for CUDA tensors and `cpu` for CPU
            tensors, narrower than float64; else `reference` (`cpu` with `shard`).

    Returns:
        `LogProb(logp_T, entropy_T, lse_T)`, each [T], in float32 (float64 when an input is float64).
        Gradients reach hidden, head and bias through all three, in their dtypes.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, a tensor without values (on `meta`), a DTensor
            that is no head, an index out of range (checked on the CPU only), `temperature`, `softcap` or
            `chunk_bytes` not positive, a `shard` that does not fit, an `impl` unknown or not for these
            tensors.
    """
    tensors = (hidden_SD, head_VD, target_T, source_T, bias_V)
    linear = checked_linear(*tensors, temperature, softcap, shard, product_dtype)
    impls = {"reference": linear_logprob_reference, "cpu": linear_logprob_cpu, "triton": _triton}
    with torch.autocast(linear.hidden_SD.device.type, enabled=False):
        return impls[choose_linear_impl(impl, linear)](linear, chunk_bytes)


def _triton(linear: Linear, chunk_bytes: int | None) -> LogProb:
    from g2rpo_kernels.linear_logprob.triton import linear_logprob_triton

    return linear_logprob_triton(linear, chunk_bytes)
