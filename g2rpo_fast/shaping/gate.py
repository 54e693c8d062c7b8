"""A channel that is paid only where another one is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from g2rpo_fast.pieces import Scored, Shaping
from g2rpo_fast.types import Rewards


@dataclass(frozen=True, kw_only=True)
class Gate(Shaping):
    """R_i,channel becomes 1[gate of i] R_i,channel: 0 where the gate is shut, or does not apply to the row.

    P-GRPO (arXiv 2508.05170): R = R_format + R_outcome + 1[R_outcome = 1] R_process. Evidence: notes (three
    sources that agree).
    """

    use = "gate"
    channel: str
    """What is paid behind the gate."""
    on: str | None = None
    """The channel that opens it where it pays more than 0; none = success by the channel of accuracy."""

    def channels(self) -> dict[str, str]:
        return {"channel": self.channel, **({} if self.on is None else {"on": self.on})}

    def __call__(self, scored: Scored) -> Rewards:
        rewards = scored.rewards
        gate_R = rewards.accuracy_R if self.on is None else rewards.channel(self.on)
        process_R = rewards.channel(self.channel)
        shut_R = ~(gate_R > 0) & ~np.isnan(process_R)
        return rewards.changed(self.channel, np.where(shut_R, 0.0, process_R))
