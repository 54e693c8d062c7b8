"""Configuration: presets, refusals that name the key, what was wanted and what came."""

import ast
import dataclasses
import inspect
import json
from itertools import pairwise
from typing import get_args, get_type_hints

import pytest

from g2rpo_fast.cli import main, read_arguments
from g2rpo_fast.config import config_from_dict, load_config, preset_names, section_types
from g2rpo_fast.run_directory import open_directory, store_config


def test_config_presets_load():
    assert {"embedded", "gsm8k"} <= set(preset_names())
    configs = {name: load_config(name) for name in preset_names()}
    assert configs["embedded"].rollout.group_size == 12
    assert configs["gsm8k"].data.format == "gsm8k"


def test_config_survives_json():
    config = load_config("embedded")
    assert config_from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optim": {"lrr": 1.0}}, r"unknown key optim\.lrr; the nearest name is optim\.lr"),
        ({"optimm": {}}, r"unknown key optimm; the nearest name is optim"),
        ({"optim": {"lr": "fast"}}, r"optim\.lr: .*number, got 'fast'"),
        ({"optim": {"lr": -1.0}}, r"optim\.lr: wanted above 0, got -1\.0"),
        ({"optim": 3}, r"optim: wanted a section"),
        ({"guidance": {"controller": "magic"}}, r"guidance\.controller: .*'paper'.*got 'magic'"),
        ({"data": {"path": "x.jsonl"}}, r"model\.path: wanted a path because data\.path is given"),
        ({"rollout": {"max_tokens": 4}}, r"rollout\.max_tokens: wanted more than guidance\.reserve"),
        ({"rollout": {"temperature": 0.0}}, r"rollout\.temperature: wanted above 0"),
        (
            {"guidance": {"controller_input": "unguided", "share": 0.9}, "rollout": {"group_size": 2}},
            r"guidance\.share: wanted unguided members left.*got 2 guided of rollout\.group_size = 2",
        ),
        (
            {"rollout": {"top_p": 0.9}, "objective": {"importance": "token_truncate"}},
            r'rollout\.top_p: wanted 1 \(off\) with objective\.importance = "token_truncate".*got 0\.9',
        ),
        (
            {"rollout": {"top_k": 8}, "objective": {"importance": "geometric_mask"}},
            r'rollout\.top_k: wanted 0 \(off\) with objective\.importance = "geometric_mask".*got 8',
        ),
        (
            {"rollout": {"top_k": 8}, "objective": {"old_logp": "rollout"}},
            r'rollout\.top_k: wanted 0 \(off\) with objective\.old_logp = "rollout".*got 8',
        ),
        (
            {"rollout": {"top_p": 0.5}, "run": {"ahead": 1}},
            r"rollout\.top_p: wanted 1 \(off\) with run\.ahead = 1",
        ),
        ({"optim": {"minibatches": 99}}, r"optim\.minibatches: wanted at most run\.prompts_per_step"),
    ],
)
def test_config_refuses_and_names_the_key(values, message):
    with pytest.raises(ValueError, match=message):
        config_from_dict(values)


def optional_keys() -> list[tuple[str, str]]:
    """(section, key) of every key that may be None."""
    return [
        (section, name)
        for section, cls in section_types().items()
        for name, hint in get_type_hints(cls).items()
        if type(None) in get_args(hint)
    ]


@pytest.mark.parametrize("word", ["none", "None"])
def test_none_is_none_in_every_key_that_may_be(word, tmp_path):
    keys = optional_keys()
    assert {("data", "trace_column"), ("run", "threads"), ("vllm", "quantization")} <= set(keys)
    file = tmp_path / "config.toml"
    file.write_text("\n".join(f'{section}.{name} = "{word}"' for section, name in keys))
    options = [f"--{section}.{name.replace('_', '-')}" for section, name in keys]
    for config in (
        load_config(file),
        read_arguments([given for option in options for given in (option, word)]),
        read_arguments([f"{option}={word}" for option in options]),
    ):
        for section, name in keys:
            assert getattr(getattr(config, section), name) is None, (section, name)
    assert len(keys) > 10


def test_none_stays_a_word_where_a_key_cannot_be_none(tmp_path):
    config = config_from_dict({"objective": {"importance": "none"}, "data": {"prompt_column": "none"}})
    assert (config.objective.importance, config.data.prompt_column) == ("none", "none")
    assert read_arguments(["--objective.importance", "none"]).objective.importance == "none"
    with pytest.raises(ValueError, match=r"run\.steps: .*got 'none'"):
        config_from_dict({"run": {"steps": "none"}})


def test_the_help_says_none_as_it_is_read(capsys):
    with pytest.raises(SystemExit):
        read_arguments(["--help"])
    assert "--data.trace-column none|STR" in capsys.readouterr().out


def test_config_file_errors_name_the_file(tmp_path):
    broken = tmp_path / "broken.toml"
    broken.write_text("[run\nsteps = 3")
    with pytest.raises(ValueError, match=r"broken\.toml: not valid TOML"):
        load_config(broken)
    with pytest.raises(ValueError, match=r"presets .*embedded.*got 'nowhere\.toml'"):
        load_config("nowhere.toml")


def test_cli_overrides_a_preset():
    config = read_arguments(["embedded", "--optim.lr", "3e-4", "--run.steps", "7", "--guidance.no-enabled"])
    assert (config.optim.lr, config.run.steps, config.guidance.enabled) == (3e-4, 7, False)
    assert config.rollout.group_size == load_config("embedded").rollout.group_size


def test_cli_unknown_option_suggests_the_nearest(capsys):
    with pytest.raises(SystemExit) as stopped:
        read_arguments(["--optim.lrr", "3"])
    assert stopped.value.code == 2
    assert "--optim.lr" in "".join(capsys.readouterr())


def test_cli_reports_errors_without_a_traceback(capsys):
    assert main(["train", "nowhere.toml"]) == 2
    assert "wanted a TOML file" in capsys.readouterr().err
    assert main(["trian"]) == 2
    assert "unknown command 'trian'" in capsys.readouterr().err


def test_every_option_is_in_the_help_with_its_meaning(capsys):
    with pytest.raises(SystemExit):
        read_arguments(["--help"])
    text = "".join(capsys.readouterr().out.split())
    for section, cls in section_types().items():
        (written,) = ast.parse(inspect.getsource(cls)).body
        assert isinstance(written, ast.ClassDef)
        options = [two for two in pairwise(written.body) if isinstance(two[0], ast.AnnAssign)]
        assert len(options) == len(dataclasses.fields(cls))
        for option, after in options:
            assert isinstance(option, ast.AnnAssign)
            assert isinstance(option.target, ast.Name)
            name = option.target.id.replace("_", "-")
            assert f"--{section}.{name}" in text
            assert isinstance(after, ast.Expr), f"{section}.{name} has no help"
            assert isinstance(after.value, ast.Constant)
            assert isinstance(after.value.value, str)


def test_run_directory_continues_only_the_same_run(tmp_path):
    config = load_config("embedded")
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, dir=str(tmp_path / "run")))
    opened = open_directory(config)
    directory, first = opened.path, opened.config
    assert first.run.threads is not None
    store_config(opened)
    longer = dataclasses.replace(config, run=dataclasses.replace(config.run, steps=999))
    assert open_directory(longer)[1].run.threads == first.run.threads
    assert directory.is_dir()
    other = dataclasses.replace(config, optim=dataclasses.replace(config.optim, beta1=0.5))
    with pytest.raises(ValueError, match=r"optim\.beta1: wanted 0\.9, got 0\.5, but the optimiser"):
        open_directory(other)
