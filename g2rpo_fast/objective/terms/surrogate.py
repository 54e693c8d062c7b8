"""What all surrogates share: -(w max(A, 0) plus(r) + w min(A, 0) minus(r)), summed over tokens.

`plus` and `minus` are written once, in the record that the kernels' package has of each surrogate. A term's
settings of the same names are the record's. One that is no function of the ratio alone overrides `values`.

Dimension key: N trained tokens of whole rows end to end.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from g2rpo_fast.objective.terms.rows import bounded, log_ratio, row_means, row_sums, unit_means
from g2rpo_fast.pieces import Stats, Term, Ties, Tokens

if TYPE_CHECKING:
    import g2rpo_kernels
    from g2rpo_kernels import Values
    from torch import Tensor

RatioName = Literal["token", "sequence", "unit", "product"]


class Surrogate(Term):
    """What advantages multiply. Rows without any have no part in it."""

    by_advantage = True
    record: ClassVar[str]
    """The mathematics: the name of a class in `g2rpo_kernels`."""
    reads_ratio: ClassVar[bool] = True
    """As the class says. Here as well, so that a configuration is read without PyTorch."""
    ratio = "token"

    @property
    def ties(self) -> Ties:
        return "token" if self.ratio == "token" else "row"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"old_logp"} if self.reads_ratio else ())

    @property
    def surrogate(self) -> g2rpo_kernels.Surrogate:
        import g2rpo_kernels

        record = getattr(g2rpo_kernels, self.record)
        return record(**{f.name: getattr(self, f.name) for f in fields(record)})

    def kernel(self) -> dict[str, Any] | None:
        if self.ratio == "unit":
            return None
        ratio = {"ratio": self.ratio} if self.reads_ratio else {}
        return {"surrogate": self.surrogate, **ratio}

    def log_ratio(self, logp_N: Tensor, tokens: Tokens) -> Tensor:
        """[N] of the token, its unit, or its row: `ratio` says which."""
        log_ratio_N = log_ratio(logp_N, tokens.old_logp_N, tokens)
        if self.ratio == "token":
            return log_ratio_N
        if self.ratio == "sequence":
            return row_means(log_ratio_N, tokens)[tokens.row_N]
        if self.ratio == "unit":
            return unit_means(log_ratio_N, tokens)
        return row_sums(bounded(log_ratio_N), tokens)[tokens.row_N]

    def values(self, logp_N: Tensor, log_ratio_N: Tensor, tokens: Tokens) -> Values:
        """[N] each: what positive and negative advantages multiply."""
        from g2rpo_kernels.policy_loss.surrogates import ratio_of

        return self.surrogate(ratio_of(log_ratio_N), logp_N)

    def __call__(self, logp_N: Tensor, entropy_N: Tensor, tokens: Tokens) -> Tensor:
        values = self.values(logp_N, self.log_ratio(logp_N, tokens), tokens)
        return weighed(values.plus, values.minus, tokens)

    def stats(self, logp_N: Tensor, tokens: Tokens) -> Stats:
        """As `g2rpo_kernels.policy_loss` has them, over tokens with an advantage."""
        from g2rpo_kernels.policy_loss.kl import KLS
        from g2rpo_kernels.policy_loss.surrogates import ratio_of

        logp_N = logp_N.detach()
        plus_N, minus_N = signed(tokens)
        used = (plus_N != 0) | (minus_N != 0)
        log_ratio_N = self.log_ratio(logp_N, tokens)
        values = self.values(logp_N, log_ratio_N, tokens)
        found = {"ratio": ratio_of(log_ratio_N), "approx_kl": KLS["k3"](-log_ratio_N)}
        if values.clipped_plus is not None and values.clipped_minus is not None:
            clipped = (plus_N != 0) & values.clipped_plus | (minus_N != 0) & values.clipped_minus
            found["clipped"] = clipped.to(logp_N)
        return {name: (value.where(used, 0.0).sum(), used.sum()) for name, value in found.items()}


def signed(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """[N] each: weight times the positive, and the negative, part of the advantage."""
    advantage_N, weight_N = tokens.advantage_N, tokens.weight_N
    return weight_N * advantage_N.clamp(min=0), weight_N * advantage_N.clamp(max=0)


def weighed(plus_N: Tensor, minus_N: Tensor, tokens: Tokens) -> Tensor:
    """0-dim: minus what positive and negative advantages multiply, times these; 0 of tokens without one."""
    a_plus_N, a_minus_N = signed(tokens)
    used = (a_plus_N != 0) | (a_minus_N != 0)
    return -(a_plus_N * plus_N + a_minus_N * minus_N).where(used, 0.0).sum()
