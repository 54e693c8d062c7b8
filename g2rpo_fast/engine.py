"""The rollout engine of a run: the stage's engine, given what it needs of the model and its tree forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from g2rpo_fast.config import Config
from g2rpo_fast.learner import Policy, Stream
from g2rpo_fast.model import ModelConfig, compute_dtype
from g2rpo_fast.model.head import head_of
from g2rpo_fast.model.hook import follows_trees
from g2rpo_fast.model.recurrent.install import forks_states
from g2rpo_fast.model.routing import chosen_experts
from g2rpo_fast.model.routing_probe import check_routing
from g2rpo_fast.model.sequence import SequenceAttend
from g2rpo_fast.rollout.local import CudaRecorder, LocalEngine, Prefill
from g2rpo_fast.rollout.stop_ids import stop_token_ids
from g2rpo_fast.rollout.text_decoder import text_decoder
from g2rpo_fast.rollout.vllm import require_vllm
from g2rpo_fast.rollout.vllm.engine import VllmEngine
from g2rpo_fast.tree import TreeConfig, plan_trees
from g2rpo_fast.types import Engine, Floats, Sampling, Sequences


def check_engine(config: Config) -> None:
    """ValueError when the engine asked for cannot run here; before anything is spent."""
    if config.rollout.engine == "vllm":
        require_vllm()


def make_engine(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: Config,
    *,
    directory: Path,
    show: Callable[[str], None],
) -> Engine:
    """The engine that `rollout.engine` names; its first `sync` makes it ready.

    Args:
        directory: of the run, for the engine's log.
    """
    if config.rollout.engine == "local":
        engine = local_engine(model, tokenizer, config)
        if engine.decoder_name == "recomputing":
            show(
                f"rollouts: {model.config.model_type} has no cache that decodes exactly: every token is "
                "sampled from a forward over its whole row"
            )
        return engine
    return VllmEngine(
        model,
        tokenizer,
        config.vllm,
        logp=partial(sampled_logp, model, config.model),
        logp_dtype=compute_dtype(model, config.model),
        max_rows=config.rollout.max_rows,
        threads=config.run.threads or 1,
        log_path=directory / "vllm.log",
        show=show,
    )


def local_engine(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: Config) -> LocalEngine:
    """Samples in this process, on the trainer's own weights."""
    graphs = config.rollout.cuda_graph and model.device.type == "cuda"
    return LocalEngine(
        model,
        **forwards_of(model, config.model, recording=config.rollout.record_routing),
        head=head_of(model),
        decode=text_decoder(tokenizer),
        max_rows=config.rollout.max_rows,
        compute_dtype=compute_dtype(model, config.model),
        recorder=CudaRecorder(model.device) if graphs else None,
    )


def forwards_of(model: PreTrainedModel, config: ModelConfig, *, recording: bool = False) -> dict[str, Any]:
    """How the local engine runs a model: `prefill` and `keywords`; with `recording` also `experts`.

    A tree's prefill gives keys and values; a model that keeps more decodes by its own forward and cache.

    Raises:
        ValueError: a model whose choice of experts cannot be recorded.
    """
    experts = None
    if recording:
        check_routing(model)
        experts = partial(chosen_experts, model)
    if not follows_trees(model):
        return {"prefill": None, "experts": experts}
    if forks_states(model):
        return {"prefill": None, "keywords": {"attend": SequenceAttend()}, "experts": experts}
    return {"prefill": partial(prefill_tree, model, config, recording=recording), "experts": experts}


@torch.no_grad()
def prefill_tree(
    model: PreTrainedModel, config: ModelConfig, prefixes: list[tuple[int, ...]], *, recording: bool = False
) -> Prefill:
    """Encodes distinct prefixes as one prefix tree: prompts once, guidance trunks once."""
    ids_N = np.fromiter((i for prefix in prefixes for i in prefix), np.int32)
    sequences = Sequences(
        ids_N=ids_N,
        ptr_R1=np.cumsum([0, *map(len, prefixes)], dtype=np.int64),
        trained_N=np.zeros(len(ids_N), np.bool_),
        group_R=np.zeros(len(prefixes), np.int32),
    )
    (plan,) = plan_trees(sequences, whole=True)
    output = Policy(model, config).hidden(plan, collect_kv=True, chosen=recording)
    last_B = np.empty(len(prefixes), np.int32)
    last_B[plan.row_B] = plan.last_B
    return Prefill(
        position_S=plan.position_S,
        end_S=plan.end_S,
        last_B=last_B,
        keys=output.kv,
        hidden_SD=output.hidden_SD,
        chosen=output.chosen,
    )


def sampled_logp(
    model: PreTrainedModel, config: ModelConfig, rows: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
) -> list[Floats]:
    """Log-probabilities (nats, temperature 1) of each row's tokens after its prompt, as updates see them."""
    ids_N = np.fromiter((i for prompt, tokens in rows for i in prompt + tokens), np.int32)
    sequences = Sequences(
        ids_N=ids_N,
        ptr_R1=np.cumsum([0, *(len(prompt) + len(tokens) for prompt, tokens in rows)], dtype=np.int64),
        trained_N=np.concatenate([np.arange(len(p) + len(t)) >= len(p) for p, t in rows]),
        group_R=np.zeros(len(rows), np.int32),
    )
    tree = TreeConfig().settled(follows_trees=follows_trees(model))
    (plan,) = plan_trees(sequences, whole=True, min_saved=tree.min_saved)
    policy, stream = Policy(model, config), Stream.of(plan, model.device)
    logp_N = np.full(len(ids_N), np.nan)
    stream.scatter(policy.logp(stream).logp_T, logp_N)
    ends = sequences.ptr_R1[1:]
    return [logp_N[end - len(tokens) : end].astype(np.float32) for (_, tokens), end in zip(rows, ends)]


def sampling_of(
    config: Config, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None
) -> Sampling:
    """Training's sampling distribution, and what stops it: see `stop_token_ids`.

    Raises:
        ValueError: a stop token that the model does not have, or nothing that ends a response.
    """
    stop_ids = stop_token_ids(tokenizer, model, config.rollout.stop_token_ids)
    if not stop_ids and not config.rollout.stop_strings:
        raise ValueError(
            "model.path: wanted an end-of-sequence token of the tokenizer, generation_config.json or "
            "config.json (or rollout.stop_token_ids), got none: nothing would end a response"
        )
    return config.rollout.sampling(stop_ids)
