"""From logits to loss and dlogits: time, and the share of the device's own copy bandwidth that it reaches.

The floor is one read and one write of the logits. Baselines: eager autograd; on CUDA also torch.compile and,
where it is installed, Liger's `triton_grpo_loss`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from g2rpo_kernels import Edges, Objective, policy_loss
from torch import Tensor

from timing import Run, medians

CLIP = Objective()


def test_policy_loss_from_logits(benchmark_mode: bool, record: Callable[[str, dict], None]) -> None:
    """Loss and dlogits of N rows at V = 151,936."""
    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    rows, vocabulary, rounds = (16384 if on_gpu else 64), 151_936, 9
    if not benchmark_mode:
        rows, vocabulary, rounds = 4, 997, 1
    torch.set_num_threads(1)
    cases = [measured(device, dtype, rows, vocabulary, rounds) for dtype in dtypes(device)]
    assert all(seconds > 0 for case in cases for seconds in case["ms"].values())
    record(f"policy_loss_{device}", {"cases": cases})


def dtypes(device: str) -> list[torch.dtype]:
    return [torch.bfloat16, torch.float32] if device == "cuda" else [torch.float32]


def measured(device: str, dtype: torch.dtype, rows: int, vocabulary: int, rounds: int) -> dict:
    logits_TV = (4 * torch.randn(rows, vocabulary, device=device)).to(dtype)
    target_T = torch.randint(vocabulary, (rows,), device=device)
    edges = edges_for(rows, device)
    runs = sides(logits_TV, target_T, edges, device)
    seconds = medians(runs, rounds)
    moved = 2 * logits_TV.numel() * logits_TV.element_size()
    return {
        "rows": rows,
        "vocabulary": vocabulary,
        "dtype": str(dtype).removeprefix("torch."),
        "ms": {name: 1e3 * s for name, s in seconds.items()},
        "share_of_copy": {name: seconds["copy"] / s for name, s in seconds.items() if name != "copy"},
        "copy_gb_per_s": moved / seconds["copy"] / 1e9,
        "speedup_over_eager": seconds["eager"] / seconds["ours"],
    }


def edges_for(rows: int, device: str) -> Edges:
    advantage_T = torch.randn(rows, device=device)
    weight_T = torch.full((rows,), 1 / rows, device=device)
    return Edges(
        a_pos_T=weight_T * advantage_T.clamp(min=0),
        a_neg_T=weight_T * advantage_T.clamp(max=0),
        weight_T=weight_T,
    )


def sides(logits_TV: Tensor, target_T: Tensor, edges: Edges, device: str) -> dict[str, Run]:
    other_TV = torch.empty_like(logits_TV)
    runs: dict[str, Run] = {
        "copy": lambda: other_TV.copy_(logits_TV),
        "ours": lambda: gradient_of(lambda z: policy_loss(z, target_T, edges, CLIP).loss, logits_TV),
        "eager": lambda: gradient_of(lambda z: eager_loss(z, target_T, edges), logits_TV),
    }
    if device == "cuda":
        compiled = torch.compile(eager_loss)
        runs["compiled"] = lambda: gradient_of(lambda z: compiled(z, target_T, edges), logits_TV)
        if importlib.util.find_spec("liger_kernel") is not None:
            runs["liger"] = liger_side(logits_TV, target_T, edges)
    return runs


def gradient_of(loss: Callable[[Tensor], Tensor], logits_TV: Tensor) -> Tensor:
    leaf_TV = logits_TV.detach().requires_grad_()
    (gradient_TV,) = torch.autograd.grad(loss(leaf_TV), leaf_TV)
    return gradient_TV


def eager_loss(logits_TV: Tensor, target_T: Tensor, edges: Edges) -> Tensor:
    """The same clipped objective and entropy metric, plainly."""
    every_TV = logits_TV.float().log_softmax(-1)
    logp_T = every_TV.gather(-1, target_T[:, None])[:, 0]
    with torch.no_grad():
        _entropy_T = -(every_TV.exp() * every_TV).sum(-1)
    ratio_T = (logp_T - logp_T.detach()).exp()
    gain_T = edges.a_pos_T * ratio_T.clamp(max=1.2) + edges.a_neg_T * ratio_T.clamp(min=0.8)
    return -gain_T.sum()


def liger_side(logits_TV: Tensor, target_T: Tensor, edges: Edges) -> Run:
    """One sequence of N tokens; Liger wants a row of logits more than there are tokens."""
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
            beta=0.0,
            inplace=False,
        )[0].mean()

    return lambda: gradient_of(loss, logits_1TV)
