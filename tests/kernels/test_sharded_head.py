"""An LM head that is a DTensor: real processes, gloo; values and gradients are those of the whole head.

Dimension key: B sequences, L positions of each, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from g2rpo_kernels import (
    Edges,
    FusedLinearGRPOLoss,
    Objective,
    VocabShard,
    grpo_loss,
    grpo_loss_of_logps,
    linear_logprob,
    linear_policy_loss,
    token_logprobs,
    token_loss,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.multiprocessing.spawn import spawn

from budget import Tolerance
from drawn import normal

B, L, D, V = 3, 4, 6, 11
EPS = Tolerance(rtol=1e-10, atol=1e-12)
PLACEMENTS: list[Placement] = [Shard(0), Shard(1), Replicate()]
"""Of the head; 11 rows and 6 columns over two ranks."""


class Batch:
    """What a rank trains on; of float64."""

    def __init__(self, seed: int) -> None:
        self.hidden = normal(B, L, D, seed=seed)
        self.ids = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(seed))
        self.mask = (torch.arange(L) < torch.tensor([4, 1, 3])[:, None]).long()
        self.advantages = normal(B, seed=seed + 1)
        self.old = -2.4 + 0.3 * normal(B, L, seed=seed + 2)
        flat = self.advantages.repeat_interleave(L)
        self.edges = Edges(flat.clamp(min=0), flat.clamp(max=0), flat.abs(), self.old.view(-1))

    def rows(self) -> tuple[Tensor, Tensor]:
        return self.hidden.view(-1, D), self.ids.view(-1)


def fused(b: Batch, head: Tensor, bias: Tensor, hidden: Tensor | None = None) -> Tensor:
    hidden = b.hidden if hidden is None else hidden
    op = FusedLinearGRPOLoss(beta=0.1, loss_type="grpo", entropy_coef=0.01)
    given = {"bias": bias, "old_per_token_logps": b.old, "ref_input": 0.9 * b.hidden}
    reference = {"ref_weight": head.detach(), "ref_bias": bias.detach()}
    return op(hidden, head, b.ids, b.mask, b.advantages, **given, **reference)[0]


def by_logps(b: Batch, head: Tensor, bias: Tensor) -> Tensor:
    out = linear_logprob(*b.rows()[:1], head, b.rows()[1], bias_V=bias)
    return (out.logp_T * b.edges.a_pos_T + 0.1 * out.entropy_T).sum()


def by_policy_loss(b: Batch, head: Tensor, bias: Tensor) -> Tensor:
    hidden_SD, target_T = b.rows()
    return linear_policy_loss(hidden_SD, head, target_T, b.edges, Objective(), bias_V=bias).loss


def by_own_loss(b: Batch, head: Tensor, bias: Tensor) -> Tensor:
    hidden_SD, target_T = b.rows()

    def loss(logp_T: Tensor, entropy_T: Tensor) -> Tensor:
        return (b.edges.a_pos_T * logp_T.exp() + 0.1 * entropy_T).sum()

    return token_loss(hidden_SD, head, target_T, loss, bias_V=bias).loss


OPS: list[Callable[[Batch, Tensor, Tensor], Tensor]] = [fused, by_logps, by_policy_loss, by_own_loss]


def head_and_bias() -> tuple[Tensor, Tensor]:
    return normal(V, D, seed=1), normal(V, seed=2)


def mean_gradients(op: Callable[..., Tensor], batches: list[Batch]) -> list[Tensor]:
    """Of the whole head and bias: the mean over the ranks' losses."""
    leaves = [value.requires_grad_() for value in head_and_bias()]
    return list(torch.autograd.grad(torch.stack([op(b, *leaves) for b in batches]).mean(), leaves))


def check_placements(rank: int, mesh: DeviceMesh) -> None:
    """Ranks with rows of their own, and ranks with the same rows."""
    for batches in ([Batch(seed=10 * each) for each in range(mesh.size())], [Batch(seed=3)] * mesh.size()):
        for op in OPS:
            want = mean_gradients(op, batches)
            assert all(value.abs().max() > 1e-3 for value in want)
            plain = op(batches[rank], *head_and_bias())
            for placement in PLACEMENTS:
                of_bias = Shard(0) if placement == Shard(0) else Replicate()
                head, bias = head_and_bias()
                leaves = [
                    distribute_tensor(head, mesh, [placement]).requires_grad_(),
                    distribute_tensor(bias, mesh, [of_bias]).requires_grad_(),
                ]
                loss = op(batches[rank], *leaves)
                assert not isinstance(loss, DTensor)
                torch.testing.assert_close(loss.detach(), plain, **EPS)
                loss.backward()
                for leaf, placed, true in zip(leaves, (placement, of_bias), want, strict=True):
                    assert isinstance(leaf.grad, DTensor)
                    assert leaf.grad.placements == (placed,)
                    torch.testing.assert_close(leaf.grad.full_tensor(), true, **EPS)


def check_frozen_and_unneeded(rank: int, mesh: DeviceMesh) -> None:
    b, (head, bias) = Batch(seed=rank), head_and_bias()
    sharded = distribute_tensor(head, mesh, [Shard(0)])
    hidden = b.hidden.clone().requires_grad_()
    fused(b, sharded, bias, hidden).backward()
    assert sharded.grad is None
    want = b.hidden.clone().requires_grad_()
    fused(b, head, bias, want).backward()
    assert want.grad is not None
    assert want.grad.abs().max() > 1e-3
    torch.testing.assert_close(hidden.grad, want.grad, **EPS)
    with torch.no_grad():
        torch.testing.assert_close(fused(b, sharded, bias), fused(b, head, bias), **EPS)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.lm_head = nn.Linear(D, D), nn.Linear(D, V)
        values = (normal(D, D, seed=4), normal(D, seed=5), *head_and_bias())
        for parameter, value in zip(self.parameters(), values, strict=True):
            parameter.data = value.clone()

    def forward(self, hidden: Tensor) -> Tensor:
        return self.body(hidden).tanh()


def model_loss(model: Model, b: Batch) -> Tensor:
    return fused(b, model.lm_head.weight, model.lm_head.bias, model(b.hidden))


def check_fully_shard(rank: int, mesh: DeviceMesh) -> None:
    """Outside forward FSDP2's parameters are DTensors. Two steps: what one leaves serves the next."""
    batches = [Batch(seed=10 * each) for each in range(mesh.size())]
    model, whole = Model(), Model()
    for part in (model.body, model.lm_head, model):
        fully_shard(part, mesh=mesh)
    assert isinstance(model.lm_head.weight, DTensor)
    for _ in range(2):
        model_loss(model, batches[rank]).backward()
        torch.stack([model_loss(whole, b) for b in batches]).mean().backward()
        pairs = zip(model.named_parameters(), whole.parameters(), strict=True)
        for (name, got), want in pairs:
            assert isinstance(got.grad, DTensor), name
            assert got.grad.placements == got.placements  # pyright: ignore[reportAttributeAccessIssue]
            assert want.grad is not None
            assert want.grad.abs().max() > 1e-4
            torch.testing.assert_close(got.grad.full_tensor(), want.grad, **EPS)
        for each in (model, whole):
            optimizer = torch.optim.SGD(each.parameters(), lr=0.5)
            optimizer.step()
            optimizer.zero_grad()


def check_refusals(rank: int, mesh: DeviceMesh) -> None:
    b, (head, bias) = Batch(seed=3), head_and_bias()

    def placed(value: Tensor, placement: Placement) -> DTensor:
        return distribute_tensor(value, mesh, [placement])

    def refused(message: str, call: Callable[[], Any]) -> None:
        with pytest.raises(ValueError, match=message):
            call()

    hidden_SD, target_T = b.rows()
    plain = r"wanted a plain tensor, got a DTensor of \(Shard\(dim=0\),\) \(pass "
    op, given = FusedLinearGRPOLoss(use_ref_model=False), (b.mask, b.advantages)
    whole_ids, whole_old = placed(b.ids, Shard(0)), placed(b.old, Shard(0))
    refused(f"^_input: {plain}_input.to_local", lambda: fused(b, head, bias, placed(b.hidden, Shard(0))))
    refused(f"^selected_token_ids: {plain}", lambda: op(b.hidden, head, whole_ids, *given))
    refused(
        f"^old_per_token_logps: {plain}",
        lambda: op(b.hidden, head, b.ids, *given, old_per_token_logps=whole_old),
    )
    refused(f"^hidden_SD: {plain}", lambda: linear_logprob(placed(hidden_SD, Shard(0)), head, target_T))
    refused(f"^target_T: {plain}", lambda: linear_logprob(hidden_SD, head, placed(target_T, Shard(0))))
    refused(f"^logps: {plain}", lambda: grpo_loss_of_logps(whole_old, b.mask, advantages=b.advantages))
    logits = placed(torch.zeros(B, L, V), Shard(0))
    refused(f"^logits: {plain}", lambda: grpo_loss(logits, b.ids, b.mask, advantages=b.advantages))
    refused(f"^logits: {plain}", lambda: token_logprobs(logits, b.ids))
    partial = DTensor.from_local(head, mesh, [Partial()])
    refused(
        r"^lin_weight: wanted placements of Shard or Replicate, got \(Partial\(sum\),\)",
        lambda: op(b.hidden, partial, b.ids, *given),
    )
    group = mesh.get_group()
    shard = VocabShard(group=group, start=0, size=V)
    refused(
        f"^head_VD: {plain}head_VD.to_local",
        lambda: linear_logprob(hidden_SD, placed(head, Shard(0)), target_T, shard=shard),
    )


def worker(rank: int, ranks: int, meet: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    for check in (check_placements, check_frozen_and_unneeded, check_fully_shard, check_refusals):
        check(rank, mesh)
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_head_over_two_ranks_equals_the_whole(tmp_path: Path) -> None:
    spawn(worker, (2, tmp_path / "meet"), nprocs=2)
