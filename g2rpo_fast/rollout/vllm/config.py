"""Settings of the `vllm` engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from g2rpo_fast.bounds import Ge, Gt, Le, check_fields

COLDEST = 0.01
"""vLLM raises lower temperatures to this one."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""That vLLM makes room for."""


OF_EXPERTS = "int8_per_channel_weight_only"
"""The quantisation by which vLLM leaves all linear maps as they are, but experts'."""


@dataclass(frozen=True, kw_only=True)
class VllmConfig:
    """vLLM in a process of its own; read when `rollout.engine` is vllm. Rows at once: `rollout.max_rows`."""

    tensor_parallel: Annotated[int, Ge(1)] = 1
    """Workers that the model is split over."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of vLLM's weights and products. auto = bfloat16 on CUDA or quantised, float32 on a CPU."""
    quantization: Literal["fp8", "fp8_per_channel", "int8_per_channel_weight_only"] | None = None
    """Quantise on every sync, by vLLM's own method of this name; None = off. The last one is of experts
    alone."""
    max_model_len: Annotated[int, Ge(2)] | None = None
    """Most tokens of prompt and response. None = the model's positions."""
    gpu_memory_utilization: Annotated[float, Gt(0), Le(1)] = 0.4
    """Share of the GPU that vLLM may take, weights included: trainer and engine share the card."""
    kv_cache_mib: Annotated[int, Ge(1)] | None = None
    """KV cache in MiB. None = what gpu_memory_utilization leaves; on a CPU what rollout.max_rows rows can
    fill, at most 4 GiB."""
    enforce_eager: bool = False
    """No compilation and no CUDA graphs: quicker start, slower decoding. Always so on a CPU."""
    threads: Annotated[int, Ge(1)] | None = None
    """CPU threads of the engine. None = run.threads: trainer and engine take turns. With run.ahead they work
    at the same time: give each a share of the cores."""
    sleep: Literal["off", "kv", "all"] = "off"
    """Given back during the update, CUDA only: off = nothing, kv = the KV cache, all = weights too."""
    rung: Literal["auto", "plan", "layerwise"] = "auto"
    """How weights enter vLLM. auto = the recorded copy plan where it is exact, else vLLM's layerwise reload.
    On a CPU auto means layerwise: a plan needs weights that vLLM has not packed, and packed ones decode 1.2
    to 1.9 times as fast, which outweighs what a plan saves."""
    adapters: Literal["merged", "lora"] = "merged"
    """How a model with adapters (adapter.kind = lora) gets there. merged = as whole weights at every sync.
    lora = the base once, then at every sync the adapters alone, which vLLM computes beside it: less to send,
    slower sampling."""
    checksum: bool = False
    """Have the engine verify a checksum of all weights sent, adapters apart from their base excepted."""
    start_timeout_s: Annotated[float, Gt(0)] = 600.0
    """Longest time that the engine process may do nothing (use no CPU time, and not be kept from it) while
    it starts: wait for a disk, a driver. Imports, memory profile, CUDA graphs are work, however long."""
    stall_s: Annotated[float, Gt(0)] = 25.0
    """The same while it generates; and in any phase longest time without CPU time or heartbeat, or with a
    process stopped, before it counts as hung. One that is slow or starved of CPU does not (`liveness.py`)."""
    sync_timeout_s: Annotated[float, Gt(0)] = 25.0
    """The same in a sync, from its command to its acknowledgement, and in a release."""

    def __post_init__(self) -> None:
        check_fields(self, "vllm")
        if self.quantization is not None and self.rung == "plan":
            raise ValueError(
                f"vllm.rung: wanted auto or layerwise with vllm.quantization = {self.quantization} (a copy "
                "plan cannot quantise), got plan"
            )
        if self.adapters == "lora" and self.sleep == "all":
            raise ValueError(
                "vllm.sleep: wanted off or kv with vllm.adapters = lora (which sends the base once), got all"
            )
