"""The training loop: guidance → rollout → rewards → advantage → tree → update → sync, one step at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from g2rpo_fast.assemble import Parts, TrainState, assemble
from g2rpo_fast.checkpoint import prune_checkpoints, save_checkpoint
from g2rpo_fast.config import Config
from g2rpo_fast.console import Console
from g2rpo_fast.data import batch_indices
from g2rpo_fast.evaluate import evaluate, guidance_profile
from g2rpo_fast.guidance import advance, controller_accuracy, guided_lengths, judge_profile
from g2rpo_fast.metrics import Phases
from g2rpo_fast.objective import advantages_of
from g2rpo_fast.objective.batch import TrainBatch, make_batch, split_groups
from g2rpo_fast.optim import learning_rate
from g2rpo_fast.rewards import RewardError
from g2rpo_fast.rollout.groups import sample_groups
from g2rpo_fast.step_metrics import rollout_metrics
from g2rpo_fast.types import Bools, Doubles, EngineError, Prompt, Rewards, Rollout


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished run leaves."""

    directory: Path
    model_dir: Path
    """In transformers' format: `AutoModelForCausalLM.from_pretrained` loads it."""
    metrics_path: Path
    best_accuracy: float | None
    """Best evaluation accuracy."""


def train(config: Config, *, show: Callable[[str], None] = print) -> TrainResult:
    """Trains, or continues the run that `config.run.dir` holds.

    Raises:
        ValueError: wrong configuration, data or model; nothing was spent.
        RewardError, EngineError: a reward function or the rollout engine failed; a checkpoint of the last
            finished step was saved.
        FloatingPointError: too many updates in a row had a non-finite gradient; likewise saved.
    """
    parts = assemble(config, show)
    with closing(parts.engine):
        console = Console(parts, show)
        console.start()
        if not parts.resumed:
            before_training(parts, console)
        state = parts.state
        while state.step < parts.config.run.steps:
            state = train_step(parts, state, console)
        return finish(parts, state, console)


def train_step(parts: Parts, state: TrainState, console: Console) -> TrainState:
    """One step; returns the state after it, which is logged and, when due, saved."""
    config, phases = parts.config, Phases()
    prompts = next_prompts(parts, state)
    with saved_on_error(parts, state):
        with phases("rollout"):
            rollouts = roll_out(parts, state, prompts)
        with phases("reward"):
            abandoned = parts.rewards.num_abandoned
            rewards = parts.judge.score(rollouts)
            abandoned = parts.rewards.num_abandoned - abandoned
    group_R = np.asarray([r.group for r in rollouts], np.int32)
    advantage_R = advantages_of(config.objective, rewards.reward_RK, group_R, rewards.weight_K)
    lr = learning_rate(config.optim, state.step, config.run.steps)
    with phases("update"):
        parts.engine.release()
        stats = parts.learner.update(train_batches(config, rollouts, advantage_R), lr=lr)
    with phases("sync"):
        parts.engine.sync(state.weight_version + 1)
    stats |= rollout_metrics(rollouts, rewards, advantage_R)
    stats |= {"guidance/length": state.guidance.length, "reward/abandoned": abandoned}
    state = next_state(config, state, rollouts, rewards, skipped=int(stats["optim/skipped"]))
    with phases("evaluate"):
        stats |= evaluation(parts, state)
    state = with_best(state, stats.get("eval/accuracy"))
    stats |= parts.engine.metrics()
    record = {"optim/lr": lr, **stats, **{f"time/{name}_s": s for name, s in phases.seconds().items()}}
    parts.log.write(state.step, record)
    console.step(state.step, record)
    if state.step in (config.run.steps, state.best_step) or state.step % config.checkpoint.every == 0:
        save(parts, state)
    stop_when_broken(parts, state, prompts)
    return state


def before_training(parts: Parts, console: Console) -> None:
    """The guidance profile, and accuracy before the first step."""
    config = parts.config
    if config.guidance.enabled and config.evaluate.profile_prompts:
        points = guidance_profile(
            parts.judge, parts.prompts.prompts, config.evaluate, reserve=config.guidance.reserve
        )
        warnings = judge_profile(points)
        console.profile(points, warnings)
        record = {"points": [vars(p) for p in points], "warnings": warnings}
        (parts.directory / "guidance_profile.json").write_text(json.dumps(record, indent=1))
    stats = evaluation(parts, parts.state)
    parts.log.write(0, stats)
    console.evaluation(0, stats)


def next_prompts(parts: Parts, state: TrainState) -> list[Prompt]:
    """The step's prompts: a pure function of the cursor."""
    data, prompts = parts.config.data, parts.prompts.prompts
    count = parts.config.run.prompts_per_step
    return [prompts[i] for i in batch_indices(len(prompts), state.cursor, count, data.seed, data.shuffle)]


def roll_out(parts: Parts, state: TrainState, prompts: Sequence[Prompt]) -> list[Rollout]:
    """One group for each prompt, its guided members starting from the trace."""
    config = parts.config
    lengths = guided_lengths(
        config.guidance,
        state.guidance,
        trace_lens=[len(p.trace_ids) for p in prompts],
        group_sizes=[config.rollout.group_size] * len(prompts),
        max_tokens=config.rollout.max_tokens,
    )
    return sample_groups(
        parts.engine,
        prompts,
        lengths,
        sampling=parts.judge.sampling,
        max_tokens=config.rollout.max_tokens,
        seed=config.run.seed,
        step=state.step + 1,
        decode=parts.judge.decode,
        guidance_in_loss=config.guidance.in_loss,
    )


def train_batches(config: Config, rollouts: Sequence[Rollout], advantage_R: Doubles) -> list[TrainBatch]:
    """The batch of each optimiser step of a pass."""
    objective = config.objective
    return [
        make_batch(
            rollouts,
            indices,
            advantage_R,
            aggregation=objective.aggregation,
            constant_length=objective.constant_length or config.rollout.max_tokens,
            keep_all=bool(objective.kl_coef or objective.entropy_coef),
        )
        for indices in split_groups(rollouts, config.optim.minibatches)
    ]


def next_state(
    config: Config, state: TrainState, rollouts: Sequence[Rollout], rewards: Rewards, *, skipped: int
) -> TrainState:
    guided_R: Bools = np.asarray([r.guided for r in rollouts])
    guidance = state.guidance
    if config.guidance.enabled:
        accuracy = controller_accuracy(config.guidance, rewards.accuracy_R, guided_R)
        guidance = advance(config.guidance, guidance, accuracy, total_steps=config.run.steps)
    return replace(
        state,
        step=state.step + 1,
        cursor=state.cursor + config.run.prompts_per_step,
        guidance=guidance,
        weight_version=state.weight_version + 1,
        bad_steps=state.bad_steps + skipped if skipped else 0,
    )


def evaluation(parts: Parts, state: TrainState) -> dict[str, float]:
    """Held-out metrics when they are due: before the first step, every so often, after the last."""
    config = parts.config.evaluate
    due = config.every and (state.step % config.every == 0 or state.step == parts.config.run.steps)
    if not due or parts.eval_prompts is None:
        return {}
    return evaluate(parts.judge, parts.eval_prompts.prompts, config)


def with_best(state: TrainState, accuracy: float | None) -> TrainState:
    if accuracy is None or (state.best_accuracy is not None and accuracy <= state.best_accuracy):
        return state
    return replace(state, best_accuracy=accuracy, best_step=state.step)


def save(parts: Parts, state: TrainState) -> None:
    directory = parts.directory / "checkpoints"
    save_checkpoint(directory, state.step, parts.learner.model, parts.learner.optimizer, state.to_dict())
    prune_checkpoints(directory, keep=parts.config.checkpoint.keep, best_step=state.best_step)


@contextmanager
def saved_on_error(parts: Parts, state: TrainState) -> Iterator[None]:
    """Before the update weights and state agree: a reward or engine that fails then loses nothing."""
    try:
        yield
    except (RewardError, EngineError):
        save(parts, state)
        raise


def stop_when_broken(parts: Parts, state: TrainState, prompts: Sequence[Prompt]) -> None:
    if state.bad_steps < parts.config.optim.max_bad_steps:
        return
    save(parts, state)
    raise FloatingPointError(
        f"step {state.step}: {state.bad_steps} updates in a row had a non-finite gradient and were skipped; "
        f"the last one's prompts: {', '.join(p.id for p in prompts)}. The state is saved in {parts.directory}"
    )


def finish(parts: Parts, state: TrainState, console: Console) -> TrainResult:
    """Saves the model in transformers' format, whole or not at all."""
    model_dir = parts.directory / "model"
    temporary = parts.directory / "writing_model"
    shutil.rmtree(temporary, ignore_errors=True)
    parts.learner.model.save_pretrained(temporary)
    parts.tokenizer.save_pretrained(temporary)
    shutil.rmtree(model_dir, ignore_errors=True)
    temporary.rename(model_dir)
    parts.log.close()
    console.finish(model_dir)
    return TrainResult(
        directory=parts.directory,
        model_dir=model_dir,
        metrics_path=parts.directory / "metrics.jsonl",
        best_accuracy=state.best_accuracy,
    )
