"""Log-probability, entropy and log-sum-exp of target tokens, from hidden states and the LM head.

Dimension key: S positions, D width, V vocabulary, T rows (trained edges).
"""

from __future__ import annotations

from torch import Tensor

from g2rpo_kernels.linear_logprob.chunks import checked_linear
from g2rpo_kernels.linear_logprob.cpu import linear_logprob_cpu
from g2rpo_kernels.linear_logprob.reference import linear_logprob_reference
from g2rpo_kernels.logprob.checks import Impl, choose_impl
from g2rpo_kernels.logprob.records import LogProb

__all__ = ["linear_logprob"]


def linear_logprob(
    hidden_SD: Tensor,
    head_VD: Tensor,
    target_T: Tensor,
    *,
    source_T: Tensor | None = None,
    bias_V: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk_bytes: int = 128 << 20,
    impl: Impl | None = None,
) -> LogProb:
    """`logprob` of logits = hidden @ head^T + bias, without storing the logits.

    Args:
        hidden_SD: [S, D] floating; differentiable.
        head_VD: [V, D] floating; differentiable.
        target_T: [T] int64 or int32 in [0, V).
        source_T: [T] int64 or int32 in [0, S), the position that row t predicts from; may repeat (siblings
            share the last position of their prompt). None = row t is position t, and T = S.
        bias_V: [V] floating, or None; differentiable.
        temperature: divides the logits; > 0.
        softcap: Gemma's logit cap, applied after the bias and before the temperature; > 0, or None.
        chunk_bytes: most bytes of logits held at once by `cpu` (one row at least).
        impl: `reference` (logits materialised; any device; twice differentiable) or `cpu` (row chunks;
            backward recomputes the logits, skips rows whose upstream gradient is zero; once differentiable).
            None = `cpu` for CPU tensors narrower than float64, else `reference`.

    Returns:
        `LogProb(logp_T, entropy_T, lse_T)`, each [T], in float32 (float64 when an input is float64).
        Products and sums are float32 too: narrower inputs are upcast, the head as one copy. Gradients reach
        hidden, head and bias through all three, in their dtypes; the order of summation is fixed.

    Raises:
        ValueError: shapes or dtypes that do not fit, an index out of range (checked on the CPU only),
            `temperature`, `softcap` or `chunk_bytes` not positive, an `impl` unknown or not for this device.
    """
    linear = checked_linear(hidden_SD, head_VD, target_T, source_T, bias_V, temperature, softcap)
    impls = {"reference": linear_logprob_reference, "cpu": linear_logprob_cpu}
    return impls[choose_impl(impl, hidden_SD)](linear, chunk_bytes)
