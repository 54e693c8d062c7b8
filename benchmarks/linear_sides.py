"""Sides of the linear-loss comparison: forward and backward from hidden states and head to a clipped loss.

    python benchmarks/linear_sides.py ours '{"rows": 512, "width": 512, "vocabulary": 151936, "steps": 3}'

prints {"seconds": [...], "cpu_seconds": [...], "peak_mib": ..., "loss": ...}: one warm-up step, then the
measured ones; peak memory is what a step adds to the resident set (Linux).
Each side in a process of its own, one thread. `products` is the floor: the three matrix products alone.

Eager gives what the op gives: loss, gradients, log-probabilities, entropy, clip fraction, mean ratio.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from g2rpo_kernels import Edges, Objective, linear_policy_loss
from torch import Tensor

SEQUENCE = 32
"""Tokens of a sequence; an advantage each."""
Figures = dict[str, Any]
Loss = Callable[["Problem"], Tensor]


@dataclass(frozen=True)
class Problem:
    hidden_TD: Tensor
    head_VD: Tensor
    target_T: Tensor
    old_logp_T: Tensor
    advantage_T: Tensor


def make_problem(rows: int, width: int, vocabulary: int, device: str = "cpu") -> Problem:
    """float32 on the CPU, bfloat16 on CUDA; old log-probabilities near the new ones: few rows clip."""
    generator = torch.Generator(device).manual_seed(0)
    options: dict[str, Any] = {"device": device, "generator": generator}
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    hidden_TD = torch.randn(rows, width, dtype=dtype, **options)
    head_VD = torch.randn(vocabulary, width, dtype=dtype, **options) / width**0.5
    target_T = torch.randint(vocabulary, (rows,), **options)
    exact = []
    for start in range(0, rows, 64):
        z = (hidden_TD[start : start + 64] @ head_VD.T).float()
        exact.append(z.log_softmax(-1).gather(1, target_T[start : start + 64, None])[:, 0])
    noise = 0.1 * torch.randn(rows, **options)
    advantage = torch.randn(-(-rows // SEQUENCE), **options).repeat_interleave(SEQUENCE)[:rows]
    return Problem(
        hidden_TD.requires_grad_(), head_VD.requires_grad_(), target_T, torch.cat(exact) + noise, advantage
    )


def ours(problem: Problem) -> Tensor:
    weight = torch.full_like(problem.advantage_T, 1 / len(problem.advantage_T))
    a_pos, a_neg = (weight * a for a in (problem.advantage_T.clamp(min=0), problem.advantage_T.clamp(max=0)))
    edges = Edges(a_pos, a_neg, weight, problem.old_logp_T)
    return linear_policy_loss(
        problem.hidden_TD, problem.head_VD, problem.target_T, edges, Objective(), temperature=1.0
    ).loss


def eager(problem: Problem) -> Tensor:
    return eager_loss(*vars(problem).values())


def eager_loss(
    hidden_TD: Tensor, head_VD: Tensor, target_T: Tensor, old_logp_T: Tensor, advantage_T: Tensor
) -> Tensor:
    every_TV = (hidden_TD @ head_VD.T).float().log_softmax(-1)
    logp_T = every_TV.gather(1, target_T[:, None])[:, 0]
    ratio_T = (logp_T - old_logp_T).exp()
    with torch.no_grad():
        clipped_T = ((ratio_T > 1.2) & (advantage_T > 0)) | ((ratio_T < 0.8) & (advantage_T < 0))
        entropy_T = -(every_TV.exp() * every_TV).sum(-1)
        _metrics = entropy_T.mean(), clipped_T.float().mean(), ratio_T.mean(), (logp_T - old_logp_T).mean()
    return -torch.minimum(ratio_T * advantage_T, ratio_T.clamp(0.8, 1.2) * advantage_T).mean()


def compiled() -> Loss:
    loss = torch.compile(eager_loss)
    return lambda problem: loss(*vars(problem).values())


def liger() -> Loss:
    """Liger's fused linear GRPO; a token mean over sequences of SEQUENCE tokens."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    on_gpu = torch.cuda.is_available()
    op = LigerFusedLinearGRPOLoss(
        beta=0.0, use_ref_model=False, loss_type="bnpo", compiled=on_gpu, temperature=1.0
    )

    def loss(problem: Problem) -> Tensor:
        def shaped(value: Tensor) -> Tensor:
            return value.unflatten(0, (-1, SEQUENCE))

        return op(
            shaped(problem.hidden_TD),
            problem.head_VD,
            shaped(problem.target_T),
            torch.ones_like(shaped(problem.target_T)),
            shaped(problem.advantage_T)[:, 0],
            old_per_token_logps=shaped(problem.old_logp_T),
        )[0]

    return loss


def products(problem: Problem) -> Tensor:
    """The three products in the dtype of the operands, nothing else."""
    with torch.no_grad():
        logits_TV = problem.hidden_TD @ problem.head_VD.T
        problem.head_VD.grad = logits_TV.T @ problem.hidden_TD
        problem.hidden_TD.grad = logits_TV @ problem.head_VD
    return logits_TV.new_zeros(())


SIDES: dict[str, Callable[[], Loss]] = {
    "ours": lambda: ours,
    "eager": lambda: eager,
    "compiled": compiled,
    "liger": liger,
    "products": lambda: products,
}


def step_of(side: str, problem: Problem) -> Callable[[], Tensor]:
    """Forward and backward, gradients made anew."""
    loss_of = SIDES[side]()

    def step() -> Tensor:
        problem.hidden_TD.grad = problem.head_VD.grad = None
        loss = loss_of(problem)
        if loss.requires_grad:
            loss.backward()
        return loss.detach()

    return step


def resident_mib(field: str) -> float:
    """VmRSS (now) or VmHWM (the most since `forget_peak`) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measure(side: str, steps: int, **shape: int) -> Figures:
    """On the CPU, in this process."""
    torch.set_num_threads(1)
    step = step_of(side, make_problem(**shape))
    forget_peak()
    base = resident_mib("VmRSS")
    loss = float(step())
    peak = resident_mib("VmHWM") - base
    seconds, cpu_seconds = [], []
    for _ in range(steps):
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        seconds.append(time.perf_counter() - wall)
        cpu_seconds.append(time.process_time() - cpu)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mib": peak, "loss": loss}


def in_own_process(side: str, arguments: dict[str, int]) -> Figures:
    command = [sys.executable, __file__, side, json.dumps(arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{side} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], **json.loads(sys.argv[2]))))
