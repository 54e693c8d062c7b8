"""How often a position counts, the loss that balances experts, and which models it is refused for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from causal_types import CAUSAL_TYPES, tiny_model
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.balance import balance_loss, balance_of, multiplicity
from g2rpo_fast.model.balance_probe import check_balance
from g2rpo_fast.model.load import load_model, select_attention
from g2rpo_fast.tree import UNSHARED, plan_trees
from g2rpo_fast.types import Sequences


def sequences(seed: int) -> Sequences:
    """Rows of few different tokens, so that many share a beginning, are one, or begin another."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, 2, rng.integers(1, 9)) for _ in range(12)]
    rows.append(rows[0])
    ids_N = np.concatenate(rows).astype(np.int32)
    return Sequences(
        ids_N=ids_N,
        ptr_R1=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        trained_N=np.zeros(len(ids_N), np.bool_),
        group_R=(np.arange(len(rows)) % 3).astype(np.int32),
    )


@pytest.mark.parametrize("min_saved", [1, 4, UNSHARED])
@pytest.mark.parametrize("seed", range(4))
def test_a_position_counts_once_for_each_row_through_it(seed: int, min_saved: int) -> None:
    for plan in plan_trees(sequences(seed), token_budget=20, min_saved=min_saved, whole=True):
        wanted = np.zeros(len(plan.token_S), np.int64)
        for last in plan.last_B.tolist():
            wanted += (np.arange(len(wanted)) <= last) & (last < plan.end_S)
        got = multiplicity(plan)
        assert got.tolist() == wanted.tolist()
        assert got.sum() == plan.unshared_tokens


def test_weights_are_repetitions() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = [3 * torch.randn(9, 5, generator=generator) for _ in range(3)]
    weight_S = torch.tensor([1, 4, 2, 1, 1, 7, 1, 3, 2])
    repeated = tuple(layer.repeat_interleave(weight_S, 0) for layer in logits)
    theirs: Any = load_balancing_loss_func
    wanted = theirs(repeated, 5, 2)
    assert float(balance_loss(logits, weight_S, 2)) == pytest.approx(float(wanted), rel=1e-6)
    once = theirs(tuple(logits), 5, 2)
    assert abs(float(once) - float(wanted)) > 1e-3


def asking(model_type: str, **extra: Any) -> Any:
    """With routers that prefer some experts."""
    model = tiny_model(model_type, output_router_logits=True, **extra)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".gate." in name or "router" in name:
                parameter.mul_(4)
    return model


def balanced(model: Any, config: ModelConfig) -> None:
    balance = balance_of(model, config)
    assert balance is not None
    check_balance(model, balance)


KNOWN = [
    "mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_5_moe_text", "olmoe", "flex_olmo",
    "granitemoe", "granitemoeshared", "granitemoehybrid", "granitemoe_swa", "phimoe", "jetmoe", "jamba",
    "gpt_oss", "minimax", "minimax_m2", "deepseek_v4", "ernie4_5_moe", "laguna", "mellum",
]  # fmt: skip


@pytest.mark.parametrize("model_type", [name for name in KNOWN if name in CAUSAL_TYPES])
def test_a_loss_that_is_known_is_taken(model_type: str) -> None:
    model = asking(model_type)
    select_attention(model)
    attention = model.config._attn_implementation
    balanced(model, ModelConfig())
    balanced(model, ModelConfig(router_aux=0.3))
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("deepseek_v3", "got none from its forward"),
        ("hy_v3", "got none from its forward"),
        ("llama4_text", "got none from its forward"),
        ("doge", "got no router's logits"),
    ],
)
def test_another_loss_is_refused_by_name(model_type: str, reason: str) -> None:
    if model_type not in CAUSAL_TYPES:
        pytest.skip("not in this transformers")
    model = asking(model_type)
    select_attention(model)
    with pytest.raises(ValueError, match=f"^{model_type}: wanted a loss of experts .*{reason}") as refused:
        balanced(model, ModelConfig())
    assert "\n" not in str(refused.value)


def test_what_transformers_computes_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another number of experts of a token, another factor."""
    model = asking("mixtral")
    select_attention(model)
    monkeypatch.setattr(model, "num_experts_per_tok", 1)
    balance = balance_of(model, ModelConfig())
    monkeypatch.undo()
    assert balance is not None
    with pytest.raises(ValueError, match=r"mixtral: wanted a loss of experts .* got .* where it is"):
        check_balance(model, balance)
    balance = balance_of(model, ModelConfig())
    assert balance is not None
    monkeypatch.setattr(model, "router_aux_loss_coef", 0.01)
    with pytest.raises(ValueError, match=r"mixtral: wanted .* added to its loss where .* would be"):
        check_balance(model, balance)


def test_loading_looks_where_the_loss_is_asked_for(tmp_path: Path) -> None:
    asking("mixtral").save_pretrained(tmp_path / "mixtral")
    model = load_model(str(tmp_path / "mixtral"), ModelConfig(), "cpu")
    assert balance_of(model, ModelConfig()) is not None
    assert balance_of(model, ModelConfig(router_aux=0.0)) is None
    asking("deepseek_v3").save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"model\.router_aux = 0 trains without such a loss"):
        load_model(str(tmp_path / "other"), ModelConfig(), "cpu")
    assert balance_of(load_model(str(tmp_path / "other"), ModelConfig(router_aux=0.0), "cpu"), ModelConfig())
