"""Pieces in a configuration: from TOML, Python and the command line, with a method, as earlier keys."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from g2rpo_fast import Config, train
from g2rpo_fast.cli import main, read_arguments
from g2rpo_fast.config import PIECES, config_from_dict, load_config, plain
from g2rpo_fast.config.choice import settings_of
from g2rpo_fast.config.read import read_values
from g2rpo_fast.credit import Center, Channels, Std, Whiten
from g2rpo_fast.methods import load_method, load_methods
from g2rpo_fast.objective.terms import Cispo, Clip, Disco, Entropy, Kl, Reinforce, Sapo
from g2rpo_fast.rounds import HintOnFailure
from g2rpo_fast.select import InOrder, Vade
from g2rpo_fast.trial import try_own
from runs import needs_of

RUNNABLE = [key for key, method in load_methods().items() if method.runnable and method.settings]


def my_loss(logp_N: torch.Tensor, entropy_N: torch.Tensor, tokens: Any) -> torch.Tensor:
    return -(tokens.weight_N * tokens.advantage_N * logp_N).sum()


def my_credit(a_R: Any, scored: Any, store: Any) -> Any:
    return a_R - 0.5


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_defaults_are_those_of_grpo() -> None:
    config = Config()
    assert (config.selection, config.rounds, config.credit, config.terms) == (
        InOrder(),
        (),
        (Center(), Std()),
        (Clip(low=0.2, high=0.2, dual=None, ratio="token"),),
    )
    assert (config.token_credit, config.weights, config.method) == ((), (), None)


def test_toml_names_pieces_and_their_settings(tmp_path: Path) -> None:
    text = """
credit = ["center"]
terms = [{ use = "clip", high = 0.28, dual = "none" }, { use = "kl", coef = 0.01 }]
rounds = [{ use = "hint_on_failure", failed = 0.1 }]
[data]
hint_columns = ["tip"]
[selection]
use = "vade"
decay = 0.5
"""
    config = load_config(write(tmp_path / "c.toml", text))
    assert config.terms == (Clip(high=0.28), Kl(coef=0.01))
    assert (config.credit, config.selection) == ((Center(),), Vade(decay=0.5))
    assert config.rounds == (HintOnFailure(failed=0.1),)


def test_python_takes_pieces_dicts_names_and_functions() -> None:
    config = Config(
        optim={"lr": 2e-5},  # pyright: ignore[reportArgumentType]
        selection="vade",  # pyright: ignore[reportArgumentType]
        credit=[my_credit, "center", {"use": "std", "eps": 1e-6}],  # pyright: ignore[reportArgumentType]
        terms=[Clip(low=0.1), my_loss],  # pyright: ignore[reportArgumentType]
    )
    assert config.optim.lr == 2e-5
    assert config.selection == Vade()
    assert config.credit[1:] == (Center(), Std(eps=1e-6))
    assert [piece.use for piece in (*config.credit, *config.terms)] == ["own", "center", "std", "clip", "own"]
    assert config.credit[0](torch.ones(2).numpy(), None, None).tolist() == [0.5, 0.5]  # pyright: ignore[reportArgumentType]
    told = plain(config)
    assert told["terms"][1] == {"use": "own", "function": f"{__name__}:my_loss"}
    assert told["terms"][0]["low"] == 0.1


@pytest.mark.parametrize("method", [None, "disco", "g2rpo_a_official"])
def test_a_configuration_survives_json(method: str | None) -> None:
    config = load_config("embedded", method=method)
    assert config_from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    assert config_from_dict(plain(config)) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"terms": [{"use": "clipp"}]}, r"terms: wanted one of clip.*got 'clipp'; the nearest name is clip"),
        ({"terms": [{"use": "clip", "lwo": 1}]}, r"terms\.clip\.lwo; the nearest name is terms\.clip\.low"),
        ({"terms": [{"use": "clip", "low": -1}]}, r"terms\.clip\.low: wanted at least 0, got -1"),
        ({"terms": [{"use": "own"}]}, r"terms\.own: missing 1 required keyword-only argument: 'function'"),
        ({"terms": [{"low": 1}]}, r'terms: wanted a table such as \{ use = "clip" \}, got'),
        ({"terms": 3}, r"terms: wanted a table such as"),
        ({"terms": []}, "terms: wanted at least one, got none"),
        ({"terms": ["clip", "clip"]}, "terms: wanted each piece once, got clip 2 times"),
        ({"credit": [{"use": "center", "eps": 1}]}, r"unknown key credit\.center\.eps; it has no settings"),
        ({"selection": ["vade", "in_order"]}, "selection: wanted one piece, got 2"),
        ({"term": ["clip"]}, "unknown key term; the nearest name is terms"),
        ({"terms": [{"use": "own", "function": "nowhere:f"}]}, r"terms\.own\.function: importing 'nowhere'"),
        ({"terms": ["reinforce"], "objective": {"old_logp": "rollout"}}, r"old_logp: wanted 'trainer' with"),
        ({"objective": {"clip_low": 0.1}, "terms": ["disco"]}, r"clip_low: wanted one of clip.*got disco"),
        ({"objective": {"advantage_scale": "x"}}, r"objective\.advantage_scale: wanted 'group'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_dict(values)


@pytest.mark.parametrize(
    ("objective", "terms", "credit"),
    [
        ({"clip_high": 0.28}, (Clip(high=0.28),), (Center(), Std())),
        ({"surrogate": "cispo", "clip_low": 1.0}, (Cispo(low=1.0),), (Center(), Std())),
        (
            {"surrogate": "sapo", "sapo_tau_neg": 2.0, "clip_low": 0.1},
            (Sapo(tau_neg=2.0),),
            (Center(), Std()),
        ),
        ({"surrogate": "reinforce", "ratio": "token"}, (Reinforce(),), (Center(), Std())),
        ({"ratio": "sequence", "dual_clip": 3.0}, (Clip(ratio="sequence", dual=3.0),), (Center(), Std())),
        (
            {"kl_coef": 0.1, "kl": "k1", "entropy_coef": 0.01},
            (Clip(), Kl(coef=0.1, estimator="k1"), Entropy(coef=0.01)),
            (Center(), Std()),
        ),
        ({"kl_coef": 0.0, "entropy_coef": 0.0}, (Clip(),), (Center(), Std())),
        ({"advantage_scale": "none"}, (Clip(),), (Center(),)),
        ({"advantage_eps": 1e-6}, (Clip(),), (Center(), Std(eps=1e-6))),
        (
            {"advantage_aggregation": "normalize_then_sum", "advantage_eps": 1e-3},
            (Clip(),),
            (Channels(eps=1e-3), Whiten(eps=1e-3)),
        ),
    ],
)
def test_earlier_keys_mean_the_same(objective: dict[str, Any], terms: Any, credit: Any) -> None:
    config = config_from_dict({"objective": {**objective, "aggregation": "token_mean"}})
    assert (config.terms, config.credit) == (terms, credit)
    assert config.objective.aggregation == "token_mean"
    words = [
        w for key, value in objective.items() for w in (f"--objective.{key.replace('_', '-')}", str(value))
    ]
    named = read_arguments(["embedded", *words])
    assert (named.terms, named.credit) == (terms, credit)


def test_earlier_keys_change_the_pieces_beside_them(tmp_path: Path) -> None:
    text = 'terms = [{ use = "cispo", low = 1.0 }, { use = "kl", coef = 0.1, estimator = "k2" }]\n'
    path = write(tmp_path / "c.toml", text)
    config = read_arguments([path, "--objective.clip-high", "4", "--objective.kl-coef", "0.2"])
    assert config.terms == (Cispo(low=1.0, high=4.0), Kl(coef=0.2, estimator="k2"))


def test_the_command_line_chooses_pieces_and_sets_them() -> None:
    words = ["--terms.use", "clip", "kl", "--terms.clip.low", "0.1", "--terms.kl.coef=0.05"]
    words += ["--selection.use", "vade", "--selection.vade.decay", "0.3", "--credit.use=center"]
    config = read_arguments(["embedded", *words])
    assert config.terms == (Clip(low=0.1), Kl(coef=0.05))
    assert (config.selection, config.credit) == (Vade(decay=0.3), (Center(),))
    words = ["--terms.use", "clip", "entropy", "--terms.entropy.coef", "1"]
    kept = read_arguments(["embedded", "--method", "gspo", *words])
    assert kept.terms == (Clip(low=3e-4, high=4e-4, ratio="sequence"), Entropy(coef=1.0))
    assert read_arguments(["embedded", "--rounds.use", "none"]).rounds == ()


NOT_YET = next(key for key, method in load_methods().items() if method.status == "not yet")


def one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a refused command line is told."""
    try:
        status = main(["train", *words])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert error.count("\n") == 1, error
    return error


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--terms.kl.coef", "1"], "terms.kl.coef: wanted a setting of a piece that is chosen (clip)"),
        (["--terms.use", "clip", "--terms.clip.lwo", "1"], "perhaps you meant --terms.clip.low"),
        (["--terms.use", "clop"], "terms: wanted one of clip"),
        (["--terms.use"], "--terms.use: wanted a value, got []"),
        (["--terms.clip.low", "-1"], "terms.clip.low: wanted at least 0, got -1"),
        (["--method", "gspoo"], "arXiv identifier, got 'gspoo'; the nearest are GSPO"),
        (["--terms.clip.use", "sapo"], "Unrecognized options: --terms.clip.use"),
        (["--terms.use", "trace_clip", "--terms.trace_clip.ratio", "sequence"], "--terms.trace-clip.ratio"),
        (["--method", "streambp"], "--method: wanted a method that runs, got streambp (status: no)"),
        (["--method", NOT_YET], f"--method: wanted a method that runs, got {NOT_YET} (status: not yet)"),
        (["--method", "a", "b"], "--method: wanted one value"),
        (["--objective.clip-low", "much"], "terms.clip.low: wanted a number"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_one_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in one_line(words, capsys)


def test_help_shows_the_settings_of_the_pieces_that_are_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            read_arguments([*words, "--help"])
        assert stop.value.code == 0
        return capsys.readouterr().out

    plain_help = shown("embedded")
    assert "--terms.clip.low" in plain_help
    assert "Ratios are clipped from below at 1 - low" in " ".join(plain_help.replace("│", " ").split())
    assert "--terms.disco.tau" not in plain_help
    disco = shown("embedded", "--method", "disco")
    assert "--terms.disco.tau" in disco
    assert "--terms.clip.low" not in disco
    assert "method disco" in disco
    assert "--selection.vade.decay" in shown("--method", "vade")


@pytest.mark.parametrize("key", RUNNABLE)
def test_a_method_is_a_valid_configuration_on_the_embedded_task(key: str) -> None:
    values, _ = read_values("embedded", method=key)
    needs = needs_of(key, "exact_match")
    config = config_from_dict({**values, **{name: values[name] | needs[name] for name in needs}})
    words = [
        word
        for name, section in needs.items()
        for setting, value in section.items()
        for word in (f"--{name}.{setting.replace('_', '-')}", *([value] if isinstance(value, str) else value))
    ]
    settings = load_method(key).settings
    assert config.method == key
    assert config.guidance.enabled == ("guidance" in settings)
    assert config.embedded == load_config("embedded").embedded
    assert config.rollout == load_config("embedded").rollout
    assert set(settings) <= {*PIECES, "guidance", "objective", "optim"}
    assert read_arguments(["embedded", "--method", key, *words]) == config


def test_methods_are_what_their_papers_say() -> None:
    terms = {key: load_config("embedded", method=key).terms for key in ("dapo", "gspo", "disco_b")}
    assert terms["dapo"] == (Clip(low=0.2, high=0.28),)
    assert terms["gspo"] == (Clip(low=3e-4, high=4e-4, ratio="sequence"),)
    assert terms["disco_b"][0] == Disco(tau=float("inf"))
    assert load_config("embedded", method="dr_grpo").credit == (Center(),)
    assert load_config("embedded", method="vade").selection == Vade()
    guided = load_config("embedded", method="g2rpo_a").guidance
    assert (guided.controller, guided.window, guided.length_init) == ("paper", 2, 40)
    official = load_config("embedded", method="g2rpo_a_official")
    assert (official.guidance.controller, official.guidance.counts) == ("official", "tokens")


def test_the_method_decides_and_what_it_overrules_is_told(tmp_path: Path, capsys: Any) -> None:
    text = 'terms = ["reinforce"]\nmethod = "gspo"\n'
    text += '[objective]\naggregation = "constant"\nimportance = "token_mask"\n'
    path = write(tmp_path / "c.toml", text)
    config = load_config(path)
    assert (config.method, config.objective.aggregation) == ("gspo", "sequence_mean")
    assert config.objective.importance == "token_mask"
    assert config.terms[0].use == "clip"
    values, notes = read_values(path)
    assert values["method"] == "gspo"
    assert sorted(note.split(":")[0] for note in notes) == ["objective.aggregation", "terms"]
    assert all("gspo" in note and path in note for note in notes)
    assert read_arguments([path, "--method", "none"]).terms == (Reinforce(),)
    assert "note:" not in capsys.readouterr().err
    other = read_arguments([path, "--method", "dr_grpo", "--objective.aggregation", "token_mean"])
    assert (other.method, other.objective.aggregation) == ("dr_grpo", "token_mean")
    assert "note: terms: " in capsys.readouterr().err


def test_own_data_start_from_the_defaults_not_from_the_toy_task() -> None:
    config = read_arguments(["--model.path", "somewhere", "--data.path=rows.jsonl", "--run.steps", "3"])
    whole = Config()
    for section in ("optim", "rollout", "reward", "guidance", "evaluate", "embedded"):
        assert getattr(config, section) == getattr(whole, section)
    assert (config.data.path, config.run.steps, config.guidance.counts) == ("rows.jsonl", 3, "fraction")
    assert read_arguments(["--run.steps", "3"]).optim == load_config("embedded").optim


def test_gsm8k_names_no_files() -> None:
    config = load_config("gsm8k")
    assert (config.data.path, config.data.eval_path) == (None, None)


def test_every_piece_has_settings_with_help() -> None:
    """A sentence under each setting, and where the equation is from."""
    for section, known in PIECES.items():
        for use, cls in known.items():
            assert cls.section == section
            assert cls.use == use
            assert cls.__doc__
            if use not in ("own", "in_order", "whole"):
                assert "vidence" in cls.__doc__, (section, use)
            assert set(settings_of(cls)) - documented(cls) == set(), (section, use)


def documented(cls: type) -> set[str]:
    """Fields of a class and of its bases that have a text under them."""
    found: set[str] = set()
    for base in cls.__mro__:
        if base.__module__.startswith("g2rpo_fast"):
            (body,) = (
                node.body
                for node in ast.parse(inspect.getsource(base)).body
                if isinstance(node, ast.ClassDef)
            )
            found |= {
                field.target.id
                for field, text in pairwise(body)
                if isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            }
    return found


def test_a_function_is_a_piece_where_it_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="rounds: wanted a table"):
        Config(rounds=[my_loss])  # pyright: ignore[reportArgumentType]
    (tmp_path / "mine.py").write_text("def loss(logp_N, entropy_N, tokens):\n    return logp_N.sum()\n")
    monkeypatch.chdir(tmp_path)
    (term,) = config_from_dict({"terms": [{"use": "own", "function": "mine:loss"}]}).terms
    assert (term.ties, term.needs) == ("batch", {"old_logp"})
    assert float(term(torch.ones(3), torch.ones(3), Config())) == 3.0  # pyright: ignore[reportArgumentType]


def raises(a_R: Any, scored: Any, store: Any) -> Any:
    return a_R / scored.nothing


def ragged(a_R: Any, scored: Any, store: Any) -> Any:
    return a_R[:-1]


def constant(logp_N: torch.Tensor, entropy_N: torch.Tensor, tokens: Any) -> torch.Tensor:
    return tokens.weight_N.sum()


def vector(logp_N: torch.Tensor, entropy_N: torch.Tensor, tokens: Any) -> torch.Tensor:
    return logp_N


def endless(logp_N: torch.Tensor, entropy_N: torch.Tensor, tokens: Any) -> torch.Tensor:
    return (logp_N / 0).sum()


@pytest.mark.parametrize(
    ("pieces", "told"),
    [
        ({"credit": [raises]}, r"credit\.own\.function: test_pieces:raises: AttributeError: 'Scored'"),
        ({"credit": [ragged]}, r"credit\.own\.function: .*:ragged: wanted \[4\] finite numbers, one a row"),
        ({"terms": [constant]}, r"terms\.own\.function: .*:constant: wanted a loss that depends on logp_N"),
        ({"terms": [vector]}, r"terms\.own\.function: .*:vector: wanted a 0-dim floating tensor, got \[12\]"),
        ({"terms": [endless]}, r"terms\.own\.function: .*:endless: wanted a finite loss, got -inf"),
        ({"terms": [raises]}, r"terms\.own\.function: .*:raises: "),
    ],
)
def test_functions_are_tried_before_anything_is_spent(pieces: Any, told: str, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with pytest.raises(ValueError, match=told):
        train(Config(run={"dir": str(directory)}, **pieces))  # pyright: ignore[reportArgumentType]
    assert not directory.exists()
    good = Config(credit=[my_credit], terms=[my_loss])  # pyright: ignore[reportArgumentType]
    try_own(good.credit, good.terms)


def test_more_prompts_are_asked_of_a_selection_with_an_order() -> None:
    Config(rounds=["resample"])  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        ValueError, match=r"^selection: wanted one with an order, .* with rounds = resample .* vade"
    ):
        Config(rounds=["resample"], selection="vade")  # pyright: ignore[reportArgumentType]


def test_a_mistake_in_a_method_s_file_is_told_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('credit = [{ use = "centre" }]')
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: credit: wanted one of .* got 'centre'"):
        load_config("embedded", method=str(path))


def test_a_function_or_its_name_may_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "comparing.py").write_text("def longer(one, other, prompt):\n    return one > other\n")
    words = ["--shaping.use", "win_rate", "--shaping.win_rate.comparator", "comparing:longer"]
    (shaping,) = read_arguments(words).shaping
    assert plain(Config(shaping=(shaping,)))["shaping"][0]["comparator"] == "comparing:longer"
    Config(shaping=[{"use": "win_rate", "comparator": raises}])  # pyright: ignore[reportArgumentType]


def test_two_pieces_that_steer_the_same_are_refused() -> None:
    both = "wanted one piece that steers the entropy, got entropy beside token_credit = hotter"
    with pytest.raises(ValueError, match=f"^terms: {both}$"):
        Config(token_credit=["hotter"], terms=["clip", "entropy"])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("beside", ["trace_clip", "entropy_band"])
def test_importance_inside_a_product_of_ratios_is_refused_where_it_cannot_be(beside: str) -> None:
    weights = {"importance": "token_truncate"}
    Config(terms=["vespo"], objective=weights)  # pyright: ignore[reportArgumentType]
    Config(terms=["vespo", beside])  # pyright: ignore[reportArgumentType]
    wanted = f"none, or weights of sequences, with terms = vespo .* {beside}, got 'token_truncate'"
    with pytest.raises(ValueError, match=f"^objective.importance: wanted {wanted}"):
        Config(terms=["vespo", beside], objective=weights)  # pyright: ignore[reportArgumentType]
