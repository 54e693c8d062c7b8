"""Builds a run's parts from its configuration, or continues what its directory holds.

Everything a user can get wrong is checked here, before anything is spent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from g2rpo_fast.adapters import check_adapters
from g2rpo_fast.callbacks import Callbacks
from g2rpo_fast.checkpoint import (
    load_arrays,
    load_checkpoint,
    prune_checkpoints,
    undamaged_checkpoint,
)
from g2rpo_fast.config import Config, plain
from g2rpo_fast.cpu import keep_freed_memory
from g2rpo_fast.data.content import content_of
from g2rpo_fast.data.prompts import PromptSet, ReferenceCheck, load_prompts
from g2rpo_fast.data.render import with_chat_settled
from g2rpo_fast.engine import check_engine, make_engine, sampling_of, text_decoder
from g2rpo_fast.evaluate import Sampler
from g2rpo_fast.fingerprint import Fingerprint, fingerprint
from g2rpo_fast.interrupts import Interrupts
from g2rpo_fast.learner import Learner
from g2rpo_fast.loggers import LoggedRun, Loggers, check_installed, open_loggers
from g2rpo_fast.model.config import check_device
from g2rpo_fast.model.export import export_dtype
from g2rpo_fast.model.hook import follows_trees
from g2rpo_fast.model.replay import replay_of
from g2rpo_fast.model.vocabulary import load_tokenizer
from g2rpo_fast.models import find_device, load_policy, load_reference, token_budget
from g2rpo_fast.optim import check_optimizer, make_optimizer
from g2rpo_fast.origins import Origins, find_origins
from g2rpo_fast.paths import check_paths
from g2rpo_fast.progress import Progress
from g2rpo_fast.prompt_store import PromptStore
from g2rpo_fast.recipe import Recipe, recipe_of
from g2rpo_fast.rewards.loading import RewardSet, load_rewards
from g2rpo_fast.rewards.scoring import score
from g2rpo_fast.rollout.sampled import SampledBatch
from g2rpo_fast.run_directory import (
    RunDirectory,
    check_content,
    open_directory,
    removed_on_error,
    store_config,
    with_budget,
)
from g2rpo_fast.run_state import LastState, TrainState
from g2rpo_fast.step_log import StepLog
from g2rpo_fast.trial import try_own
from g2rpo_fast.types import Engine, Prompt, Sampling


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the training loop works with."""

    config: Config
    recipe: Recipe
    directory: Path
    tokenizer: PreTrainedTokenizerBase
    prompts: PromptSet
    eval_prompts: PromptSet | None
    rewards: RewardSet
    engine: Engine
    learner: Learner
    sampler: Sampler
    log: StepLog
    sample_log: StepLog
    loggers: Loggers
    state: TrainState
    """Where it begins."""
    sampled: SampledBatch | None
    """The next step's batch, where the checkpoint holds it."""
    last: LastState
    interrupts: Interrupts
    callbacks: Callbacks
    progress: Progress
    export_dtype: torch.dtype
    """Of the weights in `model/`."""
    resumed: bool
    lock: TextIO

    def close(self) -> None:
        """Ends the engine and lets other processes use the run directory."""
        self.engine.close()
        self.rewards.close()
        self.log.close()
        self.sample_log.close()
        self.loggers.close(finished=False)
        self.lock.close()


def assemble(config: Config, show: Callable[[str], None], progress: Progress | None = None) -> Parts:
    """Loads or continues a run.

    Raises:
        ValueError: anything wrong in configuration, data or model, or a run directory that holds another run
            or that another process uses. A directory made for it is removed, one that was there can be used.
    """
    check_paths(config)
    check_engine(config)
    check_adapters(config.adapter)
    check_installed(config.log.to)
    try_own(config.credit, config.terms)
    rewards = load_rewards(config.reward)
    _check_answers(recipe_of(config), rewards)
    device = find_device(config.run.device)
    check_optimizer(config.optim, torch.device(device).type)
    check_device(config.model, torch.device(device).type)
    run = open_directory(config, show)
    with removed_on_error(run):
        return _assembled(run, rewards, device, show, Progress() if progress is None else progress)


def _assembled(
    run: RunDirectory, rewards: RewardSet, device: str, show: Callable[[str], None], progress: Progress
) -> Parts:
    directory, config = run.path, run.config
    torch.set_num_threads(config.run.threads or 1)
    keep_freed_memory()
    origins = find_origins(config, directory, show, progress)
    tokenizer = load_tokenizer(origins.model_dir)
    config = replace(config, data=with_chat_settled(origins.train, config.data, tokenizer))
    with progress.phase("reading the data"):
        prompts, eval_prompts = _read(config, origins, tokenizer, rewards)
    both = (*prompts.prompts, *(eval_prompts.prompts if eval_prompts else ()))
    with progress.phase("loading the model"):
        model = load_policy(config, origins.model_dir, device, tokenizer, both, show)
    sampling = sampling_of(config, tokenizer, model)
    recipe = recipe_of(config)
    with progress.phase("loading the reference model"):
        reference = load_reference(config, recipe, origins.model_dir, model)
    optimizer = make_optimizer(model, config.optim)
    checkpoint = undamaged_checkpoint(directory / "checkpoints", show)
    state, sampled = _first_state(recipe, prompts), None
    if checkpoint is not None:
        made_by = config.optim.made_by(config.model.weights)
        values = load_checkpoint(checkpoint, model, optimizer, made_by=made_by, show=show)
        state, sampled = _continued(checkpoint, values, state, prompts)
        prune_checkpoints(checkpoint.parent, keep=config.checkpoint.keep, best_step=state.best_step)
    with progress.phase("reading what the run is made from, for its fingerprint"):
        content = _content(origins, referenced=reference is not None)
    check_content(run, content, step=state.step, show=show)
    with progress.phase("starting the rollout engine"):
        engine = _started(make_engine(model, tokenizer, config, directory=directory, show=show), state)
    config = _stored(run, config, model, both, engine, step=state.step)
    logged = state.step if state.unlogged is None else state.step - 1
    loggers = _loggers(config, directory, logged, engine, show)
    return Parts(
        config=config,
        recipe=recipe,
        directory=directory,
        tokenizer=tokenizer,
        prompts=prompts,
        eval_prompts=eval_prompts,
        rewards=rewards,
        engine=engine,
        learner=_learner(config, recipe, model, optimizer, reference),
        sampler=_sampler(config, engine, sampling, tokenizer, rewards, progress),
        log=StepLog(directory / "metrics.jsonl", last_step=logged),
        sample_log=StepLog(directory / "samples.jsonl", last_step=logged),
        loggers=loggers,
        state=state,
        sampled=sampled,
        last=LastState(state, sampled, optimizer),
        interrupts=Interrupts(show),
        callbacks=Callbacks(),
        progress=progress,
        export_dtype=export_dtype(origins.model_dir, config.model),
        resumed=checkpoint is not None,
        lock=run.lock,
    )


def _sampler(
    config: Config,
    engine: Engine,
    sampling: Sampling,
    tokenizer: PreTrainedTokenizerBase,
    rewards: RewardSet,
    progress: Progress,
) -> Sampler:
    return Sampler(
        engine=engine,
        sampling=sampling,
        max_tokens=config.rollout.max_tokens,
        decode=text_decoder(tokenizer),
        rewards=partial(score, rewards),
        seed=config.run.seed,
        progress=progress,
    )


def _loggers(
    config: Config, directory: Path, last_step: int, engine: Engine, show: Callable[[str], None]
) -> Loggers:
    """Those of `log.to`; the engine is closed where one refuses to begin."""
    run = LoggedRun(
        project=config.log.project,
        name=config.log.name or directory.name,
        directory=directory,
        settings=plain(config),
        last_step=last_step,
    )
    try:
        return open_loggers(config.log.to, run, show)
    except BaseException:
        engine.close()
        raise


def _read(
    config: Config, origins: Origins, tokenizer: PreTrainedTokenizerBase, rewards: RewardSet
) -> tuple[PromptSet, PromptSet | None]:
    """The prompts to train on, and those held out."""
    load = partial(load_prompts, config=config.data, tokenizer=tokenizer, checks=reference_checks(rewards))
    prompts = load(origins.train, split="train", trace_required=config.guidance.enabled)
    return prompts, load(origins.held_out, split="eval") if origins.held_out else None


def _content(origins: Origins, *, referenced: bool) -> Fingerprint:
    """What the run is made from; of a file that was converted, the file."""
    contents = [content_of(sources) for sources in (origins.train, origins.held_out) if sources]
    made_from = origins.made_from
    return fingerprint(made_from, *contents, reference_path=made_from if referenced else None)


def _started(engine: Engine, state: TrainState) -> Engine:
    """With the present weights; closed where it cannot be."""
    try:
        engine.sync(state.weight_version)
    except BaseException:
        engine.close()
        raise
    return engine


def _stored(
    run: RunDirectory,
    config: Config,
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    engine: Engine,
    *,
    step: int,
) -> Config:
    """With the size of micro-batches, which the run keeps; the engine is closed where that cannot be."""
    try:
        if config.tree.token_budget is None:
            config = with_budget(config, token_budget(config, model, prompts))
        store_config(run._replace(config=config), step=step)
    except BaseException:
        engine.close()
        raise
    return config


def _learner(
    config: Config,
    recipe: Recipe,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    reference: PreTrainedModel | None,
) -> Learner:
    return Learner(
        model=model,
        optimizer=optimizer,
        reference=reference,
        objective=config.objective,
        optim=config.optim,
        tree=config.tree.settled(follows_trees=follows_trees(model)),
        compute=config.model,
        temperature=config.rollout.temperature,
        comparable=not config.rollout.truncated,
        terms=recipe.terms,
        token_credit=recipe.token_credit,
        weights=recipe.weights,
        replay=replay_of(model) if config.objective.replay_routing else None,
    )


def _first_state(recipe: Recipe, prompts: PromptSet) -> TrainState:
    """Of a run that begins."""
    store = PromptStore.of([prompt.id for prompt in prompts.prompts], recipe.first_columns())
    return TrainState(memory=recipe.first_memory(), store=store, unlogged={})


def _continued(
    checkpoint: Path, values: dict[str, Any], first: TrainState, prompts: PromptSet
) -> tuple[TrainState, SampledBatch | None]:
    """The state that a checkpoint's `values` are of, and the batch that was sampled ahead."""
    arrays = load_arrays(checkpoint)
    return first.restored(values, arrays), SampledBatch.from_arrays(arrays, prompts.prompts)


def reference_checks(rewards: RewardSet) -> dict[str, ReferenceCheck]:
    """Of the rewards that can tell of a reference that no response would ever match."""
    named = zip(rewards.channels, rewards.functions, strict=True)
    found = {name: getattr(function, "check_reference", None) for name, function in named}
    return {name: check for name, check in found.items() if check is not None}


def _check_answers(recipe: Recipe, rewards: RewardSet) -> None:
    """Pieces that compare answers need a channel that finds them."""
    wanting = [f"{piece.section}.{piece.use}" for piece in recipe.pieces if piece.compares]
    if wanting and not rewards.finds_answers:
        raise ValueError(
            f"reward.accuracy: wanted a channel that finds final answers for {', '.join(wanting)} (math, "
            "exact_match, or a function with an attribute final_answer), got "
            f"{rewards.channels[rewards.accuracy_index]}"
        )
