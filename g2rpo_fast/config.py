"""The whole configuration: the stages' own sections, read from TOML, overridden from the command line.

An unknown key, a wrong type or clashing values fail here, naming the key, what was wanted and what came.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from g2rpo_fast.bounds import Ge, check_fields
from g2rpo_fast.checkpoint import CheckpointConfig
from g2rpo_fast.data import DataConfig
from g2rpo_fast.embedded import EmbeddedConfig
from g2rpo_fast.evaluate import EvaluateConfig
from g2rpo_fast.guidance import GuidanceConfig, num_guided_of
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.objective import ObjectiveConfig
from g2rpo_fast.optim import OptimConfig
from g2rpo_fast.rewards import RewardConfig
from g2rpo_fast.rollout import RolloutConfig
from g2rpo_fast.rollout.vllm import VllmConfig
from g2rpo_fast.rollout.vllm.engine import COLDEST
from g2rpo_fast.tree import TreeConfig
from g2rpo_fast.usage import preset_names

EMBEDDED = "embedded"
NONE_WORDS = ("none", "None")
"""What stands for None where a key may be None, in TOML and on the command line."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Length, place and seed of a run."""

    dir: str | None = None
    """Run directory; one that holds a run continues it. None = a new one under runs/."""
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
    """A training run. Every section's defaults are those of the published method."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    vllm: VllmConfig = field(default_factory=VllmConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    tree: TreeConfig = field(default_factory=TreeConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    embedded: EmbeddedConfig = field(default_factory=EmbeddedConfig)

    def __post_init__(self) -> None:
        for name, cls in section_types().items():
            if not isinstance(getattr(self, name), cls):
                raise ValueError(f"{name}: wanted a {cls.__name__}, got {getattr(self, name)!r}")
        if (self.model.path is None) != (self.data.path is None):
            given, missing = ("model", "data") if self.data.path is None else ("data", "model")
            raise ValueError(
                f"{missing}.path: wanted a path because {given}.path is given, got None "
                f"(the embedded default makes both its model and its data; leave out both or neither)"
            )
        if self.rollout.temperature == 0:
            raise ValueError("rollout.temperature: wanted above 0 (greedy groups teach nothing), got 0")
        for name in ("rollout", "evaluate") if self.rollout.engine == "vllm" else ():
            temperature = getattr(self, name).temperature
            if 0 < temperature < COLDEST:
                raise ValueError(
                    f"{name}.temperature: wanted at least {COLDEST} with rollout.engine = vllm (which takes "
                    f"less for it), got {temperature}"
                )
        if self.guidance.enabled and self.rollout.max_tokens <= self.guidance.reserve:
            raise ValueError(
                f"rollout.max_tokens: wanted more than guidance.reserve = {self.guidance.reserve}, "
                f"got {self.rollout.max_tokens}"
            )
        if self.guidance.controller_input == "unguided" and self.guidance.enabled:
            num_guided = num_guided_of(self.guidance, self.rollout.group_size)
            if self.guidance.members == "first" and num_guided >= self.rollout.group_size:
                raise ValueError(
                    f'guidance.share: wanted unguided members left (controller_input = "unguided"), got '
                    f"{num_guided} guided of rollout.group_size = {self.rollout.group_size}"
                )
        self._check_truncation()
        if self.run.ahead and self.objective.importance == "none" and self.objective.old_logp == "trainer":
            raise ValueError(
                "objective.importance: wanted weights, such as token_truncate, or objective.old_logp = "
                "\"rollout\" with run.ahead = 1 (its rollouts come from older weights), got 'none'"
            )
        if self.run.ahead and self.rollout.engine == "vllm" and self.vllm.sleep != "off":
            raise ValueError(
                "vllm.sleep: wanted off with run.ahead = 1 (vLLM samples during the update), got "
                f"{self.vllm.sleep}"
            )
        if self.optim.minibatches > self.run.prompts_per_step:
            raise ValueError(
                f"optim.minibatches: wanted at most run.prompts_per_step = {self.run.prompts_per_step} "
                f"(groups are not split), got {self.optim.minibatches}"
            )
        if self.optim.warmup_steps > self.run.steps > 0:
            raise ValueError(
                f"optim.warmup_steps: wanted at most run.steps = {self.run.steps} (or a share below 1), "
                f"got {self.optim.warmup_steps:g}"
            )

    def _check_truncation(self) -> None:
        """The engine's log-probabilities are of the tokens that truncation keeps, the trainer's of all."""
        objective = self.objective
        if objective.old_logp == "rollout":
            compares = 'objective.old_logp = "rollout"'
        elif objective.importance != "none":
            compares = f'objective.importance = "{objective.importance}"'
        elif self.run.ahead:
            compares = "run.ahead = 1"
        else:
            return
        for name, off in (("top_p", 1), ("top_k", 0)):
            got = getattr(self.rollout, name)
            if got != off:
                raise ValueError(
                    f"rollout.{name}: wanted {off} (off) with {compares}, which compares the engine's "
                    f"log-probabilities with the trainer's: those of kept tokens with those of all, got {got}"
                )

    @property
    def order_seed(self) -> int:
        """Of the order of the data."""
        return self.run.seed if self.data.seed is None else self.data.seed


def section_types() -> dict[str, type]:
    """The sections' dataclasses by name, in the order of `Config`."""
    hints = get_type_hints(Config)
    return {f.name: hints[f.name] for f in fields(Config)}


def load_config(source: str | Path) -> Config:
    """Reads a TOML file, or a preset by name.

    Raises:
        ValueError: unknown file, section or key (with the nearest name), wrong type, clashing values.
    """
    try:
        values = tomllib.loads(_text_of(source))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{source}: not valid TOML: {error}") from error
    return config_from_dict(values, where=str(source))


def _text_of(source: str | Path) -> str:
    """Of a file without its byte order mark, or of a preset."""
    names = preset_names()
    if str(source) in names:
        return (resources.files("g2rpo_fast") / "presets" / f"{source}.toml").read_text()
    try:
        if Path(source).is_file():
            return Path(source).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: wanted text in UTF-8, got {error.object[:4]!r} ...") from error
    except OSError as error:
        raise ValueError(f"{source}: wanted a file that can be read, got {error.strerror!r}") from error
    near = difflib.get_close_matches(str(source), names, n=1)
    hint = f"; the nearest preset is {near[0]}" if near else ""
    raise ValueError(
        f"CONFIG: wanted a TOML file or one of the presets {', '.join(names)}, got {str(source)!r}{hint}"
    )


def config_from_dict(values: Mapping[str, Any], *, where: str = "config") -> Config:
    """Builds a Config from nested plain values, as read from TOML or JSON.

    TOML has no null: the word `none` stands for it in every key that may be None.
    """
    _refuse_unknown(values, Config, where, "")
    sections, problems = {}, []
    for name, section in values.items():
        try:
            sections[name] = section_types()[name](**_with_none(section, section_types()[name]))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError(f"{where}: {'; '.join(problems)}")
    try:
        return Config(**sections)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _with_none(section: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """The section's values, with None for the word none where a key may be None."""
    hints = get_type_hints(cls)
    return {
        key: None if value in NONE_WORDS and type(None) in get_args(hints[key]) else value
        for key, value in section.items()
    }


def _refuse_unknown(values: Mapping[str, Any], cls: type, where: str, prefix: str) -> None:
    hints = get_type_hints(cls)
    known = {f.name for f in fields(cls)}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = (
                f"; the nearest name is {prefix}{near[0]}" if near else f"; known: {', '.join(sorted(known))}"
            )
            raise ValueError(f"{where}: unknown key {prefix}{key}{hint}")
        if is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise ValueError(f"{where}: {prefix}{key}: wanted a section [{prefix}{key}], got {value!r}")
            _refuse_unknown(value, hints[key], where, f"{prefix}{key}.")
