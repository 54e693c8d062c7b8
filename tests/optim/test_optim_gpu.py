"""Every optimiser on a GPU: its state goes on, with weights in bfloat16, by steps in the backward pass."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from g2rpo_fast.learner import Learner
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.half import keep_half
from g2rpo_fast.optim import OptimConfig, check_optimizer, make_optimizer
from updates import PLAIN, advantages, batches, learner, rollouts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
KINDS = ("adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "muon")


def learner_of(optim: OptimConfig, compute: ModelConfig) -> Learner:
    made = learner(PLAIN, optim=optim, compute=compute, device="cuda")
    if compute.weights == "bfloat16":
        keep_half(made.model)
    return replace(made, optimizer=make_optimizer(made.model, optim))


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_in_the_backward_pass_and_a_loaded_state_change_no_bit(kind: Any, weights: Any) -> None:
    if kind not in ("adamw", "muon"):
        pytest.importorskip("bitsandbytes")
    compute = ModelConfig(precision="bfloat16", weights=weights)
    plain = OptimConfig(kind=kind, max_grad_norm=math.inf)
    check_optimizer(plain, "cuda")
    given = batches(rollouts(), advantages(), PLAIN, minibatches=2)
    ends = []
    for optim in (plain, replace(plain, in_backward=True)):
        made = learner_of(optim, compute)
        start = [p.detach().clone() for p in made.model.parameters()]
        made.update(given, lr=1e-3)
        again = replace(made, optimizer=make_optimizer(made.model, optim))
        again.optimizer.load_state_dict(copy.deepcopy(made.optimizer.state_dict()))
        again.update(given, lr=1e-3)
        ends.append(list(made.model.parameters()))
        for before, after in zip(start, ends[-1], strict=True):
            assert after.isfinite().all()
            assert not torch.equal(before, after)
    whole = learner_of(plain, compute)
    for _ in range(2):
        whole.update(given, lr=1e-3)
    for one, other, uninterrupted in zip(*ends, whole.model.parameters(), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, uninterrupted)
