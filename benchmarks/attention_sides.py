"""Sides of the attention comparison. All attend over the same tokens: rows are gathered from the tree's.

`unshared` repeats the shared tokens for each row: one causal call for each row length, nothing padded.
PrefixGrouper (one level) holds the prompt once; its keys and values are copied to each row.

Dimension key: S packed tree positions, G rows, L tokens of a row, H query heads, K kv heads, E head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from g2rpo_kernels import cascade_plan, tree_attention
from g2rpo_kernels.tree_attention import tile_plan
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from g2rpo_fast.types import TreePlan
from peers import Peer


@dataclass(frozen=True)
class Side:
    """A forward, its leaves, and how to find the outputs of each row's last token in what it returns."""

    run: Callable[[], Tensor]
    inputs: list[Tensor]
    last_GHE: Callable[[Tensor], Tensor]
    pairs: int
    """(query, key) pairs that it computes."""

    def with_backward(self) -> object:
        out = self.run()
        return torch.autograd.grad(out, self.inputs, torch.ones_like(out))


@dataclass(frozen=True)
class Tokens:
    """Queries, keys and values of a tree's positions, and the positions on each row's path, root first."""

    q_SHE: Tensor
    k_SKE: Tensor
    v_SKE: Tensor
    end_S: Tensor
    paths_G: list[Tensor]
    prompt: int
    """Positions that all rows begin with."""
    tree_pairs: int
    """(query, key) pairs of the tree: each position sees its path."""

    @property
    def scale(self) -> float:
        return self.q_SHE.shape[-1] ** -0.5

    @property
    def row_pairs(self) -> int:
        return sum(_causal_pairs(len(path_L)) for path_L in self.paths_G)

    def gathered(self, positions: Tensor) -> list[Tensor]:
        """q, k and v at `positions` [...], as leaves [..., heads, E]."""
        every = (self.q_SHE, self.k_SKE, self.v_SKE)
        return [value.detach()[positions].requires_grad_() for value in every]


def _causal_pairs(length: int) -> int:
    return length * (length + 1) // 2


def tokens_of(plan: TreePlan, prompt: int, heads: int, kv_heads: int, width: int, device: str) -> Tokens:
    """Random q, k and v; bfloat16 on CUDA, float32 on a CPU."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    size = len(plan.token_S)
    q, k, v = (
        torch.randn(size, h, width, device=device, dtype=dtype, requires_grad=True)
        for h in (heads, kv_heads, kv_heads)
    )
    paths_G = [
        torch.from_numpy(np.flatnonzero(plan.end_S[: last + 1] > last)).to(device) for last in plan.last_B
    ]
    pairs = int((plan.position_S.astype(np.int64) + 1).sum())
    return Tokens(q, k, v, torch.from_numpy(plan.end_S).to(device), paths_G, prompt, pairs)


def tree_side(tokens: Tokens, run: Callable[[], Tensor]) -> Side:
    last_G = torch.stack([path_L[-1] for path_L in tokens.paths_G])
    inputs = [tokens.q_SHE, tokens.k_SKE, tokens.v_SKE]
    return Side(run, inputs, lambda out_SHE: out_SHE[last_G], tokens.tree_pairs)


def cascade(tokens: Tokens) -> Side:
    plan = cascade_plan(tokens.end_S.cpu(), device=tokens.end_S.device)
    inputs = tokens.q_SHE, tokens.k_SKE, tokens.v_SKE, tokens.end_S
    return tree_side(tokens, lambda: tree_attention(*inputs, scale=tokens.scale, impl="cascade", plan=plan))


def triton(tokens: Tokens) -> Side:
    tiles = tile_plan(tokens.end_S)
    inputs = tokens.q_SHE, tokens.k_SKE, tokens.v_SKE, tokens.end_S
    return tree_side(tokens, lambda: tree_attention(*inputs, scale=tokens.scale, impl="triton", tiles=tiles))


def unshared(tokens: Tokens) -> Side:
    """Outputs of all lengths end to end, [rows of it, H, L, E] each flattened."""
    lengths = sorted({len(path_L) for path_L in tokens.paths_G})
    same = [[g for g, path_L in enumerate(tokens.paths_G) if len(path_L) == length] for length in lengths]
    batches = [
        [x.detach().transpose(1, 2).contiguous().requires_grad_() for x in tokens.gathered(positions)]
        for positions in (torch.stack([tokens.paths_G[g] for g in rows]) for rows in same)
    ]
    order_G = torch.tensor([g for rows in same for g in rows]).argsort()

    def run() -> Tensor:
        outs = [
            scaled_dot_product_attention(*batch, is_causal=True, scale=tokens.scale, enable_gqa=True)
            for batch in batches
        ]
        return torch.cat([out.transpose(1, 2).flatten(0, 1) for out in outs])

    def last_GHE(out_NHE: Tensor) -> Tensor:
        sizes = torch.tensor([len(tokens.paths_G[g]) for rows in same for g in rows])
        return out_NHE[sizes.cumsum(0) - 1][order_G]

    return Side(run, [x for batch in batches for x in batch], last_GHE, tokens.row_pairs)


def varlen(tokens: Tokens) -> Side:
    """Flash attention on the repeated rows, end to end."""
    from torch.nn.attention.varlen import varlen_attn

    lengths = [len(path_L) for path_L in tokens.paths_G]
    cu = torch.tensor([0, *lengths], device=tokens.end_S.device).cumsum(0).int()
    inputs = tokens.gathered(torch.cat(tokens.paths_G))
    longest, causal = max(lengths), (-1, 0)
    # Torch 2.11 takes grouped heads without being told.
    grouped = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}

    def run() -> Tensor:
        return varlen_attn(
            *inputs, cu, cu, longest, longest, scale=tokens.scale, window_size=causal, **grouped
        )  # type: ignore[return-value]

    return Side(run, inputs, lambda out_NHE: out_NHE[cu[1:].long() - 1], tokens.row_pairs)


def flex(tokens: Tokens) -> Side:
    """FlexAttention with a BlockMask from tree attention's own tile lists."""
    from torch.nn.attention.flex_attention import flex_attention

    from flex_mask import block_mask

    mask = block_mask(tile_plan(tokens.end_S))
    compiled = torch.compile(flex_attention)

    def run() -> Tensor:
        batch = [x.transpose(0, 1)[None] for x in (tokens.q_SHE, tokens.k_SKE, tokens.v_SKE)]
        return compiled(*batch, block_mask=mask, scale=tokens.scale, enable_gqa=True)  # type: ignore[return-value]

    return replace(tree_side(tokens, run), last_GHE=_last_of_heads(tokens))


def _last_of_heads(tokens: Tokens) -> Callable[[Tensor], Tensor]:
    last_G = torch.stack([path_L[-1] for path_L in tokens.paths_G])
    return lambda out_1HSE: out_1HSE[0].transpose(0, 1)[last_G]


def prefix_grouper(tokens: Tokens) -> Side:
    """PrefixGrouper: prompt and rest apart, the prompt's keys and values before those of each row."""
    from prefix_grouper import PrefixGrouper
    from torch.nn.attention.bias import causal_lower_right

    rests_G = [path_L[tokens.prompt :] for path_L in tokens.paths_G]
    lengths = [len(rest_L) for rest_L in rests_G]
    device = tokens.end_S.device
    grouper = PrefixGrouper([[tokens.prompt, *lengths]], device=device)
    stream = torch.cat([tokens.paths_G[0][: tokens.prompt], *rests_G])
    inputs = [x.detach().transpose(0, 1)[None].requires_grad_() for x in tokens.gathered(stream)]

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Causal from the lower right: the rows' padding, on the right, is seen by padding alone."""
        bias = causal_lower_right(q.shape[2], k.shape[2])
        out = scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=tokens.scale, enable_gqa=True)  # type: ignore[call-overload]
        return out.transpose(1, 2)

    last_G = tokens.prompt + torch.tensor(lengths, device=device).cumsum(0) - 1
    pairs = _causal_pairs(tokens.prompt) + sum(
        _causal_pairs(len(path_L)) - _causal_pairs(tokens.prompt) for path_L in tokens.paths_G
    )
    return Side(
        lambda: grouper.forward(attend, *inputs),
        inputs,
        lambda out_1NHE: out_1NHE[0, last_G],
        pairs,
    )


def peers_of(tokens: Tokens, *, with_flex: bool) -> dict[str, Peer]:
    """`make` gives a `Side`. `with_flex`: FlexAttention compiles anew for each shape."""
    flexible = Peer(partial(flex, tokens), cuda_only="FlexAttention has no backward on a CPU")
    return {
        **({"flex": flexible} if with_flex else {}),
        "prefix_grouper": Peer(partial(prefix_grouper, tokens), needs="prefix_grouper"),
    }
