"""Low-rank adapters (LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353), by PEFT, in the place of full training.

    lora:  W + alpha / rank * B A              W [O, I] is frozen, A [rank, I] and B [O, rank] are trained
    dora:  m (the same) / norms of its rows    m [O] too; the norms count as constants

Here is what a configuration needs; the modules, which import PyTorch, are imported by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from g2rpo_fast.bounds import Ge, Gt, check_fields
from g2rpo_fast.extras import require


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
    base: Literal["auto", "float32", "bfloat16", "nf4"] = "auto"
    """What the frozen linear maps are kept in. auto = what they are multiplied in: float32 on a CPU, bfloat16
    on CUDA. nf4 = 4 bits (QLoRA, arXiv 2305.14314), by bitsandbytes; merged weights are never 4 bits."""
    targets: tuple[str, ...] = ()
    """Names of the linear maps that get adapters, such as q_proj; none = all but the LM head."""

    def __post_init__(self) -> None:
        check_fields(self, "adapter")
        if self.base != "auto" and not self.on:
            raise ValueError(f"adapter.base: wanted auto without adapters, got {self.base}")
        if "" in self.targets:
            raise ValueError("adapter.targets: wanted names of linear maps, got an empty one")

    @property
    def on(self) -> bool:
        return self.kind != "off"


def check_adapters(config: AdapterConfig) -> None:
    """ValueError where the configuration asks for adapters and what they take is not installed."""
    if config.on:
        require("peft", f"adapter.kind: wanted {config.kind}", extra="adapters")
    if config.on and config.base == "nf4":
        require("bitsandbytes", "adapter.base: wanted nf4", extra="adapters,qlora")
