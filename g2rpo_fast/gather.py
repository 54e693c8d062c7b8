"""A step's rows: prompts chosen, asked for in rounds, sampled, scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from g2rpo_fast.assemble import Parts
from g2rpo_fast.order import Order
from g2rpo_fast.pieces import Clock, Scored
from g2rpo_fast.rollout.groups import plain_asks
from g2rpo_fast.rollout.sampled import SampledBatch
from g2rpo_fast.rounds import first_round, next_round
from g2rpo_fast.run_state import TrainState
from g2rpo_fast.step_metrics import staleness_metrics
from g2rpo_fast.types import Ask, Completion


def clock_of(parts: Parts, state: TrainState, *, ahead: int = 0, taken: int = 0) -> Clock:
    """Of the step after `state`, or `ahead` steps later, when `taken` more prompts were taken for those."""
    config = parts.config
    return Clock(
        step=state.step + ahead,
        total_steps=config.run.steps,
        seed=config.run.seed,
        cursor=state.cursor + taken,
        max_tokens=config.rollout.max_tokens,
        order=Order(
            seed=config.order_seed,
            shuffle=config.data.shuffle,
            level_P=parts.prompts.level_P,
            weights=config.data.weights,
            sizes=parts.prompts.sizes,
        ),
    )


def sample(parts: Parts, state: TrainState) -> SampledBatch:
    """The rows of the next step, all rounds of them."""
    clock = clock_of(parts, state)
    asks, count = first_asks(parts, state, clock)
    completions = parts.sampler.complete(asks, clock.step + 1, what=_what(clock))
    return _finished(parts, state, clock, asks, count, completions)


def sample_ahead(parts: Parts, state: TrainState, sampled: SampledBatch) -> Callable[[], SampledBatch]:
    """Starts sampling the step after the next, whose batch is `sampled`. The function returned waits for the
    first round, and samples those after it."""
    clock = clock_of(parts, state, ahead=1, taken=sampled.num_prompts)
    asks, count = first_asks(parts, state, clock)
    phase = parts.sampler.phase(_what(clock), asks)
    with phase:
        requests = parts.sampler.requests(asks, clock.step + 1)
        collect = parts.engine.submit(requests, parts.sampler.sampling, phase)

    def collected() -> SampledBatch:
        with phase:
            completions = collect()
        return _finished(parts, state, clock, asks, count, completions)

    return collected


def _what(clock: Clock) -> str:
    return f"step {clock.step + 1}: sampling"


def first_asks(
    parts: Parts, state: TrainState, clock: Clock, *, count: int | None = None, first_group: int = 0
) -> tuple[list[Ask], int]:
    """What the engine is asked first, by the state's memory, and for how many prompts."""
    config, recipe = parts.config, parts.recipe
    chosen = recipe.selection.choose(
        parts.prompts.prompts,
        state.store,
        clock,
        count=config.run.prompts_per_step if count is None else count,
        size=config.rollout.group_size,
    )
    plain = plain_asks(
        [c.prompt for c in chosen],
        [c.size for c in chosen],
        max_tokens=config.rollout.max_tokens,
        first_group=first_group,
    )
    return first_round(recipe.rounds, plain, state.memory, clock), len(chosen)


def _finished(
    parts: Parts,
    state: TrainState,
    clock: Clock,
    asks: list[Ask],
    count: int,
    completions: Sequence[Completion],
) -> SampledBatch:
    """The batch of the first round's answers, and of the rounds after it."""
    rounds = parts.recipe.rounds
    batch = SampledBatch(
        asks=asks,
        completions=list(completions),
        num_prompts=count,
        notes=parts.recipe.noted(state.memory, clock),
    )
    while parts.recipe.repeats:
        scored = _scored(parts, clock, batch)
        taken = [batch.num_prompts]

        def more(count: int, taken: list[int] = taken, first_group: int = scored.num_groups) -> list[Ask]:
            """First asks of the next prompts of the data."""
            later = replace(clock, cursor=clock.cursor + sum(taken))
            group = first_group + sum(taken[1:])
            new, number = first_asks(parts, state, later, count=count, first_group=group)
            taken.append(number)
            return new

        batch = replace(batch, rewards=scored.rewards)
        new = next_round(rounds, scored, state.memory, more)
        if not new:
            break
        answers = parts.sampler.complete(new, clock.step + 1, what=_what(clock))
        batch = batch.plus(new, answers, num_prompts=sum(taken))
    return batch


def _scored(parts: Parts, clock: Clock, batch: SampledBatch) -> Scored:
    """The batch's rows; those that have no rewards yet are scored now."""
    rollouts = parts.sampler.rollouts(batch.asks, batch.completions)
    rewards = batch.rewards
    if rewards is None or len(rewards.total_R) < len(rollouts):
        parts.rewards.place.step, parts.rewards.place.total_steps = clock.step, clock.total_steps
        rewards = parts.sampler.paid(rollouts, rewards, what=f"step {clock.step + 1}")
    return Scored(
        rollouts=tuple(rollouts),
        rewards=rewards,
        clock=clock,
        answer_of=parts.rewards.answer_of,
        texts_of=parts.sampler.texts_of,
    )


def score(parts: Parts, state: TrainState, sampled: SampledBatch) -> tuple[Scored, dict[str, float]]:
    """The rows of the next step with their rewards, and metrics of both."""
    before = parts.rewards.counts
    scored = _scored(parts, clock_of(parts, state), sampled)
    stats = staleness_metrics(scored.rollouts, state.weight_version)
    after = parts.rewards.counts
    counts = {f"reward/{name}": after[name] - before[name] for name in after}
    return scored, {**stats, **sampled.notes, **counts}
