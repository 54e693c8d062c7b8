"""What sections and pieces must be to each other. Each check raises ValueError, one line, naming the key."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from g2rpo_fast.embedded import UNTRAINED
from g2rpo_fast.guidance import num_guided_of
from g2rpo_fast.rollout.vllm.config import COLDEST, LORA_RANKS
from g2rpo_fast.types import channel_place

if TYPE_CHECKING:
    from g2rpo_fast.config.sections import Config
    from g2rpo_fast.pieces import Piece


def _paths(config: Config) -> None:
    """A preset may name the untrained model and leave the data to the user: `assemble` wants them."""
    if config.model.path == UNTRAINED and config.data.path is None:
        return
    if (config.model.path is None) != (config.data.path is None):
        given, missing = ("model", "data") if config.data.path is None else ("data", "model")
        raise ValueError(
            f"{missing}.path: wanted a path because {given}.path is given, got None "
            f"(the embedded default makes both its model and its data; leave out both or neither)"
        )


def _temperatures(config: Config) -> None:
    if config.rollout.temperature == 0:
        raise ValueError("rollout.temperature: wanted above 0 (greedy groups teach nothing), got 0")
    for name in ("rollout", "evaluate") if config.rollout.engine == "vllm" else ():
        temperature = getattr(config, name).temperature
        if 0 < temperature < COLDEST:
            raise ValueError(
                f"{name}.temperature: wanted at least {COLDEST} with rollout.engine = vllm (which takes "
                f"less for it), got {temperature}"
            )


def _guidance(config: Config) -> None:
    guidance, rollout = config.guidance, config.rollout
    if not guidance.enabled:
        return
    if rollout.max_tokens <= guidance.reserve:
        raise ValueError(
            f"rollout.max_tokens: wanted more than guidance.reserve = {guidance.reserve}, "
            f"got {rollout.max_tokens}"
        )
    if guidance.controller_input == "unguided" and guidance.members == "first":
        num_guided = num_guided_of(guidance, rollout.group_size)
        if num_guided >= rollout.group_size:
            raise ValueError(
                f'guidance.share: wanted unguided members left (controller_input = "unguided"), got '
                f"{num_guided} guided of rollout.group_size = {rollout.group_size}"
            )


def _truncation(config: Config) -> None:
    """The engine's log-probabilities are of the tokens that truncation keeps, the trainer's of all."""
    objective = config.objective
    if objective.old_logp == "rollout":
        compares = 'objective.old_logp = "rollout"'
    elif objective.importance != "none":
        compares = f'objective.importance = "{objective.importance}"'
    elif config.run.ahead:
        compares = "run.ahead = 1"
    else:
        return
    for name, off in (("top_p", 1), ("top_k", 0)):
        got = getattr(config.rollout, name)
        if got != off:
            raise ValueError(
                f"rollout.{name}: wanted {off} (off) with {compares}, which compares the engine's "
                f"log-probabilities with the trainer's: those of kept tokens with those of all, got {got}"
            )


def _replays(config: Config) -> None:
    if config.objective.replay_routing and not config.rollout.record_routing:
        raise ValueError(
            "objective.replay_routing: wanted false without rollout.record_routing (there is nothing to "
            "replay), got true"
        )


def _ahead(config: Config) -> None:
    if config.run.ahead and config.objective.importance == "none" and config.objective.old_logp == "trainer":
        raise ValueError(
            "objective.importance: wanted weights, such as token_truncate, or objective.old_logp = "
            "\"rollout\" with run.ahead = 1 (its rollouts come from older weights), got 'none'"
        )
    if config.run.ahead and config.rollout.engine == "vllm" and config.vllm.sleep != "off":
        raise ValueError(
            "vllm.sleep: wanted off with run.ahead = 1 (vLLM samples during the update), got "
            f"{config.vllm.sleep}"
        )


def _apart(config: Config) -> None:
    """Adapters that vLLM computes itself."""
    if config.vllm.adapters != "lora":
        return
    if config.adapter.kind != "lora":
        raise ValueError(
            f"vllm.adapters: wanted merged with adapter.kind = {config.adapter.kind} (vLLM computes lora "
            "alone), got lora"
        )
    if config.adapter.rank > LORA_RANKS[-1]:
        raise ValueError(
            f"vllm.adapters: wanted merged with adapter.rank above {LORA_RANKS[-1]} (vLLM has room for no "
            f"more), here {config.adapter.rank}, got lora"
        )


def _steps(config: Config) -> None:
    if config.optim.minibatches > config.run.prompts_per_step:
        raise ValueError(
            f"optim.minibatches: wanted at most run.prompts_per_step = {config.run.prompts_per_step} "
            f"(groups are not split), got {config.optim.minibatches}"
        )
    if config.optim.warmup_steps > config.run.steps > 0:
        raise ValueError(
            f"optim.warmup_steps: wanted at most run.steps = {config.run.steps} (or a share below 1), "
            f"got {config.optim.warmup_steps:g}"
        )


def _optimizer(config: Config) -> None:
    if not config.adapter.on:
        return
    if config.optim.kind == "muon":
        raise ValueError(
            f"optim.kind: wanted adamw or adamw_8bit with adapter.kind = {config.adapter.kind} (Muon is for "
            "whole matrices, not for their low-rank factors), got muon"
        )
    if config.model.weights != "float32":
        raise ValueError(
            f"model.weights: wanted float32 with adapter.kind = {config.adapter.kind} (adapter.base says "
            f"what frozen weights are kept in), got {config.model.weights}"
        )


def _terms(config: Config) -> None:
    if not config.terms:
        raise ValueError("terms: wanted at least one, got none")
    takes_ratios = any("old_logp" in term.needs for term in config.terms)
    if config.objective.old_logp == "rollout" and not takes_ratios:
        used = ", ".join(term.use for term in config.terms)
        raise ValueError(
            f"objective.old_logp: wanted 'trainer' with terms = {used} (none takes a ratio), got 'rollout'"
        )


def _products(config: Config) -> None:
    """There the importance weights are part of the ratio, which only the kernels' loss sees apart."""
    products = [term.use for term in config.terms if getattr(term, "ratio", None) == "product"]
    if not products or config.objective.importance_level != "token":
        return
    others = [term.use for term in config.terms if term.kernel() is None]
    others += [piece.use for piece in config.rounds if piece.hints]
    if others:
        raise ValueError(
            f"objective.importance: wanted none, or weights of sequences, with terms = {products[0]} (a "
            f"product of ratios) beside {', '.join(others)}, got {config.objective.importance!r}"
        )


def _more(config: Config) -> None:
    taking = [piece.use for piece in config.rounds if piece.takes_more]
    if taking and not config.selection.ordered:
        raise ValueError(
            f"selection: wanted one with an order, such as in_order, with rounds = {taking[0]} (which asks "
            f"for the prompts after those it has), got {config.selection.use}: its draw would repeat them"
        )


def _order(config: Config) -> None:
    given = {"data.order_column": config.data.order_column, "data.weights": config.data.weights}
    for key, value in given.items():
        if value and not config.selection.ordered:
            raise ValueError(
                f"{key}: wanted none with selection = {config.selection.use} (which draws its prompts "
                f"itself), got {value!r}"
            )


def _hints(config: Config) -> None:
    wanting = [piece.use for piece in config.rounds if piece.hints]
    if wanting and not config.data.hint_columns:
        raise ValueError(
            f"data.hint_columns: wanted columns with hints for rounds = {', '.join(wanting)}, got none"
        )


def _units(config: Config) -> None:
    wanting = [piece.use for piece in (*config.token_credit, *config.weights) if piece.of_units]
    if wanting and not config.units.cuts:
        raise ValueError(
            f"units: wanted one that cuts responses, such as items, with token_credit = {wanting[0]}, got "
            f"{config.units.use}"
        )


def _channels(config: Config) -> None:
    known = list(config.reward.channels)
    for piece in config.shaping:
        for key, name in piece.channels().items():
            try:
                channel_place(known, name)
            except ValueError as error:
                raise ValueError(f"shaping.{piece.use}.{key}: {error} (see reward.functions)") from error
        known.append(piece.use)


def _pieces(config: Config) -> tuple[Piece, ...]:
    chains = (config.rounds, config.shaping, config.credit, config.token_credit, config.weights, config.terms)
    return (config.selection, config.units, *(piece for chain in chains for piece in chain))


def _steered(config: Config) -> None:
    steering: dict[str, Piece] = {}
    for piece in _pieces(config):
        first = piece if piece.steers is None else steering.setdefault(piece.steers, piece)
        if first is not piece:
            raise ValueError(
                f"{piece.section}: wanted one piece that steers the {piece.steers}, got {piece.use} beside "
                f"{first.section} = {first.use}"
            )


def _columns(config: Config) -> None:
    pieces = _pieces(config)
    kept = {column for piece in pieces for column in piece.columns()}
    for piece in pieces:
        if missing := sorted(piece.reads - kept):
            raise ValueError(
                f"{piece.section}: wanted with {piece.use} a piece that keeps {', '.join(missing)} of each "
                f"prompt, got selection.use = {config.selection.use}"
            )


CHECKS: tuple[Callable[[Config], None], ...] = (
    _paths, _temperatures, _guidance, _truncation, _replays, _ahead, _apart, _steps, _optimizer, _terms,
    _products, _more, _order, _hints, _units, _channels, _columns, _steered,
)  # fmt: skip
