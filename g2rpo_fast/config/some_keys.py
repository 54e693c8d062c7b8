"""The command line of commands that use some sections of the configuration, and of these some keys.

    read_options(words, options, sections, OFFERED, prog="g2rpo-fast eval MODEL DATA")

Keys are those of `train` (`--rollout.max-tokens`), the common ones with a short name beside it
(`--max-tokens`). A key that is not offered keeps its value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, fields, make_dataclass, replace
from typing import Annotated, Any, ClassVar, TypeVar, get_type_hints

import tyro

from g2rpo_fast.config.arguments import registry
from g2rpo_fast.usage import refused_in_one_line, with_values

Options = TypeVar("Options")

SHORT = {
    "rollout": ("temperature", "top_p", "top_k", "max_tokens"),
    "run": ("seed", "threads", "device"),
}
"""Section -> keys that may be given without it."""
SAMPLING_KEYS = {
    "rollout": (
        "engine", "max_tokens", "temperature", "top_p", "top_k", "stop_strings", "stop_token_ids", "max_rows",
        "cuda_graph",
    ),
    "model": ("precision", "attention", "fused_ops"),
    "run": ("seed", "threads", "device"),
}  # fmt: skip
"""Section -> keys of whatever loads a model and samples from it."""


def read_options(
    words: Sequence[str],
    options: Options,
    sections: Mapping[str, Any],
    offered: Mapping[str, Sequence[str]],
    *,
    prog: str,
    description: str,
) -> tuple[Options, dict[str, Any]]:
    """Exits with typed help on --help or a bad option.

    Args:
        options: the command's own options, a frozen dataclass with keyword fields; holds the defaults.
        sections: the sections of the configuration that it uses, by name; they hold the defaults.
        offered: of some of these, the keys that can be given.

    Returns:
        Both, with what the words say.
    """
    shown = {name: _shown(name, sections[name], keys) for name, keys in offered.items()}
    made = [(name, type(part), field(default=part)) for name, part in shown.items()]
    cls = make_dataclass("Arguments", made, bases=(type(options),), frozen=True, kw_only=True)
    own = [f.name for f in fields(options)]  # pyright: ignore[reportArgumentType] (a dataclass)
    default = cls(**{name: getattr(options, name) for name in own})
    with refused_in_one_line():
        found = tyro.cli(
            cls,
            args=with_values(words),
            default=default,
            prog=prog,
            description=description,
            registry=registry(),
            config=(tyro.conf.HelptextFromCommentsOff,),
        )
    changed = {
        name: replace(sections[name], **{key: getattr(getattr(found, name), key) for key in keys})
        for name, keys in offered.items()
    }
    return type(options)(**{name: getattr(found, name) for name in own}), {**sections, **changed}


def _shown(name: str, section: Any, keys: Sequence[str]) -> Any:
    """The section as one of a class that has these keys only."""
    cls = type(section)
    hints = get_type_hints(cls, include_extras=True)
    hidden = [(f.name, ClassVar[Any]) for f in fields(cls) if f.name not in keys]
    short: list[tuple[str, Any, Any]] = []
    for key in SHORT.get(name, ()):
        alias = tyro.conf.arg(aliases=(f"--{key.replace('_', '-')}",))
        short.append((key, Annotated[hints[key], alias], field(default=getattr(section, key))))
    shown = make_dataclass(cls.__name__, [*hidden, *short], bases=(cls,), frozen=True, kw_only=True)
    shown.__doc__ = cls.__doc__
    for key, _ in hidden:
        setattr(shown, key, getattr(section, key))
    return shown(**{key: getattr(section, key) for key in keys})
