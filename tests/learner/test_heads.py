"""Updates of models whose head is several linear maps (a map, an activation and a norm before the last one),
in float64, against each row by itself in plain transformers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from causal_types import CAUSAL_TYPES, tiny_model
from g2rpo_fast.backbone import backbone_of, encoder_of, maps_before_the_last
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.hook import ATTENTION
from textbook_updates import check_update, model_of, sgd_learner, textbook_gradients
from updates import PLAIN, advantages, batches, rollouts

SHARES = {
    "modernbert-decoder": ("lm_head.dense.weight", True),
    "bert": ("cls.predictions.transform.dense.weight", True),
    "electra": ("generator_predictions.dense.weight", True),
    "roberta": ("lm_head.dense.weight", False),
    "rembert": ("cls.predictions.dense.weight", False),
}
"""By type: a weight of its head before the last map, and whether it follows trees."""


@pytest.mark.parametrize("family", [name for name in SHARES if name in CAUSAL_TYPES])
def test_update_equals_each_row_by_itself_in_the_whole_head(family: str) -> None:
    weight, shares = SHARES[family]
    start = model_of(family)
    assert float(textbook_gradients(copy.deepcopy(start))[weight].abs().max()) > 1e-3
    check_update(start, 8192, 40, shares=shares)


def test_checkpointing_changes_nothing() -> None:
    compute = ModelConfig(gradient_checkpointing=True)
    check_update(model_of("modernbert-decoder"), 8192, shares=True, compute=compute)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "whisper", "mllama", "moshi", "prophetnet"])
def test_a_head_of_one_map_adds_nothing_to_the_backbone(family: str) -> None:
    """Whatever else a model has beside it: towers, projections, decoders of other things."""
    model = tiny_model(family)
    assert maps_before_the_last(model) == []
    assert encoder_of(model) is backbone_of(model)


def test_an_update_changes_what_the_encoder_does_and_the_model_is_left_as_it_is() -> None:
    """The encoder has the live weights, and the model keeps its last map."""
    model = tiny_model("bert")
    last, plain = model.get_output_embeddings(), copy.deepcopy(model)
    ids = torch.arange(3, 20)[None]
    encoder = encoder_of(model)
    ours = sgd_learner(model, 8192, shares=True)
    model.set_attn_implementation("eager")
    before = encoder(input_ids=ids).last_hidden_state.detach()
    model.set_attn_implementation(ATTENTION)
    ours.update(batches(rollouts(), advantages(), PLAIN), lr=1.0)
    model.set_attn_implementation("eager")
    after = encoder(input_ids=ids).last_hidden_state.detach()
    assert float((after - before).abs().max()) > 1e-3
    assert isinstance(last, nn.Linear)
    assert torch.allclose(last(after), model(input_ids=ids).logits, atol=1e-5)
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]
