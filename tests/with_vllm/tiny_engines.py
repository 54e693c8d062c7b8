"""A tiny model, the engines over it, and what its plain copy in transformers makes of a completion."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from g2rpo_fast.embedded.model import build_model
from g2rpo_fast.embedded.tokenizer import build_tokenizer
from g2rpo_fast.engine import prefill_tree, sampled_logp, text_decoder
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.head import head_of
from g2rpo_fast.model.load import select_tree_attention
from g2rpo_fast.rollout.local import LocalEngine
from g2rpo_fast.rollout.local.sampling import log_distribution
from g2rpo_fast.rollout.vllm import VllmConfig
from g2rpo_fast.rollout.vllm.engine import VllmEngine
from g2rpo_fast.types import Completion, Floats, Request, Sampling

TOKENIZER: Any = build_tokenizer("0123456789abcdefghijklmnopqrstuvwxyz +=")
VOCABULARY = len(TOKENIZER)


def tiny_model(seed: int = 0) -> Any:
    """Random, with logits far from uniform: a wrong weight shows."""
    model = build_model(vocab_size=VOCABULARY, seed=seed).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    return model


def trainer_of(plain: Any) -> Any:
    """A copy as the trainer holds it: it attends through trees."""
    model = copy.deepcopy(plain)
    select_tree_attention(model)
    return model


def change(model: Any, seed: int) -> None:
    """What an optimiser step does, only larger."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * parameter.std() * 0.1)


def vllm_engine(
    model: Any, directory: Path, *, show: Callable[[str], None] = print, max_rows: int = 64, **config: Any
) -> VllmEngine:
    """With generous start and memory that a small machine has."""
    return VllmEngine(
        model,
        TOKENIZER,
        VllmConfig(**{"kv_cache_mib": 64, **config}),
        logp=partial(sampled_logp, model, ModelConfig()),
        max_rows=max_rows,
        threads=1,
        log_path=directory / "vllm.log",
        show=show,
    )


def local_engine(model: Any) -> LocalEngine:
    return LocalEngine(
        model,
        prefill=partial(prefill_tree, model, ModelConfig()),
        head=head_of(model),
        decode=text_decoder(TOKENIZER),
    )


@torch.no_grad()
def plain_logp(plain: Any, request: Request, completion: Completion, sampling: Sampling) -> Floats:
    """Log-probabilities of a completion's tokens by transformers."""
    ids = request.prompt_ids + completion.token_ids
    logits_SV = plain(torch.tensor([ids])).logits[0, len(request.prompt_ids) - 1 : -1]
    logp_SV = log_distribution(logits_SV, sampling)
    return logp_SV.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0].numpy()


def prompts() -> list[tuple[int, ...]]:
    """Unshared, shared, guided by one trunk at three lengths (over a KV block too), one token."""
    rng = np.random.default_rng(1)
    stem, trunk = (tuple(rng.integers(0, VOCABULARY, n).tolist()) for n in (70, 40))
    other = tuple(rng.integers(0, VOCABULARY, 33).tolist())
    return [stem, stem + trunk[:5], stem + trunk, other, (*other[:30], 1, 2), (4,), stem + trunk[:12]]


def requests(num_each: int = 2, max_tokens: int = 24) -> list[Request]:
    return [
        Request(prompt_ids=prompt, max_tokens=max_tokens, seed=1000 * i + member)
        for member in range(num_each)
        for i, prompt in enumerate(prompts())
    ]


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def model_directories() -> set[str]:
    return {path.name for path in Path(tempfile.gettempdir()).glob("g2rpo-vllm-*")}
