"""The `vllm` engine: vLLM in a process of its own, its weights sent through shared memory."""

from g2rpo_fast.rollout.vllm.config import VllmConfig
from g2rpo_fast.rollout.vllm.versions import require_vllm

__all__ = ["VllmConfig", "require_vllm"]
