"""`examples/own_loss_trl.py` in TRL's trainer: the gradient of its loss on logits, and a run that learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("trl", reason="trl is not installed")

from own_loss_trl import GMPOTrainer
from trl_tiny import make_trainer, tiny_model


@pytest.mark.parametrize("with_old", [False, True])
def test_gradients_are_those_of_the_formula_on_logits(with_old: bool, tmp_path: Path) -> None:
    model = tiny_model()
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 13, (4, 11), generator=generator)
    mask = (torch.arange(6) < torch.tensor([6, 2, 4, 5])[:, None]).long()
    inputs = {
        "prompt_ids": ids[:, :5],
        "prompt_mask": torch.ones(4, 5, dtype=torch.int64),
        "completion_ids": ids[:, 5:],
        "completion_mask": mask,
        "advantages": torch.tensor([1.3, -0.7, 0.4, -1.1]),
    }
    trainer = make_trainer(GMPOTrainer, tmp_path, model, temperature=0.9)

    def logp() -> torch.Tensor:
        full = torch.cat([torch.ones_like(inputs["prompt_mask"]), mask], 1)
        logits = model(input_ids=ids, attention_mask=full).logits[:, 4:-1] / 0.9
        return logits.log_softmax(-1).gather(-1, ids[:, 5:, None])[..., 0]

    noise = 0.5 * torch.randn(4, 6, generator=generator)
    old = (logp() + noise * with_old).detach()
    if with_old:
        inputs["old_per_token_logps"] = old
    sign = inputs["advantages"].sign()[:, None]
    clipped = torch.minimum(sign * (logp() - old), torch.tensor(0.4)) * sign
    ratio = ((clipped * mask).sum(1) / mask.sum(1)).exp()
    want = -(inputs["advantages"] * ratio).mean()
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    got = trainer._compute_loss(trainer.model, inputs)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    parameters = [p for p in model.parameters() if p.requires_grad]
    sides = [torch.cat([g.flatten() for g in torch.autograd.grad(x, parameters)]) for x in (got, want)]
    assert sides[1].abs().max() > 1e-3
    torch.testing.assert_close(*sides, rtol=1e-4, atol=1e-5 * float(sides[1].abs().max()))


def test_trains(tmp_path: Path) -> None:
    settings = {"max_steps": 3, "num_iterations": 2, "beta": 0.0, "learning_rate": 0.01}
    trainer = make_trainer(GMPOTrainer, tmp_path, **settings)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 3
    assert all(row["grad_norm"] > 0 and row["entropy"] > 0.1 for row in rows[:2])
    assert any(not torch.equal(p, b) for p, b in zip(trainer.model.parameters(), before, strict=True))


def test_terms_that_the_loss_lacks_are_refused(tmp_path: Path) -> None:
    trainer = make_trainer(GMPOTrainer, tmp_path, entropy_coef=0.1)
    with pytest.raises(ValueError, match="beta, entropy_coef"):
        trainer._compute_loss(trainer.model, {})
