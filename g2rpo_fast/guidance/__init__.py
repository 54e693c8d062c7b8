"""Guidance: how much of a ground-truth trace a rollout starts from (G2RPO-A, arXiv 2508.13023).

A guided member of a group samples `o_i = z[:l] + y_i`, `y_i ~ pi(.|q, z[:l])`; the share alpha of the members
that are guided, the guidance length l and the rule that moves l between steps are this package. Evaluation
never calls it: what is reported is what the model does alone.
"""

from g2rpo_fast.guidance.config import GuidanceConfig
from g2rpo_fast.guidance.controller import advance, controller_accuracy, initial_state, state_for
from g2rpo_fast.guidance.lengths import guidance_tokens, guided_lengths, num_guided_of
from g2rpo_fast.guidance.profile import PROFILE_FRACTIONS, ProfilePoint, is_clear, judge_profile
from g2rpo_fast.guidance.round import TracePrefix
from g2rpo_fast.guidance.state import GuidanceState

__all__ = [
    "PROFILE_FRACTIONS",
    "GuidanceConfig",
    "GuidanceState",
    "ProfilePoint",
    "TracePrefix",
    "advance",
    "controller_accuracy",
    "guidance_tokens",
    "guided_lengths",
    "initial_state",
    "is_clear",
    "judge_profile",
    "num_guided_of",
    "state_for",
]
