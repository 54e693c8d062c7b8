"""Numbers that make no sense are refused when a section is built, in every key, however it is built."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from annotated_types import Ge, Gt, Le, Lt

from g2rpo_fast import Config
from g2rpo_fast.bounds import InfinityToo, check_fields
from g2rpo_fast.cli import read_arguments
from g2rpo_fast.config import PIECES, config_from_dict, section_types
from g2rpo_fast.config.choice import settings_of
from g2rpo_fast.optim import OptimConfig, learning_rate
from g2rpo_fast.rewards import RewardConfig

ANY_FINITE = {
    "reward.weights": "a channel may count against the sum, or not at all",
    "reward.success": "a threshold among rewards of any range",
}
ANY_FINITE_OF_PIECES = {
    "terms.entropy.coef": "entropy may be paid or charged",
    "shaping.weighted.weights": "a channel may count against the sum, or not at all",
    "credit.virtual_sample.best": "a reward, and rewards have any range",
    "credit.rank.mean": "an average of rewards of any range",
    "token_credit.hotter.success": "a threshold among rewards of any range",
    "weights.learned_length.power": "below 0 it favours short rows, above 0 long ones",
}
"""Numbers of no range, each with its reason. A new key declares its bounds, or is entered here."""


def numbers_in(hint: Any) -> Iterator[tuple[type, tuple[Any, ...]]]:
    """(int or float, what is declared beside it) of each number in a type hint."""
    if get_origin(hint) is Annotated:
        inner, *declared = get_args(hint)
        yield from ((kind, (*beside, *declared)) for kind, beside in numbers_in(inner))
    elif hint in (int, float):
        yield hint, ()
    elif get_origin(hint) is not Literal:
        for inner in get_args(hint):
            yield from numbers_in(inner)


NUMBERS = [
    (name, key, kind, declared)
    for name, cls in section_types().items()
    for key, hint in get_type_hints(cls, include_extras=True).items()
    for kind, declared in numbers_in(hint)
]
OF_PIECES = [
    (f"{section}.{use}", cls, key, kind, declared)
    for section, known in PIECES.items()
    for use, cls in known.items()
    for key, hint in get_type_hints(cls, include_extras=True).items()
    if key in settings_of(cls)
    for kind, declared in numbers_in(hint)
]
HELD: dict[str, tuple[str, Any, list[str]]] = {
    "data.weights": (".0", lambda value: [value], []),
    "rollout.stop_token_ids": (".0", lambda value: [value], []),
    "reward.weights": (".exact_match", lambda value: {"exact_match": value}, ["exact_match"]),
    "shaping.weighted.weights": (".format", lambda value: {"format": value}, []),
}
"""Keys that hold several numbers -> how an entry is named, how it is held, and the words before it."""


def impossible(kind: type, declared: tuple[Any, ...]) -> Iterator[float]:
    """Values just outside of what is declared, and those that are no numbers."""
    for bound in declared:
        match bound:
            case Ge(ge=int() | float() as limit):
                yield limit - 1
            case Gt(gt=int() | float() as limit) | Lt(lt=int() | float() as limit):
                yield limit
            case Le(le=int() | float() as limit):
                yield limit + 1
            case _:
                assert bound == InfinityToo, f"no number bounds: {bound}"
    if kind is float:
        yield from (math.nan, -math.inf)
        if InfinityToo not in declared:
            yield math.inf


def assert_refused(name: str, key: str, value: float) -> None:
    """In Python and in TOML, with the key, what was wanted and what came."""
    entry, hold, _ = HELD.get(f"{name}.{key}", ("", lambda value: value, []))
    line = rf"^{name}\.{key}{entry}: wanted .+, got {value!r}$"
    section, held = getattr(Config(), name), hold(value)
    with pytest.raises(ValueError, match=line):
        type(section)(**{key: held})
    with pytest.raises(ValueError, match=line):
        replace(section, **{key: held})
    with pytest.raises(ValueError, match=line.replace("^", "^a.toml: ")):
        config_from_dict({name: {key: held}}, where="a.toml")


def test_every_number_declares_what_makes_sense():
    assert len(NUMBERS) > 50
    without = {
        f"{name}.{key}"
        for name, key, _, declared in NUMBERS
        if not any(isinstance(bound, Ge | Gt | Le | Lt) for bound in declared)
    }
    assert without == set(ANY_FINITE)


def test_every_number_of_a_piece_declares_what_makes_sense():
    assert len(OF_PIECES) > 100
    without = {
        f"{name}.{key}"
        for name, _, key, _, declared in OF_PIECES
        if not any(isinstance(bound, Ge | Gt | Le | Lt) for bound in declared)
    }
    assert without == set(ANY_FINITE_OF_PIECES)


@pytest.mark.parametrize(("name", "key", "kind", "declared"), NUMBERS, ids=lambda value: str(value))
def test_impossible_numbers_are_refused(
    name: str, key: str, kind: type, declared: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
):
    values = [kind(value) for value in impossible(kind, declared)]
    assert values
    for value in values:
        assert_refused(name, key, value)
    entry, _, before = HELD.get(f"{name}.{key}", ("", None, []))
    with pytest.raises(SystemExit, match="2"):
        read_arguments([f"--{name}.{key.replace('_', '-')}", *before, repr(values[0])])
    said = capsys.readouterr().err
    assert re.fullmatch(rf"g2rpo-fast: {name}\.{key}{entry}: wanted .+, got {values[0]!r}\n", said)


@pytest.mark.parametrize(("name", "cls", "key", "kind", "declared"), OF_PIECES, ids=lambda value: str(value))
def test_impossible_settings_of_pieces_are_refused(
    name: str, cls: type, key: str, kind: type, declared: tuple[Any, ...]
):
    section, _, use = name.partition(".")
    values = [kind(value) for value in impossible(kind, declared)]
    assert values
    entry, hold, _ = HELD.get(f"{name}.{key}", ("", lambda value: value, []))
    for value in values:
        line, held = rf"^{name}\.{key}{entry}: wanted .+, got {value!r}$", hold(value)
        with pytest.raises(ValueError, match=line):
            cls(**{key: held})
        with pytest.raises(ValueError, match=line.replace("^", "^a.toml: ")):
            config_from_dict({section: [{"use": use, key: held}]}, where="a.toml")


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("guidance.eps", math.inf, "a finite number"),
        ("rollout.temperature", math.nan, "a finite number"),
        ("rollout.temperature", math.inf, "a finite number"),
        ("optim.lr", math.inf, "a finite number"),
        ("optim.min_lr_ratio", -1.0, "at least 0"),
        ("optim.min_lr_ratio", 3.0, "at most 1"),
        ("optim.min_lr_ratio", math.nan, "a finite number"),
        ("optim.min_lr_ratio", math.inf, "a finite number"),
        ("optim.warmup_steps", -1, "at least 0"),
        ("optim.beta1", -1.0, "at least 0"),
        ("optim.beta1", 1.0, "below 1"),
        ("optim.beta1", math.nan, "a finite number"),
        ("optim.beta1", math.inf, "a finite number"),
        ("optim.beta2", -1.0, "at least 0"),
        ("optim.beta2", 1.5, "below 1"),
        ("optim.beta2", math.nan, "a finite number"),
        ("optim.beta2", math.inf, "a finite number"),
        ("optim.weight_decay", -1.0, "at least 0"),
        ("optim.weight_decay", math.nan, "a finite number"),
        ("optim.weight_decay", math.inf, "a finite number"),
        ("tree.token_budget", -1, "at least 1"),
        ("tree.token_budget", 0, "at least 1"),
        ("tree.min_saved", -1, "at least 1"),
        ("tree.min_saved", 0, "at least 1"),
        ("evaluate.temperature", math.nan, "a finite number"),
        ("evaluate.temperature", math.inf, "a finite number"),
        ("evaluate.profile_samples", -1, "at least 1"),
        ("evaluate.profile_samples", 0, "at least 1"),
        ("run.seed", -1, "at least 0"),
    ],
)
def test_numbers_that_once_got_through_are_refused(key: str, value: float, wanted: str):
    name, _, key = key.partition(".")
    section = section_types()[name]
    with pytest.raises(ValueError, match=rf"^{name}\.{key}: wanted {wanted}, got {value}(\.0)?$"):
        section(**{key: value})


def test_infinity_is_taken_where_it_means_no_limit():
    assert OptimConfig(max_grad_norm=math.inf).max_grad_norm == math.inf
    config = config_from_dict({"guidance": {"max_factor": math.inf}})
    assert config.guidance.max_factor == math.inf


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optim.lr", "fast", "optim.lr: wanted a number, got 'fast'"),
        ("optim.lr", True, "optim.lr: wanted a number, got True"),
        ("run.steps", 1.5, "run.steps: wanted a whole number, got 1.5"),
        ("run.steps", True, "run.steps: wanted a whole number, got True"),
        ("run.threads", "2", "run.threads: wanted a whole number, got '2'"),
        ("run.ahead", 2, "run.ahead: wanted 0 or 1, got 2"),
        ("run.device", 0, "run.device: wanted a text, got 0"),
        ("data.shuffle", 1, "data.shuffle: wanted true or false, got 1"),
        ("optim.schedule", "cosin", "optim.schedule: wanted 'constant', 'linear' or 'cosine', got 'cosin'"),
        ("reward.functions", "math", "reward.functions: wanted a list, got 'math'"),
        ("reward.weights", ["math"], "reward.weights: wanted a table, got ['math']"),
        ("reward.functions", ("math", 3), "reward.functions.1: wanted a text, got 3"),
        ("reward.weights", {"math": math.nan}, "reward.weights.math: wanted a finite number, got nan"),
        ("reward.weights", {"math": "1"}, "reward.weights.math: wanted a number, got '1'"),
    ],
)
def test_wrong_types_are_refused_in_python_and_in_toml(key: str, value: Any, message: str):
    name, _, key = key.partition(".")
    with pytest.raises(ValueError) as direct:
        section_types()[name](**{key: value})
    with pytest.raises(ValueError) as read:
        config_from_dict({name: {key: value}}, where="a.toml")
    assert (str(direct.value), str(read.value)) == (message, f"a.toml: {message}")


def test_values_become_what_the_field_says():
    config = config_from_dict({"optim": {"lr": 1}, "reward": {"functions": ["math", "format"]}})
    assert isinstance(config.optim.lr, float)
    assert config.reward == RewardConfig(functions=("math", "format"))
    assert replace(config.run, dir=Path("runs") / "a").dir == "runs/a"


def test_all_that_is_wrong_is_said_in_one_line():
    with pytest.raises(ValueError) as caught:
        config_from_dict({"optim": {"lr": 0, "beta1": 2}, "tree": {"min_saved": 0}}, where="a.toml")
    assert str(caught.value) == (
        "a.toml: optim.lr: wanted above 0, got 0; optim.beta1: wanted below 1, got 2; "
        "tree.min_saved: wanted at least 1, got 0"
    )


def test_field_of_several_types_names_them_all():
    @dataclass(frozen=True, kw_only=True)
    class Section:
        limit: Annotated[int, Ge(1)] | Literal["auto"] = "auto"

    values = vars(Section(limit=3)) | {"limit": -1}
    section = Section(**values)
    with pytest.raises(ValueError, match=r"^a\.limit: wanted at least 1 or 'auto', got -1$"):
        check_fields(section, "a")


def test_warm_up_is_within_the_run():
    with pytest.raises(ValueError, match=r"optim\.warmup_steps: wanted at most run\.steps = 4 .*, got 50$"):
        config_from_dict({"run": {"steps": 4}, "optim": {"warmup_steps": 50}})
    with pytest.raises(ValueError, match=r"optim\.warmup_steps: wanted whole steps, .* got 2\.5"):
        OptimConfig(warmup_steps=2.5)
    assert config_from_dict({"run": {"steps": 0}, "optim": {"warmup_steps": 5}}).optim.warmup_steps == 5


@pytest.mark.parametrize(("total", "steps"), [(100, 5), (140, 7), (3, 1), (0, 0)])
def test_warm_up_below_one_is_a_share_of_the_run(total: int, steps: int):
    share, whole = (OptimConfig(lr=1.0, warmup_steps=warmup) for warmup in (0.05, steps))
    rates = [[learning_rate(config, step, total) for step in range(total)] for config in (share, whole)]
    assert rates[0] == rates[1]
    assert share.warmup(total) == steps


def test_sections_are_sections():
    with pytest.raises(ValueError, match=r"^optim: wanted a OptimConfig, got 1\.0$"):
        Config(optim=1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"^unknown key optim\.lrr; the nearest name is optim\.lr$"):
        Config(optim={"lrr": 1.0})  # pyright: ignore[reportArgumentType]
