"""The update against the textbook: padded rows, plain transformers, the objective written out, SGD steps.

SGD with rate 1 and no clipping turns weights into gradients: what the update moved is what is compared.
"""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from g2rpo_fast.learner import Stream
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.objective.batch import make_batch, split_groups
from g2rpo_fast.optim import OptimConfig
from g2rpo_fast.tree import plan_trees
from objectives import Loss
from updates import (
    PLAIN,
    advantages,
    assert_same_weights,
    base_model,
    batches,
    learner,
    padded,
    rollouts,
    textbook_step,
)


@pytest.mark.parametrize(
    "objective",
    [
        PLAIN,
        Loss(aggregation="token_mean", clip_high=0.28),
        Loss(kl_coef=0.1, entropy_coef=0.05),
    ],
    ids=["grpo", "dapo", "kl-entropy"],
)
@pytest.mark.parametrize("budget", [8192, 40])
def test_update_equals_the_textbook(objective, budget):
    made, advantage = rollouts(), advantages()
    ours = learner(objective, budget=budget)
    plain, start = base_model(), base_model()
    reference = copy.deepcopy(ours.reference)
    if reference is not None:
        reference.set_attn_implementation("sdpa")
    stats = ours.update(batches(made, advantage, objective), lr=1.0)
    with torch.no_grad():
        old = padded(plain, made)[0]
    loss = textbook_step(plain, made, advantage, old, reference, objective)
    assert stats["loss"] == pytest.approx(loss, rel=1e-4, abs=1e-6)
    assert stats["update/micro_batches"] == (1 if budget == 8192 else 3)
    assert stats["update/token_ratio"] > 1.2
    assert_same_weights(ours.model, plain, start)


def test_second_pass_keeps_the_first_passs_log_probabilities():
    made, advantage = rollouts(), 0.05 * advantages()
    optim = OptimConfig(max_grad_norm=1e9, updates_per_batch=2)
    ours, plain, start = learner(optim=optim), base_model(), base_model()
    stats = ours.update(batches(made, advantage, PLAIN), lr=1.0)
    with torch.no_grad():
        old = padded(plain, made)[0]
    for _ in range(2):
        textbook_step(plain, made, advantage, old, None, PLAIN)
    assert stats["update/approx_kl"] > 0
    assert_same_weights(ours.model, plain, start)


@pytest.mark.parametrize(("precision", "same"), [("bfloat16", True), ("float32", False)])
def test_the_head_multiplies_in_the_dtype_of_the_backbone(precision, same):
    """Rounding the head's weights beforehand changes nothing where products round them anyway."""
    ours = replace(learner(), compute=ModelConfig(precision=precision))
    ours.model.lm_head.weight = torch.nn.Parameter(ours.model.lm_head.weight.detach().clone())  # untied
    (plan,) = plan_trees(batches(rollouts(), advantages(), PLAIN)[0].sequences)
    stream = Stream.of(plan, ours.model.device)
    before = ours.policy.logp(stream).logp_T
    with torch.no_grad():
        weight = ours.model.lm_head.weight
        weight.copy_(weight.bfloat16())
    assert torch.equal(ours.policy.logp(stream).logp_T, before) == same


def test_minibatches_compare_with_the_weights_that_sampled():
    made, advantage = rollouts(), 0.05 * advantages()
    optim = OptimConfig(max_grad_norm=1e9, minibatches=3)
    ours, plain, start = learner(optim=optim), base_model(), base_model()
    ours.update(batches(made, advantage, PLAIN, minibatches=3), lr=1.0)
    parts = split_groups(made, 3)
    assert [len(part) for part in parts] == [4, 3, 5]
    with torch.no_grad():
        olds = [padded(plain, [made[i] for i in part])[0] for part in parts]
    for part, old in zip(parts, olds, strict=True):
        textbook_step(plain, [made[i] for i in part], advantage[part], old, None, PLAIN)
    assert_same_weights(ours.model, plain, start)


def test_loss_of_minibatches_is_the_mean_of_theirs_whatever_their_rows():
    made, advantage, parts = rollouts(), advantages(), split_groups(rollouts(), 3)
    advantage[parts[1]] = 0.0

    def loss(minibatches: list) -> float:
        return learner(optim=OptimConfig(max_grad_norm=1e9)).update(minibatches, lr=0.0)["loss"]

    three = batches(made, advantage, PLAIN, minibatches=3)
    alone = [loss([one]) for one in three]
    assert abs(alone[0] - alone[2]) > 0.1
    assert [len(one.rollout_R) for one in three] == [4, 0, 5]
    assert loss(three) == pytest.approx((alone[0] + alone[2]) / 2, rel=1e-5)


def test_rows_without_advantage_cost_nothing_and_change_nothing():
    made, advantage = rollouts(), advantages()
    advantage[[0, 1, 2, 3, 5, 8]] = 0.0
    few, every = learner(), learner()
    stats = few.update(batches(made, advantage, PLAIN), lr=1.0)
    kept = batches(made, advantage, PLAIN)[0].rollout_R.tolist()
    assert kept == [4, 6, 7, 9, 10, 11]
    full = make_batch(
        made, range(12), advantage, aggregation="sequence_mean", constant_length=20, keep_all=True
    )
    all_stats = every.update([full], lr=1.0)
    assert stats["update/positions"] < 0.7 * all_stats["update/positions"]
    assert_same_weights(few.model, every.model, base_model())


def test_advantages_of_tokens_lie_along_the_response():
    made, advantage = rollouts(), advantages()
    spread = [np.full(len(r.response_ids), a) for r, a in zip(made, advantage, strict=True)]
    whole, flat = (batches(made, given, PLAIN)[0] for given in (spread, advantage))
    np.testing.assert_array_equal(whole.advantage_N, flat.advantage_N)
    spread[2] = np.zeros(len(made[2].response_ids))
    spread[3] = np.arange(len(made[3].response_ids)) == 1  # one token of the row alone
    spread[4] = np.where(made[4].loss_mask, 0.0, 1.0)
    (batch,) = batches(made, spread, PLAIN)
    assert batch.rollout_R.tolist() == [0, 1, 3, *range(5, 12)]
    ptr, prompt = batch.sequences.ptr_R1, len(made[3].training_prompt_ids)
    row = batch.advantage_N[ptr[2] : ptr[3]]
    assert np.flatnonzero(row).tolist() == [prompt + 1]
    spread[5] = np.ones(len(made[5].response_ids) + 1)
    with pytest.raises(ValueError, match=r"^advantages: wanted a number or \[\d+\] numbers for member"):
        batches(made, spread, PLAIN)


def test_a_batch_without_any_advantage_leaves_the_weights():
    ours, start = learner(), base_model()
    stats = ours.update(batches(rollouts(), np.zeros(12), PLAIN), lr=1.0)
    assert (stats["loss"], stats["update/positions"], stats["optim/grad_norm"]) == (0.0, 0, 0.0)
    for got, wanted in zip(ours.model.parameters(), start.parameters(), strict=True):
        assert torch.equal(got, wanted)


def test_an_update_without_rows_is_no_bad_one():
    """Rounds may settle on no row at all."""
    stats = learner().update(batches([], np.zeros(0), PLAIN), lr=1.0)
    assert (stats["loss"], stats["optim/skipped"], stats["optim/bad_updates"]) == (0.0, 0, 0)


def test_masked_guidance_carries_no_loss():
    made = [replace(r, loss_mask=np.arange(len(r.response_ids)) >= r.guidance_len) for r in rollouts()]
    batch = batches(made, advantages(), PLAIN)[0]
    assert int(batch.sequences.trained_N.sum()) == sum(r.sampled_len for r in made)
    ours, plain, start = learner(), base_model(), base_model()
    ours.update([batch], lr=1.0)
    logp, _, mask, engine = padded(plain, made)
    mask = mask & ~engine.isnan()
    a = torch.tensor(advantages(), dtype=torch.float32)[:, None]
    loss = -((torch.exp(logp - logp.detach()) * a * mask).sum(1) / mask.sum(1)).mean()
    loss.backward()
    with torch.no_grad():
        for p in plain.parameters():
            p.sub_(p.grad)
    assert_same_weights(ours.model, plain, start)
