"""Layers that keep a state on packed trees: hidden states and every gradient are those of each path alone."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from causal_types import CAUSAL_TYPES, tiny_model
from g2rpo_fast.adapters import AdapterConfig
from g2rpo_fast.adapters.attach import add_adapters
from g2rpo_fast.engine import forwards_of
from g2rpo_fast.model import ModelConfig, compute_context
from g2rpo_fast.model.forward import tree_hidden
from g2rpo_fast.model.head import head_of
from g2rpo_fast.model.hook import follows_trees
from g2rpo_fast.model.load import checkpoint_layers, select_attention, select_tree_attention
from g2rpo_fast.model.recurrent import install
from g2rpo_fast.model.recurrent.install import calls_of, forks_states
from g2rpo_fast.model.recurrent.segments import Segments
from g2rpo_fast.rollout.local import LocalEngine
from g2rpo_fast.types import TreePlan
from recurrent_models import (
    FAMILIES,
    alone,
    forking_plan,
    gradients,
    mixed,
    path_of,
    random_plan,
    recurrent_model,
)
from true_double import TrueDouble

CPU = torch.device("cpu")


def largest(value: Any) -> float:
    return float(value.detach().abs().max())


def compare(family: str, plan: TreePlan, *, checkpointing: bool = False, adapters: bool = False) -> None:
    plain = recurrent_model(family)
    model = copy.deepcopy(plain)
    select_tree_attention(model)
    if checkpointing:
        checkpoint_layers(model)
    for of in (plain, model):
        if adapters:
            adapt(of)
        of.double()
    with TrueDouble():
        wanted_SD, got_SD = alone(plain, plan), tree_hidden(model, plan).hidden_SD
        mixed(wanted_SD).backward()
        mixed(got_SD).backward()
    assert largest(wanted_SD) > 0.5
    assert largest(got_SD - wanted_SD) < 1e-10
    wanted, got = gradients(plain), gradients(model)
    assert wanted.keys() == got.keys()
    for name, grad in wanted.items():
        assert largest(got[name] - grad) < 1e-10 * max(1.0, largest(grad)), name


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_tree_equals_each_path_alone_in_hidden_states_and_every_gradient(
    family: str, checkpointing: bool
) -> None:
    plan = forking_plan()
    assert plan.unshared_tokens > 2 * len(plan.token_S)
    assert len(Segments(plan, CPU).levels) == 7
    compare(family, plan, checkpointing=checkpointing)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", ["lfm2", "olmo_hybrid", "bamba"])
def test_random_trees_equal_each_path_alone(family: str, seed: int) -> None:
    plan = random_plan(seed)
    assert len(Segments(plan, CPU).levels) >= 4
    compare(family, plan)


WIDE: dict[str, dict[str, Any]] = {
    "lfm2": {},
    "qwen3_5_text": {"linear_key_head_dim": 32, "linear_num_key_heads": 4},
    "bamba": {},
}
"""Narrower keys have norms near zero now and then, by which they are divided: little but rounding is left."""


def adapt(model: Any) -> None:
    add_adapters(model, AdapterConfig(kind="lora", rank=2), base="base", seed=0)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("family", ["lfm2", "qwen3_5_text", "bamba"])
def test_adapters_on_trees_equal_each_path_alone(family: str) -> None:
    compare(family, random_plan(1), checkpointing=True, adapters=True)


@pytest.mark.parametrize("family", WIDE)
def test_bfloat16_tree_errs_no_more_than_twice_each_path_alone(family: str) -> None:
    """In hidden states, and in gradients."""
    plan, exact = forking_plan(), recurrent_model(family, **WIDE[family])
    plain, model = copy.deepcopy(exact), copy.deepcopy(exact)
    select_tree_attention(model)
    with TrueDouble():
        truth_SD = alone(exact.double(), plan)
        mixed(truth_SD).backward()
    with compute_context(plain, ModelConfig(precision="bfloat16")):
        by_path_SD, by_tree_SD = alone(plain, plan), tree_hidden(model, plan).hidden_SD
    for hidden_SD in (by_path_SD, by_tree_SD):
        mixed(hidden_SD.float()).backward()

    def flat(of: Any) -> torch.Tensor:
        return torch.cat([grad.double().flatten() for grad in gradients(of).values()])

    compared = [(truth_SD, by_path_SD, by_tree_SD), (flat(exact), flat(plain), flat(model))]
    for truth, by_path, by_tree in compared:
        rounding = torch.finfo(torch.bfloat16).eps * float(truth.detach().norm())
        allowed = 2 * float((by_path - truth).detach().norm()) + rounding
        assert rounding / 100 < float((by_tree - truth).detach().norm()) <= allowed


@pytest.mark.parametrize("plan", [forking_plan(), random_plan(3), random_plan(4)])
def test_segments_are_the_paths(plan: TreePlan) -> None:
    """Of every position: what a convolution reads before it, and how far a scan has come."""
    segments = Segments(plan, CPU)
    position_S = torch.arange(segments.size)
    for taps in (2, 4, 6):
        laid = segments.laid(taps)
        stream_L = torch.full((laid.length,), -1).index_copy(0, laid.own_S, position_S)
        stream_L = stream_L.index_copy(0, laid.place_H, laid.before_U[laid.history_H])
        for place in range(segments.size):
            at = int(laid.own_S[place])
            path = path_of(plan, place).tolist()
            assert stream_L[at - taps + 1 : at + 1].tolist() == ([-1] * taps + path)[-taps:]
    done = torch.cat([batch.position_P for level in segments.levels for batch in level])
    assert torch.equal(done[segments.order_S], position_S)
    above: list[int] = []
    for level in segments.levels:
        ends, here = list(above), []
        for batch in level:
            node_P = batch.place_P // batch.length
            here += [int(batch.position_P[node_P == node].max()) for node in range(batch.num_nodes)]
            first_N = batch.position_P[batch.place_P % batch.length == 0].tolist()
            for node, first in enumerate(first_N):
                path = path_of(plan, first).tolist()
                assert path[-2:-1] == ([] if batch.parent_N is None else [ends[int(batch.parent_N[node])]])
        above = here


@pytest.mark.parametrize(
    ("family", "seam"),
    [
        ("lfm2", "causal_conv1d_fn"),
        ("olmo_hybrid", "causal_conv1d_fn"),
        ("olmo_hybrid", "torch_chunk_gated_delta_rule"),
        ("bamba", "mamba2_chunk_scan"),
    ],
)
def test_function_that_does_not_follow_the_tree_shows_when_a_model_is_loaded(
    family: str, seam: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def along_the_stream(original: Any, segments: Segments, *args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    monkeypatch.setitem(install.SEAMS, seam, along_the_stream)
    model = recurrent_model(family)
    reason = select_attention(model)
    assert reason is not None
    assert "wanted the same logits from a packed tree" in reason
    assert not follows_trees(model)
    assert not forks_states(model)
    assert not any("forward" in vars(module) for module in model.modules())


def test_layer_that_lost_its_forward_is_an_error() -> None:
    model = recurrent_model("lfm2")
    select_tree_attention(model)
    del model.model.layers[2].conv.forward
    with pytest.raises(RuntimeError, match=r"wanted all to follow the tree, got layers \[2\] not to"):
        tree_hidden(model, forking_plan())


def test_layer_that_is_not_called_is_an_error() -> None:
    model = recurrent_model("lfm2")
    select_tree_attention(model)
    model.model.layers[2].forward = lambda hidden_states, **_: hidden_states
    with pytest.raises(RuntimeError, match=r"wanted one call of each of 2 functions.*the others mixed"):
        tree_hidden(model, forking_plan())


def test_copy_of_a_model_follows_with_its_own_weights() -> None:
    model = recurrent_model("lfm2")
    select_tree_attention(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.mul_(0.0 if ".conv." in name else 1.0)
        first_SD, second_SD = (tree_hidden(m, forking_plan()).hidden_SD for m in (model, other))
    assert largest(first_SD - second_SD) > 0.1


def test_saved_model_is_plain(tmp_path: Path) -> None:
    model = recurrent_model("lfm2")
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    wanted = model(input_ids=ids).logits
    select_tree_attention(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not any("forward" in vars(module) for module in loaded.modules())
    assert largest(loaded(input_ids=ids).logits - wanted) < 1e-5


def test_model_without_recurrent_layers_is_left_alone() -> None:
    model = tiny_model("llama")
    select_tree_attention(model)
    assert follows_trees(model)
    assert not forks_states(model)
    assert not any("forward" in vars(module) for module in model.modules())
    assert calls_of(model) == ([0, 1, 2, 3], [])


@pytest.mark.parametrize("family", FAMILIES)
def test_rollouts_keep_the_model_s_own_cache(family: str) -> None:
    """What such a model keeps of a prompt is copied for the rows of a group, not encoded again."""
    model = recurrent_model(family)
    select_tree_attention(model)
    made = forwards_of(model, ModelConfig())
    assert made["prefill"] is None
    engine = LocalEngine(model, **made, head=head_of(model), decode=str)
    assert engine.decoder_name == "cached"


@pytest.mark.skipif("minimax" not in CAUSAL_TYPES, reason="this transformers has no minimax")
def test_state_of_another_kind_keeps_a_model_on_unshared_rows() -> None:
    model = tiny_model("minimax")
    reason = select_attention(model)
    assert reason is not None
    assert reason.startswith("minimax: wanted layers whose state forks (causal_conv1d_fn, ")
    assert "got another linear_attention in layer 0" in reason
