"""Random rows, objectives and edges of the policy loss, and the errors of one implementation on them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from g2rpo_kernels import Cispo, Clip, Edges, Objective, PolicyLoss, Reinforce, Sapo, policy_loss
from g2rpo_kernels.logprob.checks import Impl
from torch import Tensor

from budget import WorstErrors, draws

Scaling = tuple[float, float | None]


@dataclass(frozen=True)
class Case:
    logits: Tensor
    target: Tensor
    edges: Edges
    scaling: Scaling = (0.9, None)

    def on_policy(self) -> Case:
        return replace(self, edges=self.edges._replace(old_logp_T=None))


def random_case(seed: int, num_rows: int, vocab: int, scaling: Scaling = (0.9, None)) -> Case:
    """Edges with one or two members of any sign, some of no weight, a few not sampled by the engine."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    logits = 2 * normal(num_rows, vocab)
    target = torch.randint(vocab, (num_rows,), generator=generator)
    logp = torch.log_softmax(logits.double() / scaling[0], -1).gather(1, target[:, None])[:, 0]
    old, ref, rollout = ((logp + 0.4 * normal(num_rows)).float() for _ in range(3))
    rollout[0] = torch.nan
    counts = torch.randint(1, 3, (num_rows,), generator=generator)
    ptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    num_members = int(ptr[-1])
    weight, advantage = torch.rand(num_members, generator=generator), normal(num_members)
    weight[ptr[1] : ptr[2]] = 0
    edge = torch.repeat_interleave(counts)

    def total(value: Tensor) -> Tensor:
        return torch.zeros(num_rows).index_add(0, edge, value)

    edges = Edges(
        total(weight * advantage.clamp(min=0)),
        total(weight * advantage.clamp(max=0)),
        total(weight),
        old,
        ref,
        rollout,
        ptr,
        torch.randint(3, (num_members,), generator=generator),
        advantage,
        weight,
        3,
    )
    return Case(logits, target, edges, scaling)


def run(
    case: Case, o: Objective, impl: Impl, dtype: torch.dtype, overwrite: bool = False, factor: float = 3.0
) -> tuple[PolicyLoss, Tensor]:
    leaf = case.logits.to(dtype, copy=True).requires_grad_()
    out = policy_loss(
        leaf,
        case.target,
        case.edges,
        o,
        temperature=case.scaling[0],
        softcap=case.scaling[1],
        overwrite_logits=overwrite,
        impl=impl,
    )
    (gradient,) = torch.autograd.grad(factor * out.loss, leaf)
    return out, gradient


class Errors(WorstErrors):
    def compare(self, case: Case, o: Objective, overwrite: bool = False) -> None:
        got, d_got = run(case, o, "triton", self.dtype, overwrite)
        true, d_true = run(case, o, "reference", torch.float64)
        # Terms of both signs add up to the loss: its error is one of its largest term.
        offset = true.loss.detach().sign() * case.edges.weight_T.double().sum()

        def values(out: PolicyLoss, gradient: Tensor) -> list[Tensor]:
            return [gradient, out.logp_T, out.entropy_T, out.loss.detach().double() + offset]

        eagers = draws(lambda: values(*run(case, o, "reference", self.dtype)))
        names = ("gradient", "logp", "entropy", "loss")
        self.add_all(names, values(got, d_got), eagers, values(true, d_true))
        assert got.stats.keys() == true.stats.keys()
        for name, (total, count) in true.stats.items():
            assert float(got.stats[name][1]) == float(count), name
            torch.testing.assert_close(got.stats[name][0].double(), total, rtol=1e-5, atol=1e-5)


def random_objective(generator: torch.Generator) -> Objective:
    def pick(*values):
        return values[int(torch.randint(len(values), (), generator=generator))]

    kind = pick(Clip, Cispo, Sapo, Reinforce)
    drawn = {"low": pick(0.2, 0.1, 1.0), "high": pick(0.2, 0.28), "dual": pick(None, 1.5)}
    drawn["tau_neg"] = pick(1.05, 2.0)
    return Objective(
        surrogate=kind(**{f.name: drawn[f.name] for f in fields(kind) if f.name in drawn}),
        kl=pick("k1", "k2", "k3"),
        kl_coef=pick(0.0, 0.05, 0.2),
        kl_times_ratio=pick(False, True),
        entropy_coef=pick(0.0, 0.01, 0.1),
        importance_cap=pick(None, 1.2, 3.0),
        importance_low=pick(0.0, 0.3),
        importance_mask=pick(False, True),
    )


def moved(loss: Tensor, weight_T: Tensor) -> Tensor:
    """Terms of both signs add up to a loss: its error is one of its largest term."""
    weight = weight_T.double().sum()
    return loss.detach().double() + loss.detach().double().sign() * weight
