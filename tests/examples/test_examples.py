"""The examples run, and do what they say. (TRL's are in test_own_loss_trl.py and test_trl_parity.py.)"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import own_loss_loop
import plain_loop
import verl_policy_loss


def test_plain_loop_learns_and_is_short() -> None:
    rewards = plain_loop.train(steps=25)
    assert 0.4 < rewards[0] < 0.6
    assert rewards[-1] > 0.9
    assert len(Path(plain_loop.__file__).read_text().splitlines()) <= 40


def test_loop_with_a_loss_of_its_own_learns_and_is_short() -> None:
    rewards, power = own_loss_loop.train(steps=25)
    assert 0.4 < rewards[0] < 0.6
    assert rewards[-1] > 0.9
    assert abs(power - 1) > 1e-3
    assert len(Path(own_loss_loop.__file__).read_text().splitlines()) <= 50


class ActorConfig(dict[str, Any]):
    """The part of verl's ActorConfig that its policy losses read: attributes, and `get`."""

    clip_ratio = 0.2
    clip_ratio_low: float | None = None
    clip_ratio_high: float | None = 0.28

    def __init__(self, **batch: Any) -> None:
        super().__init__(clip_ratio_c=1.6)
        self.global_batch_info = batch


def verl_vanilla(
    old: Tensor, logp: Tensor, advantage: Tensor, mask: Tensor, mode: str, weights: Tensor | None, batch: dict
) -> Tensor:
    """verl's `vanilla` loss and `agg_loss`, as formulas: clip 0.2 and 0.28, dual clip 1.6."""
    ratio = (logp - old).clamp(-20, 20).exp()
    term = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.28))
    term = torch.where(advantage < 0, torch.minimum(-1.6 * advantage, term), term)
    term = term if weights is None else term * weights
    rows, count = (term * mask).sum(1), mask.double().sum(1)
    ranks = batch.get("dp_size", 1)
    sequences = batch.get("global_batch_size") or (count > 0).sum()
    return (
        ranks
        * {
            "token-mean": rows.sum() / (batch.get("batch_num_tokens") or mask.sum()),
            "token-sum": rows.sum(),
            "seq-mean-token-sum": rows.sum() / sequences,
            "seq-mean-token-sum-norm": rows.sum()
            / sequences
            / (batch.get("loss_scale_factor") or mask.shape[1]),
            "seq-mean-token-mean": (rows / (count + 1e-8)).sum() / sequences,
        }[mode]
    )


def registered() -> Callable[..., tuple[Tensor, dict[str, Any]]]:
    """What verl's registry would hold after `register`."""
    registry: dict[str, Callable[..., Any]] = {}

    def register_policy_loss(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def decorator(function: Callable[..., Any]) -> Callable[..., Any]:
            registry[name] = function
            return function

        return decorator

    verl_policy_loss.register(register_policy_loss)
    return registry["g2rpo"]


MODES = ["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean"]
RANKS = {"dp_size": 2, "batch_num_tokens": 29, "global_batch_size": 7, "loss_scale_factor": 11}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch", [{}, RANKS], ids=["one rank", "two ranks"])
def test_verl_loss_equals_vanilla(mode: str, batch: dict) -> None:
    generator = torch.Generator().manual_seed(0)
    old, noise, row = (torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    advantage = row[:, :1].expand(4, 5)
    mask = (torch.arange(5) < torch.tensor([5, 0, 2, 4])[:, None]).long()
    weights = torch.rand(4, 5, generator=generator, dtype=torch.float64)
    for rollout_is_weights in (None, weights):
        logp = (old + 0.5 * noise).requires_grad_()
        loss, metrics = registered()(
            old_log_prob=old,
            log_prob=logp,
            advantages=advantage,
            response_mask=mask,
            loss_agg_mode=mode,
            config=ActorConfig(**batch),
            rollout_is_weights=rollout_is_weights,
        )
        want = verl_vanilla(old, logp, advantage, mask, mode, rollout_is_weights, batch)
        torch.testing.assert_close(loss, want, rtol=1e-12, atol=1e-12)
        gradients = [torch.autograd.grad(x, logp, retain_graph=True)[0] for x in (loss, want)]
        assert gradients[1].abs().max() > 1e-3
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
        assert 0 < metrics["actor/pg_clipfrac"] < 1
        assert metrics["actor/ppo_kl"] > 0


def test_verl_loss_refuses_an_unknown_aggregation() -> None:
    with pytest.raises(ValueError, match="loss_agg_mode: wanted one of"):
        verl_policy_loss.token_weights(torch.ones(1, 1), "mean", {})
