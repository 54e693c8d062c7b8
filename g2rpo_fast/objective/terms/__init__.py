"""Terms of the loss, each a file: its settings, its equation, its mathematics on row tokens.

One that names a `kernel` runs there, with the others; all others run as they are written here.
"""

from __future__ import annotations

from g2rpo_fast.objective.terms.cispo import Cispo
from g2rpo_fast.objective.terms.clip import Clip
from g2rpo_fast.objective.terms.confident_clip import ConfidentClip
from g2rpo_fast.objective.terms.disco import Disco
from g2rpo_fast.objective.terms.elastic_clip import ElasticClip
from g2rpo_fast.objective.terms.entropy import Entropy
from g2rpo_fast.objective.terms.entropy_band import EntropyBand
from g2rpo_fast.objective.terms.even_clip import EvenClip
from g2rpo_fast.objective.terms.hybrid_clip import HybridClip
from g2rpo_fast.objective.terms.kl import Kl, KlControlled
from g2rpo_fast.objective.terms.own import Own
from g2rpo_fast.objective.terms.reinforce import Reinforce
from g2rpo_fast.objective.terms.sapo import Sapo
from g2rpo_fast.objective.terms.shaped import Shaped
from g2rpo_fast.objective.terms.surrogate import Surrogate
from g2rpo_fast.objective.terms.trace_clip import TraceClip
from g2rpo_fast.objective.terms.vespo import Vespo
from g2rpo_fast.pieces import Term

__all__ = [
    "TERMS",
    "Cispo",
    "Clip",
    "ConfidentClip",
    "Disco",
    "ElasticClip",
    "Entropy",
    "EntropyBand",
    "EvenClip",
    "HybridClip",
    "Kl",
    "KlControlled",
    "Own",
    "Reinforce",
    "Sapo",
    "Shaped",
    "Surrogate",
    "TraceClip",
    "Vespo",
]

TERMS: dict[str, type[Term]] = {
    term.use: term
    for term in (
        *(Clip, Cispo, Sapo, Reinforce, Vespo),
        *(TraceClip, HybridClip, ElasticClip, EvenClip, ConfidentClip, Shaped),
        *(Kl, KlControlled, Entropy, EntropyBand, Disco, Own),
    )
}
