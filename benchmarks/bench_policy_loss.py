"""From logits to loss and dlogits: time, and the share of the device's own copy bandwidth that it reaches.

The floor is one read and one write of the logits. Baselines: eager autograd, torch.compile and Liger's
`triton_grpo_loss`.

Dimension key: T rows (one edge each), V vocabulary.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest
import torch
from g2rpo_kernels import Edges, Objective, policy_loss
from torch import Tensor

from peers import Peer, usable
from provenance import Record
from timing import Deadline, Run, ceilings, interleaved, peak_mib, spread_ms

CLIP = Objective()
ON_GPU = torch.cuda.is_available()
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32} if ON_GPU else {"float32": torch.float32}


@pytest.mark.parametrize("dtype", DTYPES)
def test_policy_loss_from_logits(
    benchmark_mode: bool, deadline: Deadline, record: Record, dtype: str
) -> None:
    """Loss and dlogits of N rows at V = 151,936."""
    device = "cuda" if ON_GPU else "cpu"
    rows, vocabulary, rounds = (16384 if ON_GPU else 64), 151_936, 9
    if not benchmark_mode:
        rows, vocabulary, rounds = 4, 997, 1
    torch.set_num_threads(1)
    ceiling = ceilings(device, DTYPES[dtype], small=not benchmark_mode)
    logits_TV = (4 * torch.randn(rows, vocabulary, device=device)).to(DTYPES[dtype])
    target_T = torch.randint(vocabulary, (rows,), device=device)
    runs, skipped = sides(logits_TV, target_T, edges_for(rows, device), deadline)
    seconds = interleaved(runs, rounds)
    moved, best = 2e-9 * logits_TV.nbytes, statistics.median(seconds["ours"])
    cases = [
        {
            "side": side,
            **spread_ms(times),
            "time_ratio": statistics.median(times) / best,
            "copy_percent": 100 * moved / statistics.median(times) / ceiling["copy_gb_per_s"],
            "peak_mib": peak_mib(runs[side]),
        }
        for side, times in seconds.items()
    ]
    assert all(case["median_ms"] > 0 for case in cases)
    shape = {"rows": rows, "vocabulary": vocabulary, "dtype": dtype}
    figures = {**shape, "ceilings": ceiling, "sides": cases, "skipped": skipped}
    record(f"policy_loss_{device}_{dtype}", figures)


def edges_for(rows: int, device: str) -> Edges:
    advantage_T = torch.randn(rows, device=device)
    weight_T = torch.full((rows,), 1 / rows, device=device)
    return Edges(
        a_pos_T=weight_T * advantage_T.clamp(min=0),
        a_neg_T=weight_T * advantage_T.clamp(max=0),
        weight_T=weight_T,
    )


def sides(
    logits_TV: Tensor, target_T: Tensor, edges: Edges, deadline: Deadline
) -> tuple[dict[str, Run], dict[str, str]]:
    def plain(loss_and_entropy: Callable[..., tuple[Tensor, Tensor]]) -> Run:
        return lambda: gradient_of(lambda z: loss_and_entropy(z, target_T, edges)[0], logits_TV)

    other_TV = torch.empty_like(logits_TV)
    runs: dict[str, Run] = {
        "copy": lambda: other_TV.copy_(logits_TV),
        "ours": lambda: gradient_of(lambda z: policy_loss(z, target_T, edges, CLIP).loss, logits_TV),
    }
    peers = {
        "eager": Peer(lambda: plain(eager_loss)),
        "compiled": Peer(lambda: plain(torch.compile(eager_loss))),
        "liger": Peer(
            lambda: liger_side(logits_TV, target_T, edges),
            needs="liger_kernel",
            cuda_only="triton_grpo_loss runs on CUDA only",
        ),
    }
    found, skipped = usable(peers, deadline)
    return runs | found, skipped


def gradient_of(loss: Callable[[Tensor], Tensor], logits_TV: Tensor) -> Tensor:
    leaf_TV = logits_TV.detach().requires_grad_()
    (gradient_TV,) = torch.autograd.grad(loss(leaf_TV), leaf_TV)
    return gradient_TV


def eager_loss(logits_TV: Tensor, target_T: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
    """The same clipped objective, and the entropy: a compiler would leave it out if it were not returned."""
    every_TV = logits_TV.float().log_softmax(-1)
    logp_T = every_TV.gather(-1, target_T[:, None])[:, 0]
    with torch.no_grad():
        entropy_T = -(every_TV.exp() * every_TV).sum(-1)
    ratio_T = (logp_T - logp_T.detach()).exp()
    gain_T = edges.a_pos_T * ratio_T.clamp(max=1.2) + edges.a_neg_T * ratio_T.clamp(min=0.8)
    return -gain_T.sum(), entropy_T


def liger_side(logits_TV: Tensor, target_T: Tensor, edges: Edges) -> Run:
    """One sequence of N tokens; Liger wants a row of logits more than there are tokens. No entropy."""
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss

    advantage = ((edges.a_pos_T + edges.a_neg_T) / edges.weight_T).mean()[None]
    logits_1TV = torch.cat([logits_TV, logits_TV[-1:]])[None]

    def loss(logits: Tensor) -> Tensor:
        return triton_grpo_loss(
            logits=logits,
            old_logp=None,
            ref_logp=None,
            completion_ids=target_T[None],
            advantages=advantage,
            temperature=1.0,
            beta=0.0,
            eps_high=0.2,
            inplace=False,
        )[0].mean()

    return lambda: gradient_of(loss, logits_1TV)
