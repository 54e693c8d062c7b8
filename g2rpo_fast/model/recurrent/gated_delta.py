"""The gated delta rule along the paths of a tree: what `torch_chunk_gated_delta_rule` is along a sequence.

    state_i = (I - beta_i k_i k_i^T) exp(g_i) state_p + beta_i k_i v_i^T,    p before i on its path

Kimi's, `chunk_kimi_delta_attention`, is the same with a decay g of its own for each width of a key.

Dimension key: S stream positions, N nodes of a batch, L their padded length, H query and key heads, V value
heads, E their widths.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from g2rpo_fast.model.recurrent.scan import along_paths, chunk_of
from g2rpo_fast.model.recurrent.segments import Segments

CHUNK = 64
"""transformers' own."""


def gated_delta(
    original: Callable[..., tuple[Tensor, Tensor]],
    segments: Segments,
    query_1SHE: Tensor,
    key_1SHE: Tensor,
    value_1SVE: Tensor,
    *,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **_: Any,
) -> tuple[Tensor, None]:
    """out [1, S, V, E] in the query's dtype, by transformers' own function (names as there); no state."""
    assert initial_state is None, "a forward over a tree has no cache"
    assert not output_final_state, "a forward over a tree has no cache"
    scan = partial(_scan, original, use_qk_l2norm_in_kernel)
    return along_paths(scan, [query_1SHE, key_1SHE, value_1SVE, g, beta], segments), None


def _scan(
    original: Callable[..., tuple[Tensor, Tensor]],
    normed: bool,
    padded: list[Tensor],
    initial_N: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Padding has beta = 0 and g = 0: nothing is written, nothing decays."""
    query_NLHE, key_NLHE, value_NLVE, g_NLV, beta_NLV = padded
    return original(
        query_NLHE,
        key_NLHE,
        value_NLVE,
        g=g_NLV,
        beta=beta_NLV,
        chunk_size=chunk_of(query_NLHE.shape[1], CHUNK),
        initial_state=initial_N,
        output_final_state=True,
        use_qk_l2norm_in_kernel=normed,
    )
