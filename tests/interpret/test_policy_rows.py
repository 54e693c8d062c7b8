"""The one-launch policy loss in the interpreter: surrogates, estimators and ratios against the reference."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from g2rpo_kernels import Edges, Objective, Surrogate, policy_loss
from g2rpo_kernels.policy_loss.surrogates import RatioName
from g2rpo_kernels.policy_loss.triton import (
    CALL,
    RowCall,
    RowInputs,
    called,
    policy_rows,
    rows_op,
    rows_out_op,
)

from logit_rows import rows
from policy_cases import PENALTIES, SURROGATES, Soft
from random_policies import Case, Errors, random_case, random_objective, run


@pytest.mark.parametrize("surrogate", SURROGATES, ids=str)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_policy_loss_equals_reference(surrogate: Surrogate, ratio: RatioName) -> None:
    errors = Errors(torch.float32)
    case = random_case(0, 6, 301)
    for penalty, on_policy in itertools.product(PENALTIES, (False, True)):
        o = Objective(surrogate=surrogate, ratio=ratio, **penalty)
        errors.compare(case.on_policy() if on_policy else case, o, overwrite=on_policy)
    errors.check()


def test_a_surrogate_of_one_s_own_equals_reference() -> None:
    errors = Errors(torch.float32)
    for overwrite in (False, True):
        errors.compare(random_case(0, 6, 301), Objective(surrogate=Soft(), kl_coef=0.1), overwrite)
    errors.check()


@pytest.mark.parametrize("count", [40, pytest.param(100, marks=pytest.mark.deep)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_policy_loss_within_budget_on_random_cases(dtype: torch.dtype, count: int) -> None:
    generator = torch.Generator().manual_seed(10)
    errors = Errors(dtype)
    for seed in range(count):
        num_rows, vocab = (int(torch.randint(3, high, (), generator=generator)) for high in (6, 500))
        scaling = [(1.0, None), (0.8, None), (1.1, 20.0)][seed % 3]
        case = random_case(seed, num_rows, vocab, scaling)
        case = replace(case, logits=case.logits.to(dtype) + [0, 50, -50][seed % 3])
        case = case.on_policy() if seed % 4 == 0 else case
        errors.compare(case, random_objective(generator), overwrite=seed % 2 == 1)
    errors.check()


@pytest.mark.parametrize("kind", ["up", "down", "confident", "equal", "impossible"])
def test_policy_loss_within_budget_on_awkward_rows(kind: str) -> None:
    errors = Errors(torch.float32)
    logits, target = rows(kind, 6, 2 * 2048 + 37)
    case = random_case(3, 6, logits.shape[1], (1.0, None))
    logp = torch.log_softmax(logits.double(), -1).gather(1, target[:, None])[:, 0]
    near = {
        name: (logp + 0.3 * torch.randn(6, generator=torch.Generator().manual_seed(4))).float()
        for name in ("old_logp_T", "ref_logp_T", "rollout_logp_T")
    }
    case = replace(case, logits=logits, target=target, edges=case.edges._replace(**near))
    o = Objective(kl_coef=0.1, entropy_coef=0.05, importance_cap=1.2)
    errors.compare(case, o)
    errors.compare(case, o, overwrite=True)
    errors.check()


def test_first_ratio_is_exactly_one_with_stored_log_probabilities() -> None:
    case = random_case(5, 6, 700)
    old = run(case, Objective(), "triton", torch.float32)[0].logp_T
    stored = replace(case, edges=case.edges._replace(old_logp_T=old, ref_logp_T=old))
    out, gradient = run(stored, Objective(kl_coef=0.1), "triton", torch.float32)
    assert [float(x) for x in out.stats["ratio"]] == [5.0, 5.0]
    assert float(out.stats["approx_kl"][0]) == float(out.stats["kl"][0]) == 0.0
    want = run(case.on_policy(), Objective(), "triton", torch.float32)[1]
    assert torch.equal(gradient, want)


@pytest.mark.parametrize("overwrite", [False, True])
def test_rows_without_old_log_probability_are_on_policy(overwrite: bool) -> None:
    case = random_case(6, 6, 700)
    own = run(case, Objective(), "triton", torch.float32)[0].logp_T
    some = torch.arange(6) % 2 == 0
    assert case.edges.old_logp_T is not None
    results = []
    for filler in (torch.full((6,), torch.nan), own):
        edges = case.edges._replace(old_logp_T=torch.where(some, filler, case.edges.old_logp_T))
        o = Objective(importance_cap=1.2, kl_coef=0.1)
        results.append(run(replace(case, edges=edges), o, "triton", torch.float32, overwrite))
    (got, gradient), (want, wanted) = results
    assert torch.equal(gradient, wanted)
    assert float(got.loss.detach()) == float(want.loss.detach()) != 0
    assert {k: list(map(float, v)) for k, v in got.stats.items()} == {
        k: list(map(float, v)) for k, v in want.stats.items()
    }


def test_zero_weights_contribute_nothing_even_from_nan() -> None:
    on, nan = torch.tensor([1.0, 0.0]), torch.tensor([-2.0, torch.nan])
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(1))
    logits[1] = torch.nan
    case = Case(logits, torch.tensor([3, 4]), Edges(on, -0.5 * on, on, nan, nan, nan))
    o = Objective(kl_coef=0.1, entropy_coef=0.1, importance_cap=2.0)
    for overwrite in (False, True):
        out, gradient = run(case, o, "triton", torch.float32, overwrite)
        assert torch.isfinite(out.loss)
        assert (gradient[1] == 0).all()
        assert gradient[0].abs().max() > 0.01
        assert all(torch.isfinite(total) for total, _ in out.stats.values())


@pytest.mark.parametrize("surrogate", ["clip", "cispo", "sapo", "reinforce"])
def test_huge_ratios_stay_finite(surrogate: str) -> None:
    far = torch.tensor([-500.0, 400.0])
    edges = Edges(torch.ones(2), -torch.ones(2), torch.ones(2), far, far, 2 * far)
    case = Case(torch.randn(2, 9, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1]), edges)
    o = Objective(surrogate=surrogate, kl_coef=0.1, importance_cap=2.0)
    got, want = (run(case, o, impl, torch.float32) for impl in ("triton", "reference"))
    assert torch.isfinite(got[1]).all()
    torch.testing.assert_close(got[1], want[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[0].loss, want[0].loss, rtol=1e-5, atol=1e-5)


def test_overwritten_logits_hold_their_gradient_and_guard_others() -> None:
    case = random_case(7, 4, 300)
    leaf = case.logits.clone().requires_grad_()
    logits = leaf * 1.0
    where = logits.data_ptr()
    out = policy_loss(logits, case.target, case.edges, Objective(), overwrite_logits=True, impl="triton")
    given = []
    logits.register_hook(lambda gradient: given.append(gradient.data_ptr()))
    out.loss.backward(retain_graph=True)
    assert given == [where]
    with pytest.raises(RuntimeError, match="backward ran already"):
        out.loss.backward()
    leaf = case.logits.clone().requires_grad_()
    logits = leaf.exp()  # its backward reads them
    out = policy_loss(logits, case.target, case.edges, Objective(), overwrite_logits=True, impl="triton")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.loss.backward()


def test_without_gradient_the_logits_stay() -> None:
    case = random_case(8, 4, 300)
    kept = case.logits.clone()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            arguments = (case.logits, case.target, case.edges, Objective())
            out = policy_loss(*arguments, overwrite_logits=True, impl="triton")
        assert not out.loss.requires_grad
        assert torch.equal(case.logits, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_policy_rows_writes_beside_and_over_the_logits(dtype: torch.dtype) -> None:
    case = random_case(9, 5, 2100)
    bias = torch.randn(2100, generator=torch.Generator().manual_seed(3))
    o = Objective(kl_coef=0.1, entropy_coef=0.05)
    settings = {"temperature": 0.9, "softcap": 25.0, "bias_V": bias}
    arguments = (case.target, case.edges, o)
    alone = policy_rows(case.logits, *arguments, out=None, **settings)
    beside = torch.full(case.logits.shape, torch.nan, dtype=dtype)
    both = policy_rows(case.logits, *arguments, out=beside, **settings)
    assert all(torch.equal(a, b) for a, b in zip(alone, both, strict=True))
    leaf = (case.logits + bias).double().requires_grad_()
    true = policy_loss(leaf, case.target, case.edges, o, temperature=0.9, softcap=25.0, impl="reference")
    (want,) = torch.autograd.grad(true.loss, leaf)
    torch.testing.assert_close(both.loss_T.double().sum(), true.loss.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        beside.double(), want, rtol=1e-5, atol=2e-3 if dtype == torch.float16 else 1e-6
    )
    over = case.logits.clone()
    policy_rows(over, *arguments, out=over, **settings)
    torch.testing.assert_close(over, beside.float(), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"objective\.ratio: wanted 'token', got 'sequence'"):
        policy_rows(case.logits, case.target, case.edges, replace(o, ratio="sequence"), out=None, **settings)
    with pytest.raises(ValueError, match=r"surrogate: wanted one with a device function, got Soft"):
        policy_rows(case.logits, case.target, case.edges, replace(o, surrogate=Soft()), out=None, **settings)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_no_edges_is_a_zero_loss(ratio: RatioName, overwrite: bool) -> None:
    none, ids = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    edges = Edges(none, none, none, None, none, none, torch.zeros(1, dtype=torch.int64), ids, none, none, 0)
    o = Objective(ratio=ratio, kl_coef=0.1, entropy_coef=0.1, importance_cap=2.0)
    out, gradient = run(Case(torch.zeros(0, 5), ids, edges), o, "triton", torch.float32, overwrite)
    assert float(out.loss.detach()) == 0.0
    assert gradient.shape == (0, 5)


def test_policy_rows_without_the_operator_is_the_operator() -> None:
    case = random_case(2, 5, 70)
    call = RowCall(RowInputs.of(case.target, None, case.edges).on(case.logits.device), Objective(), 0.9, None)
    direct_TV, through_TV = (torch.full_like(case.logits, torch.nan) for _ in range(2))
    before = direct_TV._version
    direct = called(case.logits, direct_TV, call)
    through = rows_out_op(case.logits, through_TV, *CALL.pack(call))
    assert torch.equal(direct_TV, through_TV)
    assert float(direct_TV.abs().max()) > 0.01
    assert direct_TV._version == before + 1  # autograd is told
    alone, op_alone = called(case.logits, None, call), rows_op(case.logits, *CALL.pack(call))
    for values in zip(direct, through, alone, op_alone, strict=True):
        assert all(torch.equal(values[0], value) for value in values[1:])
