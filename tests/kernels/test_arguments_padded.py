"""What the ops on padded batches refuse, by the names that other trainers know.

Dimension key: B sequences, L positions of each, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from g2rpo_kernels import GRPOOptions, grpo_loss, grpo_loss_of_logps, token_logprobs

from op_arguments import GOOD, IDS, INF, NAN, OLD, B, D, L, T, V, fused, spoilt

WRONG: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (fused, {"_input": torch.ones(B, L + 1, D)}, r"_input: wanted \[2, 3, 'D'\], got \[2, 4, 4\]"),
    (fused, {"_input": torch.ones(B, L, D).long()}, "_input: wanted a floating dtype, got torch.int64"),
    (
        fused,
        {"lin_weight": torch.ones(V, D + 1)},
        r"lin_weight: wanted \['V', 4\], as wide as _input, got \[7, 5\]",
    ),
    (fused, {"lin_weight": torch.ones(V, D).int()}, "lin_weight: wanted a floating dtype, got torch.int32"),
    (fused, {"bias": torch.ones(V + 1)}, r"bias: wanted \[7\], got \[8\]"),
    (
        fused,
        {"selected_token_ids": IDS[:, 1:]},
        r"selected_token_ids: wanted \[2, 3\] int64 or int32, got \[2, 2\]",
    ),
    (fused, {"selected_token_ids": IDS.float()}, "selected_token_ids: .* int64 or int32, .* torch.float32"),
    (
        fused,
        {"selected_token_ids": spoilt(IDS, 9)},
        r"selected_token_ids: wanted values in \[0, 7\), got 0..9",
    ),
    (fused, {"attention_mask": torch.ones(B, 1)}, r"_input: wanted \[2, 1, 'D'\], got \[2, 3, 4\]"),
    (
        fused,
        {"attention_mask": torch.ones(B * L), "selected_token_ids": IDS.view(-1)},
        r"attention_mask: wanted \[B, L\], got \[6\]",
    ),
    (
        fused,
        {"advantages": torch.ones(3)},
        r"advantages: wanted \[2\], \[2, 1\] or \[2, 3\] floating, got \[3\] torch.float32",
    ),
    (
        fused,
        {"old_per_token_logps": OLD[:, 1:]},
        r"old_per_token_logps: wanted \[2, 3\] floating, got \[2, 2\]",
    ),
    (
        fused,
        {"old_per_token_logps": OLD.long()},
        "old_per_token_logps: wanted .* floating, got .* torch.int64",
    ),
    (
        fused,
        {"ref_per_token_logps": OLD[:, 1:], "settings": {"use_ref_model": True}},
        r"ref_per_token_logps: wanted \[2, 3\]",
    ),
    (
        fused,
        {"vllm_is_ratio": torch.ones(B, 2)},
        r"vllm_is_ratio: wanted \[2\], \[2, 1\] or \[2, 3\] floating",
    ),
    (fused, {"num_items_in_batch": torch.ones(2)}, r"num_items_in_batch: wanted one number, got \[2\]"),
    (fused, {"num_items_in_batch": 0}, "num_items_in_batch: wanted > 0 where tokens are counted, got 0"),
    (
        fused,
        {"num_items_in_batch": torch.tensor(-3)},
        "num_items_in_batch: wanted > 0 where tokens are counted, got -3",
    ),
    (fused, {"num_items_in_batch": -1.5}, "num_items_in_batch: wanted > 0, got -1.5"),
    (fused, {"num_items_in_batch": NAN}, "num_items_in_batch: wanted > 0, got nan"),
    (fused, {"settings": {"temperature": 0.0}}, "temperature: wanted > 0 and finite, got 0.0"),
    (fused, {"settings": {"temperature": -1.0}}, "temperature: wanted > 0 and finite, got -1.0"),
    (fused, {"settings": {"softcap": NAN}}, "softcap: wanted > 0 and finite, or None, got nan"),
    (
        fused,
        {"settings": {"epsilon_low": 1.0}},
        r"epsilon_low: wanted in \[0, 1\), as the clip is 1 - epsilon_low, got 1.0",
    ),
    (
        fused,
        {"settings": {"use_ref_model": True}},
        "ref_per_token_logps, ref_input with ref_weight: wanted one",
    ),
    (
        fused,
        {"advantages": spoilt(torch.ones(B), NAN, (1,))},
        "advantages: wanted finite, got nan at sequence 1, position 0, which attention_mask counts",
    ),
    (
        fused,
        {"old_per_token_logps": spoilt(OLD, NAN)},
        "old_per_token_logps: wanted finite, got nan at sequence 1, position 2",
    ),
    (
        fused,
        {"old_per_token_logps": spoilt(OLD, -INF)},
        "old_per_token_logps: wanted finite, got -inf at sequence 1, position 2",
    ),
    (
        fused,
        {"vllm_is_ratio": spoilt(-OLD, -0.5)},
        "vllm_is_ratio: wanted >= 0 and finite, got -0.5 at sequence 1, position 2",
    ),
    (
        fused,
        {"vllm_is_ratio": torch.tensor([1.0, NAN])},
        "vllm_is_ratio: wanted >= 0 and finite, got nan at sequence 1, position 0",
    ),
    (
        fused,
        {"ref_per_token_logps": spoilt(OLD, INF), "settings": {"use_ref_model": True}},
        "ref_per_token_logps: wanted finite, got inf",
    ),
    (
        grpo_loss,
        {"logits": torch.zeros(B, V)},
        r"logits, completion_ids, mask: wanted \[B, L, V\], \[B, L\] and \[B, L\]",
    ),
    (grpo_loss, {"logits": torch.zeros(B, L, V).long()}, "logits: wanted a floating dtype, got torch.int64"),
    (grpo_loss, {"completion_ids": IDS.float()}, "completion_ids: wanted int64 or int32, got torch.float32"),
    (grpo_loss, {"completion_ids": spoilt(IDS, -1)}, r"completion_ids: wanted values in \[0, 7\), got -1..0"),
    (
        grpo_loss,
        {"old_logp": spoilt(OLD, NAN)},
        "old_logp: wanted finite, got nan at sequence 1, position 2, which mask counts",
    ),
    (grpo_loss, {"advantages": None}, "advantages, rewards: wanted one of them"),
    (
        grpo_loss,
        {"advantages": None, "rewards": torch.ones(B), "group_size": 3},
        "group_size: wanted a divisor of 2",
    ),
    (
        grpo_loss,
        {"advantages": None, "rewards": torch.ones(3), "group_size": 1},
        r"rewards: wanted \[2\] or \[2, K\], got \[3\]",
    ),
    (
        grpo_loss,
        {"advantages": None, "rewards": torch.tensor([1.0, NAN]), "group_size": 2},
        "rewards: wanted finite, got nan at row 1, channel 0",
    ),
    (
        grpo_loss,
        {"advantages": None, "rewards": torch.ones(B), "group_size": 2, "scale_rewards": "std"},
        "scale_rewards: wanted one of .* got 'std'",
    ),
    (grpo_loss, {"temperature": -1.0}, "temperature: wanted > 0 and finite, got -1.0"),
    (grpo_loss, {"ref_logp": OLD}, "ref_logp: wanted if and only if beta is not 0, got a tensor"),
    (grpo_loss, {"impl": "cuda"}, "impl: wanted 'reference', 'cpu', 'triton' or None, got 'cuda'"),
    (grpo_loss_of_logps, {"logps": OLD[:, 1:]}, r"logps: wanted \[2, 3\], as mask is, got \[2, 2\]"),
    (grpo_loss_of_logps, {"logps": OLD.long()}, "logps: wanted a floating dtype, got torch.int64"),
    (grpo_loss_of_logps, {"entropies": torch.ones(B)}, r"entropies: wanted \[2, 3\], as mask is, got \[2\]"),
    (
        grpo_loss_of_logps,
        {"mask": torch.ones(T), "logps": torch.ones(T)},
        r"mask: wanted \[B, L\], got \[6\]",
    ),
    (
        grpo_loss_of_logps,
        {"importance_ratio": torch.tensor([-1.0, 1.0])},
        "importance_ratio: wanted >= 0 and finite, got -1 at sequence 0, position 0",
    ),
    (
        grpo_loss_of_logps,
        {"options": GRPOOptions(entropy_coef=0.1)},
        "entropies: wanted with entropy_coef=0.1, got None",
    ),
    (
        grpo_loss_of_logps,
        {"old_logp": spoilt(OLD, INF), "options": GRPOOptions(importance_sampling_level="sequence")},
        "old_logp: wanted finite, got inf",
    ),
    (
        grpo_loss_of_logps,
        {"importance_ratio": spoilt(-OLD, -1.0), "old_logp": OLD, "options": GRPOOptions(loss_type="vespo")},
        "importance_ratio: wanted >= 0 and finite, got -1",
    ),
    (
        grpo_loss_of_logps,
        {"importance_ratio": spoilt(-OLD, INF), "options": GRPOOptions(loss_type="vespo")},
        "importance_ratio: wanted >= 0 and finite, got inf",
    ),
    (token_logprobs, {"ids": IDS[:, 1:]}, r"ids: wanted \[2, 3\] or \[2, 3, 'J'\], got \[2, 2\]"),
    (token_logprobs, {"ids": IDS.float()}, "ids: wanted int64 or int32, got torch.float32"),
    (token_logprobs, {"ids": spoilt(IDS, 7)}, r"ids: wanted values in \[0, 7\), got 0..7"),
    (
        token_logprobs,
        {"ids": spoilt(IDS, 7)[..., None].expand(B, L, 2)},
        r"ids: wanted values in \[0, 7\), got 0..7",
    ),
    (token_logprobs, {"row_mask": torch.ones(B)}, r"row_mask: wanted \[2, 3\], got \[2\]"),
    (token_logprobs, {"temperature": 0}, "temperature: wanted > 0 and finite, got 0"),
    (token_logprobs, {"logits": torch.tensor(1.0)}, r"logits: wanted \[..., V\], got \[\]"),
]


@pytest.mark.parametrize(("op", "change", "message"), WRONG, ids=[f"{op.__name__}-{m}" for op, _, m in WRONG])
def test_wrong_arguments_are_named(op: Callable[..., Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as refused:
        op(**GOOD[op] | change)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"ref_input": torch.ones(B, L, D - 1)},
            r"ref_weight: wanted \['V', 3\], as wide as ref_input, got \[7, 4\]",
        ),
        ({"ref_input": torch.ones(B, 1, D)}, r"ref_input: wanted \[2, 3, 'D'\], got \[2, 1, 4\]"),
        ({"ref_bias": torch.ones(1)}, r"ref_bias: wanted \[7\], got \[1\]"),
        ({"ref_weight": torch.ones(V, D, device="meta")}, "ref_weight: wanted a tensor with values"),
        ({"ref_input": torch.full((B, L, D), NAN)}, "ref_input: wanted finite"),
        (
            {"selected_token_ids": spoilt(IDS, 6), "ref_weight": torch.ones(V - 1, D)},
            r"selected_token_ids: wanted values in \[0, 6\)",
        ),
    ],
)
def test_a_wrong_reference_model_is_named(change: dict[str, Any], message: str) -> None:
    given = {"ref_input": torch.ones(B, L, D), "ref_weight": torch.ones(V, D)}
    with pytest.raises(ValueError, match=f"^{message}"):
        fused(settings={"use_ref_model": True}, **GOOD[fused] | given | change)
