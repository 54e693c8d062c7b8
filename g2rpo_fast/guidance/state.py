"""The controller's state: all that a checkpoint needs to continue the guidance length bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class GuidanceState:
    """Between two steps: the length that the next step uses, and what its controller remembers."""

    length: float
    """l of the next step, in the config's unit; not truncated."""
    step: int = 0
    """Steps finished."""
    history: tuple[float, ...] = ()
    """Accuracies, oldest first. `paper`: the last T. `official`: those of the present cycle of three.
    `windowed`: the previous window, then the present one as far as it goes. Schedules: none."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and a list, for JSON (which keeps every bit of a float)."""
        return {"length": self.length, "step": self.step, "history": list(self.history)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GuidanceState:
        """Inverse of `to_dict`. ValueError when keys are missing or unknown."""
        wanted = {"length", "step", "history"}
        if set(data) != wanted:
            raise ValueError(f"guidance state: wanted keys {sorted(wanted)}, got {sorted(data)}")
        return cls(
            length=float(data["length"]),
            step=int(data["step"]),
            history=tuple(float(accuracy) for accuracy in data["history"]),
        )
