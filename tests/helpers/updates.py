"""Updates and their textbook: a few rollouts, a tiny model, padded rows in plain transformers, SGD steps.

Dimension key: R rows, L padded length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from g2rpo_fast.embedded.model import build_model
from g2rpo_fast.learner import Learner
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.load import select_tree_attention
from g2rpo_fast.objective.batch import TrainBatch, make_batch, split_groups
from g2rpo_fast.optim import OptimConfig
from g2rpo_fast.pieces import Term
from g2rpo_fast.tree import TreeConfig
from g2rpo_fast.types import Prompt, Rollout
from objectives import Loss
from tree_models import DoubleNorm

TEMPERATURE = 0.8
PLAIN = Loss()
COMPUTE = ModelConfig()


def rollouts(seed: int = 0) -> list[Rollout]:
    """Groups of 4, 3 and 5; the first two members of each start from one trace, cut differently."""
    rng = np.random.default_rng(seed)
    made = []
    for group, size in enumerate((4, 3, 5)):
        prompt_ids = tuple(rng.integers(3, 14, 5 + group).tolist())
        trace = tuple(rng.integers(3, 14, 6).tolist())
        prompt = Prompt(id=f"t:{group}", text="", token_ids=prompt_ids, answer="", trace_ids=trace)
        for member in range(size):
            guidance = (6, 3)[member] if member < 2 else 0
            sampled = tuple(rng.integers(3, 14, rng.integers(1, 9)).tolist())
            length = guidance + len(sampled)
            logp = np.full(length, np.nan, np.float32)
            logp[guidance:] = rng.normal(-2, 0.5, len(sampled))
            made.append(
                Rollout(
                    prompt=prompt, group=group, member=member, training_prompt_ids=prompt_ids,
                    sampling_prompt_ids=prompt_ids, response_ids=trace[:guidance] + sampled,
                    guidance_len=guidance, loss_mask=np.ones(length, np.bool_), rollout_logp=logp, text="",
                    finish_reason="stop", weight_version=0,
                )
            )  # fmt: skip
    return made


def advantages(count: int = 12) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(count)


def base_model() -> Any:
    model: Any = build_model(vocab_size=34, seed=3)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    return model


def learner(
    objective: Loss = PLAIN,
    *,
    optim: OptimConfig | None = None,
    budget: int = 8192,
    compute: ModelConfig = COMPUTE,
    device: str = "cpu",
    terms: tuple[Term, ...] = (),
) -> Learner:
    model, reference = base_model().to(device), base_model().to(device)
    with torch.no_grad():
        for p in reference.parameters():
            p.mul_(0.9)
    for m in (model, reference):
        select_tree_attention(m)
    return Learner(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        reference=reference.requires_grad_(False) if objective.kl_coef else None,
        objective=objective.config,
        optim=optim or OptimConfig(max_grad_norm=1e9),
        tree=TreeConfig(token_budget=budget),
        compute=compute,
        temperature=TEMPERATURE,
        terms=terms or objective.terms,
    )


def batches(
    made: list[Rollout], advantages: np.ndarray | Sequence[np.ndarray], objective: Loss, minibatches: int = 1
) -> list[TrainBatch]:
    """Of a number for each row, or an array of one a token."""
    return [
        make_batch(
            made, indices, advantages, aggregation=objective.aggregation, constant_length=20,
            keep_all=bool(objective.kl_coef or objective.entropy_coef),
        )
        for indices in split_groups(made, minibatches)
    ]  # fmt: skip


def padded(model, made: list[Rollout]):
    """(logp_RL, entropy_RL, mask_RL, rollout_logp_RL) of the responses, every row by itself."""
    width = max(len(r.training_prompt_ids) + len(r.response_ids) for r in made)
    ids = torch.zeros(len(made), width, dtype=torch.long)
    mask = torch.zeros(len(made), width, dtype=torch.bool)
    attention = torch.zeros(len(made), width, dtype=torch.long)
    engine = torch.zeros(len(made), width)
    for row, r in enumerate(made):
        start, end = len(r.training_prompt_ids), len(r.training_prompt_ids) + len(r.response_ids)
        ids[row, :end] = torch.tensor(r.training_prompt_ids + r.response_ids)
        attention[row, :end] = 1
        mask[row, start:end] = True
        engine[row, start:end] = torch.from_numpy(r.rollout_logp)
    ids, mask, attention, engine = (x.to(model.device) for x in (ids, mask, attention, engine))
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1] / TEMPERATURE
    every = logits.log_softmax(-1)
    entropy = -(every.exp() * every).sum(-1)
    return every.gather(-1, ids[:, 1:, None])[..., 0], entropy, mask[:, 1:], engine[:, 1:]


def textbook_loss(model, made, advantage, old, reference, objective: Loss) -> torch.Tensor:
    """On the padded batch. `old` None: this policy."""
    logp, entropy, mask, _ = padded(model, made)
    ratio = torch.exp(logp - (logp.detach() if old is None else old))
    a = torch.tensor(advantage, dtype=logp.dtype, device=logp.device)[:, None]
    clipped = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high)
    per_token = -torch.minimum(ratio * a, clipped * a) - objective.entropy_coef * entropy
    if objective.kl_coef:
        with torch.no_grad():
            ref = padded(reference, made)[0]
        per_token = per_token + objective.kl_coef * (torch.exp(ref - logp) - (ref - logp) - 1)
    if objective.aggregation == "sequence_mean":
        return ((per_token * mask).sum(1) / mask.sum(1)).mean()
    return (per_token * mask).sum() / mask.sum()


def textbook_step(model, made, advantage, old, reference, objective: Loss) -> float:
    """One SGD step on the padded batch; returns the loss."""
    loss = textbook_loss(model, made, advantage, old, reference, objective)
    loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(p.grad)
            p.grad = None
    return float(loss.detach())


def assert_same_weights(got, wanted, start, *, rounding: float = 2e-4) -> None:
    """Equal up to float32 rounding: of the change, relative to its largest, and of the parameter itself."""
    for (name, a), b, s in zip(got.named_parameters(), wanted.parameters(), start.parameters(), strict=True):
        moved = float((b - s).detach().abs().max())
        assert moved > 0, name
        own = float(b.detach().abs().max()) * torch.finfo(b.dtype).eps
        assert float((a - b).detach().abs().max()) < rounding * moved + own, name


def model64(factor: float = 1.0):
    """The tests' model, all of it in float64, its weights times `factor`."""
    model = base_model().double()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(parent, name, DoubleNorm(child, 0.0))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(factor)
    return model


def assert_moved_alike(got, wanted) -> None:
    for (name, a), b, start in zip(
        got.named_parameters(), wanted.parameters(), model64().parameters(), strict=True
    ):
        moved = float((b - start).detach().abs().max())
        assert moved > 1e-6, name
        assert float((a - b).detach().abs().max()) < 1e-9 * moved, name
