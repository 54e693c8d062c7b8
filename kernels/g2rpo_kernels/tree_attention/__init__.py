"""Attention over prefix trees that are packed, in depth-first order, into one stream of S positions.

    out_i = sum over j of softmax_j(scale * q_i . k_j) v_j,   query i sees key j iff  j <= i < END[j]

END[j] is the stream position where the subtree of j's node ends: the visible keys are i's path back to its
root, for any depth and any number of trees in the stream. The END vector is a case of FlashMask's column
intervals (arXiv:2410.01359); cascading shared prefixes by log-sum-exp is Hydragen's (arXiv:2402.05099), here
for trees of any depth and with a backward pass.

Dimension key: S packed tree positions, H query heads, K key/value heads (H a multiple of K), E head width.
"""

from __future__ import annotations

import math

from torch import Tensor

from g2rpo_kernels.checks import check_floating, check_tensors
from g2rpo_kernels.tree_attention.cascade import CascadePlan, cascade_plan, tree_attention_cascade
from g2rpo_kernels.tree_attention.cascade.nodes import Nodes
from g2rpo_kernels.tree_attention.choice import Impl, Query, default_impl, unsupported_cascade
from g2rpo_kernels.tree_attention.reference import tree_attention_reference
from g2rpo_kernels.tree_attention.tile_lists import TilePlan, tile_plan

__all__ = ["CascadePlan", "Impl", "Nodes", "TilePlan", "cascade_plan", "tile_plan", "tree_attention"]


def tree_attention(
    q_SHE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    end_S: Tensor,
    *,
    position_S: Tensor | None = None,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    impl: Impl | None = None,
    plan: CascadePlan | None = None,
    tiles: TilePlan | None = None,
) -> Tensor:
    """Attention of S packed queries on their own paths; differentiable once in q, k and v; deterministic.

    Args:
        q_SHE: queries [S, H, E], already rotated, any strides whose last is 1.
        k_SKE: keys [S, K, E], same dtype. Head h reads key head h // (H / K); keys are never repeated.
        v_SKE: values [S, K, E].
        end_S: [S] integers, see above.
        position_S: [S] path lengths from the root, growing by one along each path; needed with `window`.
        scale: factor on q . k, usually E ** -0.5.
        window: query i sees key j only if position[i] - position[j] < window. None: all of its path.
        softcap: scores become softcap * tanh(score / softcap). None: off.
        impl: "reference": S x S scores in plain PyTorch, any dtype and device; the definition.
            "cascade": flash calls merged by log-sum-exp, work in proportion to the visible pairs. CPU: any
            floating dtype. CUDA: bfloat16 and float16, E <= 256 and a multiple of 8. No softcap, and a
            window only where it hides nothing (no path is longer).
            "triton": block-sparse kernels; CUDA (or the interpreter), bfloat16, float16 and float32 (products
            in full float32: slow), E <= 256 and a multiple of 8, windows, softcaps. END is trusted.
            None: the first of this list that can do what is asked.
              CPU: cascade, reference.
              CUDA: cascade, triton (softcap, a window that hides something, float32), reference (float64).
            Which of the two comes first on CUDA will follow measurements.
        plan: `cascade_plan(end_S)`, to share between layers; the cascade builds its own when None.
        tiles: `tile_plan(end_S, position_S, device)`, likewise for "triton"; soonest from an END on the host.

    Returns:
        out [S, H, E] in q's dtype.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, a `scale` that is not finite, `window` without
            positions, an END that describes no tree (cascade), a plan of another stream, or an explicit
            `impl` that cannot do what is asked: it never falls back.
    """
    _check(q_SHE, k_SKE, v_SKE, end_S, position_S)
    if window is not None and position_S is None:
        raise ValueError("position_S: wanted positions because window is given, got None")
    if not math.isfinite(scale):
        raise ValueError(f"scale: wanted a finite number, got {scale}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap: wanted > 0 or None, got {softcap}")
    if window is not None and window < 1:
        raise ValueError(f"window: wanted >= 1 or None, got {window}")
    if impl not in (None, "reference", "cascade", "triton"):
        raise ValueError(f"impl: wanted 'reference', 'cascade', 'triton' or None, got {impl!r}")
    for name, shared in (("plan", plan), ("tiles", tiles)):
        _check_plan(name, shared, q_SHE)
    if impl in (None, "cascade"):
        plan = cascade_plan(end_S) if plan is None else plan
        asked = (Query.of(q_SHE), window, softcap, plan.longest_path)
        impl = default_impl(*asked) if impl is None else impl
        if impl == "cascade":
            lack = unsupported_cascade(*asked)
            if lack is not None:
                raise ValueError(f"impl='cascade': {lack}")
            return tree_attention_cascade(q_SHE, k_SKE, v_SKE, scale=scale, plan=plan)
    if impl == "triton":
        from g2rpo_kernels.tree_attention.triton import tree_attention_triton

        tiles = tile_plan(end_S, position_S) if tiles is None else tiles
        return tree_attention_triton(
            q_SHE, k_SKE, v_SKE, scale=scale, window=window, softcap=softcap, plan=tiles
        )
    return tree_attention_reference(
        q_SHE, k_SKE, v_SKE, end_S, position_S=position_S, scale=scale, window=window, softcap=softcap
    )


def _check_plan(name: str, plan: CascadePlan | TilePlan | None, q_SHE: Tensor) -> None:
    if plan is not None and (q_SHE.device != plan.device or len(q_SHE) != plan.num_rows):
        raise ValueError(
            f"{name}: wanted one of {len(q_SHE)} rows on {q_SHE.device}, "
            f"got one of {plan.num_rows} rows on {plan.device}"
        )


def _check(q_SHE: Tensor, k_SKE: Tensor, v_SKE: Tensor, end_S: Tensor, position_S: Tensor | None) -> None:
    heads_of = {"q_SHE": q_SHE, "k_SKE": k_SKE, "v_SKE": v_SKE}
    check_tensors({**heads_of, "end_S": end_S, "position_S": position_S})
    check_floating(heads_of)
    if q_SHE.dim() != 3 or k_SKE.dim() != 3 or k_SKE.shape != v_SKE.shape:
        raise ValueError(
            f"q_SHE, k_SKE, v_SKE: wanted [S, H, E], [S, K, E] and [S, K, E], "
            f"got {tuple(q_SHE.shape)}, {tuple(k_SKE.shape)} and {tuple(v_SKE.shape)}"
        )
    size, heads, width = q_SHE.shape
    if k_SKE.shape[0] != size or k_SKE.shape[2] != width or heads % k_SKE.shape[1]:
        raise ValueError(
            f"k_SKE: wanted [{size}, a divisor of {heads}, {width}] for q_SHE {tuple(q_SHE.shape)}, "
            f"got {tuple(k_SKE.shape)}"
        )
    if not q_SHE.dtype == k_SKE.dtype == v_SKE.dtype:
        raise ValueError(
            "q_SHE, k_SKE, v_SKE: wanted one floating dtype,"
            f" got {q_SHE.dtype}, {k_SKE.dtype} and {v_SKE.dtype}"
        )
    for name, x_S in (("end_S", end_S), ("position_S", position_S)):
        if x_S is None:
            continue
        if x_S.shape != (size,) or x_S.is_floating_point():
            raise ValueError(f"{name}: wanted integers [{size}], got {x_S.dtype} {list(x_S.shape)}")
