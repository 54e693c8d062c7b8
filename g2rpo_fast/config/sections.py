"""The whole configuration: the stages' own sections, and the pieces of a method.

An unknown key, a wrong type or clashing values fail here, naming the key, what was wanted and what came.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from g2rpo_fast.adapters import AdapterConfig
from g2rpo_fast.bounds import Ge, check_fields
from g2rpo_fast.checkpoint import CheckpointConfig
from g2rpo_fast.config.checks import CHECKS
from g2rpo_fast.config.choice import PIECES, SINGLE, made, pieces_of, refuse_unknown
from g2rpo_fast.credit import Center, Std
from g2rpo_fast.data import DataConfig, named_data
from g2rpo_fast.embedded import EmbeddedConfig
from g2rpo_fast.evaluate import EvaluateConfig
from g2rpo_fast.guidance import GuidanceConfig
from g2rpo_fast.loggers import LogConfig
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.objective import ObjectiveConfig
from g2rpo_fast.objective.terms import Clip
from g2rpo_fast.optim import OptimConfig
from g2rpo_fast.own import name_of
from g2rpo_fast.pieces import Credit, Round, Selection, Shaping, Term, TokenCredit, Units, Weight
from g2rpo_fast.rewards import RewardConfig
from g2rpo_fast.rollout import RolloutConfig
from g2rpo_fast.rollout.vllm import VllmConfig
from g2rpo_fast.samples import SamplesConfig
from g2rpo_fast.select import InOrder
from g2rpo_fast.tree import TreeConfig
from g2rpo_fast.units import Whole


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Length, place and seed of a run."""

    dir: str | None = None
    """Run directory; one that holds a run continues it. None = a new one under runs/."""
    fork: str | None = None
    """RUN or RUN:STEP: a new run that goes on from that run's checkpoint, its newest or of that step. Any
    setting may be another."""
    accept_changes: bool = False
    """Continue a run although its data or its model, by content, are no longer those that it began with."""
    steps: Annotated[int, Ge(0)] = 100
    """Rollout batches to train on."""
    prompts_per_step: Annotated[int, Ge(1)] = 16
    """Groups in each of them."""
    ahead: Literal[0, 1] = 0
    """Batches that sampling runs ahead of training: 0 = sample, then train; 1 = the engine samples batch
    n + 1 while batch n trains. Its tokens are then one update old, which `objective.importance` corrects."""
    seed: Annotated[int, Ge(0)] = 0
    """Fixes data order (unless data.seed is given), sampling, and the embedded or untrained model."""
    threads: Annotated[int, Ge(1)] | None = None
    """CPU threads of torch. None = the cores this process may use, less those that are busy."""
    device: str = "auto"
    """auto (CUDA if there is one), cpu, cuda, cuda:1, ..."""

    def __post_init__(self) -> None:
        check_fields(self, "run")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A training run: G2RPO-A's guidance over GRPO, unless something else is said.

    From Python a section may be a dict of its keys, and a piece what `config.choice` reads: a piece, its
    name, a dict with `use`, or, in `credit` and `terms`, a function.
    """

    method: str | None = None
    """Of the catalogue, whose file this was read with. A note: the sections say what it is."""
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    vllm: VllmConfig = field(default_factory=VllmConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    tree: TreeConfig = field(default_factory=TreeConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    embedded: EmbeddedConfig = field(default_factory=EmbeddedConfig)
    selection: Selection = field(default_factory=InOrder)
    """Which prompts a step trains on, and how many rollouts each gets."""
    rounds: tuple[Round, ...] = ()
    """What is asked again and what is kept, after guidance."""
    shaping: tuple[Shaping, ...] = ()
    """From the rewards paid to those that credit begins with."""
    credit: tuple[Credit, ...] = field(default_factory=lambda: (Center(), Std()))
    """From rewards to advantages of rows."""
    units: Units = field(default_factory=Whole)
    """What responses are cut into, for credit and ratios of their parts."""
    token_credit: tuple[TokenCredit, ...] = ()
    """From advantages of rows to those of tokens."""
    weights: tuple[Weight, ...] = ()
    """Factors of tokens, beside `objective.aggregation`."""
    terms: tuple[Term, ...] = field(default_factory=lambda: (Clip(),))
    """What the loss is the sum of."""

    def __post_init__(self) -> None:
        self._make_sections()
        for check in CHECKS:
            check(self)

    def _make_sections(self) -> None:
        """Sections and pieces of what stands for them."""
        for name, cls in section_types().items():
            given = getattr(self, name)
            if isinstance(given, Mapping):
                refuse_unknown(given, cls, f"{name}.")
                given = made(cls, given, name)
            if not isinstance(given, cls):
                raise ValueError(f"{name}: wanted a {cls.__name__}, got {given!r}")
            object.__setattr__(self, name, given)
        for name in PIECES:
            chain = pieces_of(name, getattr(self, name))
            if name in SINGLE and len(chain) != 1:
                raise ValueError(f"{name}: wanted one piece, got {len(chain)}")
            object.__setattr__(self, name, chain[0] if name in SINGLE else chain)

    @property
    def order_seed(self) -> int:
        """Of the order of the data."""
        return self.run.seed if self.data.seed is None else self.data.seed


@cache
def section_types() -> dict[str, type]:
    """The plain sections' dataclasses by name, in the order of `Config`."""
    hints = get_type_hints(Config)
    return {f.name: hints[f.name] for f in fields(Config) if is_dataclass(hints[f.name])}


def plain(config: Config) -> dict[str, Any]:
    """As JSON has it: tables, lists, numbers and texts; a function by its name."""
    named = replace(config.reward, functions=config.reward.channels)  # an object may not bear being copied
    config = replace(config, reward=named, data=named_data(config.data))
    return json.loads(json.dumps(asdict(config), default=name_of))
