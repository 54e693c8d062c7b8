"""Random problems and random losses on log-probabilities and entropies, for `token_loss`.

A loss is drawn once: which expressions of which constants; called, it is a plain PyTorch function that closes
over two learnable numbers. `masked` edges have NaN constants, and the loss leaves them out.

Dimension key: S positions, D width, V vocabulary, T edges, B rows, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from budget import WorstErrors

TIES = ("token", "token", "row", "row", "group", "batch")
SCALINGS = [(1.0, None), (0.8, None), (1.3, 20.0)]
NAMES = ("loss", "gradient of hidden", "gradient of head", "gradient of bias", "gradient of learnt")
Expression = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logp_T, entropy_T, learnt) -> [T]."""


class Draw:
    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def number(self, low: int, high: int) -> int:
        """In [low, high)."""
        return int(torch.randint(low, high, (), generator=self.generator))

    def one(self, *values: Any) -> Any:
        return values[self.number(0, len(values))]

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)


class Problem:
    """Rows of edges end to end, of awkward sizes: some confident, some with shifted logits, some masked."""

    def __init__(self, seed: int, most_rows: int = 4, most_length: int = 6) -> None:
        draw = self.draw = Draw(seed)
        self.ties: str = TIES[seed % len(TIES)]
        lengths = [draw.number(1, most_length + 1) for _ in range(draw.number(1, most_rows + 1))]
        self.row_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        self.num_rows, self.num_edges = len(lengths), len(self.row_T)
        vocab = draw.number(2050, 2100) if draw.number(0, 20) == 0 else draw.number(2, 90)
        size, width = draw.number(1, 9), draw.number(1, 10)
        scale = draw.one(0.5, 0.5, 3.0)
        values = scale * draw.normal(size, width), draw.normal(vocab, width), 0.5 * draw.normal(vocab)
        self.values = [value.half() for value in values]
        self.shift = draw.one(0, 0, 50, -50)
        self.values[2] += self.shift
        self.target = torch.randint(vocab, (self.num_edges,), generator=draw.generator)
        self.source = torch.randint(size, (self.num_edges,), generator=draw.generator)
        likely = torch.rand(self.num_edges, generator=draw.generator) < 0.4
        hidden, head, bias = (value.double() for value in self.values)
        best = (hidden[self.source] @ head.T + bias).argmax(-1)
        self.target = torch.where(likely, best, self.target)
        self.temperature, self.softcap = draw.one(*SCALINGS)
        self.chunk_rows = draw.number(1, self.num_edges + 2)
        self.learnt = draw.normal(2)
        self.masked_T = torch.rand(self.num_edges, generator=draw.generator) < draw.one(0.0, 0.3)
        self.masked_T[0] = False
        logp_T, _ = self.vectors(hidden, head, bias)
        noise = 0.4 * draw.normal(3, self.num_edges)
        self.old, self.ref = (logp_T + noise[n].masked_fill(self.masked_T, torch.nan) for n in (0, 1))
        self.advantage = draw.normal(self.num_edges).masked_fill(self.masked_T, torch.nan)
        self.weight = draw.normal(self.num_edges).abs()
        self.loss = random_loss(self)

    def vectors(self, hidden: Tensor, head: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """logp_T and entropy_T by the book."""
        z = hidden[self.source] @ head.T + bias
        z = z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)
        every = torch.log_softmax(z / self.temperature, -1)
        return every.gather(1, self.target[:, None])[:, 0], -(every.exp() * every).sum(-1)

    def leaves(self, dtype: torch.dtype) -> list[Tensor]:
        """hidden, head, bias, and what the loss learns, which is never narrower than float32."""
        wide = torch.promote_types(dtype, torch.float32)
        return [v.to(dtype).requires_grad_() for v in self.values] + [self.learnt.to(wide).requires_grad_()]

    def options(self, **more: Any) -> dict[str, Any]:
        scaling = {"temperature": self.temperature, "softcap": self.softcap}
        rows = {"row_T": self.row_T} if self.ties == "row" else {}
        return {"source_T": self.source, "ties": self.ties} | scaling | rows | more

    def by_the_book(self, dtype: torch.dtype) -> list[Tensor]:
        leaves = hidden, head, bias, learnt = self.leaves(dtype)
        logp_T, entropy_T = (v.to(learnt.dtype) for v in self.vectors(hidden, head, bias))
        return [*outcome(self.loss(logp_T, entropy_T, learnt), leaves)]

    def compare(
        self,
        errors: WorstErrors,
        got: Sequence[Tensor],
        eagers: Sequence[Sequence[Tensor]],
        truth: Sequence[Tensor],
    ) -> None:
        """Adds a case. Terms of both signs, of about 1, add up to its loss and to what it learns."""

        def moved(values: Sequence[Tensor]) -> list[Tensor]:
            away = [torch.where(true >= 0, 1.0, -1.0) for true in truth]
            return [values[0] + away[0], *values[1:-1], values[-1] + away[-1]]

        names = [f"{name} {self.shift:+}" for name in ("loss", *NAMES[1:])]
        errors.add_all(names, moved(got), map(moved, eagers), moved(truth))

    def closing_over(self, learnt: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda logp_T, entropy_T: self.loss(logp_T, entropy_T, learnt)


def outcome(loss: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    gradients = torch.autograd.grad(3 * loss, leaves, allow_unused=True)
    filled = (torch.zeros_like(v) if g is None else g for v, g in zip(leaves, gradients, strict=True))
    return loss.detach(), *filled


def token_expression(p: Problem, depth: int = 2) -> Expression:
    """What each edge says by itself."""
    if depth:
        a, b = token_expression(p, depth - 1), token_expression(p, depth - 1)
        joined: list[Callable[[Tensor, Tensor, Tensor], Tensor]] = [
            lambda x, y, k: x + k[0] * y,
            lambda x, y, k: x - y,
            lambda x, y, k: x * torch.tanh(y),
            lambda x, y, k: torch.minimum(x, y + 0.3),
            lambda x, y, k: x * torch.sigmoid(k[1] * y),
            lambda x, y, k: x * torch.sigmoid(y).detach(),
            lambda x, y, k: torch.where(x > y, x, 0.5 * y),
        ]
        join = p.draw.one(*joined)
        return lambda logp, entropy, k: join(a(logp, entropy, k), b(logp, entropy, k), k)

    def ratio(logp: Tensor, old: Tensor = p.old) -> Tensor:
        return torch.where(p.masked_T, 0.0, logp - old.to(logp)).clamp(-5, 5).exp()

    def given(logp: Tensor) -> Tensor:
        return torch.where(p.masked_T, 0.0, p.advantage).to(logp)

    leaves: list[Expression] = [
        lambda logp, h, k: torch.minimum(
            ratio(logp) * given(logp), ratio(logp).clamp(0.8, 1.2) * given(logp)
        ),
        lambda logp, h, k: ratio(logp).clamp(0.7, 1.3).detach() * given(logp) * logp,
        lambda logp, h, k: torch.sigmoid(2 * (ratio(logp) - 1)) * given(logp),
        lambda logp, h, k: 1 / ratio(logp, p.ref) - 1 + ratio(logp, p.ref).log(),
        lambda logp, h, k: (ratio(logp) - k[0]).square(),
        lambda logp, h, k: logp * given(logp),
        lambda logp, h, k: logp.exp() * k[1],
        lambda logp, h, k: h * given(logp),
        lambda logp, h, k: (h - 1).square() - k[0].square(),
        lambda logp, h, k: torch.nn.functional.logsigmoid(logp + 2),
    ]
    return p.draw.one(*leaves)


def random_loss(p: Problem) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(logp_T, entropy_T, learnt) -> 0-dim, tied as `p.ties` says."""
    own, other = token_expression(p), token_expression(p)
    row_loss, batch_loss = p.draw.one(*ROW_LOSSES), p.draw.one(*BATCH_LOSSES)
    score_B, group_B = p.draw.normal(p.num_rows), torch.arange(p.num_rows) // 2

    def loss(logp: Tensor, entropy: Tensor, learnt: Tensor) -> Tensor:
        x, y = (torch.where(p.masked_T, 0.0, f(logp, entropy, learnt)) for f in (own, other))
        total = (p.weight.to(x) * x).mean()
        if p.ties == "batch":
            return total + batch_loss(y, learnt)
        if p.ties == "token":
            return total
        counts_B = torch.bincount(p.row_T, minlength=p.num_rows)
        mean_B = y.new_zeros(p.num_rows).index_add(0, p.row_T, y) / counts_B
        if p.ties == "row":
            return total + (score_B.to(y) * row_loss(mean_B, learnt)).sum()
        exp_B = torch.tanh(mean_B).exp()
        sum_G = exp_B.new_zeros(p.num_rows).index_add(0, group_B, exp_B)
        return total - (score_B.to(y) * exp_B / sum_G[group_B]).sum()

    return loss


ROW_LOSSES = [
    lambda m, k: m.clamp(-3, 3).exp(),
    lambda m, k: torch.minimum(m.clamp(-3, 3).exp(), 1.1 + 0.1 * m),
    lambda m, k: torch.nn.functional.logsigmoid(k[0] * m),
    lambda m, k: m.square() / (1 + m.square()),
]
BATCH_LOSSES = [
    lambda y, k: torch.logsumexp(k[1] * y, 0),
    lambda y, k: (torch.softmax(y, 0) * y.detach()).sum(),
    lambda y, k: ((y - y.mean()) / (1 + y.square().mean()).sqrt()).square().mean(),
    lambda y, k: torch.where(y > y.detach().mean(), y, 0.0).mean() * y.mean(),
]
