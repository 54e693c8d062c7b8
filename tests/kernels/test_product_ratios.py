"""vespo, product ratios and the KL times the ratio on edges: shared edges, by hand, and errors.

Whole losses with them stand against TRL's formulas in test_padded.py and against Liger-Kernel.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from g2rpo_kernels import Edges, Objective, linear_policy_loss, policy_loss_of_logps

from drawn import normal
from policy_cases import EPS, D, V, shared_case

OBJECTIVES = [
    {"surrogate": "vespo", "ratio": "product", "kl_coef": 0.1, "kl_times_ratio": True},
    {"surrogate": "vespo", "ratio": "product", "importance_cap": 1.1, "entropy_coef": 0.03},
    {"surrogate": "clip", "ratio": "product", "importance_cap": 1.1},
    {"surrogate": "clip", "ratio": "sequence", "importance_cap": 1.4, "importance_mask": True},
    {"surrogate": "clip", "ratio": "token", "kl_coef": 0.1, "kl_times_ratio": True, "kl": "k2"},
    {"surrogate": "clip", "ratio": "sequence", "kl_coef": 0.1, "kl_times_ratio": True, "entropy_coef": 0.03},
]


@pytest.mark.parametrize("settings", OBJECTIVES, ids=lambda s: "-".join(map(str, s.values())))
def test_shared_edges_equal_replicated_edges(settings: dict) -> None:
    shared, source, target, edge_M, replicated, hidden = shared_case()
    objective, head = Objective(**settings), normal(V, D, seed=17)
    results = []
    for edges, rows in ((shared, torch.arange(len(target))), (replicated, edge_M)):
        for impl in ("reference", "cpu"):
            leaves = hidden.clone().requires_grad_(), head.clone().requires_grad_()
            out = linear_policy_loss(
                *leaves,
                target[rows],
                edges,
                objective,
                source_T=source[rows],
                chunk_bytes=4 * V * 8,
                impl=impl,
            )
            results.append((out.loss.detach(), *torch.autograd.grad(out.loss, leaves)))
    assert results[0][2].abs().max() > 1e-3
    for other in results[1:]:
        for got, true in zip(other, results[0], strict=True):
            torch.testing.assert_close(got, true, **EPS)


def one_row(old: float, rollout: float) -> tuple[torch.Tensor, Edges]:
    """A row of two tokens of weight 1 and advantage 2, each at log-ratio -1 - old."""
    logp = torch.tensor([-1.0, -1.0], dtype=torch.float64, requires_grad=True)
    two = torch.full((2,), 2.0, dtype=torch.float64)
    edges = Edges(
        a_pos_T=two,
        a_neg_T=0 * two,
        weight_T=two / 2,
        old_logp_T=torch.full((2,), old),
        ref_logp_T=torch.full((2,), -1.0 - math.log(2)),
        rollout_logp_T=torch.full((2,), rollout),
        member_ptr_T1=torch.arange(3),
        member_row_M=torch.zeros(2, dtype=torch.int64),
        member_advantage_M=two,
        member_weight_M=two / 2,
        num_rows=1,
    )
    return logp, edges


def test_vespo_by_hand() -> None:
    """Token ratios of 1/2 make w = 1/4 and phi = e^(3 - 3/4) / 16; importance of 2 twice makes w 1 again."""
    old = math.log(2) - 1
    phi = math.exp(3 - 0.75) / 16
    for cap, rollout, weight in ((None, old, phi), (10.0, old - math.log(2), 1.0), (1.0, old - 5, phi)):
        logp, edges = one_row(old, rollout)
        objective = Objective(surrogate="vespo", ratio="product", importance_cap=cap)
        out = policy_loss_of_logps(logp, edges, objective)
        assert float(out.loss.detach()) == pytest.approx(4 * weight, rel=1e-6)
        (gradient,) = torch.autograd.grad(out.loss, logp)
        assert gradient.tolist() == pytest.approx([-2 * weight] * 2, rel=1e-6)


def test_vespo_with_a_masked_token_by_hand() -> None:
    """Ratios 1/2 and importance e^5 out of bounds, twice: w = 1/4 * 1e-16, which phi sees as 1e-8."""
    old = math.log(2) - 1
    logp, edges = one_row(old, old - 5)
    objective = Objective(surrogate="vespo", ratio="product", importance_cap=2.0, importance_mask=True)
    out = policy_loss_of_logps(logp, edges, objective)
    assert float(out.loss.detach()) == pytest.approx(4 * 1e-16 * math.exp(3), rel=1e-6)


def test_kl_times_ratio_by_hand() -> None:
    """k3 at d = log 2 is log 2 - 1/2; token ratios of 1/2 halve it."""
    logp, edges = one_row(math.log(2) - 1, 0.0)
    losses = []
    for times in (False, True):
        objective = Objective(surrogate="reinforce", kl_coef=1.0, kl_times_ratio=times)
        losses.append(float(policy_loss_of_logps(logp, edges, objective).loss.detach()))
    assert losses == pytest.approx([4 + 2 * (math.log(2) - 0.5), 4 + math.log(2) - 0.5], rel=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    logp, edges = one_row(-1.0, -1.0)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"surrogate": "vespo"}, "ratio: wanted 'product' with surrogate='vespo', got 'token'"),
        ({"entropy_coef": float("nan")}, "entropy_coef: wanted a finite number, got nan"),
        ({"kl_coef": float("inf")}, "kl_coef: wanted a finite number, got inf"),
    ]
    for settings, message in refused:
        with pytest.raises(ValueError, match=message):
            Objective(**settings)
    with pytest.raises(ValueError, match="wanted with ratio='product', got None"):
        policy_loss_of_logps(logp, Edges(*edges[:4]), Objective(ratio="product"))
    with pytest.raises(ValueError, match="entropy_T: wanted with entropy_coef"):
        policy_loss_of_logps(logp, edges, Objective(entropy_coef=0.1))
    with pytest.raises(ValueError, match="logp_T, entropy_T: wanted"):
        policy_loss_of_logps(logp[None], edges, Objective())
