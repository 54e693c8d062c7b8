"""The loss of a micro-batch: the kernels' named one, any terms', or coefficients that a whole batch gave it.

Dimension key: T trained edges, N trained tokens of whole rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from g2rpo_kernels import Objective, linear_policy_loss, token_loss
from torch import Tensor

from g2rpo_fast.learner.micro import MicroBatch
from g2rpo_fast.learner.policy import Policy, Trained
from g2rpo_fast.learner.routes import ROUTING, differing
from g2rpo_fast.objective.terms.rows import counted, safe
from g2rpo_fast.objective.tokens import joined
from g2rpo_fast.own import PieceError
from g2rpo_fast.pieces import Stats, Term, Ties, Tokens

WIDER: tuple[Ties, ...] = ("token", "row", "group", "batch")
"""Each ties together what those before it do."""
Seen = tuple[Tensor, Tensor]
"""(logp_T, entropy_T) under the present weights."""


class Loss(NamedTuple):
    loss: Tensor
    """0-dim, differentiable; with `balance`."""
    logp_T: Tensor
    stats: Stats
    balance: Tensor | float = 0.0
    """What of it keeps the experts of a mixture evenly used; detached."""


def with_experts(found: Loss, trained: Trained, micro: MicroBatch) -> Loss:
    """And the balance of experts: of each micro-batch by itself, by its share of the step's tokens."""
    stats, loss, part = found.stats, found.loss, None
    if micro.routes is not None:
        stats = stats | {ROUTING: differing(trained.chosen, micro.routes)}
    if trained.balanced is not None:
        value = trained.balanced.loss.detach()
        part = trained.balanced.coefficient * micro.share * trained.balanced.loss.to(loss.dtype)
        stats = stats | {"router_aux": (value * micro.share, torch.full_like(value, micro.share))}
        loss = loss + part
    return Loss(loss, found.logp_T, stats, 0.0 if part is None else part.detach())


def fused_loss(policy: Policy, micro: MicroBatch, objective: Objective, old_logp_T: Tensor | None) -> Loss:
    """Of terms that the kernels know, summed over the members of each edge beforehand."""
    trained = policy.trained(micro.stream.plan, chosen=micro.routes is not None)
    edges = micro.edges._replace(old_logp_T=old_logp_T)
    out = policy.through_head(linear_policy_loss, trained.hidden_SD, micro.stream, edges, objective)
    return with_experts(Loss(out.loss, out.logp_T, out.stats), trained, micro)


def strongest(terms: Sequence[Term]) -> Ties:
    return WIDER[max(WIDER.index(term.ties) for term in terms)]


def own_loss(policy: Policy, micro: MicroBatch, terms: Sequence[Term], seen: Seen | None) -> Loss:
    """Of any terms, on each member of each edge; autograd sums them back."""
    rows, ties = micro.rows, strongest(terms)
    assert rows is not None
    tokens = rows.tokens

    def loss(logp_T: Tensor, entropy_T: Tensor) -> Tensor:
        value = total(terms, logp_T[rows.edge_N], entropy_T[rows.edge_N], tokens)
        return value + 0 * logp_T.sum()  # terms may leave out all rows that are here

    # Groups are cut apart like rows: each is a run of edges.
    bins: dict[str, Any] = {"row_cuts": rows.cuts(ties)} if ties in ("row", "group") else {}
    trained = policy.trained(micro.stream.plan, chosen=micro.routes is not None)
    try:
        out = policy.through_head(
            token_loss,
            trained.hidden_SD,
            micro.stream,
            loss,
            ties="row" if bins else ties,
            look=None if seen is None else tuple(value_T.to(tokens.weight_N.dtype) for value_T in seen),
            **bins,
        )
    except ValueError as error:  # what the terms return is no loss
        raise error if isinstance(error, PieceError) else PieceError(f"terms: {error}") from error
    logp_N, entropy_N = out.logp_T[rows.edge_N], out.entropy_T[rows.edge_N]
    found = Loss(out.loss, out.logp_T, stats_of(terms, logp_N, entropy_N, tokens))
    return with_experts(found, trained, micro)


def linear_loss(policy: Policy, micro: MicroBatch, c_T: Tensor, e_T: Tensor | None) -> Loss:
    """<c, logp> + <e, H>: the gradient of a loss whose coefficients are known."""

    def loss(logp_T: Tensor, entropy_T: Tensor) -> Tensor:
        value = (c_T * logp_T).sum()
        return value if e_T is None else value + (e_T * entropy_T).sum()

    trained = policy.trained(micro.stream.plan, chosen=micro.routes is not None)
    out = policy.through_head(token_loss, trained.hidden_SD, micro.stream, loss)
    return with_experts(Loss(out.loss, out.logp_T, {}), trained, micro)


class Tied(NamedTuple):
    """A loss of several micro-batches, tied together."""

    value: Tensor
    """0-dim, detached."""
    coefficients: Sequence[tuple[Tensor, Tensor | None]]
    """(c_T, e_T) of each micro-batch; e None = the loss does not use entropies."""
    stats: Stats


def tied_loss(micros: Sequence[MicroBatch], terms: Sequence[Term], seen: Sequence[Seen]) -> Tied:
    """Of all terms over all micro-batches, on vectors."""
    rows = [micro.rows for micro in micros if micro.rows is not None]
    tokens = joined(rows)
    leaves = [[value_T.detach().to(tokens.weight_N).requires_grad_() for value_T in pair] for pair in seen]
    logp_N, entropy_N = (
        torch.cat([pair[which][part.edge_N] for pair, part in zip(leaves, rows, strict=True)])
        for which in (0, 1)
    )
    value = total(terms, logp_N, entropy_N, tokens) + 0 * logp_N.sum()
    flat = [leaf for pair in leaves for leaf in pair]
    found = torch.autograd.grad(value, flat, allow_unused=True)
    stats = stats_of(terms, logp_N.detach(), entropy_N.detach(), tokens)
    return Tied(value.detach(), list(zip(found[::2], found[1::2], strict=True)), stats)


def total(terms: Sequence[Term], logp_N: Tensor, entropy_N: Tensor, tokens: Tokens) -> Tensor:
    """0-dim."""
    return torch.stack([term(logp_N, entropy_N, tokens) for term in terms]).sum()


def stats_of(terms: Sequence[Term], logp_N: Tensor, entropy_N: Tensor, tokens: Tokens) -> Stats:
    """The terms' own, and means over the tokens with a weight."""
    number = counted(tokens).sum()
    stats: Stats = {
        "entropy": (safe(entropy_N, tokens).sum(), number),
        "logp": (safe(logp_N, tokens).sum(), number),
    }
    for term in terms:
        stats |= term.stats(logp_N, tokens)
    return stats
