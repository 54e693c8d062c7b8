"""Keys of `objective` in earlier versions, as the pieces that they became.

A configuration file, a command line or a run's directory may still have them. They change the pieces that are
chosen beside them: `objective.clip_high` the setting `high` of the surrogate among `terms`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SURROGATES = ("clip", "cispo", "sapo", "reinforce", "vespo")
SETTINGS = {
    "clip_low": "low",
    "clip_high": "high",
    "dual_clip": "dual",
    "sapo_tau_pos": "tau_pos",
    "sapo_tau_neg": "tau_neg",
    "ratio": "ratio",
}
"""Earlier key -> setting of a surrogate."""
HAS = {
    "clip": {"low", "high", "dual", "ratio"},
    "cispo": {"low", "high", "ratio"},
    "sapo": {"tau_pos", "tau_neg", "ratio"},
}
"""Which of those a surrogate has; the others meant nothing to it, and are left out."""
COEFFICIENTS = {"kl_coef": "kl", "entropy_coef": "entropy"}
"""Earlier key -> term, which is there where the coefficient is not 0."""
CREDIT = ("advantage_scale", "advantage_aggregation", "advantage_eps")
KEYS = (*SETTINGS, *COEFFICIENTS, *CREDIT, "surrogate", "kl")

Table = dict[str, Any]


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same configuration without earlier keys."""
    objective = values.get("objective", {})
    if not (isinstance(objective, Mapping) and set(objective) & set(KEYS)):
        return dict(values)
    old = {key: objective[key] for key in KEYS if key in objective}
    left = {key: value for key, value in objective.items() if key not in KEYS}
    result = {**values, "objective": left, "terms": _terms(old, _tables(values.get("terms", ["clip"])))}
    if set(old) & set(CREDIT):
        result["credit"] = _credit(old, _tables(values.get("credit", ["center", "std"])))
    return result


def _tables(given: Any) -> list[Table]:
    entries = given if isinstance(given, list | tuple) else [given]
    return [{"use": entry} if isinstance(entry, str) else dict(entry) for entry in entries]


def _terms(old: Table, terms: list[Table]) -> list[Table]:
    place = next((i for i, term in enumerate(terms) if term.get("use") in SURROGATES), None)
    if place is not None:
        now = terms[place]
        use = old.get("surrogate", now["use"])
        has = HAS.get(use, set())
        kept = {key: value for key, value in now.items() if key in has}
        given = {SETTINGS[key]: value for key, value in old.items() if key in SETTINGS}
        terms[place] = {"use": use, **kept, **{key: value for key, value in given.items() if key in has}}
    elif set(old) & {*SETTINGS, "surrogate"}:
        key = next(key for key in old if key in (*SETTINGS, "surrogate"))
        raise ValueError(
            f"objective.{key}: wanted one of {', '.join(SURROGATES)} among terms, got "
            f"{', '.join(str(term.get('use')) for term in terms)}"
        )
    for key, use in COEFFICIENTS.items():
        if key in old:
            rest = [term for term in terms if term.get("use") != use]
            settings = next((term for term in terms if term.get("use") == use), {"use": use})
            terms = [*rest, {**settings, "coef": old[key]}] if old[key] else rest
    for term in terms:
        if "kl" in old and term.get("use") == "kl":
            term["estimator"] = old["kl"]
    return terms


def _credit(old: Table, credit: list[Table]) -> list[Table]:
    eps = next((piece["eps"] for piece in credit if "eps" in piece), None)
    eps = old.get("advantage_eps", eps)
    setting = {} if eps is None else {"eps": eps}
    names = [piece["use"] for piece in credit]
    was_scale = "batch" if "batch_std" in names else "group" if "std" in names else "none"
    was = "normalize_then_sum" if "channels" in names else "sum_then_normalize"
    scale, aggregation = old.get("advantage_scale", was_scale), old.get("advantage_aggregation", was)
    if aggregation == "normalize_then_sum":
        if "advantage_scale" in old and scale != "group":
            raise ValueError(
                "objective.advantage_scale: wanted 'group' with advantage_aggregation='normalize_then_sum',"
                f" got {scale!r}"
            )
        return [{"use": "channels", **setting}, {"use": "whiten", **setting}]
    chosen = {"group": "std", "batch": "batch_std", "none": None}
    if scale not in chosen:
        raise ValueError(f"objective.advantage_scale: wanted 'group', 'none' or 'batch', got {scale!r}")
    piece = chosen[scale]
    return [{"use": "center"}, *([{"use": piece, **setting}] if piece else [])]
