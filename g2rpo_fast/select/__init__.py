"""Which prompts a step trains on, and how many rollouts each gets.

in_order        the order of the data, groups alike
vade            by how much a group would teach, drawn from a posterior of success     VADE
tracker         single rollouts of prompts whose outcome is uncertain                  SPO (single-stream)
knapsack        in order, sizes by the summed worth of all groups                      Knapsack RL
marginal_gain   in order, sizes one rollout at a time                                  V_0's allocation
"""

from g2rpo_fast.pieces import Selection
from g2rpo_fast.select.in_order import InOrder
from g2rpo_fast.select.knapsack import Knapsack
from g2rpo_fast.select.marginal_gain import MarginalGain
from g2rpo_fast.select.tracker import Tracker
from g2rpo_fast.select.vade import Vade

SELECTIONS: dict[str, type[Selection]] = {
    piece.use: piece for piece in (InOrder, Vade, Tracker, Knapsack, MarginalGain)
}

__all__ = ["SELECTIONS", "InOrder", "Knapsack", "MarginalGain", "Tracker", "Vade"]
