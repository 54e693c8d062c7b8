"""The influence of tokens on right answers: against sums over pairs written out, and a worked example."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from g2rpo_fast.credit.tokens import HiddenReward
from g2rpo_fast.learner.look import look
from g2rpo_fast.learner.policy import Stream
from g2rpo_fast.objective.terms import Clip
from g2rpo_fast.pieces import RowTokens
from g2rpo_fast.tree import plan_trees
from g2rpo_fast.types import Doubles, Rollout
from padded_terms import ONE_EACH, REWARD_R, SPLIT, WHOLE, batches, learner, rollouts
from scored import scored_of
from updates import TEMPERATURE, model64


def by_pairs(made: list[Rollout]) -> list[Doubles]:
    """Of each row's tokens: every pair with a token of a right row of its group."""
    model, errors, hidden = model64(), [], []
    for rollout in made:
        ids = torch.tensor([[*rollout.training_prompt_ids, *rollout.response_ids]])
        first = len(rollout.training_prompt_ids)
        with torch.no_grad():
            states = model.model(ids).last_hidden_state[0, first - 1 : -1]
            p = (model.lm_head(states) / TEMPERATURE).softmax(-1)
        errors.append(torch.nn.functional.one_hot(ids[0, first:], p.shape[1]) - p)
        hidden.append(states)
    found = []
    for row, rollout in enumerate(made):
        members = [i for i, other in enumerate(made) if other.group == rollout.group]
        used = torch.tensor(sorted({token for i in members for token in made[i].response_ids}))
        value = torch.zeros(len(rollout.response_ids), dtype=torch.float64)
        for i in members:
            if REWARD_R[made[i].group * 6 + made[i].member] > 0:
                alike = (errors[row][:, used] @ errors[i][:, used].T) * (hidden[row] @ hidden[i].T)
                value += alike.sum(1) / len(made[i].response_ids)
        found.append(value.numpy())
    return found


@pytest.mark.parametrize("budget", [WHOLE, ONE_EACH, SPLIT])
def test_influence_is_the_sum_over_pairs(budget: int) -> None:
    """Also where a group's tree is cut in two."""
    made = rollouts()
    ours, batch = learner((Clip(),), budget), batches(made)[0]
    plans = plan_trees(batch.sequences, token_budget=budget)
    streams = [Stream.of(plan, torch.device("cpu")) for plan in plans]
    seen = look(ours.policy, streams, batch, right_B=REWARD_R[batch.rollout_R] > 0)
    assert seen.influence_N is not None
    wanted = by_pairs(made)
    ptr_R1 = batch.sequences.ptr_R1
    for place, row in enumerate(batch.rollout_R.tolist()):
        first = ptr_R1[place] + len(made[row].training_prompt_ids)
        got = seen.influence_N[first : ptr_R1[place + 1]]
        np.testing.assert_allclose(got, wanted[row], rtol=1e-9, atol=1e-12)
        assert np.isnan(seen.influence_N[ptr_R1[place] : first]).all()
        assert wanted[row].any() == (made[row].group != 1)  # the second group has no right answer
    kept = seen.keep(np.arange(3))
    assert kept.influence_N is not None
    assert len(kept.influence_N) == 3


def credited(piece: HiddenReward, influence: list[float], rewards: list[float]) -> list[float]:
    """Rows of two tokens, one group; advantages 1 and -1."""
    rows = np.repeat(np.arange(len(rewards)), 2)
    tokens = RowTokens(
        id_N=rows, row_N=rows, place_N=rows % 2, rollout_logp_N=np.zeros(len(rows)),
        influence_N=np.array(influence),
    )  # fmt: skip
    scored = scored_of([[reward] for reward in rewards], [0] * len(rewards))
    return piece(np.where(np.repeat(rewards, 2) > 0, 1.0, -1.0), tokens, scored).tolist()


def test_credit_is_masked_and_leans() -> None:
    """tau = the smaller of the right rows' means, .5 and .3; a wrong row's influence counts the other way."""
    influence, paid = [0.9, 0.1, 0.2, 0.4, 0.5, -0.6], [1.0, 1.0, 0.0]
    assert credited(HiddenReward(), influence, paid) == pytest.approx([1.1, 0, 0, 1.1, -0.9, -1.1])
    assert credited(HiddenReward(lean=0.0), influence, paid) == pytest.approx([1, 0, 0, 1, -1, -1])
    assert credited(HiddenReward(lean=-1.0, beta=0.0), influence, paid) == [0, 0, 0, 0, -2, 0]
    assert credited(HiddenReward(), influence, [0.0, 0.0, 0.0]) == [-1.0] * 6


def test_a_wrong_token_that_right_ones_push_away_is_the_worked_example() -> None:
    """pi = (.5, .5), equal hidden states of norm 1: the errors' product is -.5, the wrong token's THR +.5."""
    error = np.array([[0.5, -0.5], [-0.5, 0.5]])
    right, wrong = float(error[0] @ error[0]), float(error[0] @ error[1])
    influence = [right, right, wrong, wrong]
    assert (right, wrong) == (0.5, -0.5)
    assert credited(HiddenReward(), influence, [1.0, 0.0])[2:] == [0, 0]  # .5 is not above tau = .5
    assert credited(HiddenReward(beta=0.9), influence, [1.0, 0.0])[2:] == pytest.approx([-1.1, -1.1])
