"""Parameters into a slot: float32 masters to the arena's dtype, by foreach copies."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from g2rpo_fast.rollout.sync.manifest import Entry, Manifest

BUCKET_BYTES = 1 << 30
"""Source tensors held at once, if the iterator makes them as it goes: more only where one alone is larger."""


@torch.no_grad()
def copy_in(
    named_tensors: Iterable[tuple[str, Tensor]],
    manifest: Manifest,
    views: list[Tensor],
    device: torch.device,
) -> None:
    """Copies each tensor to its view, in any order, cast to its dtype: one foreach copy per GiB of tensors.

    `named_tensors` may make each full tensor when it is asked for (FSDP: `(name, parameter.full_tensor())` of
    a generator): at most `BUCKET_BYTES` of them, or one, are referenced at once. On a GPU the copies are
    enqueued on the current stream. ValueError names the tensor that is missing, unknown, repeated, of another
    shape, or not on `device`.
    """
    missing = dict.fromkeys(manifest.index)
    bucket: list[tuple[Tensor, Tensor]] = []
    held = 0
    for name, tensor in named_tensors:
        if name not in manifest.index:
            raise ValueError(f"arena: wanted the {len(views)} tensors it was made for, got another, {name}")
        if name not in missing:
            raise ValueError(f"arena: wanted each tensor once, got {name} twice")
        del missing[name]
        place = manifest.index[name]
        check(manifest.entries[place], tensor, device)
        bucket.append((views[place], tensor.detach()))
        held += tensor.nbytes
        if held >= BUCKET_BYTES:
            flush(bucket)
            bucket, held = [], 0
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"arena: wanted {len(views)} tensors, got all but {next(iter(missing))}{others}")
    flush(bucket)


def check(entry: Entry, tensor: Tensor, device: torch.device) -> None:
    if tuple(tensor.shape) != entry.shape:
        raise ValueError(f"{entry.name}: wanted shape {entry.shape}, got {tuple(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{entry.name}: wanted it on {device}, got it on {tensor.device}")
    if tensor.dtype != entry.dtype and not (tensor.is_floating_point() and entry.dtype.is_floating_point):
        raise ValueError(f"{entry.name}: wanted {entry.dtype}, got {tensor.dtype}")


def flush(bucket: list[tuple[Tensor, Tensor]]) -> None:
    """From a GPU to host memory the cast comes first, on the GPU: a copy would do it on the CPU."""
    sources = [
        tensor if tensor.device == view.device else tensor.to(view.dtype).contiguous()
        for view, tensor in bucket
    ]
    copy_all([view for view, _ in bucket], sources)


def copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Each source to its target: enqueued where a GPU takes part, done on a CPU."""
    if targets:
        torch._foreach_copy_(targets, sources, non_blocking=True)  # pyright: ignore[reportPrivateImportUsage]
