"""What the frozen linear maps are kept in: half the bytes and the same numbers, or 4 bits and their own."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from g2rpo_fast.adapters import AdapterConfig
from g2rpo_fast.adapters.attach import add_adapters
from g2rpo_fast.adapters.base import num_weights
from g2rpo_fast.adapters.merged import whole, whole_parameters
from g2rpo_fast.learner import Learner
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.load import select_tree_attention
from g2rpo_fast.optim import OptimConfig
from g2rpo_fast.tree import TreeConfig
from g2rpo_fast.types import Request, Sampling
from local_engines import engine_of
from objectives import Loss
from updates import TEMPERATURE, advantages, base_model, batches, rollouts

Base = Literal["auto", "float32", "bfloat16", "nf4"]
HALF = torch.bfloat16


def adapted(
    base: Base,
    kind: Literal["lora", "dora"] = "lora",
    dtype: torch.dtype = torch.float32,
    *,
    trees: bool = False,
    spread: float = 0.05,
) -> Any:
    """Adapters that are not zero, and the same whatever the base is kept in."""
    model = base_model()
    if trees:
        select_tree_attention(model)
    config = AdapterConfig(kind=kind, rank=4, base=base)
    add_adapters(model, config, base="base", seed=1, compute_dtype=dtype)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lora_B" in name:
                p.add_(spread * torch.randn(p.shape, generator=generator))
    return model


def updated(model: Any, precision: Literal["float32", "bfloat16"]) -> dict[str, torch.Tensor]:
    """What an update moved the trained parameters by."""
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    objective = Loss()
    learner = Learner(
        model=model,
        optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0),
        reference=None,
        objective=objective.config,
        optim=OptimConfig(max_grad_norm=1e9),
        tree=TreeConfig(token_budget=64),
        compute=ModelConfig(precision=precision),
        temperature=TEMPERATURE,
        terms=objective.terms,
    )
    learner.update(batches(rollouts(), advantages(), objective), lr=1.0)
    moved = {name: p.detach() - start[name] for name, p in model.named_parameters() if p.requires_grad}
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert all(torch.equal(model.get_parameter(name), start[name]) for name in frozen)
    return moved


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 33).reshape(2, 15)).logits


def kept_bytes(model: Any) -> int:
    """Of the backbone's frozen linear maps."""
    maps = [m for name, m in model.model.named_modules() if isinstance(m, nn.Linear) and ".lora_" not in name]
    return sum(m.weight.numel() * m.weight.element_size() for m in maps)


def test_a_base_of_half_the_bytes_computes_the_same_bits_in_bfloat16() -> None:
    """Products round the weights anyway; embeddings and norms, which are not in products, stay float32."""
    full, half = (adapted(base, dtype=HALF, trees=True) for base in ("float32", "auto"))
    assert kept_bytes(full) == 2 * kept_bytes(half)
    dtypes = {name: p.dtype for name, p in half.named_parameters() if ".base_layer." not in name}
    assert set(dtypes.values()) == {torch.float32}
    wanted, got = updated(full, "bfloat16"), updated(half, "bfloat16")
    assert wanted.keys() == got.keys()
    for name in wanted:
        assert bool(wanted[name].any()), name
        assert torch.equal(got[name], wanted[name]), name


def test_auto_is_float32_where_products_are() -> None:
    assert kept_bytes(adapted("auto")) == kept_bytes(adapted("float32"))
    with pytest.raises(ValueError, match=r"^adapter\.base: wanted float32 or nf4 where products are float32"):
        adapted("bfloat16")


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize(("base", "dtype"), [("bfloat16", HALF), ("nf4", torch.float32)])
def test_whole_weights_are_dense_and_compute_the_same(
    base: Base, dtype: torch.dtype, kind: Literal["lora", "dora"]
) -> None:
    """Up to the rounding of products: the base is rounded or quantised once, never what is merged."""
    model, plain = adapted(base, kind, dtype), base_model()
    assert [name for name, _ in whole_parameters(model)] == [name for name, _ in plain.named_parameters()]
    state = dict(whole(model, model.state_dict().items()))
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    before = logits(plain)
    plain.load_state_dict(state)
    wanted = logits(plain)
    assert float((wanted - before).abs().max()) > 0.1
    if base == "nf4":
        torch.testing.assert_close(logits(model), wanted, rtol=0, atol=1e-4)
    else:
        with torch.autocast("cpu", HALF):
            got = logits(model)
        rounding = float((got - wanted).abs().max())
        assert rounding < 0.05 * float((wanted - before).abs().max())


def test_four_bits_are_an_eighth_and_train_as_their_dense_weights_do() -> None:
    model, dense = adapted("nf4", trees=True), adapted("float32", trees=True)
    assert kept_bytes(dense) == 8 * kept_bytes(model)
    counted = [sum(num_weights(p) for p in one.parameters()) for one in (model, dense)]
    assert counted[0] == counted[1]
    quantised = dict(whole_parameters(adapted("nf4", spread=0.0)))
    with torch.no_grad():
        for name, p in dense.named_parameters():
            if ".base_layer.weight" in name:
                p.copy_(quantised[name.replace(".base_layer", "")])
    got, wanted = updated(model, "float32"), updated(dense, "float32")
    for name, tensor in wanted.items():
        largest = float(tensor.abs().max())
        assert largest > 0, name
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=2e-4 * largest)


def test_the_local_engine_samples_from_four_bits_unmerged() -> None:
    model, plain = adapted("nf4"), base_model()
    plain.load_state_dict(dict(whole(model, model.state_dict().items())))
    requests = [Request(prompt_ids=tuple(range(3, 3 + n)), max_tokens=12, seed=n) for n in (4, 4, 7)]
    engines = [engine_of(one) for one in (model, plain)]
    assert [engine.decoder_name for engine in engines] == ["hooked", "functional"]
    answers = [engine.generate(requests, Sampling(temperature=1.0)) for engine in engines]
    for got, wanted in zip(*answers, strict=True):
        assert got.token_ids == wanted.token_ids
        np.testing.assert_allclose(got.logp, wanted.logp, rtol=0, atol=1e-4)


def test_a_base_without_adapters_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^adapter\.base: wanted auto without adapters, got nf4$"):
        AdapterConfig(base="nf4")
