"""The policy as everybody computes it: the backbone over a packed tree, then an op through the LM head.

The update, its look at the old policy, the reference policy and the engine's probe all come through here.

Dimension key: S packed tree positions, D width, V vocabulary, T trained edges, M (edge, member) pairs,
N tokens of all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from g2rpo_kernels import linear_logprob
from g2rpo_kernels.logprob.records import LogProb
from g2rpo_kernels.transfer import to_device
from torch import Tensor
from transformers import PreTrainedModel

from g2rpo_fast.adapters.attach import without_adapters
from g2rpo_fast.model import ModelConfig, compute_context, compute_dtype
from g2rpo_fast.model.balance import balance_loss, balance_of, multiplicity
from g2rpo_fast.model.forward import tree_hidden
from g2rpo_fast.model.head import head_of
from g2rpo_fast.model.hook import follows_trees
from g2rpo_fast.model.output import TreeOutput
from g2rpo_fast.model.padded import padded_hidden
from g2rpo_fast.model.products import rounded_weights
from g2rpo_fast.model.replay import Forced, Replay
from g2rpo_fast.types import Doubles, Longs, TreePlan

Result = TypeVar("Result")


@dataclass(frozen=True)
class Stream:
    """A plan whose edges are on the policy's device."""

    plan: TreePlan
    source_T: Tensor
    """int64. Likewise:"""
    target_T: Tensor
    forced: Forced | None = None
    """Experts that the policy's forwards go through, where these are replayed."""

    @classmethod
    def of(cls, plan: TreePlan, device: torch.device) -> Stream:
        indices = [torch.from_numpy(x).long() for x in (plan.source_T, plan.target_T)]
        source_T, target_T = to_device(indices, device)
        return cls(plan, source_T, target_T)

    @property
    def edge_M(self) -> Longs:
        """[M] each member's edge."""
        return np.repeat(np.arange(len(self.plan.target_T)), np.diff(self.plan.member_ptr_T1))

    def scatter(self, value_T: Tensor, out_N: Doubles) -> None:
        """Writes each edge's value to the row tokens that it stands for."""
        out_N[self.plan.member_M] = value_T.double().cpu().numpy()[self.edge_M]

    def gather(self, value_N: Doubles, device: torch.device) -> Tensor:
        """[T] of each edge, the value of a token that it stands for."""
        first_T = self.plan.member_M[self.plan.member_ptr_T1[:-1]]
        return torch.from_numpy(value_N[first_T]).to(device)


class Balanced(NamedTuple):
    loss: Tensor
    """0-dim, differentiable, of the plan's positions: see `balance_loss`."""
    coefficient: float


class Trained(NamedTuple):
    """A forward of a loss."""

    hidden_SD: Tensor
    balanced: Balanced | None
    """What keeps the experts of a mixture that is trained so evenly used."""
    chosen: tuple[Tensor, ...]
    """See `TreeOutput`."""


@dataclass(frozen=True)
class Policy:
    """A model, how it computes, and at which temperature its distribution is read."""

    model: PreTrainedModel
    compute: ModelConfig
    temperature: float = 1.0
    bare: bool = False
    """The model without its adapters; nothing to differentiate."""
    replay: Replay | None = None
    """How its experts are given; None = it chooses them itself."""

    def forced(self, stream: Stream) -> AbstractContextManager[None]:
        """Around forwards of a stream and their backward passes."""
        if self.replay is None or stream.forced is None:
            return nullcontext()
        return self.replay.forced(stream.forced)

    def rounded(self) -> AbstractContextManager[None]:
        """Weights are rounded once for all passes within it, and must not change: see `rounded_weights`."""
        return rounded_weights(self.model, compute_dtype(self.model, self.compute))

    def hidden(
        self, plan: TreePlan, *, collect_kv: bool = False, routed: bool = False, chosen: bool = False
    ) -> TreeOutput:
        """The backbone over a plan: see `tree_hidden`, or `padded_hidden` where a model follows no trees."""
        bare = without_adapters(self.model) if self.bare else nullcontext()
        with bare, compute_context(self.model, self.compute):
            if not follows_trees(self.model):
                assert not collect_kv, "a model that keeps more than keys and values"
                return padded_hidden(self.model, plan, routed=routed, chosen=chosen)
            attention = self.compute.attention
            return tree_hidden(
                self.model, plan, attention=attention, collect_kv=collect_kv, routed=routed, chosen=chosen
            )

    def trained(self, plan: TreePlan, *, chosen: bool = False) -> Trained:
        """The forward of a loss; with the experts of each position where these are `chosen`."""
        balance = balance_of(self.model, self.compute)
        output = self.hidden(plan, routed=balance is not None, chosen=chosen)
        balanced = None
        if balance is not None:
            weight_S = torch.from_numpy(multiplicity(plan)).to(self.model.device)
            loss = balance_loss(output.router_logits, weight_S, balance.experts_per_token)
            balanced = Balanced(loss, balance.coefficient)
        return Trained(output.hidden_SD, balanced, output.chosen)

    def through_head(
        self,
        op: Callable[..., Result],
        hidden_SD: Tensor,
        stream: Stream,
        *arguments: Any,
        temperature: float | None = None,
        **settings: Any,
    ) -> Result:
        """`op` of g2rpo_kernels on the edges' logits: op(hidden, head, target, *arguments, **settings).

        Args:
            temperature: another one than the policy's.
        """
        head = head_of(self.model)
        return op(
            hidden_SD if head.scale == 1 else hidden_SD * head.scale,
            head.weight_VD,
            stream.target_T,
            *arguments,
            source_T=stream.source_T,
            bias_V=head.bias_V,
            temperature=self.temperature if temperature is None else temperature,
            softcap=head.softcap,
            product_dtype=compute_dtype(self.model, self.compute),
            **settings,
        )

    @torch.no_grad()
    def logp(self, stream: Stream) -> LogProb:
        """Log-probability and entropy of each edge's token, [T] each; nothing to differentiate."""
        with self.forced(stream):
            hidden_SD = self.hidden(stream.plan).hidden_SD
        return self.through_head(linear_logprob, hidden_SD, stream)
