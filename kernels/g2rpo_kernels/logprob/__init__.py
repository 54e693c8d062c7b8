"""Log-probability, entropy and log-sum-exp of target tokens, from logits.

Dimension key: T rows (trained edges), V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from g2rpo_kernels.logprob.checks import Impl, check_index, check_scaling, choose_impl
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
        impl: `reference` (autograd through log_softmax; any device; twice differentiable) or `cpu`
            (cache-sized blocks; no temporary of the size of the logits beside their gradient; once
            differentiable). None = `cpu` for CPU tensors narrower than float64, else `reference`.

    Returns:
        `LogProb(logp_T, entropy_T, lse_T)` in float32 (float64 for float64 logits), each [T] and
        differentiable with respect to the logits; the gradient has the logits' dtype.

    Raises:
        ValueError: shapes or dtypes that do not fit, a target outside the vocabulary (checked on the CPU
            only), `temperature` or `softcap` not positive, an `impl` unknown or not for this device.
    """
    if logits_TV.dim() != 2 or not logits_TV.is_floating_point():
        raise ValueError(f"logits_TV: wanted [T, V] floating, got {list(logits_TV.shape)} {logits_TV.dtype}")
    check_index("target_T", target_T, logits_TV.shape[1], logits_TV.shape[0])
    check_scaling(temperature, softcap)
    impls = {"reference": logprob_reference, "cpu": logprob_cpu}
    return impls[choose_impl(impl, logits_TV)](logits_TV, target_T, temperature, softcap)
