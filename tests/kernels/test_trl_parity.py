"""The fused loss in TRL's GRPOTrainer (`examples/trl_trainer.py`) against TRL's own loss, on the same batch.

TRL computes log-probabilities in float32, so both sides are float32 and stand against the same in float64:
our error is held to twice TRL's plus four roundings.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from g2rpo_kernels import token_logprobs

pytest.importorskip("trl", reason="trl is not installed")

from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import selective_log_softmax

from budget import budget, draws, error
from trl_tiny import make_trainer, tiny_model
from trl_trainer import FusedGRPOTrainer

CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
LEVELS = [("token", name) for name in (*CLIPPED, "cispo", "sapo", "vespo")]
LEVELS += [("sequence", name) for name in CLIPPED]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"beta": 0.1, "gradient_accumulation_steps": 2, "steps_per_generation": 4},
    {"beta": 0.1, "delta": 1.1, "use_bias_correction_kl": True, "entropy_coef": 0.02},
]


def batch(model: torch.nn.Module, with_old: bool) -> dict[str, torch.Tensor]:
    """What `_compute_loss` gets: left-padded prompts, right-padded completions, a tool's tokens masked."""
    generator = torch.Generator().manual_seed(1)
    prompt, length = 5, 6
    ids = torch.randint(3, 13, (4, prompt + length), generator=generator)
    lengths = torch.tensor([6, 2, 4, 5])
    completion_mask = (torch.arange(length) < lengths[:, None]).long()
    prompt_mask = (torch.arange(prompt) >= torch.tensor([0, 2, 1, 0])[:, None]).long()
    mask = torch.cat([prompt_mask, completion_mask], 1)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits[:, prompt - 1 : -1]
    logp = torch.log_softmax(logits, -1).gather(-1, ids[:, prompt:, None])[..., 0]

    def near(scale: float) -> torch.Tensor:
        return logp + scale * torch.randn(logp.shape, generator=generator)

    tool_mask = torch.ones_like(completion_mask)
    tool_mask[0, 2:4] = 0
    values = {
        "prompt_ids": ids[:, :prompt],
        "prompt_mask": prompt_mask,
        "completion_ids": ids[:, prompt:],
        "completion_mask": completion_mask,
        "tool_mask": tool_mask,
        "advantages": torch.tensor([1.3, -0.7, 0.4, -1.1]),
        "num_items_in_batch": torch.tensor(37),
        "ref_per_token_logps": near(0.3),
    }
    old = near(0.3)
    return values | ({"old_per_token_logps": old} if with_old else {})


def loss_and_gradients(trainer: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss and all gradients, in one float64 vector."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    values = [loss.detach(), *(p.grad for p in trainer.model.parameters() if p.grad is not None)]
    return torch.cat([value.double().flatten() for value in values])


def in_float64(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


@pytest.mark.parametrize(("level", "loss_type"), LEVELS)
def test_loss_and_gradients_are_trls(level: str, loss_type: str, tmp_path: Path) -> None:
    for variant, with_old in zip(VARIANTS, (False, True, True), strict=True):
        settings = {
            "loss_type": loss_type,
            "importance_sampling_level": level,
            "epsilon_high": 1.1 if loss_type == "cispo" else 0.28,
            "temperature": 0.9,
            **variant,
        }
        model = tiny_model()
        inputs = batch(model, with_old)
        theirs, ours, exact = (
            make_trainer(kind, tmp_path, copy.deepcopy(model), **settings)
            for kind in (GRPOTrainer, FusedGRPOTrainer, FusedGRPOTrainer)
        )
        exact.model.double()
        truth = loss_and_gradients(exact, in_float64(inputs))
        wants = draws(lambda: [loss_and_gradients(theirs, inputs)])  # noqa: B023
        got = loss_and_gradients(ours, inputs)
        scale = truth[1:].abs().max()
        assert scale > 1e-3
        allowed = budget([want for (want,) in wants], truth, torch.float32, 4 * float(truth.abs().max()))
        assert allowed < 1e-4 * scale, "TRL computes something else"
        assert error(got, truth) <= allowed
        for name in ["entropy"] + ["kl"] * ("beta" in variant):
            values = [side._metrics["train"][name][-1] for side in (ours, theirs)]
            assert values[0] == pytest.approx(values[1], rel=1e-5)
            assert values[0] > 0.01


@pytest.mark.parametrize("loss_type", ["grpo", "vespo"])
def test_importance_ratios_are_trls(loss_type: str, tmp_path: Path) -> None:
    """As under vLLM, whose ratios `use_vllm` alone makes TRL read."""
    model = tiny_model()
    inputs = batch(model, with_old=True)
    inputs["importance_sampling_ratio"] = torch.rand(4, 6, generator=torch.Generator().manual_seed(2)) + 0.5
    sides = []
    for kind in (GRPOTrainer, FusedGRPOTrainer):
        trainer = make_trainer(kind, tmp_path, copy.deepcopy(model), loss_type=loss_type)
        trainer.use_vllm = True
        sides.append(loss_and_gradients(trainer, inputs))
    torch.testing.assert_close(*sides, rtol=1e-5, atol=1e-6 * float(sides[0].abs().max()))


def test_evaluation_does_not_divide_by_the_accumulation(tmp_path: Path) -> None:
    model = tiny_model()
    inputs = batch(model, with_old=True)
    losses = []
    for kind in (GRPOTrainer, FusedGRPOTrainer):
        trainer = make_trainer(kind, tmp_path, copy.deepcopy(model), gradient_accumulation_steps=2)
        trainer.current_gradient_accumulation_steps = 2
        trainer.model.eval()
        with torch.no_grad():
            losses.append(float(trainer._compute_loss(trainer.model, inputs)))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert abs(losses[0]) > 1e-3


@pytest.mark.parametrize(
    "settings",
    [{"top_entropy_quantile": 0.5}, {"off_policy_mask_threshold": 0.1}, {"use_adaptive_entropy": True}],
)
def test_options_that_would_be_dropped_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    trainer = make_trainer(FusedGRPOTrainer, tmp_path, **settings)
    with pytest.raises(ValueError, match=next(iter(settings))):
        trainer._compute_loss(trainer.model, batch(trainer.model, with_old=False))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_is_trls(checkpointing: bool, tmp_path: Path) -> None:
    """Sampling, rewards, two passes over a batch, then a new one: the same, to rounding."""
    settings = {
        "max_steps": 3,
        "num_iterations": 2,
        "beta": 0.05,
        "entropy_coef": 0.01,
        "learning_rate": 0.01,
    }
    logs, moved = [], []
    for kind in (GRPOTrainer, FusedGRPOTrainer):
        trainer = make_trainer(kind, tmp_path, gradient_checkpointing=checkpointing, **settings)
        before = [p.detach().clone() for p in trainer.model.parameters()]
        trainer.train()
        logs.append([row for row in trainer.state.log_history if "loss" in row])
        after = trainer.model.parameters()
        moved.append(torch.cat([(p.detach() - b).flatten() for p, b in zip(after, before, strict=True)]))
    assert [len(rows) for rows in logs] == [3, 3]
    for name in ("loss", "grad_norm", "kl", "entropy", "clip_ratio/region_mean"):
        theirs, ours = (torch.tensor([row[name] for row in rows], dtype=torch.float64) for rows in logs)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        assert theirs.abs().max() > 1e-2
    # Adam divides by the gradient's size, so entries that are rounding alone may go either way.
    assert float(torch.nn.functional.cosine_similarity(*moved, dim=0)) > 0.999


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
@pytest.mark.parametrize("num_ids", [None, 2])
def test_token_logprobs_are_trls(shape: tuple[int, ...], num_ids: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((*shape, 13), generator=generator, dtype=torch.float64).requires_grad_()
    ids = torch.randint(13, shape if num_ids is None else (*shape, num_ids), generator=generator)
    sides = [op(logits, ids, 0.8) for op in (token_logprobs, selective_log_softmax)]
    torch.testing.assert_close(*sides, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(side.square().sum(), logits)[0] for side in sides]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    if num_ids is None:
        mask = torch.rand(shape, generator=generator) > 0.5
        sides = [op(logits, ids, 0.8, mask.long()) for op in (token_logprobs, selective_log_softmax)]
        torch.testing.assert_close(*sides, rtol=1e-12, atol=1e-12)
