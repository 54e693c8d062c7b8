"""The `local` engine: completions sampled in the trainer's process, on the trainer's own weights."""

from g2rpo_fast.rollout.local.engine import LocalEngine
from g2rpo_fast.rollout.local.graph_decoder import CudaRecorder
from g2rpo_fast.rollout.local.prefill import Prefill

__all__ = ["CudaRecorder", "LocalEngine", "Prefill"]
