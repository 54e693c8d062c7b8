"""Architectures: each is exact, path by path, on trees or unshared rows and in the engine, or refused."""

import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from causal_types import (
    CAUSAL_TYPES,
    FOUND,
    NOT_BUILT,
    UNSHARED,
    VOCAB,
    outcome,
    plain_logp,
    rows,
    tiny_config,
    tiny_model,
)
from g2rpo_fast.backbone import num_positions
from g2rpo_fast.engine import sampled_logp
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.forward import tree_hidden
from g2rpo_fast.model.hook import ATTENTION, attention_forward, register_attention, window_of
from g2rpo_fast.model.load import load_model, noise_of, select_attention, select_tree_attention
from g2rpo_fast.model.masks import check_masks
from g2rpo_fast.tree import plan_trees
from g2rpo_fast.types import Sequences
from recurrent_models import HAND_ON, SHARE

EXACT = [
    "afmoe",
    "apertus",
    "bamba",
    "bert",
    "cohere",
    "cwm",
    "dbrx",
    "deepseek_v2",
    "deepseek_v3",
    "dots1",
    "exaone4",
    "flex_olmo",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gemma3n_text",
    "gemma4_text",
    "glm4",
    "glm4_moe",
    "gpt2",
    "gpt_bigcode",
    "gpt_neox",
    "granite",
    "granitemoehybrid",
    "helium",
    "hunyuan_v1_dense",
    "jetmoe",
    "kimi_linear",
    "laguna",
    "lfm2",
    "lfm2_moe",
    "llama",
    "minicpm3",
    "ministral",
    "mistral",
    "mixtral",
    "modernbert-decoder",
    "nanochat",
    "olmo2",
    "olmo3",
    "olmo_hybrid",
    "olmoe",
    "opt",
    "phi",
    "phi3",
    "phimoe",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_5_text",
    "qwen3_moe",
    "qwen3_next",
    "smollm3",
    "starcoder2",
    "vaultgemma",
    "whisper",
]
NOT_SHARED = {
    "blenderbot": "does something besides attention",
    "bloom": "not chosen through transformers' attention interface",
    "deepseek_v32": "wanted layers of full_attention",
    "diffllama": "one call from each of 4 layers",
    "doge": "PathMask",
    "falcon": "not chosen through transformers' attention interface",
    "gpt_neo": "not chosen through transformers' attention interface",
    "gpt_oss": "wanted attention without sinks",
    "llama4_text": "got chunked_attention",
    "mamba": "recurrent layers: wanted one call of each of 4 functions",
    "mpt": "not chosen through transformers' attention interface",
    "nemotron": "do not hand a forward's keywords on",
    "roberta": "does something besides attention",
    "recurrent_gemma": "wanted ",  # one call from each layer; from transformers 5.24: no linear_attention
    "stablelm": "do not hand a forward's keywords on",
}
"""Those in which a step of the engine takes long are in the deep test."""
SLOW = ["jamba", "minimax"]
REFUSED = {"xlnet": "wanted logits that later tokens do not change"}


@pytest.mark.parametrize("model_type", [name for name in EXACT if name in CAUSAL_TYPES])
def test_type_is_exact_on_trees_and_in_the_engine(model_type: str) -> None:
    assert outcome(model_type) == "exact"


@pytest.mark.parametrize("model_type", [name for name in NOT_SHARED if name in CAUSAL_TYPES])
def test_type_is_exact_on_unshared_rows_and_in_the_engine(model_type: str) -> None:
    got = outcome(model_type)
    assert got.startswith(UNSHARED)
    assert NOT_SHARED[model_type] in got


@pytest.mark.deep
@pytest.mark.parametrize("model_type", [name for name in SLOW if name in CAUSAL_TYPES])
def test_slow_type_is_exact_on_unshared_rows_and_in_the_engine(model_type: str) -> None:
    assert outcome(model_type).startswith(UNSHARED)


@pytest.mark.parametrize("model_type", [name for name in REFUSED if name in CAUSAL_TYPES])
def test_type_is_refused_by_name(model_type: str) -> None:
    assert REFUSED[model_type] in outcome(model_type)


def test_forward_that_does_not_run_is_refused_in_one_line() -> None:
    """A configuration that transformers itself fails on."""
    assert "xmod: cannot be trained on padded rows: Input language unknown" in outcome(
        "xmod", default_language=None
    )


def doubled(module: nn.Module, args: tuple[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
    return 2 * logits


def test_logits_that_are_more_than_the_heads_maps_are_refused() -> None:
    model: Any = tiny_model("bloom")
    model.get_output_embeddings().register_forward_hook(doubled)
    with pytest.raises(ValueError, match=r"^bloom: wanted logits that its head alone makes .*, got a rel"):
        select_attention(model)


@pytest.mark.parametrize("model_type", ["codegen", "gptj"])
def test_type_is_exact_where_its_attention_is_chosen_through_the_interface(model_type: str) -> None:
    """As in transformers 5.24, and not in earlier releases."""
    code = sys.modules[type(tiny_model(model_type)).__module__]
    reason = "not chosen through transformers' attention interface"
    got = outcome(model_type)
    assert got == "exact" if hasattr(code, "ALL_ATTENTION_FUNCTIONS") else reason in got


@pytest.mark.parametrize("model_type", HAND_ON)
def test_type_is_exact_on_trees_where_its_layers_hand_keywords_on(model_type: str) -> None:
    got = outcome(model_type)
    assert got == "exact" if model_type in SHARE else "hand" in got


PAGE = json.loads(FOUND.read_text())
"""What docs/models.md says, of one release of transformers."""


def test_the_page_of_types_says_what_is_held_here() -> None:
    outcomes: dict[str, str] = PAGE["outcomes"]
    assert [name for name in EXACT if outcomes[name] != "exact"] == []
    assert [name for name in NOT_SHARED if not outcomes[name].startswith(UNSHARED)] == []
    assert [name for name, reason in REFUSED.items() if reason not in outcomes[name]] == []
    exact = [name for name, found in outcomes.items() if found == "exact" or found.startswith(UNSHARED)]
    assert len(exact) > 160
    assert PAGE["not_tried"] == NOT_BUILT


@pytest.mark.deep
@pytest.mark.skipif(PAGE["transformers"] != transformers.__version__, reason="of another transformers")
@pytest.mark.parametrize("model_type", CAUSAL_TYPES)
def test_every_type_is_what_the_page_says(model_type: str) -> None:
    """But for the size of an error, which rounding changes."""
    got, wanted = (
        re.sub(r"\d\.\de[+-]\d+", "x", x) for x in (outcome(model_type), PAGE["outcomes"][model_type])
    )
    assert got == wanted


SCALED: dict[str, dict[str, Any]] = {
    "falcon_h1": {"lm_head_multiplier": 0.25},
    "granite": {"logits_scaling": 4.0},
    "granitemoehybrid": {"logits_scaling": 4.0},
}


@pytest.mark.parametrize("model_type", [name for name in SCALED if name in CAUSAL_TYPES])
def test_scaled_logits_are_exact(model_type: str) -> None:
    """Not vacuous: the same weights without a scale are another model."""
    scaled, plain = tiny_model(model_type, **SCALED[model_type]), tiny_model(model_type)
    plain.load_state_dict(scaled.state_dict())
    prompt, tokens = rows()[0]
    assert np.abs(plain_logp(plain, prompt, tokens) - plain_logp(scaled, prompt, tokens)).max() > 0.1
    assert "exact" in outcome(model_type, **SCALED[model_type])


WINDOWED: dict[str, dict[str, Any]] = {
    "qwen2_moe": {"layer_types": ["full_attention", "sliding_attention"] * 2},
    "phimoe": {},
    "mistral": {},
    "gemma2": {"attn_logit_softcapping": 0.3},
}


@pytest.mark.parametrize("model_type", WINDOWED)
def test_window_of_the_masks_shows_and_is_the_layers_own(model_type: str) -> None:
    """Not vacuous: the same weights without a window are another model."""
    extra = WINDOWED[model_type]
    plain, wide = tiny_model(model_type, **extra), tiny_model(model_type, **extra | {"sliding_window": 90})
    wide.load_state_dict(plain.state_dict())
    prompt, tokens = rows()[0]
    assert np.abs(plain_logp(plain, prompt, tokens) - plain_logp(wide, prompt, tokens)).max() > 0.1
    assert outcome(model_type, **extra) == "exact"


@pytest.mark.parametrize("window", [5, 4096])
def test_masks_are_known_beyond_what_is_run(window: int) -> None:
    model = tiny_model("qwen3", sliding_window=window, max_position_embeddings=10_000)
    register_attention()
    assert check_masks(model) == {window}


def no_attention(*_: Any, **__: Any) -> torch.Tensor:
    raise AssertionError("called")


def test_mask_that_is_no_window_is_refused() -> None:
    model = tiny_model("gemma3_text", use_bidirectional_attention=True)
    with pytest.raises(ValueError, match=r"gemma3_text: cannot be trained.*hides or shows other keys"):
        select_tree_attention(model)
    with pytest.raises(ValueError, match="wanted one window, got None by the mask and 7 by the keyword"):
        window_of(None, 7)
    with pytest.raises(ValueError, match="wanted transformers' mask, got one that the model made"):
        window_of(torch.zeros(1, 1, 2, 2), None)
    head = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="wanted nothing besides a mask, got position_bias"):
        attention_forward(nn.Identity(), head, head, head, None, attend=no_attention, position_bias=head)


def saved(directory: Path, model: PreTrainedModel) -> str:
    model.save_pretrained(directory)
    return str(directory)


NOISY: dict[str, dict[str, Any]] = {
    "mixtral": {"router_jitter_noise": 0.3},
    "phimoe": {"input_jitter_noise": 0.3},
    "opt": {"layerdrop": 0.5, "dropout": 0.3},
    "gpt2": {"resid_pdrop": 0.5, "attn_pdrop": 0.5},
    "qwen3": {"attention_dropout": 0.5},
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("model_type", NOISY)
def test_noise_is_off_in_every_pass(model_type: str, checkpointing: bool, tmp_path: Path) -> None:
    plain = tiny_model(model_type, **NOISY[model_type])
    assert NOISY[model_type].items() <= noise_of(plain.config).items()
    path = saved(tmp_path, plain)
    model = load_model(path, ModelConfig(gradient_checkpointing=checkpointing), "cpu")
    for (prompt, tokens), got in zip(rows(), sampled_logp(model, ModelConfig(), rows())):
        assert np.abs(got - plain_logp(plain, prompt, tokens)).max() < 1e-4
    assert not any(module.training for module in model.modules())


def test_noise_of_heads_without_a_language_model_does_not_count() -> None:
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    assert noise_of(tiny_config("gpt2", summary_first_dropout=0.1, **quiet)) == {}


def one_path(length: int) -> Any:
    ids_N = np.random.default_rng(0).integers(3, VOCAB, length).astype(np.int32)
    sequences = Sequences(
        ids_N=ids_N,
        ptr_R1=np.array([0, length], np.int64),
        trained_N=np.arange(length) > 0,
        group_R=np.zeros(1, np.int32),
    )
    return plan_trees(sequences, whole=True)[0]


def _note(calls: list[nn.Module], module: nn.Module, _: Any) -> None:
    calls.append(module)


def test_checkpointing_in_evaluation_mode_recomputes_layers_and_keeps_gradients(tmp_path: Path) -> None:
    path = saved(tmp_path, tiny_model("mixtral", router_jitter_noise=0.3))
    gradients, forwards = [], []
    for checkpointing in (False, True):
        model = load_model(path, ModelConfig(gradient_checkpointing=checkpointing), "cpu")
        calls: list[nn.Module] = []
        mlp = model.get_submodule("model.layers.0.mlp")
        mlp.register_forward_pre_hook(partial(_note, calls))
        tree_hidden(model, one_path(20)).hidden_SD.square().sum().backward()
        forwards.append(len(calls))
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert forwards == [1, 2]
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(grad, gradients[1][name]) for name, grad in gradients[0].items())


LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32, "factor": 3.0}
ROPES: dict[str, tuple[dict[str, Any], int]] = {
    "longrope": (LONG | {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}, 32),
    "dynamic": ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, 96),
}


@pytest.mark.parametrize("name", ROPES)
def test_moving_rope_is_exact_within_its_length_and_refused_beyond(name: str) -> None:
    rope, limit = ROPES[name]
    assert outcome("llama", rope_parameters=rope) == "exact"
    model = tiny_model("llama", rope_parameters=rope)
    assert num_positions(model.config) == limit
    select_tree_attention(model)
    assert tree_hidden(model, one_path(limit)).hidden_SD.shape[0] == limit
    with pytest.raises(
        ValueError, match=f"llama: wanted sequences of at most {limit} tokens.*got {limit + 1}"
    ):
        tree_hidden(model, one_path(limit + 1))


def test_softcap_that_bites_is_compared_with_eager() -> None:
    """Whatever its own attention is: sdpa, which leaves softcaps out, up to transformers 5.20."""
    model = tiny_model("gemma2", attn_logit_softcapping=0.05)
    own: Any = AutoModelForCausalLM.from_config(tiny_config("gemma2"))
    model.set_attn_implementation(own.config._attn_implementation)
    select_tree_attention(model)
    assert model.config._attn_implementation == ATTENTION


def test_adapters_without_a_base_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ValueError, match=r"^model\.path: wanted base_model_name_or_path in .*, got none$"):
        load_model(str(tmp_path), ModelConfig(), "cpu")


def test_refused_model_keeps_its_own_attention() -> None:
    model: Any = AutoModelForCausalLM.from_config(tiny_config("doge"))
    before = model.config._attn_implementation
    with pytest.raises(ValueError, match="doge: "):
        select_tree_attention(model)
    assert model.config._attn_implementation == before
