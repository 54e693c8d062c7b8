"""Importance weights of tokens and sequences against the lines of TRL's trainer that compute them.

They stand in the middle of a long method, so they are taken out of its source and run. Geometric weights are
ours: TRL's sequences have the product.
"""

from __future__ import annotations

import inspect
import math
import textwrap
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from g2rpo_kernels import Edges, policy_loss_of_logps

pytest.importorskip("trl", reason="trl is not installed")
from trl.trainer.grpo_trainer import GRPOTrainer

from g2rpo_fast.objective.importance import EngineTokens, compare
from objectives import Loss

B, L = 5, 7
LENGTHS = torch.tensor([7, 1, 4, 6, 7])
BOUNDS = {"token": (0.7, 1.4), "sequence": (0.5, 1.7)}


def trls_lines() -> str:
    """From the difference of log-probabilities to the masked or truncated ratio."""
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    start = source.find(" mask = completion_mask if tool_mask is None") + 1
    stop = source.find("# Compute the per-token log probabilities for the reference model")
    if not 0 < start < stop:
        pytest.skip("this release of trl computes importance weights elsewhere")
    indent = " " * (start - source.rfind("\n", 0, start) - 1)
    return textwrap.dedent(indent + source[start:stop])


def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(old_BL, rollout_BL, mask_BL); the engine did not report one token."""
    generator = torch.Generator().manual_seed(0)
    old, noise = (torch.randn(B, L, generator=generator, dtype=torch.float64) for _ in range(2))
    old = old - 2
    rollout = old + 0.4 * noise
    rollout[0, 2] = torch.nan
    return old, rollout, torch.arange(L) < LENGTHS[:, None]


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_importance_weights_are_trls(mode: Any) -> None:
    low, cap = BOUNDS[mode.partition("_")[0]]
    old, rollout, mask = case()
    given = SimpleNamespace(
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_min=low,
        vllm_importance_sampling_clip_max=cap,
    )
    names: dict[str, Any] = {
        "self": given, "torch": torch, "math": math, "old_per_token_logps": old, "tool_mask": None,
        "sampling_per_token_logps": rollout, "completion_mask": mask.long(),
    }  # fmt: skip
    exec(compile(trls_lines(), "trl", "exec"), names)
    theirs = names["vllm_importance_sampling_ratio"]
    loss = Loss(importance=mode, importance_low=low, importance_cap=cap, surrogate="reinforce")

    num = int(mask.sum())
    row_M = torch.arange(B)[:, None].expand(B, L)[mask]
    sampled = ~rollout[mask].isnan()
    tokens = EngineTokens(rollout[mask], sampled, torch.arange(num), row_M, B)
    compared = compare(old[mask], tokens, loss.config)
    if mode.startswith("sequence"):
        torch.testing.assert_close(compared.weight_M, theirs[:, 0][row_M], rtol=1e-12, atol=0)
        flat = theirs
    else:
        one = torch.ones(num, dtype=torch.float64)
        edges = Edges(one, 0 * one, one, old_logp_T=old[mask], rollout_logp_T=rollout[mask])
        logp = old[mask].clone().requires_grad_()
        value = policy_loss_of_logps(logp, edges, loss.kernel).loss
        (gradient,) = torch.autograd.grad(-value, logp)  # of weight * logp: the weights
        torch.testing.assert_close(gradient, theirs[mask], rtol=1e-12, atol=0)
        flat = theirs[mask][sampled]
    used, used_squares = float(compared.sums_Q[6]), float(compared.sums_Q[7])
    assert (used, used_squares) == pytest.approx((float(flat.sum()), float((flat**2).sum())), rel=1e-12)
    inside = (flat != 0) & (flat != low) & (flat != cap)
    assert 0 < int(inside.sum()) < flat.numel(), "every weight is bounded, or none"
