"""The learner: the policy's forward and log-probabilities, and the update that moves its weights."""

from g2rpo_fast.learner.micro import MicroBatch
from g2rpo_fast.learner.policy import Policy, Stream
from g2rpo_fast.learner.update import Learner, Passes

__all__ = ["Learner", "MicroBatch", "Passes", "Policy", "Stream"]
