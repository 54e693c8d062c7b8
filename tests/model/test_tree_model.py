"""Models on packed trees: loss and every gradient equal those of padded, repeated prompts; refusals.

Hugging Face computes norms and eager softmax in float32 whatever the model's dtype. To compare to 1e-10 these
tests give both sides norms, and the padded side an eager attention, that are the same formulas in float64.

Dimension key: S packed tree positions, T edges, N tokens of all rows, R rows, L padded length, V vocabulary.
"""

import copy
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    CohereConfig,
    GptOssConfig,
    Llama4TextConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from budget import draws
from g2rpo_fast.model import ModelConfig, compute_context
from g2rpo_fast.model.forward import tree_hidden
from g2rpo_fast.model.head import head_of
from g2rpo_fast.model.hook import ATTENTION, follows_trees
from g2rpo_fast.model.load import load_model, select_tree_attention
from g2rpo_fast.model.vocabulary import load_tokenizer
from g2rpo_fast.tree import plan_trees
from g2rpo_fast.types import Sequences, TreePlan
from tree_models import FAMILIES, GEMMA, SHAPE, DoubleNorm, on_trees, rows

GEMMA |= {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


def double_eager(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scaling, softcap=None, **_: Any
) -> tuple[Tensor, None]:
    key, value = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
    score = query @ key.transpose(2, 3) * scaling
    score = score if softcap is None else softcap * torch.tanh(score / softcap)
    return ((score + mask).softmax(-1) @ value).transpose(1, 2).contiguous(), None


def make(family: str, *, tied: bool = True, double: bool = True) -> PreTrainedModel:
    """A tiny model with plain attention, its weights from a formula and the same in every release."""
    kind, extra = FAMILIES[family]
    model = AutoModelForCausalLM.from_config(kind(**SHAPE, **extra, tie_word_embeddings=tied))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            wave = torch.sin(torch.arange(p.numel(), dtype=torch.float64) * (1.7 + 0.37 * i) + i)
            p.copy_(wave.view(p.shape) * (0.1 if p.dim() == 1 else 0.35) + (p.dim() == 1))
    if not double:
        return model.eval()
    AttentionInterface.register("double_eager", double_eager)
    AttentionMaskInterface.register("double_eager", eager_mask)
    model.set_attn_implementation("double_eager")
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(parent, name, DoubleNorm(child, 1.0 if family.startswith("gemma") else 0.0))
    return model.double().eval()


def terms(logits_TV: Tensor, target_T: Tensor, signed_T: Tensor, weight_T: Tensor) -> Tensor:
    """sum of weight * advantage * logp + 0.3 * weight * entropy."""
    logp_TV = logits_TV.log_softmax(-1)
    entropy_T = -(logp_TV.exp() * logp_TV).sum(-1)
    return (signed_T * logp_TV.gather(1, target_T[:, None])[:, 0] + 0.3 * weight_T * entropy_T).sum()


def padded_loss(
    model: PreTrainedModel, sequences: Sequences, advantage_N: Tensor, weight_N: Tensor
) -> Tensor:
    """One padded batch in which every row repeats its prompt, through the model's own forward and head."""
    ptr = sequences.ptr_R1.tolist()
    length = max(b - a for a, b in pairwise(ptr))
    ids_RL = torch.zeros(len(ptr) - 1, length, dtype=torch.int64)
    mask_RL, index_RL = torch.zeros_like(ids_RL), torch.full_like(ids_RL, -1)
    for r, (a, b) in enumerate(pairwise(ptr)):
        ids_RL[r, : b - a] = torch.from_numpy(sequences.ids_N[a:b])
        mask_RL[r, : b - a], index_RL[r, : b - a] = 1, torch.arange(a, b)
    logits_RLV = model(input_ids=ids_RL, attention_mask=mask_RL, use_cache=False).logits
    target_RL = index_RL[:, 1:]
    trained_RL = (target_RL >= 0) & torch.from_numpy(sequences.trained_N)[target_RL]
    token_T = target_RL[trained_RL]
    weight_T = weight_N[token_T]
    signed_T = weight_T * advantage_N[token_T]
    return terms(logits_RLV[:, :-1][trained_RL], ids_RL[:, 1:][trained_RL], signed_T, weight_T)


def tree_loss(model: PreTrainedModel, plan: TreePlan, advantage_N: Tensor, weight_N: Tensor) -> Tensor:
    head = head_of(model)
    hidden_TD = tree_hidden(model, plan).hidden_SD[torch.from_numpy(plan.source_T).long()]
    logits_TV = nn.functional.linear(hidden_TD, head.weight_VD, head.bias_V)
    if head.softcap is not None:
        logits_TV = head.softcap * torch.tanh(logits_TV / head.softcap)
    member_M = torch.from_numpy(plan.member_M)
    edge_M = torch.repeat_interleave(torch.from_numpy(np.diff(plan.member_ptr_T1)))
    zero_T = weight_N.new_zeros(len(plan.target_T))
    weight_T = zero_T.index_add(0, edge_M, weight_N[member_M])
    signed_T = zero_T.index_add(0, edge_M, (weight_N * advantage_N)[member_M])
    return terms(logits_TV, torch.from_numpy(plan.target_T).long(), signed_T, weight_T)


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def train_on_trees(model: PreTrainedModel, plans: list[TreePlan], *data: Tensor) -> float:
    model.zero_grad()
    total = 0.0
    for plan in plans:
        loss = tree_loss(model, plan, *data)
        loss.backward()
        total += loss.item()
    return total


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_tree_equals_padded_in_loss_and_every_gradient(family: str, tied: bool, checkpointing: bool) -> None:
    plain = make(family, tied=tied)
    model = on_trees(plain, checkpointing=checkpointing)
    for guidance_in_loss in (True, False):
        sequences, *data = rows(guidance_in_loss)
        plain.zero_grad()
        wanted = padded_loss(plain, sequences, *data)
        wanted.backward()
        wanted_grads = gradients(plain)
        assert len(wanted_grads) == len(list(plain.parameters()))
        assert all(grad.abs().max() > 1e-4 for grad in wanted_grads.values())
        for num_plans, budget in ((1, None), (2, 60), (6, 22)):
            plans = plan_trees(sequences, token_budget=budget, impl="python")
            assert len(plans) == num_plans
            loss = train_on_trees(model, plans, *data)
            assert loss == pytest.approx(wanted.item(), rel=1e-10)
            for name, grad in gradients(model).items():
                bound = 1e-10 * max(1.0, float(wanted_grads[name].abs().max()))
                torch.testing.assert_close(grad, wanted_grads[name], rtol=0, atol=bound, msg=name)


def test_tree_loss_value() -> None:
    sequences, *data = rows(True)
    (plan,) = plan_trees(sequences, impl="python")
    assert plan.unshared_tokens > 1.5 * len(plan.token_S)
    loss = tree_loss(on_trees(make("qwen3")), plan, *data)
    assert loss.item() == pytest.approx(31.3389663, rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_tree_errs_no_more_than_twice_stock_transformers(family: str) -> None:
    """Nothing patched: Hugging Face's own norms and attention are the other side (sdpa has no softcap)."""
    sequences, *data = rows(True)
    exact = make(family)
    padded_loss(exact, sequences, *data).backward()
    stock = make(family, double=False)
    stock.set_attn_implementation("eager" if family == "gemma2" else "sdpa")
    data32 = [x.float() for x in data]

    def flat(model: Any) -> Tensor:
        return torch.cat([grad.double().flatten() for grad in gradients(model).values()])

    def padded() -> list[Tensor]:
        stock.zero_grad()
        padded_loss(stock, sequences, *data32).backward()
        return [flat(stock)]

    eagers = [own for (own,) in draws(padded)]
    model = on_trees(stock)
    train_on_trees(model, plan_trees(sequences, impl="python"), *data32)
    truth, got = flat(exact), flat(model)
    rounding = torch.finfo(torch.float32).eps * float(truth.norm())
    allowed = 2 * max(float((own - truth).norm()) for own in eagers) + rounding
    assert float((got - truth).norm()) <= allowed


class Lora(nn.Module):
    """linear(x) + B A x, as adapter libraries wrap linear layers."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        wave = torch.sin(torch.arange(3 * (linear.in_features + linear.out_features), dtype=torch.float64))
        split = 3 * linear.in_features
        self.a = nn.Parameter(wave[:split].view(3, -1))
        self.b = nn.Parameter(wave[split:].view(-1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + x @ self.a.T @ self.b.T


@pytest.mark.parametrize("checkpointing", [False, True])
def test_tree_equals_padded_with_adapters(checkpointing: bool) -> None:
    plain = make("qwen3").requires_grad_(False)
    for layer in plain.model.layers:
        layer.self_attn.q_proj = Lora(layer.self_attn.q_proj)
        layer.mlp.down_proj = Lora(layer.mlp.down_proj)
    model = on_trees(plain, checkpointing=checkpointing)
    sequences, *data = rows(True)
    padded_loss(plain, sequences, *data).backward()
    train_on_trees(model, plan_trees(sequences, impl="python"), *data)
    wanted, got = gradients(plain), gradients(model)
    assert len(wanted) == len(got) == 12
    for name, grad in got.items():
        torch.testing.assert_close(grad, wanted[name], rtol=0, atol=1e-10 * float(wanted[name].abs().max()))


def test_collected_keys_and_values_are_those_of_each_row() -> None:
    plain = make("llama")
    sequences, *_ = rows(True)
    (plan,) = plan_trees(sequences, whole=True, impl="python")
    with torch.no_grad():
        output = tree_hidden(on_trees(plain), plan, collect_kv=True)
    assert len(output.kv) == 3
    assert output.kv[0][0].shape == (len(plan.token_S), 2, 8)
    for row, last in zip(plan.row_B.tolist(), plan.last_B.tolist()):
        path = [j for j in range(last + 1) if plan.end_S[j] > last]
        ids_N = torch.from_numpy(sequences.ids_N[sequences.ptr_R1[row] : sequences.ptr_R1[row + 1]]).long()
        with torch.no_grad():
            cache = plain(input_ids=ids_N[None], use_cache=True).past_key_values
        for layer_id, (k_SKE, v_SKE) in enumerate(output.kv):
            layer = cache.layers[layer_id]
            torch.testing.assert_close(k_SKE[path], layer.keys[0].transpose(0, 1), rtol=0, atol=1e-12)
            torch.testing.assert_close(v_SKE[path], layer.values[0].transpose(0, 1), rtol=0, atol=1e-12)


def test_attention_choices_agree_and_refuse() -> None:
    sequences, *_ = rows(True)
    (plan,) = plan_trees(sequences, impl="python")
    model = on_trees(make("qwen3"))
    by_default, reference, cascade = (
        tree_hidden(model, plan, attention=choice).hidden_SD for choice in ("auto", "reference", "cascade")
    )
    assert torch.equal(by_default, cascade)
    assert not torch.equal(by_default, reference)
    torch.testing.assert_close(by_default, reference, rtol=0, atol=1e-11)
    with pytest.raises(ValueError, match=r"no softcap, got 0\.5"):
        tree_hidden(on_trees(make("gemma2")), plan, attention="cascade")


def test_bfloat16_compute_keeps_float32_weights() -> None:
    model = on_trees(make("qwen3", double=False))
    sequences, *_ = rows(True)
    (plan,) = plan_trees(sequences, impl="python")
    exact = tree_hidden(model, plan).hidden_SD
    with compute_context(model, ModelConfig(precision="bfloat16")):
        hidden_SD = tree_hidden(model, plan).hidden_SD
    error = float((hidden_SD.float() - exact).abs().max() / exact.abs().max())
    assert 1e-4 < error < 0.1
    hidden_SD.float().sum().backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    with compute_context(model, ModelConfig()):
        assert torch.equal(tree_hidden(model, plan).hidden_SD, exact)


def test_other_attention_is_caught_not_silently_causal() -> None:
    """sdpa accepts our keyword and ignores it: the layers' calls are counted."""
    sequences, *_ = rows(True)
    (plan,) = plan_trees(sequences, impl="python")
    for name in ("sdpa", "eager"):
        model = make("qwen3", double=False)
        model.set_attn_implementation(name)
        with pytest.raises(RuntimeError, match=r"one call from each of 3 layers, got calls from layers \[\]"):
            tree_hidden(model, plan)


def test_layer_that_skips_the_hook_is_caught() -> None:
    sequences, *_ = rows(True)
    (plan,) = plan_trees(sequences, impl="python")
    model = on_trees(make("qwen3", double=False))
    other = copy.deepcopy(model.config)
    other._attn_implementation = "sdpa"
    model.model.layers[1].self_attn.config = other
    with pytest.raises(RuntimeError, match=r"got calls from layers \[0, 2\]"):
        tree_hidden(model, plan)


def test_plain_call_of_a_tree_model_is_refused() -> None:
    with pytest.raises(RuntimeError, match="wanted an `attend` object, got none"):
        on_trees(make("llama"))(input_ids=torch.ones(1, 3, dtype=torch.int64))


def saved(tmp_path: Path, config: Any) -> str:
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    return str(tmp_path)


def test_models_that_trees_do_not_fit_run_unshared_or_are_refused_where_sharing_is_required(
    tmp_path: Path,
) -> None:
    experts: dict[str, Any] = {"num_local_experts": 2, "num_experts_per_tok": 1}
    path = saved(tmp_path / "sinks", GptOssConfig(**SHAPE, **experts))
    reasons: list[str] = []
    model = load_model(path, ModelConfig(), "cpu", unshared=reasons.append)
    assert not follows_trees(model)
    assert len(reasons) == 1
    assert reasons[0].startswith("gpt_oss: wanted attention without sinks")
    with pytest.raises(ValueError, match=r"tree\.sharing: required, but .* gpt_oss: wanted attention"):
        load_model(path, ModelConfig(), "cpu", must_share=True)
    chunked = Llama4TextConfig(**SHAPE, **experts)
    with pytest.raises(
        ValueError, match=r"required.*llama4_text: wanted layers of full_attention.*got chunked_attention"
    ):
        load_model(saved(tmp_path / "chunked", chunked), ModelConfig(), "cpu", must_share=True)


def test_models_that_cannot_be_trained_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cohere: wanted logit_scale above 0, got 0\.0"):
        load_model(saved(tmp_path / "cohere", CohereConfig(**SHAPE, logit_scale=0.0)), ModelConfig(), "cpu")


class ShoutingHead(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_model_that_computes_something_else_is_refused_by_comparison() -> None:
    model = make("qwen3", tied=False, double=False)
    select_tree_attention(copy.deepcopy(model))
    louder = copy.deepcopy(model)
    louder.lm_head.__class__ = ShoutingHead
    with pytest.raises(ValueError, match=r"wanted the same logits.*relative error of 5.0e-01"):
        select_tree_attention(louder)
    wrapped = copy.deepcopy(model)
    wrapped.lm_head = Lora(wrapped.lm_head)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="plain linear LM head without adapters, got Lora"):
        select_tree_attention(wrapped)


def test_saved_model_loads_in_plain_transformers(tmp_path: Path) -> None:
    make("qwen3", double=False).save_pretrained(tmp_path / "base")
    model = load_model(str(tmp_path / "base"), ModelConfig(gradient_checkpointing=True), "cpu")
    assert model.config._attn_implementation == ATTENTION
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.is_gradient_checkpointing
    model.save_pretrained(tmp_path / "trained")
    assert "g2rpo" not in (tmp_path / "trained" / "config.json").read_text()
    assert "g2rpo" not in json.dumps(model.config.to_dict())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "trained").eval()
    assert plain.config._attn_implementation == "sdpa"
    sequences, *_ = rows(True)
    (plan,) = plan_trees(sequences, whole=True, impl="python")
    with torch.no_grad():
        hidden_SD = tree_hidden(model, plan).hidden_SD
        logits_SV = hidden_SD @ head_of(model).weight_VD.T
        ids_N = torch.from_numpy(sequences.ids_N[: sequences.ptr_R1[1]]).long()
        wanted = plain(input_ids=ids_N[None]).logits[0, -1]
    at = int(plan.last_B[list(plan.row_B).index(0)])
    torch.testing.assert_close(logits_SV[at], wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_tokenizer_round_trip(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = Tokenizer(WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path))("b")["input_ids"] == [1]
