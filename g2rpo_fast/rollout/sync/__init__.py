"""Weights from the trainer to a rollout engine in another process: one arena of two slots, exported once.

trainer    Arena.create -> address (plain JSON) -> per step: pack (one foreach copy) -> (slot, version)
engine     ArenaReader.open(address) -> CopyPlan.record(model's own loader) once
           -> per step: wait(slot, version), replay(slot) (one foreach copy)
"""

from g2rpo_fast.rollout.sync.arena import Arena, PackReport
from g2rpo_fast.rollout.sync.checksum import checksum
from g2rpo_fast.rollout.sync.manifest import Entry, Manifest
from g2rpo_fast.rollout.sync.memory import Kind
from g2rpo_fast.rollout.sync.plan import CopyPlan, PlanRefused
from g2rpo_fast.rollout.sync.reader import ArenaReader

__all__ = [
    "Arena",
    "ArenaReader",
    "CopyPlan",
    "Entry",
    "Kind",
    "Manifest",
    "PackReport",
    "PlanRefused",
    "checksum",
]
