"""A loss of the caller's own, as a function of all edges' log-probabilities and entropies: how it is called.

    c = dL/dlogp,   e = dL/dH      by autograd of the function on vectors

The function always gets all T edges. Those not known yet have placeholders: c and e of the others do not
depend on them where they are not tied. Whether that was so is known at the end, when all edges are: the
coefficients that were used must be those of the finished vectors.

Dimension key: T edges, C a run of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from g2rpo_kernels.linear_policy_loss.coefficients import Coefficients

LossFn = Callable[[Tensor, Tensor], Tensor]
"""(logp_T, entropy_T) -> 0-dim."""
Ties = Literal["token", "row", "group", "batch"]
PLACEHOLDERS = (-1.0, 1.0)
"""Log-probability and entropy of an edge that is not known yet."""
ROUNDINGS = 64
"""By which coefficients may differ that were summed in another order, in units of the largest."""
SAME_LOGP = 1e-3
"""Most that the log-probabilities of a look may be away from those found later; nats, or their share."""


class TokenLoss(NamedTuple):
    """Loss (differentiable, 0-dim) and what was seen on the way."""

    loss: Tensor
    logp_T: Tensor
    """Detached."""
    entropy_T: Tensor
    """Detached."""


@dataclass(frozen=True)
class OwnLoss:
    """The function, and what it ties together."""

    function: LossFn
    cuts: tuple[int, ...] | None
    """Positions in (0, T] between which no two edges are tied, T last; None = anywhere."""
    look: tuple[Tensor, Tensor] | None
    """logp_T and entropy_T, where they are known beforehand."""

    def value(self, logp_T: Tensor, entropy_T: Tensor) -> Tensor:
        """0-dim, in the dtype of the arguments."""
        value = self.function(logp_T, entropy_T)
        if not isinstance(value, Tensor):
            raise ValueError(f"loss: wanted a 0-dim floating tensor, got {type(value).__name__}")
        if value.dim() or not value.is_floating_point():
            raise ValueError(f"loss: wanted a 0-dim floating tensor, got {list(value.shape)} {value.dtype}")
        return value.to(logp_T.dtype)

    def coefficients(self, logp_T: Tensor, entropy_T: Tensor) -> Coefficients:
        """[T] each; e is None where the loss does not use the entropy."""
        with torch.enable_grad():
            leaves = [value_T.detach().requires_grad_() for value_T in (logp_T, entropy_T)]
            value = self.value(*leaves)
            c_T, e_T = (
                torch.autograd.grad(value, leaves, allow_unused=True) if value.requires_grad else (None, None)
            )
        if c_T is None and e_T is None:
            raise ValueError("loss: wanted a value that depends on logp_T or entropy_T, got one of neither")
        return Coefficients(torch.zeros_like(logp_T) if c_T is None else c_T, e_T)

    def probe(self, like_T: Tensor) -> Coefficients:
        """Coefficients where nothing is known: which there are, and whether the function can be used."""
        return self.coefficients(*(torch.full_like(like_T, value) for value in PLACEHOLDERS))

    def finished(self, logp_T: Tensor, entropy_T: Tensor) -> Tensor:
        """The loss at the finished vectors; differentiable with respect to what the function closes over.

        Of hidden states that are not finite it is what it comes to: the caller's guard sees it.
        """
        value = self.value(logp_T, entropy_T)
        if value.device.type == "cpu" and not value.isfinite() and logp_T.isfinite().all():
            raise ValueError(f"loss: wanted a finite value, got {float(value.detach())}")
        return value


class EdgeCoefficients:
    """Coefficients of edges whose statistics become known bit by bit, and which of them were used."""

    def __init__(self, own: OwnLoss, logp_T: Tensor, entropy_T: Tensor) -> None:
        """`logp_T`, `entropy_T`: filled by the caller; placeholders where not yet."""
        self._own = own
        self._logp_T, self._entropy_T = logp_T, entropy_T
        self._used_2T = logp_T.new_zeros((2, len(logp_T)))
        self._latest = own.coefficients(*own.look) if own.look is not None else None

    def evaluate(self) -> Coefficients:
        """Of all edges, at the statistics as they are now."""
        self._latest = self._own.coefficients(self._logp_T, self._entropy_T)
        return self._latest

    def rows(self, rows: slice) -> Coefficients:
        """Of some edges, when last evaluated, to be used."""
        assert self._latest is not None
        c_T, e_T = self._latest
        self._used_2T[0, rows] = c_T[rows]
        if e_T is not None:
            self._used_2T[1, rows] = e_T[rows]
        return Coefficients(c_T[rows], None if e_T is None else e_T[rows])

    def largest(self) -> Tensor:
        """0-dim: of all when last evaluated, the largest."""
        assert self._latest is not None
        return torch.stack([value_T.abs().amax() for value_T in self._latest if value_T is not None]).amax()

    def verdict(self, ties: Ties) -> Tensor | None:
        """NaN where what was used is not the gradient of the loss, else 1; None = 1.

        On the CPU it is an error instead. On a GPU nothing waits for the answer.
        """
        if self._latest is None or not len(self._logp_T):
            return None
        if self._logp_T.device.type != "cpu":
            return torch.where(self._wrong().any(), torch.nan, 1.0)
        if not self._logp_T.isfinite().all() and not finite(self._latest):
            return self._logp_T.new_tensor(torch.nan)  # the inputs are not finite: no fault of the function
        check_finite(self._latest)
        wrong_T = self._wrong()
        if not wrong_T.any():
            return None
        edge = int(wrong_T.nonzero()[0])
        if self._own.look is not None:
            got, found = float(self._own.look[0][edge]), float(self._logp_T[edge])
            raise ValueError(f"look: wanted the logp_T of these inputs, got {got} for {found} at edge {edge}")
        raise ValueError(
            f"ties={ties!r}: wanted a loss that ties no more together, the same at every call;"
            f" the gradient at edge {edge} depends on others"
        )

    def _wrong(self) -> Tensor:
        """[T] bool."""
        if self._own.look is not None:
            logp_T = self._own.look[0].to(self._logp_T)
            return ~((logp_T - self._logp_T).abs() <= SAME_LOGP * (1 + self._logp_T.abs()))
        assert self._latest is not None
        c_T, e_T = self._latest
        true_2T = torch.stack((c_T, torch.zeros_like(c_T) if e_T is None else e_T))
        allowed = ROUNDINGS * torch.finfo(c_T.dtype).eps * true_2T.abs().amax(1, keepdim=True)
        return ~((self._used_2T - true_2T).abs() <= allowed).all(0)


def finite(given: Coefficients) -> bool:
    """Whether every coefficient is a number."""
    return all(value_T is None or bool(value_T.isfinite().all()) for value_T in given)


def check_finite(given: Coefficients) -> None:
    """Raise ValueError where a coefficient is not a number."""
    for name, value_T in zip(("logp_T", "entropy_T"), given, strict=True):
        if value_T is not None and not value_T.isfinite().all():
            edge = int((~value_T.isfinite()).nonzero()[0])
            raise ValueError(
                f"loss: wanted finite gradients, got {float(value_T[edge])} by {name} at edge {edge}"
                " (replace what is NaN or infinite before it is used, not after)"
            )
