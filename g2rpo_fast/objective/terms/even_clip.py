"""A clip that acts evenly: log-ratios are centred, and scaled alike, in every bin of entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from g2rpo_fast.bounds import Ge, Gt
from g2rpo_fast.objective.terms.clip import Clip
from g2rpo_fast.objective.terms.rows import counted, log_ratio, safe
from g2rpo_fast.objective.terms.surrogate import weighed
from g2rpo_fast.pieces import Ties, Tokens

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class EvenClip(Clip):
    """As `clip`, of exp(scale (l - shift)): shift = mean of the log-ratios l of the token's bin, scale = the
    spread of all log-ratios of the batch over that of the bin; no gradient through either.

    Bins of about as many tokens each, by entropy. A log-ratio's mean is below 0 by itself (it is -KL), and
    its spread grows with the entropy: one range clips positive advantages less, and confident tokens not at
    all. Core of GRPO-Guard (arXiv 2510.22319), which does so for the steps of a flow. Evidence: approx: the
    authors have no variant for text. Metrics are of the plain ratio.
    """

    use = "even_clip"
    ratio: Literal["token"] = "token"
    """No other: each token has its bin."""
    bins: Annotated[int, Ge(1)] = 4
    """Of entropy, with about as many tokens each."""
    least: Annotated[float, Gt(0)] = 1e-3
    """Smallest spread that a bin is scaled from: below it, as on the first pass, scale = 1."""

    @property
    def ties(self) -> Ties:
        return "batch"

    def __call__(self, logp_N: Tensor, entropy_N: Tensor, tokens: Tokens) -> Tensor:
        from g2rpo_kernels.policy_loss.surrogates import ratio_of

        log_ratio_N = log_ratio(logp_N, tokens.old_logp_N, tokens)
        shift_N, scale_N = self.standard(log_ratio_N.detach(), entropy_N.detach(), tokens)
        values = self.surrogate(ratio_of(scale_N * (log_ratio_N - shift_N)), safe(logp_N, tokens))
        return weighed(values.plus, values.minus, tokens)

    def standard(self, log_ratio_N: Tensor, entropy_N: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """(shift, scale) of each token's bin."""
        import torch

        used_N = counted(tokens)
        shift_N, scale_N = torch.zeros_like(log_ratio_N), torch.ones_like(log_ratio_N)
        if not used_N.any():
            return shift_N, scale_N
        whole = log_ratio_N[used_N].std(unbiased=False)
        shares = torch.arange(1, self.bins, device=entropy_N.device, dtype=entropy_N.dtype) / self.bins
        bin_N = torch.bucketize(entropy_N, entropy_N[used_N].quantile(shares))
        for number in range(self.bins):
            part = used_N & (bin_N == number)
            if part.any():
                spread = log_ratio_N[part].std(unbiased=False)
                shift_N[part] = log_ratio_N[part].mean()
                scale_N[part] = torch.where(spread >= self.least, whole / spread.clamp(min=self.least), 1.0)
        return shift_N, scale_N

    def kernel(self) -> None:
        return None
