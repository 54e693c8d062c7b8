"""What a policy loss is made of: the objective's settings, the edges' numbers, the result.

Dimension key: T trained edges, M (edge, member) pairs. A trailing 1 (T1) is "plus one".
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from g2rpo_kernels.checks import check_tensors, readable, shows_nan
from g2rpo_kernels.packing import Packing, packing
from g2rpo_kernels.policy_loss.kl import KlName
from g2rpo_kernels.policy_loss.surrogates import SURROGATES, RatioName, Surrogate, surrogate_of
from g2rpo_kernels.transfer import to_device


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Which loss: a surrogate with its settings, and what stands beside it."""

    surrogate: Surrogate | str = "clip"
    """Or the name of one among `SURROGATES`, which becomes the record with its defaults."""
    ratio: RatioName = "token"
    """`sequence`: exp of the mean log-ratio over a row's trained tokens (GSPO, arXiv 2507.18071); `product`:
    exp of their sum (vespo), times the importance weights, which then do not multiply the surrogate."""
    kl: KlName = "k3"
    kl_coef: float = 0.0
    kl_times_ratio: bool = False
    """Multiply the KL estimate by the unclipped ratio (the token's own with `product`), gradient included:
    unbiased for samples of the old policy (DeepSeek-V3.2, arXiv 2512.02556)."""
    entropy_coef: float = 0.0
    importance_cap: float | None = None
    """Largest importance weight exp(old_logp - rollout_logp), at least 1; None = no weights."""
    importance_low: float = 0.0
    """Smallest, in [0, 1]. Tokens that the engine did not sample have the weight 1."""
    importance_mask: bool = False
    """Weights outside [low, cap] become 0 (masked, arXiv 2510.18855), not the bound (truncated). `product`
    ratios are multiplied by at least 1e-8: one masked token lets a row's ratio vanish, as in TRL."""

    def __post_init__(self) -> None:
        surrogate = surrogate_of(self.surrogate)
        object.__setattr__(self, "surrogate", surrogate)
        for name, wanted in (("ratio", get_args(RatioName)), ("kl", get_args(KlName))):
            if getattr(self, name) not in wanted:
                raise ValueError(f"{name}: wanted one of {wanted}, got {getattr(self, name)!r}")
        if not self.kl_coef >= 0:
            raise ValueError(f"kl_coef: wanted >= 0, got {self.kl_coef}")
        for name in ("kl_coef", "entropy_coef"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}: wanted a finite number, got {getattr(self, name)}")
        if self.importance_cap is not None and not self.importance_cap >= 1:
            raise ValueError(f"importance_cap: wanted >= 1 or None, got {self.importance_cap}")
        if not 0 <= self.importance_low <= 1:
            raise ValueError(f"importance_low: wanted in [0, 1], got {self.importance_low}")
        if self.ratio not in surrogate.ratios:
            wanted = " or ".join(map(repr, surrogate.ratios))
            raise ValueError(f"ratio: wanted {wanted} with surrogate={surrogate.name!r}, got {self.ratio!r}")

    @property
    def one_launch(self) -> bool:
        """Whether a kernel goes from logits to loss: ratios of tokens, a surrogate with a device function."""
        surrogate = surrogate_of(self.surrogate)
        known = SURROGATES.get(surrogate.name) is type(surrogate)
        return self.ratio == "token" and known and surrogate.scalars() is not None


def _packed(surrogate: Surrogate) -> tuple[str, list[float]]:
    """(module:class, settings with NaN for None)."""
    values = [getattr(surrogate, field.name) for field in fields(surrogate)]
    kind = f"{type(surrogate).__module__}:{type(surrogate).__qualname__}"
    return kind, [math.nan if value is None else float(value) for value in values]


def _unpacked(kind: str, settings: list[float]) -> Surrogate:
    module, _, name = kind.partition(":")
    found = getattr(sys.modules[module], name, None)
    if found is None:
        raise ValueError(f"surrogate: wanted a class at the top of its module, got {name} of {module}")
    values = [None if math.isnan(value) else value for value in settings]
    return found(**dict(zip([field.name for field in fields(found)], values, strict=True)))


_SURROGATE = Packing(("str kind", "float[] settings"), _packed, _unpacked)
OBJECTIVE = packing(Objective, surrogate=_SURROGATE)
"""As arguments of an operator."""


class Edges(NamedTuple):
    """Per-edge constants of the loss: sums over the edge's members, taken once for the whole step.

    Two members with advantages 1 and -2 and weights 0.1 share an edge: a_pos 0.1, a_neg -0.2, weight 0.2.
    An edge with a_pos = a_neg = weight = 0 contributes nothing, whatever its log-probabilities (NaN
    included).
    """

    a_pos_T: Tensor
    """sum over members of weight * max(advantage, 0)."""
    a_neg_T: Tensor
    """sum over members of weight * min(advantage, 0)."""
    weight_T: Tensor
    """sum over members of weight: multiplies KL and entropy."""
    old_logp_T: Tensor | None = None
    """Under the policy before this batch's first step; None, or NaN for an edge, = on-policy there:
    exp(logp - logp.detach()). The ops on padded batches refuse NaN."""
    ref_logp_T: Tensor | None = None
    rollout_logp_T: Tensor | None = None
    """Reported by the engine; NaN = not sampled (importance weight 1)."""
    member_ptr_T1: Tensor | None = None
    """[T + 1] int64, CSR of members per edge. This and the four below: sequence ratios only."""
    member_row_M: Tensor | None = None
    """[M] int64 in [0, num_rows), the row (sequence) of each member."""
    member_advantage_M: Tensor | None = None
    member_weight_M: Tensor | None = None
    num_rows: int = 0
    row_cuts: tuple[int, ...] | None = None
    """On the host: edges before which no row is cut in two, T last (`linear_policy_loss.bins.row_cuts`).
    Linear ops use it for sequence ratios; None = found here if the members are on the CPU, else not used."""

    def cast(self, dtype: torch.dtype, device: torch.device) -> Edges:
        """Floating tensors in `dtype`, all on `device`."""
        given = {name: value for name, value in self._asdict().items() if isinstance(value, Tensor)}
        cast = [value.to(dtype) if value.is_floating_point() else value for value in given.values()]
        return self._replace(**dict(zip(given, to_device(cast, device), strict=True)))

    def rows(self, rows: slice) -> Edges:
        """A run of edges, without the members."""
        cut = {name: None if getattr(self, name) is None else getattr(self, name)[rows] for name in PER_EDGE}
        return Edges(**cut)  # pyright: ignore[reportArgumentType]


PER_EDGE = ("a_pos_T", "a_neg_T", "weight_T", "old_logp_T", "ref_logp_T", "rollout_logp_T")
MEMBERS = ("member_ptr_T1", "member_row_M", "member_advantage_M", "member_weight_M")
NAMES = tuple(f"edges.{name}" for name in (*PER_EDGE, *MEMBERS))
"""As messages name the tensors."""
EXPLAINING = ("a_pos_T", "a_neg_T", "weight_T", "member_advantage_M", "member_weight_M")
"""What is nowhere anything but a number."""


class PolicyLoss(NamedTuple):
    """Loss (differentiable, 0-dim) and what was seen on the way."""

    loss: Tensor
    logp_T: Tensor
    """Detached."""
    entropy_T: Tensor
    """Detached."""
    stats: dict[str, tuple[Tensor, Tensor]]
    """name -> (sum, count), 0-dim and detached: add over micro-batches and ranks, divide once."""


def check_vectors(given: Mapping[str, Tensor | None], num_edges: int) -> None:
    """Raise ValueError for a vector of edges without values, of another length or not floating."""
    check_tensors(given, one_device=False)
    for name, value in given.items():
        if value is not None and (value.shape != (num_edges,) or not value.dtype.is_floating_point):
            raise ValueError(f"{name}: wanted [{num_edges}] floating, got {list(value.shape)} {value.dtype}")


def check_given(edges: Edges, objective: Objective, prefix: str = "edges.") -> None:
    """Raise ValueError where `objective` needs log-probabilities that `edges` has not."""
    if objective.kl_coef and edges.ref_logp_T is None:
        raise ValueError(f"{prefix}ref_logp_T: wanted with kl_coef={objective.kl_coef}, got None")
    if objective.importance_cap is not None and edges.rollout_logp_T is None:
        wanted = f"wanted with importance_cap={objective.importance_cap}"
        raise ValueError(f"{prefix}rollout_logp_T: {wanted}, got None")


def checked_edges(edges: Edges, objective: Objective, num_edges: int) -> None:
    """Raise ValueError where `edges` does not fit `objective` or `num_edges`."""
    check_vectors(dict(zip(NAMES, edges[:6], strict=False)), num_edges)
    check_given(edges, objective)
    if objective.ratio != "token":
        _check_members(edges, objective, num_edges)


def _check_members(edges: Edges, objective: Objective, num_edges: int) -> None:
    members = edges[6:10]
    if any(value is None for value in members):
        raise ValueError(f"edges.member_*: wanted with ratio={objective.ratio!r}, got None")
    check_tensors(dict(zip(NAMES[6:], members, strict=True)), one_device=False)
    ptr_T1, row_M, advantage_M, weight_M = (value for value in members if value is not None)
    if list(ptr_T1.shape) != [num_edges + 1]:
        raise ValueError(f"edges.member_ptr_T1: wanted [{num_edges + 1}], got {list(ptr_T1.shape)}")
    sizes = (len(row_M), len(advantage_M), len(weight_M))
    if not sizes[0] == sizes[1] == sizes[2]:
        raise ValueError(f"edges.member_row_M, _advantage_M, _weight_M: wanted one length, got {sizes}")
    for name, value in zip(MEMBERS, members, strict=True):
        assert value is not None
        if value.dtype.is_floating_point != (name in MEMBERS[2:]):
            wanted = "floating" if name in MEMBERS[2:] else "integers"
            raise ValueError(f"edges.{name}: wanted {wanted}, got {value.dtype}")


def explained(out: PolicyLoss, edges: Edges) -> PolicyLoss:
    """`out`; ValueError where its loss is no finite number because a coefficient of `edges` is none.

    Looks where that costs nothing. What else makes a loss NaN, such as hidden states, is the caller's to see.
    """
    if shows_nan(out.loss):
        for name in EXPLAINING:
            value = getattr(edges, name)
            if value is None or not readable(value) or value.isfinite().all():
                continue
            at = int((~value.isfinite()).nonzero()[0])
            raise ValueError(f"edges.{name}: wanted finite, got {float(value[at])} at {at}")
    return out
