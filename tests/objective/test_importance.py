"""Importance weights, old policies and the mismatch in the update, against plain PyTorch row by row, float64.

The engine is the same model with other weights, so members that share an edge were sampled alike. Rows have
1 to 10 sampled tokens; two members of each group share their first two, the guided ones their trace. No
member samples a token that another was given.
"""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from g2rpo_kernels import Edges, policy_loss_of_logps

from g2rpo_fast.learner import Learner
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.load import select_tree_attention
from g2rpo_fast.objective.batch import TrainBatch
from g2rpo_fast.objective.importance import EngineTokens, compare, mismatch_metrics, weighted
from g2rpo_fast.optim import OptimConfig
from g2rpo_fast.tree import TreeConfig
from objectives import Loss
from updates import TEMPERATURE, advantages, assert_moved_alike, batches, model64, rollouts


def row_logits(model, ids: np.ndarray) -> torch.Tensor:
    return model(input_ids=torch.from_numpy(ids).long()[None]).logits[0, :-1] / TEMPERATURE


def make_rollouts(engine):
    """As in the learner's tests, with shared sampled tokens and this engine's log-probabilities."""
    made = rollouts()
    heads = {r.group: r.response_ids[:2] for r in made if r.member == 2}
    for place, r in enumerate(made):
        ids = r.response_ids
        if r.member == 3 or (r.group == 1 and r.member == 2):
            ids = heads[r.group] + ids
        trace = r.prompt.trace_ids
        if r.guidance_len < len(trace) and ids[r.guidance_len] == trace[r.guidance_len]:
            ids = (*ids[: r.guidance_len], ids[r.guidance_len] + 1, *ids[r.guidance_len + 1 :])
        whole = np.asarray(r.training_prompt_ids + ids)
        with torch.no_grad():
            every = row_logits(engine, whole).log_softmax(-1)
        start = len(r.training_prompt_ids)
        logp = every.gather(1, torch.from_numpy(whole[1:, None]))[start - 1 :, 0].float().numpy()
        logp[: r.guidance_len] = np.nan
        mask = np.ones(len(ids), np.bool_)
        made[place] = replace(r, response_ids=ids, rollout_logp=logp, loss_mask=mask)
    return made


def learner64(objective: Loss, *, passes: int = 1, budget: int = 8192) -> Learner:
    model, reference = model64(), model64(0.95)
    for m in (model, reference):
        select_tree_attention(m)
    return Learner(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        reference=reference.requires_grad_(False) if objective.kl_coef else None,
        **objective.learnt,
        optim=OptimConfig(max_grad_norm=1e9, updates_per_batch=passes),
        tree=TreeConfig(token_budget=budget),
        compute=ModelConfig(),
        temperature=TEMPERATURE,
    )


def rows_of(batch: TrainBatch):
    """(token ids, slice of the per-token arrays) of each row; the first token has no log-probability."""
    ptr = batch.sequences.ptr_R1
    for start, stop in itertools.pairwise(ptr):
        yield batch.sequences.ids_N[start:stop], slice(start + 1, stop)


def weights_by_formula(log_w: torch.Tensor, sampled: torch.Tensor, o: Loss) -> torch.Tensor:
    """One per token, or one for all."""
    low, cap = o.importance_bounds
    if o.importance == "none":
        return torch.ones_like(log_w)
    log_w = torch.where(sampled, log_w, 0.0)
    raw = {
        "token": log_w.exp(),
        "sequence": log_w.sum().exp(),
        "geometric": (log_w.sum() / sampled.sum().clamp(min=1)).exp(),
    }[o.importance_level]
    inside = (raw >= low) & (raw <= cap)
    used = raw * inside if o.importance.endswith("mask") else raw.clamp(low, cap)
    return torch.where(sampled, used, 1.0) if o.importance_level == "token" else used


def textbook_update(batch: TrainBatch, o: Loss, passes: int):
    """SGD steps on the plain sum over rows; returns the model."""
    model, reference = model64(), model64(0.95)
    old: dict[int, torch.Tensor] = {}
    for _ in range(passes):
        loss = torch.zeros((), dtype=torch.float64)
        for row, (ids, part) in enumerate(rows_of(batch)):
            target = torch.from_numpy(ids[1:, None]).long()
            every = row_logits(model, ids).log_softmax(-1)
            logp = every.gather(1, target)[:, 0]
            rollout = torch.from_numpy(batch.rollout_logp_N[part]).double()
            trained, sampled = torch.from_numpy(batch.sequences.trained_N[part]), ~rollout.isnan()
            first = old.setdefault(row, logp.detach())
            w = weights_by_formula(first - rollout, sampled & trained, o)
            log_ratio = logp - (torch.where(sampled, rollout, first) if o.old_logp == "rollout" else first)
            if o.ratio == "sequence":
                log_ratio = log_ratio[trained].mean()
            a = float(batch.advantage_N[part][-1])
            bound = log_ratio.exp().clamp(1 - o.clip_low, 1 + o.clip_high)
            term = -torch.minimum(log_ratio.exp() * a, bound * a) * w
            term = term - o.entropy_coef * -(every.exp() * every).sum(-1)
            if o.kl_coef:
                with torch.no_grad():
                    d = row_logits(reference, ids).log_softmax(-1).gather(1, target)[:, 0]
                term = term + o.kl_coef * (torch.exp(d - logp) - (d - logp) - 1)
            loss = loss + (torch.from_numpy(batch.weight_N[part]).double() * term)[trained].sum()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                assert p.grad is not None
                p.sub_(p.grad)
                p.grad = None
    return model


MODES = {
    "none": {},
    "token_truncate": {"importance_cap": 1.1, "importance_low": 0.9},
    "token_mask": {"importance_cap": 1.1, "importance_low": 0.9},
    "sequence_truncate": {"importance_cap": 1.2, "importance_low": 0.8},
    "sequence_mask": {"importance_cap": 1.2, "importance_low": 0.8},
    "geometric_truncate": {"importance_cap": 1.03, "importance_low": 0.97},
    "geometric_mask": {"importance_cap": 1.03, "importance_low": 0.97},
}
"""Bounds that some weights keep and some do not."""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_update_with_importance_weights_equals_the_textbook(mode: Any, ratio: Any) -> None:
    o = Loss(importance=mode, ratio=ratio, kl_coef=0.1, entropy_coef=0.05, **MODES[mode])
    made, advantage = make_rollouts(model64(1.03)), 0.3 * advantages()
    (batch,) = batches(made, advantage, o)
    ours = learner64(o, passes=2, budget=60)
    stats = ours.update([batch], lr=1.0)
    assert stats["update/micro_batches"] > 1
    assert stats["update/token_ratio"] > 1.2
    if mode != "none":
        assert 0.05 < stats["mismatch/outside"] < 0.95
        assert stats["mismatch/ess"] != stats["mismatch/ess_raw"]
    assert_moved_alike(ours.model, textbook_update(batch, o, passes=2))


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_rollout_as_old_policy_equals_the_textbook(ratio: Any) -> None:
    """Injected tokens are on-policy in the first pass, and compared with it in the second."""
    o = Loss(old_logp="rollout", ratio=ratio)
    made, advantage = make_rollouts(model64(1.03)), 0.3 * advantages()
    (batch,) = batches(made, advantage, o)
    ours = learner64(o, passes=2, budget=60)
    stats = ours.update([batch], lr=1.0)
    assert stats["update/clipped"] > 0
    assert stats["mismatch/mean_abs"] > 0.01
    assert_moved_alike(ours.model, textbook_update(batch, o, passes=2))


def test_injected_tokens_alone_are_on_policy_under_the_rollouts_log_probabilities() -> None:
    """Loss on guidance only: bypassing the trainer's log-probabilities changes nothing."""
    made = make_rollouts(model64(1.03))
    made = [replace(r, loss_mask=np.arange(len(r.response_ids)) < r.guidance_len) for r in made]
    weights = []
    for o in (Loss(), Loss(old_logp="rollout")):
        ours = learner64(o, passes=2)
        stats = ours.update(batches(made, 0.3 * advantages(), o), lr=1.0)
        assert math.isnan(stats["mismatch/mean_abs"])
        weights.append([p.detach().clone() for p in ours.model.parameters()])
    for one, other, start in zip(*weights, model64().parameters(), strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, start)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("budget", [8192, 60])
def test_mismatch_metrics_equal_their_formulas(mode: Any, budget: int) -> None:
    o = Loss(importance=mode, **MODES[mode])
    made, advantage = make_rollouts(model64(1.03)), advantages()
    advantage[1] = 0.0
    (batch,) = batches(made, advantage, o)
    got = {k: v for k, v in learner64(o, budget=budget).update([batch], lr=0.0).items() if "mismatch" in k}
    model, ds, raw, used = model64(), [], [], []
    for ids, part in rows_of(batch):
        target = torch.from_numpy(ids[1:, None]).long()
        logp = row_logits(model, ids).log_softmax(-1).gather(1, target)[:, 0].detach()
        rollout = torch.from_numpy(batch.rollout_logp_N[part]).double()
        d = (logp - rollout)[~rollout.isnan()]
        ds.append(d)
        if o.importance_level in ("none", "token"):
            raw.append(d.exp())
        else:
            raw.append((d.sum() if o.importance_level == "sequence" else d.mean()).exp()[None])
        used.append(weights_by_formula(d, torch.ones_like(d, dtype=torch.bool), o).expand(len(raw[-1])))
    d, raw, used = (torch.cat(values) for values in (ds, raw, used))
    assert len(d) == sum(r.sampled_len for i, r in enumerate(made) if i != 1)
    want = {
        "mean_abs": d.abs().mean(),
        "max_abs": d.abs().max(),
        "k3": (d.exp() - 1 - d).mean(),
        "ess_raw": raw.sum() ** 2 / (len(raw) * (raw**2).sum()),
    }
    if mode != "none":
        want |= {
            "ess": used.sum() ** 2 / (len(raw) * (used**2).sum()),
            "outside": ((raw < o.importance_bounds[0]) | (raw > o.importance_bounds[1])).double().mean(),
        }
    assert got == pytest.approx({f"mismatch/{k}": float(v) for k, v in want.items()}, rel=1e-9)
    assert got["mismatch/mean_abs"] == pytest.approx(0.06, rel=0.5)


def test_an_engine_that_agrees_has_no_mismatch() -> None:
    o = Loss(importance="sequence_mask")
    stats = learner64(o).update(batches(make_rollouts(model64()), advantages(), o), lr=0.0)
    assert 0 < stats["mismatch/max_abs"] < 1e-6  # the records keep float32
    assert stats["mismatch/k3"] < 1e-12
    assert stats["mismatch/ess_raw"] == stats["mismatch/ess"] == pytest.approx(1, abs=1e-12)
    assert stats["mismatch/outside"] == 0


def test_nothing_to_compare_is_nan_and_all_masked_is_no_sample() -> None:
    o = Loss(importance="token_mask", importance_cap=1.0, importance_low=1.0)
    assert all(math.isnan(v) for v in mismatch_metrics([], o.config).values())
    stats = learner64(o).update(batches(make_rollouts(model64(1.03)), advantages(), o), lr=0.0)
    assert (stats["mismatch/ess"], stats["mismatch/outside"]) == (0.0, 1.0)
    assert 0.9 < stats["mismatch/ess_raw"] < 1


VOCAB = 4


def enumerated(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All sequences of `length` tokens: ([R, length] token ids, [R, length] index of their context)."""
    ids = torch.cartesian_prod(*[torch.arange(VOCAB)] * length).reshape(-1, length)
    contexts = [torch.zeros(len(ids), dtype=torch.int64)]
    for t in range(1, length):
        contexts.append(1 + VOCAB * (t - 1) + ids[:, t - 1])
    return ids, torch.stack(contexts, 1)


@pytest.mark.parametrize(("mode", "length"), [("token_truncate", 1), ("sequence_truncate", 3)])
def test_weights_correct_a_wrong_engine_in_expectation(mode: Any, length: int) -> None:
    """Every sequence, as often as the engine samples it: the corrected gradient is the trainer's own."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(1 + VOCAB * length, VOCAB, generator=generator, dtype=torch.float64)
    off = table + 0.7 * torch.randn(table.shape, generator=generator, dtype=torch.float64)
    table.requires_grad_()
    ids, context = enumerated(length)
    num_rows = len(ids)
    advantage_R = torch.randn(num_rows, generator=generator, dtype=torch.float64)

    def logps(logits: torch.Tensor) -> torch.Tensor:
        return logits.log_softmax(-1)[context, ids].reshape(-1)

    def gradient(sampler: torch.Tensor, o: Loss) -> torch.Tensor:
        """Of the loss in which each row weighs what `sampler` gives it, tokens and all."""
        rollout_T = logps(sampler).detach()
        weight_M = rollout_T.reshape(num_rows, length).sum(1).exp().repeat_interleave(length)
        advantage_M, row_M = (x.repeat_interleave(length) for x in (advantage_R, torch.arange(num_rows)))
        num = num_rows * length
        edges = Edges(
            weight_M * advantage_M.clamp(min=0), weight_M * advantage_M.clamp(max=0), weight_M,
            rollout_logp_T=rollout_T, member_ptr_T1=torch.arange(num + 1), member_row_M=row_M,
            member_advantage_M=advantage_M, member_weight_M=weight_M, num_rows=num_rows,
        )  # fmt: skip
        logp_T = logps(table)
        everywhere = torch.ones(num, dtype=torch.bool)
        tokens = EngineTokens(rollout_T, everywhere, torch.arange(num), row_M, num_rows)
        if o.importance_level != "token":  # those are the kernels'
            edges = weighted(edges, compare(logp_T.detach(), tokens, o.config).weight_M)
        return torch.autograd.grad(policy_loss_of_logps(logp_T, edges, o.kernel).loss, table)[0]

    corrected = Loss(importance=mode, importance_cap=1e6)
    true = gradient(table.detach(), Loss())
    torch.testing.assert_close(gradient(off, corrected), true, rtol=1e-10, atol=1e-12)
    wrong = gradient(off, Loss())
    assert float((wrong - true).abs().max()) > 0.1 * float(true.abs().max()) > 1e-3
