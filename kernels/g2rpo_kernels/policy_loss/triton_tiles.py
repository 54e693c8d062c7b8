"""The policy loss of rows given as exponentials: statistics, coefficients and d logits in one launch.

As `policy_kernel`, from what `linear_logprob.triton_exponentials` made: 2 bytes read and 2 written a logit.

Dimension key: C rows (an edge each), V vocabulary, N column tiles.
"""

# pyright: reportGeneralTypeIssues=false, reportInvalidTypeForm=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from g2rpo_kernels.logprob.triton_launch import on_device
from g2rpo_kernels.logprob.triton_rows import both
from g2rpo_kernels.logprob.triton_tiles import (
    Exponentials,
    exponentials_to_dlogits,
    numbers_constants,
    row_constants,
    row_of_tiles,
)
from g2rpo_kernels.policy_loss.records import Edges, Objective
from g2rpo_kernels.policy_loss.triton import RowInputs, objective_settings
from g2rpo_kernels.policy_loss.triton_objective import STAT_ROWS, edge_loss


@triton.jit
def tile_policy_kernel(
    exp_ptr,
    max_ptr,
    rest_ptr,
    moment_ptr,
    target_logit_ptr,
    target_ptr,
    logp_ptr,
    entropy_ptr,
    stats_ptr,
    a_pos_ptr,
    a_neg_ptr,
    weight_ptr,
    old_ptr,
    ref_ptr,
    rollout_ptr,
    num_c,
    num_v,
    num_n,
    stride_c,
    scale: tl.float64,
    s0: tl.float64,
    s1: tl.float64,
    s2: tl.float64,
    s3: tl.float64,
    kl_coef: tl.float64,
    entropy_coef: tl.float64,
    importance_cap: tl.float64,
    importance_low: tl.float64,
    SURROGATE: tl.constexpr,
    KL: tl.constexpr,
    PENALTY: tl.constexpr,
    KL_TIMES_RATIO: tl.constexpr,
    ENTROPY: tl.constexpr,
    IMPORTANCE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TILE_V: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    scale, _ = both(scale)
    logp, entropy, lse = row_of_tiles(
        max_ptr, rest_ptr, moment_ptr, target_logit_ptr, t, num_n, scale, BLOCK_N
    )
    target = tl.load(target_ptr + t).to(tl.int32)
    a_pos = tl.load(a_pos_ptr + t).to(tl.float64)
    a_neg = tl.load(a_neg_ptr + t).to(tl.float64)
    weight = tl.load(weight_ptr + t).to(tl.float64)
    _, c, e = edge_loss(
        logp, entropy, a_pos, a_neg, weight, t, num_c, stats_ptr, old_ptr, ref_ptr, rollout_ptr,
        s0, s1, s2, s3, kl_coef, entropy_coef, importance_cap, importance_low,
        SURROGATE, KL, PENALTY, KL_TIMES_RATIO, IMPORTANCE,
    )  # fmt: skip
    tl.store(logp_ptr + t, logp.to(tl.float32))
    tl.store(entropy_ptr + t, entropy.to(tl.float32))
    exponentials_to_dlogits(
        exp_ptr + t * stride_c, max_ptr + t * num_n, target, logp, lse, entropy, c, e,
        tl.zeros((), tl.float64), num_v, num_n, scale, ENTROPY, TILE_V, GROUP, STAGES,
    )  # fmt: skip


def exponentials_to_dlogits_(
    given: Exponentials,
    target_C: Tensor,
    edges: Edges,
    objective: Objective,
    temperature: float,
    logp_C: Tensor,
    entropy_C: Tensor,
) -> None:
    """Writes log-probabilities and entropies, and d loss / d raw logits over the exponentials.

    Token ratios, and a surrogate with a device function. Zeros for edges without a coefficient.

    Args:
        given: of C rows, kept.
        target_C: [C] int64 or int32 in [0, V).
        edges: of these rows, float32.
        logp_C, entropy_C: [C] float32, written.
    """
    assert given.exp_CV is not None
    inputs = RowInputs.of(target_C, None, edges).on(given.exp_CV.device)
    num_rows, num_tiles = given.max_CN.shape
    with on_device(given.exp_CV):
        tile_policy_kernel[(num_rows,)](
            given.exp_CV,
            given.max_CN,
            given.rest_CN,
            given.moment_CN,
            given.target_logit_C,
            inputs.target_T,
            logp_C,
            entropy_C,
            logp_C.new_empty((len(STAT_ROWS), num_rows)),
            *inputs[2:8],
            num_c=num_rows,
            num_v=given.exp_CV.shape[1],
            num_n=num_tiles,
            stride_c=given.exp_CV.stride(0),
            scale=1 / temperature,
            **objective_settings(objective),
            **numbers_constants(num_tiles) | row_constants(),
        )
