"""Sides of the linear-loss comparison: forward and backward from hidden states and head to a clipped loss.

    python benchmarks/linear_sides.py ours '{"rows": 512, "width": 512, "vocabulary": 151936, "steps": 3}'

prints {"cpu_seconds": [...], "peak_mib": ..., "loss": ...}, after a step that compiles what there is to
compile and one whose memory is taken. On a CPU each side runs in a process of its own, one thread. `products`
is the floor: the three matrix products alone.

Eager gives what the op gives: loss, gradients, log-probabilities, entropy, clip fraction, mean ratio.

Dimension key: T rows, V vocabulary.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from g2rpo_kernels import Edges, Objective, linear_policy_loss
from torch import Tensor

from linear_peers import LOSSES
from linear_problem import Loss, Problem, eager_loss, make_problem
from timing import interleaved, peak_mib

Figures = dict[str, Any]


def ours(problem: Problem) -> Tensor:
    weight = torch.full_like(problem.advantage_T, 1 / len(problem.advantage_T))
    a_pos, a_neg = (weight * a for a in (problem.advantage_T.clamp(min=0), problem.advantage_T.clamp(max=0)))
    edges = Edges(a_pos, a_neg, weight, problem.old_logp_T)
    return linear_policy_loss(
        problem.hidden_TD, problem.head_VD, problem.target_T, edges, Objective(), temperature=1.0
    ).loss


def eager(problem: Problem) -> Tensor:
    return eager_loss(*vars(problem).values())[0]


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
    "products": lambda: products,
}
SAME_LOSS = {"ours", "eager", *LOSSES} - {"quack"}


def step_of(loss_of: Loss, problem: Problem) -> Callable[[], Tensor]:
    """Forward and backward; the gradients are made anew and let go, so that memory counts them."""

    def step() -> Tensor:
        loss = loss_of(problem)
        if loss.requires_grad:
            loss.backward()
        problem.hidden_TD.grad = problem.head_VD.grad = None
        return loss.detach()

    return step


def measure(make: Callable[[], Loss], steps: int, **shape: int) -> Figures:
    """On the CPU, in this process."""
    torch.set_num_threads(1)
    step = step_of(make(), make_problem(**shape))
    loss, peak = float(step()), peak_mib(step)
    (seconds,) = interleaved({"step": step}, steps, warm=True).values()
    return {"cpu_seconds": seconds, "peak_mib": peak, "loss": loss}


def in_own_process(side: str, arguments: dict[str, int], script: str = __file__) -> Figures:
    """What `script` prints of a side.

    Raises:
        RuntimeError: the process failed; with the end of what it said.
    """
    command = [sys.executable, script, side, json.dumps(arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{side}: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    makers = SIDES | {name: peer.make for name, peer in LOSSES.items()}
    print(json.dumps(measure(makers[sys.argv[1]], **json.loads(sys.argv[2]))))
