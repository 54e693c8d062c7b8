"""What the engine process is started with: vLLM's arguments, its environment, a model directory."""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from g2rpo_fast.adapters.beside import adapted_names
from g2rpo_fast.adapters.merged import adapter_config
from g2rpo_fast.backbone import num_positions
from g2rpo_fast.rollout.vllm.config import LORA_RANKS, VllmConfig
from g2rpo_fast.rollout.vllm.messages import Launch

WORKER = "g2rpo_fast.rollout.vllm.worker.WeightReceiver"
MODEL_PREFIX = "g2rpo-vllm-"
"""Of the names of temporary directories."""
CPU_BLOCK = 32
"""Tokens of a KV block: CPU kernels want multiples of 32, and what is shorter than a block is not shared."""
CPU_KV_BYTES = 4 << 30
CPU_BATCHED_TOKENS = 4096
"""Tokens that a CPU engine computes in one step, at least; more where one row can be longer."""


def engine_dtype(config: VllmConfig, device: torch.device) -> torch.dtype:
    """What `vllm.dtype` means on a device."""
    if config.dtype == "auto":
        half = device.type == "cuda" or config.quantization is not None
        return torch.bfloat16 if half else torch.float32
    return getattr(torch, config.dtype)


def dtype_name(dtype: torch.dtype) -> str:
    """As vLLM and configurations write it."""
    return str(dtype).removeprefix("torch.")


def make_launch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: VllmConfig, *, max_rows: int
) -> Launch:
    """Writes the model directory and gathers vLLM's arguments."""
    on_cpu = model.device.type == "cpu"
    max_len = max_model_len(model, config)
    llm: dict[str, Any] = {
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "dtype": dtype_name(engine_dtype(config, model.device)),
        "quantization": config.quantization,
        "tensor_parallel_size": config.tensor_parallel,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "max_model_len": max_len,
        "max_num_seqs": max_rows,
        "enforce_eager": config.enforce_eager or on_cpu,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",
        "worker_extension_cls": WORKER,
        "async_scheduling": False,  # a step's tokens are there when it returns: versions are exact
        "enable_sleep_mode": config.sleep != "off",
        "disable_log_stats": True,
    }
    if config.kv_cache_mib is not None:
        llm["kv_cache_memory_bytes"] = config.kv_cache_mib << 20
    elif on_cpu:
        llm["kv_cache_memory_bytes"] = _cpu_kv_bytes(model, max_len, max_rows)
    if on_cpu:
        llm["block_size"] = CPU_BLOCK
        # A seeded row whose tokens are computed in two steps makes vLLM rewind the row's generator, which
        # a CPU generator cannot do: the engine would die. So a row waits until all its tokens fit a step.
        llm["enable_chunked_prefill"] = False
        llm["max_num_batched_tokens"] = max(max_len, max_rows, CPU_BATCHED_TOKENS)
    if config.adapters == "lora":
        llm |= _lora_arguments(model)
    return Launch(model_dir=_model_directory(model, tokenizer), llm=llm)


def _lora_arguments(model: PreTrainedModel) -> dict[str, Any]:
    """Room for one adapter, at the adapted maps alone: each other one would cost time with every token."""
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_cpu_loras": 1,
        "max_lora_rank": next(rank for rank in LORA_RANKS if rank >= adapter_config(model).r),
        "lora_target_modules": adapted_names(model),
    }


def max_model_len(model: PreTrainedModel, config: VllmConfig) -> int:
    """Most tokens of one row.

    Raises:
        ValueError: `vllm.max_model_len` is beyond the model's positions.
    """
    positions = num_positions(model.config)
    if config.max_model_len is not None and config.max_model_len > positions:
        raise ValueError(
            f"vllm.max_model_len: wanted at most {positions} (the model's), got {config.max_model_len}"
        )
    return config.max_model_len or positions


def environment(config: VllmConfig, device: torch.device, *, threads: int) -> dict[str, str]:
    """Variables of the engine process."""
    values = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_COLOR": "0",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "HF_HUB_OFFLINE": "1",
        # A step of workers that are slow is no failure: the trainer tells slow from hung.
        "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "86400",
        "OMP_NUM_THREADS": str(max(1, (config.threads or threads) // config.tensor_parallel)),
    }
    if device.type == "cpu":
        # Dynamo would compile sampler helpers for 13 s; binding would put every engine on the same cores.
        values |= {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    elif device.index:
        values["CUDA_VISIBLE_DEVICES"] = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    return values


def _cpu_kv_bytes(model: PreTrainedModel, max_len: int, max_rows: int) -> int:
    """Room for all rows at full length, at most `CPU_KV_BYTES`, at least one row and 16 MiB."""
    text: Any = model.config.get_text_config()
    heads = text.num_key_value_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    row = 2 * 4 * text.num_hidden_layers * heads * width * (-(-max_len // CPU_BLOCK) + 1) * CPU_BLOCK
    return max(row, 16 << 20, min(row * max_rows, CPU_KV_BYTES))


def _model_directory(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """A temporary directory with all that vLLM reads of a model whose weights it is sent."""
    directory = tempfile.mkdtemp(prefix=MODEL_PREFIX)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
