"""Builds a run's parts from its configuration, or continues what its directory holds.

Everything a user can get wrong is checked here, before anything is spent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from g2rpo_fast.checkpoint import latest_checkpoint, load_checkpoint
from g2rpo_fast.config import Config
from g2rpo_fast.data import PromptSet, load_prompts
from g2rpo_fast.embedded import prepare
from g2rpo_fast.evaluate import Judge
from g2rpo_fast.guidance import GuidanceState, initial_state
from g2rpo_fast.learner import Learner
from g2rpo_fast.metrics import MetricsLog
from g2rpo_fast.model import head_of, load_model, load_tokenizer
from g2rpo_fast.optim import make_optimizer
from g2rpo_fast.rewards import load_rewards, score
from g2rpo_fast.rollout import LocalEngine, Prefill
from g2rpo_fast.run_directory import open_directory
from g2rpo_fast.types import Engine, Sampling


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that moves from step to step beside weights and optimiser: JSON in the checkpoint."""

    step: int = 0
    """Steps done."""
    cursor: int = 0
    """Prompts drawn since the start, over all epochs."""
    guidance: GuidanceState
    weight_version: int = 0
    bad_steps: int = 0
    """Updates in a row that were skipped."""
    best_accuracy: float | None = None
    best_step: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainState:
        return cls(**{**values, "guidance": GuidanceState.from_dict(values["guidance"])})


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the training loop works with."""

    config: Config
    directory: Path
    tokenizer: PreTrainedTokenizerBase
    prompts: PromptSet
    eval_prompts: PromptSet | None
    engine: Engine
    learner: Learner
    judge: Judge
    log: MetricsLog
    state: TrainState
    resumed: bool


def assemble(config: Config, show: Callable[[str], None]) -> Parts:
    """Loads or continues a run.

    Raises:
        ValueError: anything wrong in configuration, data or model, or a run directory that holds another run.
    """
    rewards = load_rewards(config.reward)
    directory, config = open_directory(config)
    torch.set_num_threads(config.run.threads or 1)
    paths = _paths(config, directory, show)
    tokenizer = load_tokenizer(paths[0])
    prompts = load_prompts(paths[1], config.data, tokenizer, split="train")
    eval_prompts = load_prompts(paths[2], config.data, tokenizer, split="eval") if paths[2] else None
    _check_lengths(config, prompts, eval_prompts, show)

    device = torch.device(_device(config.run.device))
    model = load_model(paths[0], config.model, device)
    optimizer = make_optimizer(model, config.optim)
    state = TrainState(guidance=initial_state(config.guidance))
    checkpoint = latest_checkpoint(directory / "checkpoints")
    if checkpoint is not None:
        state = TrainState.from_dict(load_checkpoint(checkpoint, model, optimizer))
    engine = local_engine(model, tokenizer, config)
    engine.sync(state.weight_version)
    return Parts(
        config=config,
        directory=directory,
        tokenizer=tokenizer,
        prompts=prompts,
        eval_prompts=eval_prompts,
        engine=engine,
        learner=Learner(
            model=model,
            optimizer=optimizer,
            reference=load_model(paths[0], config.model, device).requires_grad_(False)
            if config.objective.kl_coef
            else None,
            objective=config.objective,
            optim=config.optim,
            tree=config.tree,
            compute=config.model,
            temperature=config.rollout.temperature,
        ),
        judge=Judge(
            engine=engine,
            sampling=sampling_of(config, tokenizer),
            max_tokens=config.rollout.max_tokens,
            decode=partial(tokenizer.decode, skip_special_tokens=True),
            score=partial(score, rewards),
            seed=config.run.seed,
        ),
        log=MetricsLog(directory / "metrics.jsonl", last_step=state.step if checkpoint else -1),
        state=state,
        resumed=checkpoint is not None,
    )


def sampling_of(config: Config, tokenizer: PreTrainedTokenizerBase) -> Sampling:
    """Training's sampling distribution; the tokenizer's end token stops."""
    if tokenizer.eos_token_id is None:
        raise ValueError("model.path: wanted a tokenizer with an end-of-sequence token, got none")
    rollout = config.rollout
    return Sampling(
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        stop_token_ids=(tokenizer.eos_token_id,),
        stop_strings=rollout.stop_strings,
    )


def local_engine(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: Config) -> LocalEngine:
    """The in-process engine on the trainer's own weights; its prefill is the training tree's forward."""

    @torch.no_grad()
    def prefill(prefixes: list[tuple[int, ...]]) -> Prefill:
        return prefill_tree(model, prefixes, config)

    return LocalEngine(
        model,
        prefill=prefill,
        head=head_of(model),
        decode=partial(tokenizer.decode, skip_special_tokens=True),
        config=config.rollout,
    )


def _paths(config: Config, directory: Path, show: Callable[[str], None]) -> tuple[str, str, str | None]:
    """Model directory, training file, evaluation file."""
    if config.model.path is not None and config.data.path is not None:
        return config.model.path, config.data.path, config.data.eval_path
    made = prepare(directory / "embedded", config.embedded, seed=config.run.seed, report=show)
    return str(made.model_dir), str(made.train_path), str(made.eval_path)


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
