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
from transformers import PreTrainedTokenizerBase

from g2rpo_fast.checkpoint import latest_checkpoint, load_arrays, load_checkpoint
from g2rpo_fast.config import Config
from g2rpo_fast.cpu import keep_freed_memory
from g2rpo_fast.data import PromptSet, load_prompts, read_texts
from g2rpo_fast.embedded import UNTRAINED, prepare, prepare_untrained
from g2rpo_fast.engine import check_engine, make_engine, sampling_of, text_decoder
from g2rpo_fast.evaluate import Judge
from g2rpo_fast.guidance import GuidanceState, initial_state
from g2rpo_fast.learner import Learner
from g2rpo_fast.metrics import MetricsLog
from g2rpo_fast.model import load_model, load_tokenizer
from g2rpo_fast.optim import make_optimizer
from g2rpo_fast.rewards import RewardSet, load_rewards, score
from g2rpo_fast.rollout.sampled import SampledBatch
from g2rpo_fast.run_directory import open_directory
from g2rpo_fast.types import Engine


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that moves from step to step beside weights and optimiser: JSON in the checkpoint."""

    step: int = 0
    """Steps done."""
    cursor: int = 0
    """Prompts trained on since the start, over all epochs."""
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
    rewards: RewardSet
    engine: Engine
    learner: Learner
    judge: Judge
    log: MetricsLog
    state: TrainState
    sampled: SampledBatch | None
    """The next step's batch, where the checkpoint holds it."""
    resumed: bool


def assemble(config: Config, show: Callable[[str], None]) -> Parts:
    """Loads or continues a run.

    Raises:
        ValueError: anything wrong in configuration, data or model, or a run directory that holds another run.
    """
    check_engine(config)
    rewards = load_rewards(config.reward)
    directory, config = open_directory(config)
    torch.set_num_threads(config.run.threads or 1)
    keep_freed_memory()
    paths = _paths(config, directory, show)
    tokenizer = load_tokenizer(paths[0])
    prompts = load_prompts(paths[1], config.data, tokenizer, split="train")
    eval_prompts = load_prompts(paths[2], config.data, tokenizer, split="eval") if paths[2] else None
    device = _device(config.run.device)
    model = load_model(paths[0], config.model, device)
    _check_lengths(config, prompts, eval_prompts, model.config.get_text_config().max_position_embeddings)
    optimizer = make_optimizer(model, config.optim)
    state = TrainState(guidance=initial_state(config.guidance))
    checkpoint = latest_checkpoint(directory / "checkpoints")
    arrays = None
    if checkpoint is not None:
        arrays = load_arrays(checkpoint)
        state = TrainState.from_dict(load_checkpoint(checkpoint, model, optimizer))
    engine = make_engine(model, tokenizer, config, directory=directory, show=show)
    engine.sync(state.weight_version)
    return Parts(
        config=config,
        directory=directory,
        tokenizer=tokenizer,
        prompts=prompts,
        eval_prompts=eval_prompts,
        rewards=rewards,
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
            comparable=not config.rollout.truncated,
        ),
        judge=Judge(
            engine=engine,
            sampling=sampling_of(config, tokenizer),
            max_tokens=config.rollout.max_tokens,
            decode=text_decoder(tokenizer),
            score=partial(score, rewards),
            seed=config.run.seed,
        ),
        log=MetricsLog(directory / "metrics.jsonl", last_step=state.step if checkpoint else -1),
        state=state,
        sampled=None if arrays is None else SampledBatch.from_arrays(arrays),
        resumed=checkpoint is not None,
    )


def _paths(config: Config, directory: Path, show: Callable[[str], None]) -> tuple[str, str, str | None]:
    """Model directory, training file, evaluation file."""
    if config.model.path is not None and config.data.path is not None:
        model_dir = config.model.path
        if model_dir == UNTRAINED:
            texts = read_texts(config.data.path, config.data)
            model_dir = str(prepare_untrained(directory / UNTRAINED, texts, seed=config.run.seed))
        return model_dir, config.data.path, config.data.eval_path
    made = prepare(directory / "embedded", config.embedded, seed=config.run.seed, report=show)
    return str(made.model_dir), str(made.train_path), str(made.eval_path)


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _check_lengths(config: Config, prompts: PromptSet, held_out: PromptSet | None, positions: int) -> None:
    """No sequence may outgrow the model."""
    both = (*prompts.prompts, *(held_out.prompts if held_out else ()))
    longest = max(both, key=lambda prompt: len(prompt.token_ids))
    wanted = positions - len(longest.token_ids)
    if config.rollout.max_tokens > wanted:
        raise ValueError(
            f"rollout.max_tokens: wanted at most {wanted} (the model has {positions} positions, prompt "
            f"{longest.id} takes {len(longest.token_ids)}), got {config.rollout.max_tokens}"
        )
