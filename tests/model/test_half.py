"""Weights kept in bfloat16 compute what float32 weights of the same values do, bit for bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from g2rpo_kernels import linear_logprob

from causal_types import tiny_model
from g2rpo_fast.engine import forwards_of
from g2rpo_fast.learner.policy import Policy, Stream
from g2rpo_fast.model import ModelConfig, compute_dtype
from g2rpo_fast.model.config import check_device
from g2rpo_fast.model.half import half_weights, keep_half
from g2rpo_fast.model.head import head_of
from g2rpo_fast.model.hook import follows_trees
from g2rpo_fast.model.load import checkpoint_layers, fuse_ops, load_model, select_attention
from g2rpo_fast.rollout.local import LocalEngine
from g2rpo_fast.tree import TreeConfig, plan_trees
from g2rpo_fast.types import Request, Sampling, Sequences

HALF = torch.bfloat16
FLOAT32, BFLOAT16 = ModelConfig(precision="bfloat16"), ModelConfig(weights="bfloat16")
SHARING = ("llama", "qwen3", "gpt2", "lfm2", "bamba", "olmo_hybrid", "modernbert-decoder")
PADDED = ("mamba", "bloom")
EXPERTS = ("qwen3_moe", "mixtral", "qwen3_next", "gpt_oss")


def pair_of(family: str, *, checkpointing: bool = False) -> tuple[Any, Any]:
    """A model of float32 weights that are bfloat16 numbers, and the same kept in bfloat16."""
    exact = tiny_model(family)
    with torch.no_grad():
        for p in half_weights(exact):
            p.copy_(p.to(HALF))
    pair = exact, copy.deepcopy(exact)
    for model in pair:
        model.eval()
        select_attention(model)
        fuse_ops(model, "auto")
        if checkpointing:
            checkpoint_layers(model)
    keep_half(pair[1])
    return pair


def sequences(vocabulary: int) -> Sequences:
    """Four rows with a common prompt, two with more in common."""
    draw = np.random.default_rng(0)
    prompt, more = draw.integers(3, vocabulary, 7), draw.integers(3, vocabulary, 4)
    rows = [
        np.concatenate([prompt, *([more] if i < 2 else []), draw.integers(3, vocabulary, 6)])
        for i in range(4)
    ]
    return Sequences(
        ids_N=np.concatenate(rows).astype(np.int32),
        ptr_R1=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        trained_N=np.concatenate([np.arange(len(row)) >= 7 for row in rows]),
        group_R=np.zeros(4, np.int32),
    )


def passed(model: Any, compute: ModelConfig, times: int = 1) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probabilities, and the gradients of their weighted sum, added up `times` times."""
    tree = TreeConfig().settled(follows_trees=follows_trees(model))
    (plan,) = plan_trees(sequences(model.config.vocab_size), whole=True, min_saved=tree.min_saved)
    policy, stream = Policy(model, compute), Stream.of(plan, torch.device("cpu"))
    logp_T = torch.empty(0)
    with policy.rounded():
        for time in range(times):
            hidden_SD = policy.hidden(plan).hidden_SD
            logp_T = policy.through_head(linear_logprob, hidden_SD, stream).logp_T
            (logp_T * torch.linspace(-1, 2, len(logp_T)) * 1.1**time).sum().backward()
    return logp_T.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", [*SHARING, *PADDED])
def test_log_probabilities_and_gradients_are_those_of_float32_weights(
    family: str, checkpointing: bool
) -> None:
    """All but d head, which is rounded to bfloat16 in each micro-batch: of a tied one, the embedding's too.
    GPT-2's transposed maps are autocast's, whose gradients are bfloat16."""
    exact, half = pair_of(family, checkpointing=checkpointing)
    assert follows_trees(half) == (family in SHARING)
    head = head_of(half).weight_VD
    (wanted_T, wanted), (got_T, got) = passed(exact, FLOAT32, 2), passed(half, BFLOAT16, 2)
    assert torch.equal(got_T, wanted_T)
    kept = {p.dtype for p in half.parameters()}
    assert kept == {torch.float32, HALF}
    for name, parameter in half.named_parameters():
        if name not in wanted:
            assert name not in got
            continue
        assert got[name].dtype == torch.float32
        off = float((got[name] - wanted[name]).abs().max() / wanted[name].abs().max().clamp_min(1e-30))
        rounds = parameter is head or family == "gpt2"
        assert off < 2**-7 if rounds else off == 0, (name, off)


@pytest.mark.parametrize("family", EXPERTS)
def test_experts_multiply_in_bfloat16(family: str) -> None:
    """Those of float32 weights do not, where transformers groups their products: autocast does not reach
    these. So they are as near as bfloat16 is, but for tokens that it sends to another expert."""
    exact, half = pair_of(family)
    (wanted_T, wanted), (got_T, got) = passed(exact, FLOAT32), passed(half, BFLOAT16)
    assert 0 < float((got_T - wanted_T).abs().median()) < 0.006
    for name, gradient in wanted.items():
        if float(gradient.abs().max()) > 1e-6:
            near = torch.cosine_similarity(got[name].flatten(), gradient.flatten(), dim=0)
            assert got[name].dtype == torch.float32
            assert float(near) > 0.98, name


def test_what_decays_and_convolves_stays_float32() -> None:
    for family, names in {
        "bamba": ("A_log", "dt_bias", "conv1d.weight", "layernorm.weight"),
        "qwen3_next": ("A_log", "dt_bias", "conv1d.weight", "q_norm.weight"),
        "mamba": ("A_log", "conv1d.weight", "norm.weight"),
    }.items():
        _, half = pair_of(family)
        for part in names:
            dtypes = [p.dtype for name, p in half.named_parameters() if name.endswith(part)]
            assert dtypes, (family, part)
            assert set(dtypes) == {torch.float32}, (family, part)


def test_experts_are_kept_in_half_as_well() -> None:
    _, half = pair_of("qwen3_moe")
    small = sum(p.nbytes for p in half.parameters())
    assert small < 0.52 * sum(4 * p.numel() for p in half.parameters())


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_embeddings_that_scale_are_within_bfloat16_of_float32(family: str) -> None:
    """Their scale is rounded, as in transformers' own bfloat16 models."""
    exact, half = pair_of(family)
    (wanted_T, _), (got_T, _) = passed(exact, FLOAT32), passed(half, BFLOAT16)
    assert 0 < float((got_T - wanted_T).abs().max()) < 0.05


@pytest.mark.parametrize("family", ["llama", "gpt2", "lfm2", "mamba"])
def test_the_local_engine_samples_as_from_float32_weights(family: str) -> None:
    """By each of its ways to decode."""
    rows = []
    for model, compute in zip(pair_of(family), (FLOAT32, BFLOAT16), strict=True):
        engine = LocalEngine(
            model,
            **forwards_of(model, compute),
            head=head_of(model),
            decode=lambda ids: " ".join(map(str, ids)),
            compute_dtype=compute_dtype(model, compute),
        )
        requests = [Request(prompt_ids=(5, 6, 7, 8), max_tokens=12, seed=seed) for seed in range(4)]
        rows.append(engine.generate(requests, Sampling(temperature=1.0, stop_token_ids=(2,))))
    for wanted, got in zip(*rows, strict=True):
        assert got.token_ids == wanted.token_ids
        assert np.array_equal(got.logp, wanted.logp)


def test_loading_halves_and_saving_keeps(tmp_path: Path) -> None:
    tiny_model("qwen3").save_pretrained(tmp_path / "made")
    model = load_model(str(tmp_path / "made"), BFLOAT16, "cpu")
    plain = load_model(str(tmp_path / "made"), FLOAT32, "cpu")
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert p.dtype == (torch.float32 if "norm" in name else HALF)
        assert torch.equal(p.float(), q.to(p.dtype).float()), name


def test_checkpointing_some_layers_gives_the_same_gradients(tmp_path: Path) -> None:
    tiny_model("qwen3").save_pretrained(tmp_path)
    grads, kept = {}, {}
    for count in (None, 1, 0):
        config = ModelConfig(gradient_checkpointing=count != 0, checkpointed_layers=count or None)
        model = load_model(str(tmp_path), config, "cpu")
        sizes: dict[int, int] = {}

        def keep(x: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            _, grads[count] = passed(model, config)
        kept[count] = sum(sizes.values())
    assert 1.2 * kept[None] < kept[1] < kept[0] / 1.2  # layers' inputs pass through hooks like these
    for name, wanted in grads[0].items():
        assert torch.equal(grads[None][name], wanted), name
        assert torch.equal(grads[1][name], wanted), name
    config = ModelConfig(gradient_checkpointing=True, checkpointed_layers=99)
    with pytest.raises(ValueError, match=r"model\.checkpointed_layers: wanted at most \d+, .* got 99"):
        load_model(str(tmp_path), config, "cpu")
    config = ModelConfig(gradient_checkpointing=True, offload_activations=True)
    with pytest.raises(ValueError, match=r"model\.offload_activations: wanted false on a CPU"):
        check_device(config, "cpu")
