"""Terms of the loss, each a file: its settings, its equation, its mathematics on row tokens.

One that names a `kernel` runs there, with the others; all others run as they are written here.
"""

from __future__ import annotations

from collections.abc import Callable

from g2rpo_fast.objective.config import ObjectiveConfig
from g2rpo_fast.objective.terms.cispo import Cispo
from g2rpo_fast.objective.terms.clip import Clip
from g2rpo_fast.objective.terms.disco import Disco
from g2rpo_fast.objective.terms.entropy import Entropy
from g2rpo_fast.objective.terms.kl import Kl
from g2rpo_fast.objective.terms.reinforce import Reinforce
from g2rpo_fast.objective.terms.sapo import Sapo
from g2rpo_fast.objective.terms.shaped import Shaped
from g2rpo_fast.objective.terms.surrogate import Surrogate
from g2rpo_fast.objective.terms.vespo import Vespo
from g2rpo_fast.pieces import Term

__all__ = [
    "TERMS",
    "Cispo",
    "Clip",
    "Disco",
    "Entropy",
    "Kl",
    "Reinforce",
    "Sapo",
    "Shaped",
    "Surrogate",
    "Vespo",
    "terms_of",
]

TERMS: dict[str, type[Term]] = {
    term.use: term for term in (Clip, Cispo, Sapo, Reinforce, Vespo, Kl, Entropy, Disco, Shaped)
}


_SURROGATES: dict[str, Callable[[ObjectiveConfig], Term]] = {
    "clip": lambda c: Clip(low=c.clip_low, high=c.clip_high, dual=c.dual_clip, ratio=c.ratio),
    "cispo": lambda c: Cispo(low=c.clip_low, high=c.clip_high, ratio=c.ratio),
    "sapo": lambda c: Sapo(tau_pos=c.sapo_tau_pos, tau_neg=c.sapo_tau_neg, ratio=c.ratio),
    "reinforce": lambda c: Reinforce(),
}


def terms_of(config: ObjectiveConfig) -> tuple[Term, ...]:
    """The terms that the section `objective` asks for."""
    terms = [_SURROGATES[config.surrogate](config)]
    if config.kl_coef:
        terms.append(Kl(coef=config.kl_coef, estimator=config.kl))
    if config.entropy_coef:
        terms.append(Entropy(coef=config.entropy_coef))
    return tuple(terms)
