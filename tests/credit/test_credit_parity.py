"""Rewards to loss and gradient, method by method, against TRL's trainers and authors' equations.

Ours: credit chain, weights, prefix trees, fused linear loss. Theirs: the lines of TRL that turn rewards into
advantages, taken out of its source and run, then its `_compute_loss` on padded rows. The first pass is on
policy; in the second all ratios have left 1.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from g2rpo_kernels import Cispo, Clip, Objective, linear_policy_loss

pytest.importorskip("trl", reason="trl is not installed")
from trl.trainer import grpo_trainer, rloo_trainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from g2rpo_fast.credit import BatchStd, Center, Channels, Rloo, Std, Whiten, advantages
from g2rpo_fast.objective.batch import make_batch
from g2rpo_fast.objective.edges import edges_of
from g2rpo_fast.pieces import Credit, Scored
from g2rpo_fast.tree import plan_trees
from scored import CLOCK, NO_STORE, rewards_of, row_of
from trl_tiny import make_trainer

MAX_TOKENS = 6
GROUP = 4
WEIGHTS = [1.0, 0.5]
NONE = float("nan")
REWARDS = [
    [1.0, 0.2], [0.0, 0.9], [0.0, NONE], [1.0, 0.4],
    [0.0, 0.0], [NONE, NONE], [0.0, 1.0], [2.0, 0.3],
    [1.0, 0.5], [1.0, 0.5], [1.0, 0.5], [1.0, 0.5],
]  # fmt: skip
"""Of three groups; a channel that does not apply to some rows, a row that none applies to, and a group
that teaches GRPO nothing."""
PROMPTS = [(1, 2), (3, 1, 5), (2, 2)]
RESPONSES = [
    [4, 5, 6, 7, 8, 9], [4, 5, 7], [4, 8], [9],
    [6, 6, 1, 2], [6, 6, 1, 3, 5], [2, 4], [2, 4, 4, 4, 7],
    [1], [1, 1], [3, 8, 5], [5, 6, 7, 8],
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """A method, as TRL's settings and as ours."""

    chain: tuple[Credit, ...] = (Center(), Std())
    aggregation: str
    ours: dict[str, Any] = field(default_factory=dict)
    theirs: dict[str, Any]
    kind: str = "grpo"


CLIP = {"surrogate": Clip(low=0.2, high=0.28)}
EPS = {"epsilon": 0.2, "epsilon_high": 0.28}
SEQUENCE = {"importance_sampling_level": "sequence"}
CASES = {
    "GRPO": Case(aggregation="sequence_mean", ours=CLIP, theirs={"loss_type": "grpo", **EPS}),
    "Dr. GRPO": Case(
        chain=(Center(),),
        aggregation="constant",
        ours=CLIP,
        theirs={"loss_type": "dr_grpo", "scale_rewards": "none", **EPS},
    ),
    "DAPO": Case(aggregation="token_mean", ours=CLIP, theirs={"loss_type": "dapo", **EPS}),
    "BNPO": Case(aggregation="token_mean", ours=CLIP, theirs={"loss_type": "bnpo", **EPS}),
    "GSPO": Case(
        aggregation="sequence_mean",
        ours={"ratio": "sequence", "surrogate": Clip(low=0.02, high=0.03)},
        theirs={"loss_type": "grpo", "epsilon": 0.02, "epsilon_high": 0.03, **SEQUENCE},
    ),
    "CISPO": Case(
        aggregation="token_mean",
        ours={"surrogate": Cispo(low=1.0, high=0.1)},
        theirs={"loss_type": "cispo", "epsilon_high": 1.1},
    ),
    "SAPO": Case(aggregation="sequence_mean", ours={"surrogate": "sapo"}, theirs={"loss_type": "sapo"}),
    "VESPO": Case(
        aggregation="token_mean",
        ours={"surrogate": "vespo", "ratio": "product"},
        theirs={"loss_type": "vespo"},
    ),
    "LUSPO": Case(
        aggregation="sequence_sum",
        ours={"ratio": "sequence", **CLIP},
        theirs={"loss_type": "luspo", **SEQUENCE, **EPS},
    ),
    "Lite PPO": Case(
        chain=(Center(), BatchStd()),
        aggregation="token_mean",
        ours=CLIP,
        theirs={"loss_type": "dapo", "scale_rewards": "batch", **EPS},
    ),
    "GDPO": Case(
        chain=(Channels(), Whiten()),
        aggregation="sequence_mean",
        ours=CLIP,
        theirs={"loss_type": "grpo", "multi_objective_aggregation": "normalize_then_sum", **EPS},
    ),
    "RLOO": Case(
        chain=(Rloo(),),
        aggregation="sequence_mean",
        ours={"ratio": "product", **CLIP},
        theirs={"beta": 0.0, **EPS},
        kind="rloo",
    ),
    "RLOO, normalised": Case(
        chain=(Rloo(), Whiten()),
        aggregation="sequence_mean",
        ours={"ratio": "product", **CLIP},
        theirs={"beta": 0.0, "normalize_advantages": True, **EPS},
        kind="rloo",
    ),
}


def rows(rewards: Sequence[Sequence[float]] | np.ndarray = REWARDS) -> Scored:
    rollouts = [
        row_of(i // GROUP, i % GROUP, response, PROMPTS[i // GROUP]) for i, response in enumerate(RESPONSES)
    ]
    rollouts[5].loss_mask[1] = False  # a token that something else wrote
    return Scored(rollouts=tuple(rollouts), rewards=rewards_of(rewards, WEIGHTS), clock=CLOCK)


def hidden_after(ids: Sequence[int]) -> torch.Tensor:
    """[D] float64, a function of the whole prefix: what a causal model gives a position."""
    table = torch.randn(10, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    decay = torch.tensor([0.7**k for k in range(len(ids))], dtype=torch.float64)
    return torch.tanh((table[list(ids)] * decay.flip(0)[:, None]).sum(0))


def first_head() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(10, 6, generator=generator, dtype=torch.float64)


def padded(head: torch.Tensor, scored: Scored) -> tuple[torch.Tensor, torch.Tensor]:
    """([B, L] log-probabilities of the responses, [B, L] bool which are trained)."""
    logp_BL = torch.zeros(len(scored.rollouts), MAX_TOKENS, dtype=torch.float64)
    mask_BL = torch.zeros(len(scored.rollouts), MAX_TOKENS, dtype=torch.bool)
    for b, row in enumerate(scored.rollouts):
        hidden = [
            hidden_after(row.training_prompt_ids + row.response_ids[:t]) for t in range(len(row.response_ids))
        ]
        every = torch.log_softmax(torch.stack(hidden) @ head.T, -1)
        logp = every.gather(1, torch.tensor(row.response_ids)[:, None])[:, 0]
        logp_BL[b, : len(logp)] = logp
        mask_BL[b, : len(logp)] = torch.tensor(row.loss_mask)
    return logp_BL, mask_BL


def our_loss(head: torch.Tensor, old_head: torch.Tensor | None, scored: Scored, case: Case) -> torch.Tensor:
    """0-dim, over prefix trees."""
    a_R = advantages(case.chain, scored, NO_STORE)
    batch = make_batch(
        scored.rollouts,
        range(len(a_R)),
        a_R,
        aggregation=case.aggregation,
        constant_length=MAX_TOKENS,
        keep_all=False,
    )
    total = torch.zeros((), dtype=torch.float64)
    plans = plan_trees(batch.sequences, token_budget=None, min_saved=1)
    assert sum(len(plan.token_S) for plan in plans) < sum(plan.unshared_tokens for plan in plans)
    for plan in plans:
        paths = [[j for j in range(s + 1) if s < plan.end_S[j]] for s in range(len(plan.token_S))]
        hidden_SD = torch.stack([hidden_after([int(plan.token_S[j]) for j in path]) for path in paths])
        source_T, target_T = (torch.from_numpy(ids).long() for ids in (plan.source_T, plan.target_T))
        edges = edges_of(
            plan, batch.sequences, batch.advantage_N, batch.weight_N, rollout_logp_N=batch.rollout_logp_N
        )
        if old_head is not None:
            every = torch.log_softmax(hidden_SD[source_T] @ old_head.T, -1)
            edges = edges._replace(old_logp_T=every.gather(1, target_T[:, None])[:, 0])
        objective = Objective(**case.ours)
        out = linear_policy_loss(hidden_SD, head, target_T, edges, objective, source_T=source_T, impl="cpu")
        total = total + out.loss
    return total


class GivenLogps:
    """A trainer of TRL whose log-probabilities are given."""

    logp_BL: torch.Tensor

    def _get_per_token_logps_and_entropies(
        self, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        return self.logp_BL, torch.zeros_like(self.logp_BL), None


class GivenGRPO(GivenLogps, GRPOTrainer):
    pass


class GivenRLOO(GivenLogps, RLOOTrainer):
    pass


def trls_advantages(trainer: Any, module: Any, scored: Scored) -> torch.Tensor:
    """[B] by TRL's lines, from the rewards of every function to the advantages of all processes."""
    kind = GRPOTrainer if module is grpo_trainer else RLOOTrainer
    source = inspect.getsource(kind._generate_and_score_completions)
    start = source.find(" unscorable_mask = ") + 1
    stop = source.find("advantages = torch.nan_to_num(advantages, nan=0.0)")
    if not 0 < start < stop:
        pytest.skip("this release of trl computes advantages elsewhere")
    indent = " " * (start - source.rfind("\n", 0, start) - 1)
    names = vars(module) | {
        "self": trainer,
        "device": "cpu",
        "num_generations": GROUP,
        "rewards_per_func": torch.tensor(scored.rewards.reward_RK),
    }
    torch.set_default_dtype(torch.float64)  # its n / (n - 1) is of the default dtype
    try:
        exec(compile(textwrap.dedent(indent + source[start:stop]), "trl", "exec"), names)
    finally:
        torch.set_default_dtype(torch.float32)
    return torch.nan_to_num(names["advantages"], nan=0.0)


def their_loss(
    trainer: Any, logp_BL: torch.Tensor, old_BL: torch.Tensor | None, mask_BL: torch.Tensor, a_B: torch.Tensor
) -> torch.Tensor:
    trainer.logp_BL = logp_BL
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    prompts = torch.ones(len(a_B), 3, dtype=torch.long)
    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": prompts,
        "completion_ids": torch.ones_like(mask_BL, dtype=torch.long),
        "completion_mask": mask_BL.long(),
        "advantages": a_B,
        "num_items_in_batch": mask_BL.sum() * trainer.args.steps_per_generation,
        "old_logps": ((logp_BL.detach() if old_BL is None else old_BL) * mask_BL).sum(1),
    }
    if old_BL is not None:
        inputs["old_per_token_logps"] = old_BL
    return trainer._compute_loss(trainer.model, inputs)


def compare_two_passes(
    ours: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor],
    theirs: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor],
) -> None:
    """Loss and gradient on policy, then after a step of it, shaken so that some rows go against theirs.

    Batches carry advantages and weights in float32; all else is float64.
    """
    head, old_head = first_head(), None
    shake = 0.4 * torch.randn(head.shape, generator=torch.Generator().manual_seed(2), dtype=head.dtype)
    for _ in range(2):
        leaf = head.clone().requires_grad_()
        sides = []
        for loss_of in (ours, theirs):
            loss = loss_of(leaf, old_head)
            (gradient,) = torch.autograd.grad(loss, leaf)
            sides.append(torch.cat([loss.detach()[None], gradient.flatten()]))
        scale = float(sides[1][1:].abs().max())
        assert scale > 1e-4
        torch.testing.assert_close(*sides, rtol=1e-6, atol=3e-7 * scale)
        step = sides[1][1:].view_as(head)
        head, old_head = head - step * (0.3 / step.abs().max()) + shake, head
    assert old_head is not None
    logp_BL, old_BL = (padded(at, rows())[0] for at in (head, old_head))
    ratio = (logp_BL - old_BL).exp()
    assert float(ratio.max()) > 1.15
    assert float(ratio.min()) < 0.75


@pytest.mark.parametrize("name", CASES)
def test_rewards_to_gradients_are_trls(name: str, tmp_path: Path) -> None:
    case, scored = CASES[name], rows()
    kind, module, made = {
        "grpo": (GivenGRPO, grpo_trainer, {}),
        "rloo": (GivenRLOO, rloo_trainer, {"arguments": RLOOConfig}),
    }[case.kind]
    trainer = make_trainer(kind, tmp_path, **made, **case.theirs)
    given = {**vars(trainer), "reward_weights": torch.tensor(WEIGHTS), "reward_funcs": WEIGHTS}
    a_B = trls_advantages(SimpleNamespace(**given), module, scored)
    np.testing.assert_allclose(advantages(case.chain, scored, NO_STORE), a_B, rtol=1e-12, atol=1e-12)
    mask_BL = padded(first_head(), scored)[1]

    def theirs(head: torch.Tensor, old_head: torch.Tensor | None) -> torch.Tensor:
        old_BL = None if old_head is None else padded(old_head, scored)[0]
        return their_loss(trainer, padded(head, scored)[0], old_BL, mask_BL, a_B)

    compare_two_passes(lambda head, old: our_loss(head, old, scored, case), theirs)


def authors_whitening(a_B: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
    """[B, L] REINFORCE++, arXiv 2501.03262, eq. 10: over all response tokens of the batch."""
    a_BL = a_B[:, None].expand(mask_BL.shape)
    mean = a_BL[mask_BL].mean()
    return (a_BL - mean) / a_BL[mask_BL].std(correction=0)


@pytest.mark.parametrize("baseline", [False, True])
def test_reinforce_plus_plus_is_its_authors(baseline: bool) -> None:
    scored = rows(np.nan_to_num(REWARDS))
    total_B = torch.tensor(scored.rewards.total_R)
    if baseline:
        total_B = (total_B.view(-1, GROUP) - total_B.view(-1, GROUP).mean(1, keepdim=True)).flatten()
    whiten = Whiten(over="tokens", eps=1e-12)
    case = Case(
        chain=(Center(), whiten) if baseline else (whiten,), aggregation="token_mean", ours=CLIP, theirs={}
    )

    def theirs(head: torch.Tensor, old_head: torch.Tensor | None) -> torch.Tensor:
        logp_BL, mask_BL = padded(head, scored)
        old_BL = logp_BL.detach() if old_head is None else padded(old_head, scored)[0]
        a_BL, ratio = authors_whitening(total_B, mask_BL), (logp_BL - old_BL).exp()
        return -torch.minimum(ratio * a_BL, ratio.clamp(0.8, 1.28) * a_BL)[mask_BL].mean()

    compare_two_passes(lambda head, old: our_loss(head, old, scored, case), theirs)
