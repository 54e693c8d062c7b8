"""A decoding step on a GPU, as far as tensors without numbers can tell: dtypes fit, all stays on the device.

It takes a PyTorch with CUDA, but no GPU.

Dimension key: B rows, S stream positions, K KV heads, E head width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from g2rpo_fast.model.head import head_of
from g2rpo_fast.rollout.local import LocalEngine, Prefill
from g2rpo_fast.rollout.local.engine import _last_positions, _LogitsHead
from g2rpo_fast.rollout.local.families import plan_batches
from g2rpo_fast.rollout.local.sampling import draw
from local_engines import FUNCTIONAL, SAMPLING, engine_of, letters, plain_model, requests
from recorders import Eager


class OnDevice(TorchDispatchMode):
    """Refuses an operation that the host would have to wait for, or that reads the host's memory."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "equal"), name
        for x in (*args, *(out if isinstance(out, tuple) else (out,))):
            assert not isinstance(x, Tensor) or x.is_cuda or x.dim() == 0, name
        return out


def on_cuda(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(x.shape, dtype=dtype if x.is_floating_point() else x.dtype, device="cuda")


def moved(model: Any, dtype: torch.dtype) -> Any:
    """The model with parameters and buffers without numbers."""
    for module in model.modules():
        module.__dict__.pop("forward", None)
        for name, p in list(module._parameters.items()):
            if p is not None:
                module._parameters[name] = nn.Parameter(on_cuda(p, dtype), requires_grad=False)
        for name, buffer in list(module._buffers.items()):
            module._buffers[name] = on_cuda(buffer, torch.float32)
    return model


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="needs a build of PyTorch with CUDA")
@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "plain"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", FUNCTIONAL)
def test_steps_stay_on_the_device(name: str, dtype: torch.dtype, recorded: bool) -> None:
    plain = plain_model(name, dtype=torch.float32)
    some = requests(2)
    (batch,) = plan_batches([r.prompt_ids for r in some], 99)
    some = [some[i] for i in batch.waves[0]]
    encode = engine_of(plain)._prefill
    assert encode is not None
    real = encode([prefix for family in batch.families for prefix in family])
    with torch.inference_mode(), FakeTensorMode(allow_non_fake_inputs=True):
        keys = [(on_cuda(k_SKE, dtype), on_cuda(v_SKE, dtype)) for k_SKE, v_SKE in real.keys]
        prefill: Prefill = replace(real, keys=keys, hidden_SD=on_cuda(real.hidden_SD, torch.float32))
        model = moved(plain, torch.float32)
        engine = LocalEngine(
            model, prefill=lambda prefixes: prefill, head=head_of(model), decode=letters, compute_dtype=dtype
        )
        engine.decoder_name, engine._recorder = "functional", Eager() if recorded else None
        decoder = engine._decoder(some)
        cache = engine._cache(decoder, batch, prefill, some, _last_positions(batch, prefill, some))
        stepper, head = engine._stepper(decoder), _LogitsHead(engine._head, dtype)
        token_B = torch.zeros(len(some), dtype=torch.int64, device="cuda")
        uniform_B1 = torch.rand(len(some), 1, device="cuda")
        for rows in (None, np.array([0, 3, 5, 8])):
            if rows is not None:
                cache.keep(rows)
                token_B, uniform_B1 = token_B[: len(rows)], uniform_B1[: len(rows)]
            for step in range(4):
                cache.advance()
                if step == 0:  # lays out the calls of the prefix
                    stepper.step(token_B, cache)
                    continue
                with OnDevice():
                    hidden_BD = stepper.step(token_B, cache)
                    token_B1, logp_B1 = draw(head.logits(hidden_BD), uniform_B1, SAMPLING)
                assert (hidden_BD.dtype, logp_B1.dtype) == (torch.float32, torch.float32)
                assert token_B1.device.type == hidden_BD.device.type == "cuda"
                token_B = token_B1[:, 0]
    assert cache._kv[0][0].dtype == dtype
