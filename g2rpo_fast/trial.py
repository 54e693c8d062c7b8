"""A user's own functions, tried on a few made-up rows before a run begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from g2rpo_fast.own import PieceError, name_of
from g2rpo_fast.pieces import Clock, Credit, Piece, PromptStore, Scored, Term, Tokens
from g2rpo_fast.types import Prompt, Rewards, Rollout

ROWS, TOKENS = 4, 3
"""Two groups of two rows of three tokens."""


def try_own(credit: tuple[Credit, ...], terms: tuple[Term, ...]) -> None:
    """Calls the functions among the pieces.

    Raises:
        ValueError: one line naming the function: it raised something, or returned what cannot be used.
    """
    for piece in credit:
        if piece.use == "own":
            _try_credit(piece)
    for term in terms:
        if term.use == "own":
            _try_term(term)


def _try_term(term: Term) -> None:
    logp_N = torch.linspace(-3, -0.5, ROWS * TOKENS, requires_grad=True)
    entropy_N = torch.linspace(0.5, 2, ROWS * TOKENS, requires_grad=True)
    loss = _called(term, lambda: term(logp_N, entropy_N, _tokens()))
    if not isinstance(loss, torch.Tensor) or loss.dim() or not loss.is_floating_point():
        got = list(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise ValueError(f"{_name(term)}: wanted a 0-dim floating tensor, got {got}")
    if not loss.requires_grad:
        raise ValueError(f"{_name(term)}: wanted a loss that depends on logp_N or entropy_N, got a constant")
    if not loss.isfinite():
        raise ValueError(f"{_name(term)}: wanted a finite loss, got {float(loss.detach())}")


def _tokens() -> Tokens:
    num = ROWS * TOKENS
    return Tokens(
        row_N=torch.arange(ROWS).repeat_interleave(TOKENS),
        group_R=torch.tensor([0, 0, 1, 1]),
        num_groups=2,
        advantage_N=torch.tensor([1.0, -1.0, 0.5, -0.5]).repeat_interleave(TOKENS),
        weight_N=torch.full((num,), 1 / num),
        reward_R=torch.tensor([1.0, 0.0, 1.0, 0.0]),
        batch_rows=ROWS,
        batch_groups=2,
        source_R=torch.zeros(ROWS, dtype=torch.long),
        old_logp_N=torch.linspace(-2.9, -0.6, num),
        rollout_logp_N=torch.linspace(-2.9, -0.6, num),
        ref_logp_N=torch.linspace(-2.5, -0.7, num),
    )


def _try_credit(piece: Credit) -> None:
    scored = _scored()
    a_R = _called(
        piece, lambda: piece(scored.rewards.total_R, scored, PromptStore.of(["try:0", "try:1"], {}))
    )
    shape = np.shape(a_R)
    if shape != (ROWS,) or not np.isfinite(np.asarray(a_R, np.float64)).all():
        raise ValueError(f"{_name(piece)}: wanted [{ROWS}] finite numbers, one a row, got {a_R!r}")


def _scored() -> Scored:
    total_R = np.array([1.0, 0.0, 1.0, 0.0])
    return Scored(
        rollouts=tuple(_rollout(row // 2, row % 2) for row in range(ROWS)),
        rewards=Rewards(
            channels=("try",),
            reward_RK=total_R[:, None],
            weight_K=np.ones(1),
            total_R=total_R,
            accuracy_R=total_R,
        ),
        clock=Clock(step=0, total_steps=1, seed=0),
    )


def _rollout(group: int, member: int) -> Rollout:
    return Rollout(
        prompt=Prompt(id=f"try:{group}", text="1+1=", token_ids=(1,), answer="2"),
        group=group,
        member=member,
        training_prompt_ids=(1,),
        sampling_prompt_ids=(1,),
        response_ids=(2,) * TOKENS,
        guidance_len=0,
        loss_mask=np.ones(TOKENS, np.bool_),
        rollout_logp=np.full(TOKENS, -1.0, np.float32),
        text="2",
        finish_reason="stop",
        weight_version=0,
    )


def _called(piece: Piece, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except PieceError as error:
        raise ValueError(str(error)) from error


def _name(piece: Piece) -> str:
    function = vars(piece)["function"]
    return f"{piece.section}.own.function: {function if isinstance(function, str) else name_of(function)}"
