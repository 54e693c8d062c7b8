"""The page on adding a method does what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from g2rpo_fast.cli import main
from g2rpo_fast.config import load_config
from g2rpo_fast.methods import own_method
from g2rpo_fast.metrics import read_metrics
from scored import NO_STORE, scored_of

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-method.md"
SMALL = (
    "--run.steps 2 --run.prompts-per-step 4 --run.threads 1 --embedded.warm-start-steps 8 "
    "--embedded.train-rows 64 --embedded.eval-rows 8 --rollout.group-size 6 --rollout.max-tokens 40 "
    "--evaluate.every 0 --reward.functions runs:wobble"
)


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}(?: title=\"[^\"]+\")?\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's files in it, which is the current one."""
    (tmp_path / "my_method.py").write_text(blocks("python")[0])
    (tmp_path / "my_method.toml").write_text(blocks("toml")[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_adds_a_method_in_under_forty_lines_and_it_trains(written: Path) -> None:
    lines = "".join(blocks("python")[:1] + blocks("toml")[:1]).strip().splitlines()
    assert len(lines) < 40
    (command,) = blocks("sh")
    program, *words = shlex.split(command)
    assert (program, words[0]) == ("g2rpo-fast", "train")
    assert main([*words, *SMALL.split(), "--run.dir", "run"]) == 0
    records = read_metrics(written / "run" / "metrics.jsonl")
    assert [record["step"] for record in records] == [0, 1, 2]
    assert all(record["optim/grad_norm"] > 0 for record in records[1:])
    assert main([*words, *SMALL.split(), "--run.dir", "run"]) == 0  # continued: nothing is left to do


def test_the_pages_functions_are_what_it_says(written: Path) -> None:
    config = load_config("embedded", method="my_method.toml")
    assert (config.method, config.guidance.enabled) == ("my_method", False)
    median, std = config.credit
    assert std.use == "std"
    scored = scored_of([[0.0], [1.0], [5.0], [2.0], [4.0]], [0, 0, 0, 1, 1])
    got = median(scored.rewards.total_R, scored, NO_STORE)
    np.testing.assert_array_equal(got, [-1.0, 0.0, 4.0, -1.0, 1.0])
    assert (config.terms[0].ties, config.terms[0].needs) == ("token", {"old_logp"})
    assert (config.objective.aggregation, config.optim.updates_per_batch) == ("token_mean", 2)


def test_a_file_of_ones_own_is_checked() -> None:
    with pytest.raises(ValueError, match=r"mine\.toml: wanted tables such as terms or credit, got none"):
        own_method("mine", 'summary = "nothing"')
    with pytest.raises(ValueError, match=r"mine\.toml: unknown key sumary; the nearest is summary"):
        own_method("mine", 'sumary = "x"\n[objective]\naggregation = "constant"')
    with pytest.raises(ValueError, match=r"--method: wanted a TOML file .* got 'none_there"):
        load_config("embedded", method="none_there.toml")
    assert own_method("mine", '[objective]\naggregation = "constant"').runnable
