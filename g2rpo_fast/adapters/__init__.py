"""Low-rank adapters (LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353), by PEFT, in the place of full training.

    lora:  W + alpha / rank * B A              W [O, I] is frozen, A [rank, I] and B [O, rank] are trained
    dora:  m (the same) / norms of its rows    m [O] too; the norms count as constants

Here is what a configuration needs; the modules, which import PyTorch, are imported by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Literal

from g2rpo_fast.bounds import Ge, Gt, check_fields

PEFT = "peft"
INSTALL = "pip install 'g2rpo-fast[adapters]'"


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Low-rank adapters, trained in the place of the model's weights. They want a higher optim.lr: about ten
    times that of full training."""

    kind: Literal["off", "lora", "dora"] = "off"
    """off = all weights are trained; lora; dora = lora with the norms of the weights' rows apart."""
    rank: Annotated[int, Ge(1)] = 16
    """Of the matrices that are added to each adapted weight."""
    alpha: Annotated[float, Gt(0)] = 32.0
    """What is added counts alpha / rank times."""
    targets: tuple[str, ...] = ()
    """Names of the linear maps that get adapters, such as q_proj; none = all but the LM head."""

    def __post_init__(self) -> None:
        check_fields(self, "adapter")
        if "" in self.targets:
            raise ValueError("adapter.targets: wanted names of linear maps, got an empty one")

    @property
    def on(self) -> bool:
        return self.kind != "off"


def check_adapters(config: AdapterConfig) -> None:
    """ValueError where the configuration asks for adapters and PEFT is not installed."""
    if config.on:
        require_peft(f"adapter.kind: wanted {config.kind}")


def require_peft(what: str) -> None:
    """ValueError, beginning with `what`, where PEFT is not installed."""
    if find_spec(PEFT) is None:
        raise ValueError(f"{what}, which takes the package {PEFT}, got none installed: {INSTALL}")
