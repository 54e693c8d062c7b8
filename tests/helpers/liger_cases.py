"""Problems for Liger's kernels in the place of transformers' modules: on a GPU, and in Triton's interpreter.

Dimension key: N rows, D width, B sequences, S positions, H / K query / KV heads, E head width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

from budget import assert_within_budget, draws
from g2rpo_fast.model import liger_ops
from g2rpo_fast.model.forward import tree_hidden
from g2rpo_fast.model.instances import use_forwards
from g2rpo_fast.model.load import select_tree_attention
from g2rpo_fast.tree import plan_trees
from g2rpo_fast.types import Sequences

KINDS = (LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config)
SHAPE: dict[str, Any] = {
    "vocab_size": 29, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip
EPS = 1e-6

Function = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """A formula, transformers' code for it, Liger's, and what they are given."""

    exact: Function
    theirs: Function
    ours: Function
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...] = ()


def normal(seed: int, *shape: int) -> Tensor:
    """Values that bfloat16 holds exactly."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float()


def exact_norm(x: Tensor, weight_D: Tensor) -> Tensor:
    return weight_D * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS))


def their_norm(x: Tensor, weight_D: Tensor) -> Tensor:
    return functional_call(Qwen3RMSNorm(len(weight_D), EPS), {"weight": weight_D}, (x,))


def norm_case(num_rows: int, width: int) -> Case:
    x = normal(0, num_rows, width) * torch.logspace(-2, 2, num_rows).bfloat16().float()[:, None]
    return Case(exact_norm, their_norm, partial(liger_ops.rms_norm, eps=EPS), (x, normal(1, width)))


def gated(gate: Tensor, up: Tensor) -> Tensor:
    return torch.nn.functional.silu(gate) * up


def swiglu_case(num_rows: int, width: int) -> Case:
    inputs = (4 * normal(2, num_rows, width), normal(3, num_rows, width))
    return Case(gated, gated, liger_ops.swiglu, inputs)


def rope_case(batch: int, length: int, heads: tuple[int, int], width: int, *, one_batch: bool) -> Case:
    """Queries and keys as attentions have them: transposed views of [B, S, heads, E]."""
    inputs = tuple(normal(4 + h, batch, length, h, width) for h in heads)
    angle = normal(9, 1 if one_batch else batch, length, width // 2)
    angle = torch.cat([angle, angle], -1)

    def of_views(rotate: Function) -> Function:
        def run(q_BSHE: Tensor, k_BSKE: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
            q, k = q_BSHE * 1, k_BSKE * 1  # as a projection's output: Liger writes over it
            return rotate(q.transpose(1, 2), k.transpose(1, 2), cos, sin)

        return run

    plain = of_views(apply_rotary_pos_emb)
    return Case(plain, plain, of_views(liger_ops.rope), inputs, (angle.cos(), angle.sin()))


def value_and_gradients(function: Function, inputs: Sequence[Tensor], constants: Sequence[Tensor]) -> Any:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outs = function(*(x * 1 for x in leaves), *constants)
    outs = outs if isinstance(outs, tuple) else (outs,)
    upstream = [normal(20 + i, *out.shape).to(out) for i, out in enumerate(outs)]
    return [*(x.detach() for x in outs), *torch.autograd.grad(outs, leaves, upstream)]


def check_case(case: Case, dtype: torch.dtype, device: str) -> None:
    """Inputs in `dtype`; norm weights, cosines and sines in float32, as under autocast."""
    dtypes = (dtype, torch.float32) if case.theirs is their_norm else (dtype, dtype)
    inputs = [x.to(device, d) for x, d in zip(case.inputs, dtypes, strict=True)]
    constants = [x.to(device) for x in case.constants]
    truth = value_and_gradients(case.exact, [x.double() for x in inputs], [x.double() for x in constants])
    theirs = draws(lambda: value_and_gradients(case.theirs, inputs, constants))
    got = value_and_gradients(case.ours, inputs, constants)
    assert all(x.dtype == inputs[0].dtype for x in got[: len(got) - len(inputs)])
    assert_within_budget(got, theirs, truth, dtype=dtype)


def branches() -> Sequences:
    """Three rows of one group: 3 4 5 6 is shared, then 7 8 by two of them."""
    ids = [[3, 4, 5, 6, 7, 8, 9, 2], [3, 4, 5, 6, 7, 8, 11, 12, 2], [3, 4, 5, 6, 13, 2]]
    return Sequences(
        ids_N=np.array([i for row in ids for i in row], np.int32),
        ptr_R1=np.cumsum([0, *map(len, ids)], dtype=np.int64),
        trained_N=np.array([place >= 4 for row in ids for place in range(len(row))]),
        group_R=np.zeros(3, np.int32),
    )


def tiny(kind: type, device: str = "cpu") -> PreTrainedModel:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(kind(**SHAPE), dtype=torch.float32)
    for name, p in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(p, mean=1.0, std=0.2)
    select_tree_attention(model)
    return model.to(device)


def hidden_and_gradients(model: PreTrainedModel, dtype: torch.dtype) -> list[Tensor]:
    """Of a tree forward with products in `dtype`."""
    (plan,) = plan_trees(branches())
    model.zero_grad()
    with torch.autocast(model.device.type, dtype, enabled=dtype in (torch.bfloat16, torch.float16)):
        hidden_SD = tree_hidden(model, plan, attention="reference").hidden_SD
    upstream = torch.linspace(-1, 1, hidden_SD.numel(), device=model.device, dtype=hidden_SD.dtype)
    (hidden_SD * upstream.view_as(hidden_SD)).sum().backward()
    return [hidden_SD.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def check_model(kind: type, dtype: torch.dtype, device: str) -> None:
    """The whole of a tiny model, trained through a tree: hidden states and every gradient."""
    model = tiny(kind, device)
    exact, ours = copy.deepcopy(model).double(), copy.deepcopy(model)
    plain_mlp = lambda self, x: type(self).forward(self, x)  # noqa: E731
    use_forwards(exact, norm=lambda self, x: exact_norm(x, self.weight), mlp=plain_mlp)
    num_norms = 5 if kind is Qwen3Config else 3
    assert liger_ops.use_liger_ops(ours) == 2 * (num_norms + 1) + 1
    truth = hidden_and_gradients(exact, torch.float64)
    # Many values: the worst of them needs more draws than one value does.
    theirs = draws(lambda: hidden_and_gradients(model, dtype), num=24)
    assert_within_budget(hidden_and_gradients(ours, dtype), theirs, truth, dtype=dtype)
