"""A trained model as a directory that plain transformers loads, and what could keep it from being written."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file

from g2rpo_fast.adapters.merged import has_adapters, whole
from g2rpo_fast.adapters.place import whole_base_of
from g2rpo_fast.model.config import ModelConfig

_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def export_dtype(path: str, config: ModelConfig) -> torch.dtype:
    """What `config.save_dtype` means for the model at `path`, which has been loaded.

    auto: the dtype that most of its weights are stored in; float32 where that is none of the three.
    """
    if config.save_dtype != "auto":
        return getattr(torch, config.save_dtype)
    file = cached_file(whole_base_of(path), CONFIG_NAME, local_files_only=True)
    assert file is not None
    sizes: Counter[torch.dtype | None] = Counter()
    for weights in Path(file).parent.glob("*.safetensors"):
        with safe_open(weights, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no dict)
                stored = opened.get_slice(name)
                sizes[_STORED.get(stored.get_dtype())] += torch.Size(stored.get_shape()).numel()
    declared = getattr(torch, str(json.loads(Path(file).read_text()).get("dtype")), None)
    found = sizes.most_common(1)[0][0] if sizes else declared
    return found if found is not None and found in _STORED.values() else torch.float32


def make_exportable(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Mends what transformers reads but refuses to write, yielding a line for each, and tries the writing.

    Raises:
        ValueError: something else of it cannot be written.
    """
    generation = model.generation_config
    if generation is not None and not _valid(generation):
        dropped = _without_flags_that_clash(model)
        yield (
            "warning: model.path: its generation_config.json has flags that transformers reads but does not "
            f"save ({', '.join(dropped)}); the trained model is saved without them"
        )
    with tempfile.TemporaryDirectory() as directory:
        try:
            write_small_files(Path(directory), model, tokenizer)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise ValueError(
                "model.path: wanted a model that can be saved, got one whose configuration or tokenizer "
                f"cannot: {' '.join(str(error).split())}"
            ) from error


def write_small_files(directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """All that belongs to a model but its weights: configuration, generation defaults, tokenizer."""
    model.config.save_pretrained(directory)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def export_model(
    directory: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    *,
    max_shard_size: str = "50GB",
) -> None:
    """Everything, floating-point weights as `dtype`, adapters merged into them; tied weights once. More than
    `max_shard_size` of weights are several files with an index."""
    cast: dict[int, torch.Tensor] = {}
    named = dict(whole(model, model.state_dict().items()))  # all alive: no two at one address by chance
    weights = {
        name: cast.setdefault(tensor.data_ptr(), tensor.to(dtype) if tensor.is_floating_point() else tensor)
        for name, tensor in named.items()
    }
    _without_weights(model).save_pretrained(directory, state_dict=weights, max_shard_size=max_shard_size)
    config = directory / CONFIG_NAME
    values = json.loads(config.read_text())
    config.write_text(json.dumps(_with_dtype(values, str(dtype).removeprefix("torch.")), indent=2) + "\n")
    tokenizer.save_pretrained(directory)


def _without_weights(model: PreTrainedModel) -> PreTrainedModel:
    """The model; of one with adapters, which transformers would save in its place, an empty plain one."""
    if not has_adapters(model):
        return model
    with torch.device("meta"):
        empty = type(model)(model.config)
    empty.generation_config = model.generation_config
    return empty


def _with_dtype(values: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A configuration whose own dtype, and that of the configurations in it, is `dtype`."""
    return {
        key: dtype
        if key == "dtype" and value is not None
        else _with_dtype(value, dtype)
        if isinstance(value, dict)
        else value
        for key, value in values.items()
    }


def _valid(config: GenerationConfig) -> bool:
    try:
        config.validate(strict=True)
    except ValueError:
        return False
    return True


def _without_flags_that_clash(model: PreTrainedModel) -> list[str]:
    """Resets the flags that are refused beside do_sample and num_beams as they are, which keeps what
    `generate` does; where that does not help, all but the token ids. Returns their names."""
    config = model.generation_config
    assert config is not None
    given = {k: v for k, v in config.to_diff_dict().items() if k not in ("transformers_version",)}
    mode = {k: given[k] for k in ("do_sample", "num_beams") if k in given}
    clash = [k for k in given if k not in mode and not _valid(_built({**mode, k: given[k]}))]
    kept = {k: v for k, v in given.items() if k not in clash}
    if not _valid(_built(kept)):
        kept = {k: v for k, v in given.items() if k.endswith("_token_id")}
    model.generation_config = _built(kept)
    return sorted(given.keys() - kept.keys())


def _built(values: dict[str, Any]) -> GenerationConfig:
    config = GenerationConfig()
    for name, value in values.items():
        setattr(config, name, value)
    return config
