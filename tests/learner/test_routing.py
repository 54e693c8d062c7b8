"""The experts that the local engine goes through, recorded, and compared with those of the update."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from causal_types import CAUSAL_TYPES, tiny_model
from g2rpo_fast.engine import forwards_of
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.head import head_of
from g2rpo_fast.model.load import select_attention
from g2rpo_fast.model.routing import chosen_experts, stacks_of
from g2rpo_fast.objective.batch import make_batch
from g2rpo_fast.pieces import Scored
from g2rpo_fast.rollout.local import LocalEngine
from g2rpo_fast.rollout.sampled import SampledBatch
from g2rpo_fast.types import Ask, Completion, Prompt, Request, Rollout, Sampling
from scored import CLOCK, rewards_of
from textbook_updates import sgd_learner

DECODERS = {
    "mixtral": "hooked",
    "qwen3_moe": "hooked",
    "deepseek_v3": "hooked",
    "granitemoehybrid": "cached",
    "gpt_oss": "cached",
    "granitemoe_swa": "cached",
}
FAMILIES = [name for name in DECODERS if name in CAUSAL_TYPES]


def prompts() -> list[tuple[int, ...]]:
    rng = np.random.default_rng(0)
    first, second = (tuple(rng.integers(3, 60, n).tolist()) for n in (9, 5))
    return [first, (*first, 7, 8), second]


def engine_of(model: Any, *, recording: bool) -> LocalEngine:
    forwards = forwards_of(model, ModelConfig(), recording=recording)
    return LocalEngine(model, **forwards, head=head_of(model), decode=str)


def sampled(engine: LocalEngine) -> list[tuple[Request, Completion]]:
    """Rows of different ends, so that some leave the batch before others."""
    requests = [
        Request(prompt_ids=prompt, max_tokens=3 + 4 * member, seed=10 * i + member)
        for i, prompt in enumerate(prompts())
        for member in range(4)
    ]
    return list(zip(requests, engine.generate(requests, Sampling()), strict=True))


@torch.no_grad()
def experts_of(model: Any, ids: tuple[int, ...]) -> torch.Tensor:
    """[tokens, L, K] by the plain model's own forward."""
    with chosen_experts(model) as chosen:
        model(input_ids=torch.tensor([ids]), use_cache=False)
    return torch.stack(chosen, 1).sort(-1).values


@pytest.mark.parametrize("family", FAMILIES)
def test_engine_records_the_experts_that_predicted_each_token(family: str) -> None:
    plain, model = tiny_model(family), tiny_model(family)
    select_attention(model)
    engine = engine_of(model, recording=True)
    assert engine.decoder_name == DECODERS[family]
    unrecorded = [completion for _, completion in sampled(engine_of(model, recording=False))]
    layers = len(stacks_of(model))
    seen = []
    for (request, completion), other in zip(sampled(engine), unrecorded, strict=True):
        assert completion.token_ids == other.token_ids
        assert other.experts is None
        assert completion.experts is not None
        assert completion.experts.shape[:2] == (len(completion.token_ids), layers)
        every = experts_of(plain, request.prompt_ids + completion.token_ids)
        wanted = every[len(request.prompt_ids) - 1 : -1]
        assert torch.equal(torch.from_numpy(completion.experts).long().sort(-1).values, wanted)
        seen.append(wanted.flatten())
    assert len(torch.cat(seen).unique()) > 2
    assert not any(stack._forward_pre_hooks for stack in stacks_of(model))


def rollouts_of(pairs: list[tuple[Request, Completion]]) -> list[Rollout]:
    return [
        Rollout(
            prompt=Prompt(id=str(i // 4), text="", token_ids=request.prompt_ids, answer=""),
            group=i // 4, member=i % 4, training_prompt_ids=request.prompt_ids,
            sampling_prompt_ids=request.prompt_ids, response_ids=completion.token_ids, guidance_len=0,
            loss_mask=np.ones(len(completion.token_ids), np.bool_), rollout_logp=completion.logp, text="",
            finish_reason="stop", weight_version=0, experts=completion.experts,
        )
        for i, (request, completion) in enumerate(pairs)
    ]  # fmt: skip


def mismatch(learner: Any, made: list[Rollout], parts: int = 1) -> dict[str, float]:
    credit = np.random.default_rng(1).standard_normal(len(made))
    split = np.array_split(np.arange(len(made)), parts)
    given = [
        make_batch(
            made, part.tolist(), credit, aggregation="sequence_mean", constant_length=20, keep_all=False
        )
        for part in split
    ]
    scored = Scored(rollouts=tuple(made), rewards=rewards_of(np.ones((len(made), 1))), clock=CLOCK)
    return learner.update(given, lr=1.0, scored=scored)


@pytest.mark.parametrize(("family", "shares"), [("mixtral", True), ("gpt_oss", False)])
@pytest.mark.parametrize("budget", [8192, 40])
def test_update_counts_tokens_that_went_to_other_experts(family: str, shares: bool, budget: int) -> None:
    model = tiny_model(family)
    ours = sgd_learner(model, budget, shares=shares)
    made = rollouts_of(sampled(engine_of(model, recording=True)))
    stats = mismatch(replace(ours, compute=ModelConfig(gradient_checkpointing=True)), made)
    assert stats["mismatch/routing"] == 0
    assert (stats["update/micro_batches"] > 1) == (budget == 40)
    model = tiny_model(family)
    ours = sgd_learner(model, budget, shares=shares)
    row = made[5]
    assert row.experts is not None
    other = row.experts.copy()
    other[1, 2] = np.roll(np.setdiff1d(np.arange(4), other[1, 2]), 1)
    other[0, 0] = other[0, 0][::-1]  # the same experts
    changed = [*made[:5], replace(row, experts=other), *made[6:]]
    tokens = sum(len(rollout.response_ids) for rollout in made)
    wanted = 1 / (tokens * row.experts.shape[1])
    assert mismatch(ours, changed)["mismatch/routing"] == pytest.approx(wanted)


def test_weights_that_have_moved_and_other_contexts_do_not_count() -> None:
    model = tiny_model("mixtral")
    ours = sgd_learner(model, 8192, shares=True)
    made = rollouts_of(sampled(engine_of(model, recording=True)))
    stats = mismatch(replace(ours, optim=replace(ours.optim, updates_per_batch=3)), made, parts=2)
    assert stats["mismatch/routing"] == 0
    elsewhere = [replace(row, source="off_policy") for row in made]
    assert "mismatch/routing" not in mismatch(
        sgd_learner(tiny_model("mixtral"), 8192, shares=True), elsewhere
    )


def test_a_batch_that_waits_keeps_its_experts() -> None:
    model = tiny_model("mixtral")
    select_attention(model)
    pairs = sampled(engine_of(model, recording=True))
    asks = [
        Ask(
            prompt=Prompt(id="0", text="", token_ids=(1,), answer=""), group=0, member=i,
            sampling_prompt_ids=(1,), training_prompt_ids=(1,), max_tokens=20,
        )
        for i in range(len(pairs))
    ]  # fmt: skip
    done = [completion for _, completion in pairs]
    batch = SampledBatch(asks=asks, completions=done, num_prompts=1, notes={})
    again = SampledBatch.from_arrays(batch.to_arrays(), [asks[0].prompt])
    assert again is not None
    for one, other in zip(done, again.completions, strict=True):
        assert one.experts is not None
        assert other.experts is not None
        assert np.array_equal(one.experts, other.experts)


def test_models_that_tell_of_no_choice_are_refused() -> None:
    for family, reason in (("qwen3", "got none with experts"), ("llama4_text", "got layers that choose")):
        model = tiny_model(family)
        select_attention(model)
        with pytest.raises(ValueError, match=rf"rollout\.record_routing: {family}: wanted layers .*{reason}"):
            engine_of(model, recording=True)
