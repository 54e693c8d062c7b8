"""Tree attention: the reference against brute force, the cascade against the reference, refusals.

Dimension key: S packed tree positions, H query heads, K key/value heads, E head width.
"""

import math

import pytest
import torch
from g2rpo_kernels.tree_attention import cascade, cascade_plan, tree_attention
from g2rpo_kernels.tree_attention.cascade import cuda as cascade_cuda
from g2rpo_kernels.tree_attention.cascade.cuda import backward_cuda, forward_cuda, plan_cuda
from g2rpo_kernels.tree_attention.cascade.nodes import nodes_of
from torch import Tensor

from budget import assert_within_budget, draws, error
from trees import QKV, copies, forest, incoming, out_and_grads, path_lengths, qkv, with_grads


def replicated_sdpa(inputs: QKV, end_S: Tensor) -> Tensor:
    """PyTorch's own causal attention on every leaf's path by itself, shared rows repeated."""
    q_SHE, k_SKE, v_SKE = inputs
    out = {}
    leaves = [i for i in range(len(end_S)) if end_S[i] == i + 1]
    for leaf in leaves:
        path = torch.tensor([j for j in range(leaf + 1) if end_S[j] > leaf])
        q, k, v = (x[path].transpose(0, 1)[None] for x in (q_SHE, k_SKE, v_SKE))
        rows = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=0.4, enable_gqa=True
        )
        out |= {int(j): rows[0, :, n] for n, j in enumerate(path) if int(j) not in out}
    return torch.stack([out[j] for j in range(len(end_S))])


def brute_force(inputs: QKV, end_S: Tensor, window: int | None, softcap: float | None) -> Tensor:
    """Row by row, head by head: dense attention over the row's own path, distances counted on the path."""
    q_SHE, k_SKE, v_SKE = (x.detach() for x in inputs)
    out_SHE = torch.empty_like(q_SHE)
    end = end_S.tolist()
    for i in range(len(end)):
        path = [j for j in range(i + 1) if end[j] > i]
        path = path if window is None else path[-window:]
        for h in range(q_SHE.shape[1]):
            kv = h // (q_SHE.shape[1] // k_SKE.shape[1])
            score = torch.stack([0.4 * q_SHE[i, h].dot(k_SKE[j, kv]) for j in path])
            score = score if softcap is None else softcap * torch.tanh(score / softcap)
            out_SHE[i, h] = score.softmax(0) @ v_SKE[path, kv]
    return out_SHE


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (5, None), (None, 0.7), (3, 0.7)])
def test_reference_equals_dense_attention_over_each_rows_path(
    kv_heads: int, window: int | None, softcap: float | None
) -> None:
    end_S = forest(3, depth=4, lengths=(1, 2, 5))
    inputs = qkv(len(end_S), 4, kv_heads)
    out_SHE = tree_attention(
        *inputs,
        end_S,
        position_S=path_lengths(end_S),
        scale=0.4,
        window=window,
        softcap=softcap,
        impl="reference",
    )
    torch.testing.assert_close(
        out_SHE.detach(), brute_force(inputs, end_S, window, softcap), rtol=0, atol=1e-12
    )


def test_reference_two_leaves_by_hand() -> None:
    """A root and two leaves of one row each; keys that make every softmax weight a small integer ratio."""
    end_S = torch.tensor([3, 2, 3])
    k_SKE = torch.tensor([0.0, math.log(3), math.log(9)]).double().view(3, 1, 1)
    v_SKE = torch.tensor([1.0, 5.0, 11.0]).double().view(3, 1, 1)
    for impl in ("reference", "cascade"):
        out_SHE = tree_attention(torch.ones_like(k_SKE), k_SKE, v_SKE, end_S, scale=1.0, impl=impl)
        torch.testing.assert_close(out_SHE.flatten(), torch.tensor([1.0, 4.0, 10.0]).double())


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    ("seed", "lengths"),
    [(0, (1, 2, 7, 33)), (1, (1,)), (2, (1, 16, 17)), (3, (15, 31, 64, 65)), (4, (3, 63, 127)), (5, (1, 40))],
)
def test_cascade_equals_reference_in_float64(seed: int, lengths: tuple[int, ...], kv_heads: int) -> None:
    end_S = forest(seed, depth=6 if max(lengths) < 50 else 3, lengths=lengths)
    inputs = qkv(len(end_S), 4, kv_heads)
    wanted = out_and_grads(inputs, end_S, impl="reference")
    got = out_and_grads(inputs, end_S, impl="cascade")
    assert all(x.abs().max() > 0.1 for x in wanted)
    for want, have in zip(wanted, got):
        torch.testing.assert_close(have, want, rtol=0, atol=1e-12 * max(1.0, float(want.abs().max())))


@pytest.mark.parametrize(
    "end",
    [[1], [2, 2], [1, 2, 3], [9] + [i + 1 for i in range(1, 9)], [8] * 8, list(range(12, 6, -1)) + [12] * 6],
    ids=["one", "pair", "single_token_trees", "star", "chain", "nested"],
)
def test_cascade_equals_reference_on_degenerate_trees(end: list[int]) -> None:
    if (
        end == list(range(12, 6, -1)) + [12] * 6
    ):  # each row ends a row earlier than its parent; leaves fill up
        end = [12, 11, 10, 9, 8, 7, 7, 8, 9, 10, 11, 12]
    end_S = torch.tensor(end)
    inputs = qkv(len(end), 2, 1)
    for want, have in zip(out_and_grads(inputs, end_S, impl="reference"), out_and_grads(inputs, end_S)):
        torch.testing.assert_close(have, want, rtol=0, atol=1e-12)


def test_cascade_node_offsets_at_every_residue_of_64() -> None:
    """Children of a shared node at each offset mod 64 get all of their gradient."""
    for offset in range(60, 70):
        leaves = [offset + 20 * (i + 1) for i in range(3)]
        end_S = torch.tensor([leaves[-1]] * offset + [e for e in leaves for _ in range(20)])
        inputs = qkv(len(end_S), 2, 2)
        for want, have in zip(out_and_grads(inputs, end_S, impl="reference"), out_and_grads(inputs, end_S)):
            torch.testing.assert_close(have, want, rtol=0, atol=1e-12 * max(1.0, float(want.abs().max())))


def relative_errors(values: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [error(x, true) / float(true.abs().max()) for x, true in zip(values, exact, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cascade_errs_no_more_than_twice_replicated_sdpa(dtype: torch.dtype) -> None:
    """In the worst of five forests: in one of them either may be lucky."""
    errors = []
    for seed in range(7, 12):
        end_S = forest(seed, depth=4, lengths=(1, 7, 33, 80))
        inputs = qkv(len(end_S), 4, 2, dtype=dtype)
        exact = out_and_grads(copies(inputs, torch.float64), end_S, impl="reference")
        replicated = with_grads(inputs, lambda q, k, v: replicated_sdpa((q, k, v), end_S))  # noqa: B023
        got = out_and_grads(inputs, end_S, impl="cascade")
        assert all(x.dtype == dtype for x in got)
        errors.append([relative_errors(side, exact) for side in (got, replicated)])
    of_got, of_sdpa = torch.tensor(errors).amax(0)
    assert (of_got <= 2 * of_sdpa + torch.finfo(dtype).eps).all()


def test_cascade_repeats_bit_for_bit_and_takes_strided_inputs() -> None:
    end_S = forest(8)
    inputs = qkv(len(end_S), 4, 2, dtype=torch.float32)
    first, second = (out_and_grads(inputs, end_S, impl="cascade") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    for dims in ((0, 1), (1, 2)):
        q, k, v = (x.detach().transpose(*dims).contiguous().transpose(*dims) for x in inputs)
        out_SHE = tree_attention(q, k, v, end_S, scale=0.4, impl="cascade")
        assert torch.equal(out_SHE, first[0])


def test_cascade_gradient_of_a_sum() -> None:
    """`sum()` sends back an expanded gradient whose strides are all zero."""
    end_S = forest(9, trees=1)
    inputs = qkv(len(end_S), 2, 1)
    wanted = torch.autograd.grad(tree_attention(*inputs, end_S, scale=1.0, impl="reference").sum(), inputs)
    got = torch.autograd.grad(tree_attention(*inputs, end_S, scale=1.0, impl="cascade").sum(), inputs)
    for want, have in zip(wanted, got):
        torch.testing.assert_close(have, want, rtol=0, atol=1e-12)


def test_rows_see_their_own_path_only() -> None:
    """Changing one leaf changes no other leaf, bit for bit."""
    end_S = torch.tensor([40] * 10 + [20] * 10 + [30] * 10 + [40] * 10)
    q, k, v = (x.detach() for x in qkv(40, 2, 1, dtype=torch.float32))
    before = tree_attention(q, k, v, end_S, scale=1.0)
    v[10:20] += 100.0
    after = tree_attention(q, k, v, end_S, scale=1.0)
    changed = (before != after).flatten(1).any(1)
    assert changed[10:20].all()
    assert not changed[:10].any()
    assert not changed[20:].any()


def test_default_impl_is_the_cascade_where_it_can() -> None:
    end_S = forest(10, depth=3)
    position_S = path_lengths(end_S)
    longest = int(position_S.max()) + 1
    inputs = qkv(len(end_S), 2, 1)

    def same(impl: str, **kwargs) -> bool:
        default = tree_attention(*inputs, end_S, scale=0.4, position_S=position_S, **kwargs)
        named = tree_attention(*inputs, end_S, scale=0.4, position_S=position_S, impl=impl, **kwargs)  # type: ignore[arg-type]
        return torch.equal(default, named)

    assert same("cascade")
    assert not same("reference")
    assert same("cascade", window=longest)
    assert same("reference", window=longest - 1)
    assert same("reference", softcap=5.0)


def test_shared_plan_gives_the_same_bits() -> None:
    end_S = forest(11)
    inputs = qkv(len(end_S), 2, 1)
    plan = cascade_plan(end_S)
    assert plan.longest_path == int(path_lengths(end_S).max()) + 1
    assert torch.equal(
        tree_attention(*inputs, end_S, scale=1.0, plan=plan), tree_attention(*inputs, end_S, scale=1.0)
    )


def test_plan_replicates_short_nodes_and_owns_each_row_once() -> None:
    plan = cascade_plan(forest(12, trees=4)).calls
    assert isinstance(plan, cascade.CpuPlan)
    targets = torch.cat([squares.target_O for squares in plan.squares])
    assert torch.equal(targets.sort().values, torch.arange(len(forest(12, trees=4))))
    assert any(len(squares.row_F) > len(squares.target_O) for squares in plan.squares)
    assert any(keys.stop - keys.start > 16 for _, keys in plan.rectangles)


def test_refusals_name_what_was_wanted() -> None:
    end_S = torch.tensor([6, 6, 6, 6, 6, 6])
    q, k, v = qkv(6, 4, 2)
    position_S = torch.arange(6)

    def refused(match: str, *args, **kwargs) -> None:
        with pytest.raises(ValueError, match=match):
            tree_attention(*args, **{"scale": 1.0, **kwargs})

    refused("no softcap, got 3.0", q, k, v, end_S, softcap=3.0, impl="cascade")
    refused("at least 6.*got 5", q, k, v, end_S, window=5, position_S=position_S, impl="cascade")
    refused("position_S.*got None", q, k, v, end_S, window=5)
    refused("impl.*got 'flash'", q, k, v, end_S, impl="flash")
    refused("TRITON_INTERPRET=1, got cpu", q.float(), k.float(), v.float(), end_S, impl="triton")
    refused("float32, got torch.float64", q, k, v, end_S, impl="triton")
    refused("a divisor of 4", q, k[:, :1].expand(6, 3, 8), v[:, :1].expand(6, 3, 8), end_S)
    refused("one floating dtype", q.float(), k, v, end_S)
    refused(r"end_S: wanted integers \[6\]", q, k, v, end_S[:5])
    refused(r"end_S: wanted integers", q, k, v, end_S.double())
    refused("plan: wanted one of 6 rows", q, k, v, end_S, plan=cascade_plan(end_S[:5] - 1))
    refused(r"end_S\[2\]: wanted a value in \[3, 6\], got 2", q, k, v, torch.tensor([6, 6, 2, 6, 6, 6]))
    refused(r"end_S\[3\]: wanted at most 4", q, k, v, torch.tensor([6, 4, 4, 5, 6, 6]))


# The CUDA cascade's orchestration, on a stand-in for the op that keeps its documented contract.


def dense_varlen(query: Tensor, key: Tensor, value: Tensor, begin_q, begin_k, causal: bool, scale: float):
    out, lse = torch.empty_like(query), torch.empty(query.shape[1], len(query), dtype=query.dtype)
    group = query.shape[1] // key.shape[1]
    for a, b, c, d in zip(begin_q, begin_q[1:], begin_k, begin_k[1:]):
        assert b > a
        assert d > c
        k, v = (x[c:d].repeat_interleave(group, 1) for x in (key, value))
        score = torch.einsum("ihe,jhe->hij", query[a:b], k) * scale
        if causal:
            assert b - a == d - c
            score = score.masked_fill(torch.ones(b - a, d - c).triu(1).bool(), float("-inf"))
        lse[:, a:b] = score.logsumexp(-1)
        out[a:b] = torch.einsum("hij,jhe->ihe", score.softmax(-1), v)
    return out, lse.float()


def stand_in_forward(*, query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, scale, is_causal, **rest):
    assert cum_seq_q.dtype == torch.int32
    assert max_q >= cum_seq_q.diff().max()
    assert max_k >= cum_seq_k.diff().max()
    assert rest == {"dropout_p": 0.0, "return_debug_mask": False}
    out, lse = dense_varlen(query, key, value, cum_seq_q.tolist(), cum_seq_k.tolist(), is_causal, scale)
    return out, lse, None, None, None


def stand_in_backward(
    *, grad_out, query, key, value, out, logsumexp, cum_seq_q, cum_seq_k, scale, is_causal, **rest
):
    assert set(rest) == {"max_q", "max_k", "dropout_p", "rng_state", "unused"}
    dq, dk, dv = (torch.zeros_like(x) for x in (query, key, value))
    group = query.shape[1] // key.shape[1]
    begin_q, begin_k = cum_seq_q.tolist(), cum_seq_k.tolist()
    for a, b, c, d in zip(begin_q, begin_q[1:], begin_k, begin_k[1:]):
        k, v = (x[c:d].repeat_interleave(group, 1) for x in (key, value))
        weight = (torch.einsum("ihe,jhe->hij", query[a:b], k) * scale - logsumexp[:, a:b, None]).exp()
        weight = weight.tril() if is_causal else weight
        delta = (grad_out[a:b] * out[a:b]).sum(-1).T[..., None]
        ds = weight * (torch.einsum("ihe,jhe->hij", grad_out[a:b], v) - delta) * scale
        dq[a:b] = torch.einsum("hij,jhe->ihe", ds, k)
        dk[c:d] = torch.einsum("hij,ihe->jhe", ds, query[a:b]).unflatten(1, (-1, group)).sum(2)
        dv[c:d] = torch.einsum("hij,ihe->jhe", weight, grad_out[a:b]).unflatten(1, (-1, group)).sum(2)
    return dq, dk, dv


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_cuda_calls_add_up_to_the_reference(monkeypatch: pytest.MonkeyPatch, kv_heads: int) -> None:
    monkeypatch.setattr(cascade_cuda, "_flash", stand_in_forward)
    monkeypatch.setattr(cascade_cuda, "_flash_backward", stand_in_backward)
    end_S = forest(13, depth=4)
    inputs = qkv(len(end_S), 4, kv_heads)
    wanted = out_and_grads(inputs, end_S, impl="reference")
    q, k, v = (x.detach() for x in inputs)
    plan = plan_cuda(nodes_of(end_S), end_S.device)
    assert len(plan.depths) >= 3
    out_SHE, lse_SH = forward_cuda(q, k, v, 0.4, plan)
    assert out_SHE.dtype == torch.float32
    torch.testing.assert_close(out_SHE.double(), wanted[0], rtol=0, atol=2e-6)
    got = backward_cuda(incoming(q), q, k, v, wanted[0], lse_SH.double(), 0.4, plan)
    assert not torch.are_deterministic_algorithms_enabled()
    for want, have in zip(wanted[1:], got):
        torch.testing.assert_close(have.double(), want, rtol=0, atol=4e-6 * float(want.abs().max()))


def test_cuda_ops_have_the_arguments_that_are_passed() -> None:
    """The keywords exist in this torch, and every argument without a default is passed."""
    forward = {
        "query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal",
        "return_debug_mask", "scale",
    }  # fmt: skip
    backward = (forward - {"return_debug_mask"}) | {"grad_out", "out", "logsumexp", "rng_state", "unused"}
    for name, passed in (("_flash_attention_forward", forward), ("_flash_attention_backward", backward)):
        arguments = getattr(torch.ops.aten, name).default._schema.arguments
        assert passed <= {a.name for a in arguments}
        assert {a.name for a in arguments if not a.has_default_value()} <= passed


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_cascade_on_cuda_errs_no_more_than_twice_the_reference(kv_heads: int) -> None:
    end_S = forest(14, depth=4, lengths=(1, 7, 33, 130)).cuda()
    q, k, v = (x.detach().cuda() for x in qkv(len(end_S), 4, kv_heads, width=64, dtype=torch.bfloat16))
    exact = out_and_grads(copies((q, k, v), torch.float64), end_S, impl="reference")
    eagers = draws(lambda: out_and_grads((q, k, v), end_S, impl="reference"))
    got, again = (out_and_grads((q, k, v), end_S, impl="cascade") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(got, again))
    assert_within_budget(got, eagers, exact)
