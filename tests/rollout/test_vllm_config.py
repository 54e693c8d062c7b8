"""What the vLLM engine refuses without vLLM: wrong settings, unsupported versions, a missing vLLM."""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.specifiers import SpecifierSet

from causal_types import tiny_model
from g2rpo_fast.adapters import AdapterConfig
from g2rpo_fast.adapters.attach import add_adapters
from g2rpo_fast.cli import main
from g2rpo_fast.config import config_from_dict
from g2rpo_fast.embedded.model import build_model
from g2rpo_fast.embedded.tokenizer import build_tokenizer
from g2rpo_fast.rollout.sync import Manifest
from g2rpo_fast.rollout.vllm import VllmConfig, require_vllm
from g2rpo_fast.rollout.vllm.engine import VllmEngine, check_apart, check_quantised
from g2rpo_fast.rollout.vllm.launch import engine_dtype, environment, make_launch, max_model_len
from g2rpo_fast.rollout.vllm.link import first_arena
from g2rpo_fast.rollout.vllm.probe import check_probe, probe_requests
from g2rpo_fast.rollout.vllm.versions import SUPPORTED
from g2rpo_fast.run_directory import open_directory, store_config
from g2rpo_fast.train import train
from g2rpo_fast.types import Completion, EngineError, Floats
from runs import tiny_config

CPU = torch.device("cpu")
without_vllm = pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")


@without_vllm
def test_a_missing_vllm_is_told_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "run"
    message = (
        r'rollout.engine = "vllm": wanted vLLM <0.33,>=0.20, got none.*g2rpo-fast\[vllm\].*make vllm-test'
    )
    with pytest.raises(ValueError, match=message):
        train(tiny_config(directory, rollout={"engine": "vllm"}))
    assert main(["train", "--rollout.engine", "vllm", "--run.dir", str(directory)]) == 2
    assert "make vllm-test" in capsys.readouterr().err
    assert not directory.exists()


def test_versions_are_a_range_that_ends() -> None:
    assert SUPPORTED.contains("0.20.0")
    assert SUPPORTED.contains("0.32.0")
    assert not SUPPORTED.contains("0.33.0")
    with pytest.raises(ValueError, match=r"wanted vLLM <0.1, got"):
        require_vllm(SpecifierSet("<0.1"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tensor_parallel": 0}, "vllm.tensor_parallel: wanted at least 1, got 0"),
        ({"kv_cache_mib": 0}, "vllm.kv_cache_mib: wanted at least 1, got 0"),
        ({"gpu_memory_utilization": 1.5}, "vllm.gpu_memory_utilization: wanted at most 1, got 1.5"),
        ({"stall_s": 0.0}, "vllm.stall_s: wanted above 0, got 0.0"),
        ({"rung": "plan", "quantization": "fp8"}, "vllm.rung: wanted auto or layerwise .* got plan"),
        ({"dtype": "float16"}, "vllm.dtype: .*float16"),
        (
            {"adapters": "lora"},
            r"vllm\.adapters: wanted merged with adapter\.kind = off \(.*\), got lora$",
        ),
        ({"adapters": "lora", "sleep": "all"}, r"vllm\.sleep: wanted off or kv with .* got all$"),
        ({"sleeep": "off"}, "unknown key vllm.sleeep; the nearest name is vllm.sleep"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_dict({"vllm": values})


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"kind": "dora"}, r"vllm\.adapters: wanted merged with adapter\.kind = dora \(.*\), got lora$"),
        ({"kind": "lora", "rank": 513}, r"vllm\.adapters: wanted merged .* here 513, got lora$"),
    ],
)
def test_adapters_that_vllm_cannot_compute_are_refused(adapter: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_dict({"vllm": {"adapters": "lora"}, "adapter": adapter})
    config_from_dict({"vllm": {"adapters": "merged"}, "adapter": adapter})
    config_from_dict({"vllm": {"adapters": "lora"}, "adapter": {"kind": "lora", "rank": 512}})


def test_vllm_has_room_for_one_adapter_of_the_models_shape(tmp_path: Path) -> None:
    model, tokenizer, config = build_model(vocab_size=20, seed=0), build_tokenizer("abc"), VllmConfig()
    apart = replace(config, adapters="lora")

    def arguments(config: VllmConfig) -> dict[str, Any]:
        launch = make_launch(model, tokenizer, config, max_rows=8)
        shutil.rmtree(launch.model_dir)
        return launch.llm

    with pytest.raises(ValueError, match=r"^vllm\.adapters: wanted merged for a model without adapters, got"):
        check_apart(model, apart)
    adapter = AdapterConfig(kind="lora", rank=33, targets=("q_proj", "down_proj"))
    add_adapters(model, adapter, base="", seed=0)
    got, plain = arguments(apart), arguments(config)
    assert plain.items() <= got.items()
    assert {name: got[name] for name in got.keys() - plain} == {
        "enable_lora": True,
        "max_loras": 1,
        "max_cpu_loras": 1,
        "max_lora_rank": 64,
        "lora_target_modules": ["down_proj", "q_proj"],
    }
    check_apart(model, apart)


def test_what_would_quantise_nothing_is_refused() -> None:
    """vLLM's int8 is of experts alone: a dense model would be sampled from in bfloat16, without a word."""
    only_experts = VllmConfig(quantization="int8_per_channel_weight_only")
    dense, experts = build_model(vocab_size=20, seed=0), tiny_model("qwen3_moe")
    with pytest.raises(ValueError, match=r"vllm\.quantization: wanted fp8, .* for a qwen3, .* got int8_per"):
        check_quantised(dense, only_experts)
    check_quantised(experts, only_experts)
    check_quantised(dense, VllmConfig(quantization="fp8"))
    check_quantised(dense, VllmConfig())


def test_sleep_needs_a_gpu_and_rows_fit_the_model(tmp_path: Path) -> None:
    model = build_model(vocab_size=20, seed=0)
    with pytest.raises(ValueError, match=r"vllm.sleep: wanted off on cpu .* got kv"):
        VllmEngine(
            model,
            build_tokenizer("abc"),
            VllmConfig(sleep="kv"),
            logp=lambda rows: [],
            max_rows=4,
            threads=1,
            log_path=tmp_path / "log",
            show=print,
        )
    assert max_model_len(model, VllmConfig()) == 512
    assert max_model_len(model, VllmConfig(max_model_len=100)) == 100
    with pytest.raises(ValueError, match=r"vllm.max_model_len: wanted at most 512 .* got 513"):
        max_model_len(model, VllmConfig(max_model_len=513))


def test_a_cpu_gets_float32_and_threads_shared_by_the_workers() -> None:
    assert engine_dtype(VllmConfig(), CPU) == torch.float32
    assert engine_dtype(VllmConfig(quantization="fp8"), CPU) == torch.bfloat16
    assert engine_dtype(VllmConfig(), torch.device("cuda")) == torch.bfloat16
    assert engine_dtype(VllmConfig(dtype="bfloat16"), CPU) == torch.bfloat16
    variables = environment(VllmConfig(tensor_parallel=2), CPU, threads=8)
    assert variables["OMP_NUM_THREADS"] == "4"
    assert environment(VllmConfig(threads=3), CPU, threads=8)["OMP_NUM_THREADS"] == "3"
    assert variables["TORCHDYNAMO_DISABLE"] == "1"
    assert "TORCHDYNAMO_DISABLE" not in environment(VllmConfig(), torch.device("cuda"), threads=1)


def test_the_model_directory_holds_no_weights() -> None:
    model = build_model(vocab_size=20, seed=0)
    launch = make_launch(model, build_tokenizer("abc"), VllmConfig(), max_rows=8)
    directory = Path(launch.model_dir)
    names = {path.name for path in directory.iterdir()}
    assert {"config.json", "tokenizer.json"} <= names
    assert not any(name.endswith((".safetensors", ".bin")) for name in names)
    assert launch.llm["load_format"] == "dummy"
    assert launch.llm["max_num_seqs"] == 8
    assert launch.llm["kv_cache_memory_bytes"] == 16 << 20  # 8 rows x 544 positions x 1 KiB need less
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


def test_a_run_may_be_continued_with_other_timeouts_only(tmp_path: Path) -> None:
    store_config(open_directory(tiny_config(tmp_path)))
    open_directory(tiny_config(tmp_path, vllm={"stall_s": 100.0, "kv_cache_mib": 99}))
    with pytest.raises(ValueError, match=r"vllm.dtype: wanted 'auto', got 'bfloat16'"):
        open_directory(tiny_config(tmp_path, vllm={"dtype": "bfloat16"}))


def _completion(logp: Floats) -> Completion:
    return Completion(token_ids=(1,) * len(logp), logp=logp, finish_reason="length", weight_version=0)


def test_the_probe_bounds_mean_and_maximum() -> None:
    requests = probe_requests(vocabulary=50, max_len=512)
    assert len({r.prompt_ids for r in requests}) == len(requests) == 4
    assert max(max(r.prompt_ids) for r in requests) > 40
    tiny = probe_requests(vocabulary=50, max_len=2)
    assert {len(r.prompt_ids) + r.max_tokens for r in tiny} == {2}

    logp = torch.linspace(-3, -1, 20).numpy()
    check_probe([_completion(logp)], [logp + np.float32(5e-5)], "float32")
    with pytest.raises(EngineError, match=r"got 0.0002 and 0.0002"):
        check_probe([_completion(logp)], [logp + np.float32(2e-4)], "float32")
    check_probe([_completion(logp)], [logp + np.float32(2e-4)], "bfloat16")
    spike = logp.copy()
    spike[3] += 2
    with pytest.raises(EngineError, match=r"\(bfloat16\), got 0.1 and 2"):
        check_probe([_completion(logp)], [spike], "bfloat16")
    check_probe([_completion(logp)], [spike], "quantised")
    with pytest.raises(EngineError, match="got nan"):
        check_probe([_completion(np.full_like(logp, np.nan))], [logp], "quantised")


def test_arena_that_cannot_be_made_names_each_refusal():
    too_large = Manifest.of([("w", torch.zeros(2**58, device="meta"))], torch.float32)
    with pytest.raises(EngineError, match=r"no arena of weights can be shared; memfd: .+"):
        first_arena(too_large, ("memfd",), CPU)
    arena, refused = first_arena(Manifest.of([("w", torch.zeros(3))], torch.float32), ("memfd",), CPU)
    assert (arena.kind, refused) == ("memfd", {})
    arena.close()
