"""Log-probability, entropy and log-sum-exp of target tokens, from logits.

Dimension key: T rows (trained edges), V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from g2rpo_kernels.logprob.checks import Impl, check_rows, choose_impl
from g2rpo_kernels.logprob.cpu import logprob_cpu
from g2rpo_kernels.logprob.records import LogProb
from g2rpo_kernels.logprob.reference import logprob_reference

__all__ = ["LogProb", "logprob"]


def logprob(
    logits_TV: Tensor,
    target_T: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    impl: Impl | None = None,
) -> LogProb:
    """log p(target), entropy and lse of each row of logits.

    With z = softcap * tanh(logits / softcap) / temperature (no cap when `softcap` is None):
    logp_t = z_t[target_t] - lse_t, entropy_t = -sum_v p_tv log p_tv, lse_t = log sum_v exp z_tv, in nats.

    Args:
        logits_TV: [T, V], any floating dtype. Below float64 all arithmetic is float32. A logit may be -inf
            (that token is impossible, contributes nothing and gets no gradient), but not all of a row's.
        target_T: [T] int64 or int32 in [0, V).
        temperature: divides the logits; > 0.
        softcap: Gemma's logit cap; > 0, or None.
        impl: `reference` (autograd through log_softmax; any device; twice differentiable), `cpu` (cache-sized
            blocks; no temporary of the size of the logits beside their gradient; once differentiable) or
            `triton` (float32, bfloat16 or float16 on CUDA; one read of the logits forward, one read and one
            write backward, in any strides; once differentiable). None = `cpu` or `triton` by device,
            `reference` for float64.

    Returns:
        `LogProb(logp_T, entropy_T, lse_T)` in float32 (float64 for float64 logits), each [T] and
        differentiable with respect to the logits; the gradient has the logits' dtype.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, a tensor without values (on `meta`), a DTensor,
            a target outside the vocabulary (checked on the CPU only), `temperature` or `softcap` not positive
            or not finite, an `impl` unknown or not for this device. Logits of NaN are results of NaN.
    """
    check_rows(logits_TV, target_T, temperature, softcap)
    impls = {"reference": logprob_reference, "cpu": logprob_cpu, "triton": _triton}
    return impls[choose_impl(impl, logits_TV)](logits_TV, target_T, temperature, softcap)


def _triton(logits_TV: Tensor, target_T: Tensor, temperature: float, softcap: float | None) -> LogProb:
    from g2rpo_kernels.logprob.triton import logprob_triton

    return logprob_triton(logits_TV, target_T, temperature, softcap)
