"""Sides of the whole-step comparison on a GPU: one optimiser step on forced rollouts, and the rollout itself.

Ours runs a step's prefix trees through `Learner.update`. The padded side repeats prompts, as trainers without
sharing do: Hugging Face's model under SDPA, in micro-batches of as many tokens as ours, logits of the
completions alone, and Liger-Kernel's Triton GRPO loss, which overwrites the logits with their gradient; with
`fused`, Liger's RMSNorm, RoPE and SwiGLU too. Both: float32 weights, bfloat16 products, AdamW, the same rows
and weights.

Dimension key: P prompts, G group, R rows, N tokens of all rows.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from g2rpo_fast.engine import prefill_tree
from g2rpo_fast.learner import Learner
from g2rpo_fast.model import ModelConfig, compute_dtype
from g2rpo_fast.model.head import head_of
from g2rpo_fast.model.liger_ops import use_liger_ops
from g2rpo_fast.model.load import checkpoint_layers, fuse_ops, select_tree_attention
from g2rpo_fast.objective import ObjectiveConfig
from g2rpo_fast.objective.batch import TrainBatch
from g2rpo_fast.objective.terms import Clip
from g2rpo_fast.optim import OptimConfig, make_optimizer
from g2rpo_fast.rollout.local import LocalEngine
from g2rpo_fast.tree import TreeConfig
from g2rpo_fast.types import Request, Sampling, Sequences

LR = 1e-6
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"

Step = Callable[[], float]
"""One optimiser step; the gradient's norm."""

QWEN3_0_6B = {
    "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip
TINY = {
    "vocab_size": 503, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """P prompts of `prompt` tokens, `group` completions of `completion` tokens each."""

    prompts: int
    group: int
    prompt: int
    completion: int

    def __str__(self) -> str:
        return f"{self.prompts}x{self.group}_p{self.prompt}_c{self.completion}"

    @property
    def rows(self) -> int:
        return self.prompts * self.group

    @property
    def row_tokens(self) -> int:
        """Tokens that padded rows encode."""
        return self.rows * (self.prompt + self.completion)

    @property
    def tree_tokens(self) -> int:
        return self.prompts * (self.prompt + self.group * self.completion)


@dataclass(frozen=True)
class Rollouts:
    """Forced rows of a step."""

    shape: Shape
    prompt_PL: np.ndarray
    ids_RL: np.ndarray
    advantage_R: np.ndarray


def make_rollouts(shape: Shape, vocabulary: int) -> Rollouts:
    rng = np.random.default_rng(0)
    prompt_PL = rng.integers(5, vocabulary, (shape.prompts, shape.prompt))
    done_RL = rng.integers(5, vocabulary, (shape.rows, shape.completion))
    ids_RL = np.concatenate([np.repeat(prompt_PL, shape.group, 0), done_RL], 1)
    return Rollouts(shape, prompt_PL, ids_RL, rng.standard_normal(shape.rows))


def make_model(config: dict[str, int], *, fused: bool) -> Qwen3ForCausalLM:
    """Random float32 weights, the same on every side. `fused`: with Liger's norm, RoPE and SwiGLU, this
    instance alone (Liger's own patch is of the whole process)."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = Qwen3ForCausalLM(
            Qwen3Config(
                **config,  # pyright: ignore[reportArgumentType]
                tie_word_embeddings=True,
                max_position_embeddings=1 << 17,
                attn_implementation="sdpa",
            )
        )
    if fused:
        use_liger_ops(model)
    return model


def ours(
    config: dict[str, int],
    rollouts: Rollouts,
    *,
    attention: str,
    budget: int,
    fused: bool,
    checkpointing: bool = False,
) -> Step:
    model = make_model(config, fused=False)
    select_tree_attention(model)
    fuse_ops(model, "auto" if fused else "off")
    if checkpointing:
        checkpoint_layers(model)
    learner = Learner(
        model=model,
        optimizer=make_optimizer(model, OptimConfig(lr=LR)),
        reference=None,
        objective=ObjectiveConfig(),
        terms=(Clip(),),
        optim=OptimConfig(lr=LR),
        tree=TreeConfig(token_budget=budget),
        compute=ModelConfig(attention=attention),  # pyright: ignore[reportArgumentType]
        temperature=1.0,
    )
    return lambda: learner.update([_batch(rollouts)], lr=LR)["optim/grad_norm"]


def _batch(rollouts: Rollouts) -> TrainBatch:
    shape, (rows, length) = rollouts.shape, rollouts.ids_RL.shape
    trained_N = np.tile(np.arange(length) >= shape.prompt, rows)
    return TrainBatch(
        sequences=Sequences(
            ids_N=rollouts.ids_RL.ravel().astype(np.int32),
            ptr_R1=np.arange(rows + 1, dtype=np.int64) * length,
            trained_N=trained_N,
            group_R=np.repeat(np.arange(shape.prompts), shape.group).astype(np.int32),
        ),
        advantage_N=np.repeat(rollouts.advantage_R, length),
        weight_N=trained_N / (rows * shape.completion),
        rollout_logp_N=np.full(len(trained_N), np.nan, np.float32),
        rollout_R=np.arange(rows, dtype=np.int32),
        source_R=np.zeros(rows, np.int64),
        num_rollouts=rows,
        num_groups=shape.prompts,
    )


def padded(config: dict[str, int], rollouts: Rollouts, *, budget: int, fused: bool) -> Step:
    model = make_model(config, fused=fused)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), fused=True)
    ids_RL = torch.from_numpy(rollouts.ids_RL).to(DEVICE)
    advantage_R = torch.from_numpy(rollouts.advantage_R).to(DEVICE, torch.float32)
    completion, rows = rollouts.shape.completion, max(1, budget // ids_RL.shape[1])

    def step() -> float:
        for ids_BL, advantage_B in zip(ids_RL.split(rows), advantage_R.split(rows), strict=True):
            with torch.autocast(DEVICE, torch.bfloat16, enabled=ON_GPU):
                logits_BCV = model(ids_BL, logits_to_keep=completion + 1, use_cache=False).logits
            loss_of = _liger_loss if ON_GPU and _installed("liger_kernel") else _plain_loss
            loss = loss_of(logits_BCV, ids_BL[:, -completion:].contiguous(), advantage_B)
            (loss / (len(ids_RL) * completion)).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(norm)

    return step


def _liger_loss(logits_BCV: Tensor, ids_BC: Tensor, advantage_B: Tensor) -> Tensor:
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss

    loss_BC = triton_grpo_loss(
        logits=logits_BCV.contiguous(),
        old_logp=None,
        ref_logp=None,
        completion_ids=ids_BC,
        advantages=advantage_B,
        temperature=1.0,
        beta=0.0,
        eps_high=0.2,
        inplace=True,
    )[0]
    return loss_BC.sum()


def _plain_loss(logits_BCV: Tensor, ids_BC: Tensor, advantage_B: Tensor) -> Tensor:
    logp_BC = logits_BCV[:, :-1].float().log_softmax(-1).gather(-1, ids_BC[..., None])[..., 0]
    return -((logp_BC - logp_BC.detach()).exp() * advantage_B[:, None]).sum()


def rollout_local(config: dict[str, int], rollouts: Rollouts) -> Callable[[], int]:
    """`LocalEngine`; the tokens that it sampled."""
    model, compute = make_model(config, fused=False), ModelConfig()
    select_tree_attention(model)
    engine = LocalEngine(
        model,
        prefill=partial(prefill_tree, model, compute),
        head=head_of(model),
        decode=lambda ids: "",
        max_rows=512,
        compute_dtype=compute_dtype(model, compute),
    )
    shape = rollouts.shape
    requests = [
        Request(prompt_ids=tuple(prompt_L.tolist()), max_tokens=shape.completion, seed=p * shape.group + g)
        for p, prompt_L in enumerate(rollouts.prompt_PL)
        for g in range(shape.group)
    ]
    return lambda: sum(len(c.token_ids) for c in engine.generate(requests, Sampling()))


def rollout_generate(config: dict[str, int], rollouts: Rollouts) -> Callable[[], int]:
    """Hugging Face's `generate` on repeated prompts, bfloat16 weights."""
    model, shape = make_model(config, fused=False), rollouts.shape
    if ON_GPU:
        model = model.to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    ids_RL = torch.from_numpy(np.repeat(rollouts.prompt_PL, shape.group, 0)).to(DEVICE)

    @torch.no_grad()
    def run() -> int:
        out_RL = model.generate(  # pyright: ignore[reportCallIssue]
            ids_RL,
            attention_mask=torch.ones_like(ids_RL),
            do_sample=True,
            top_k=0,
            max_new_tokens=shape.completion,
            min_new_tokens=shape.completion,
            pad_token_id=0,
        )
        return out_RL[:, ids_RL.shape[1] :].numel()

    return run


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
