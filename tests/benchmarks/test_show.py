"""Benchmark records as tables and plots, drawn from the records alone; the plots say how the cost grew."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from record_plots import slope
from show import main

COMMON = {
    "command": "pytest x --benchmark",
    "machine": {"cpu": "C"},
    "versions": {"torch": "2"},
    "commit": "abc",
}


def side(seconds: float, memory: float) -> dict[str, float]:
    return {"median_cpu_s": seconds, "peak_above_base_mib": memory}


def write_records(directory: Path) -> None:
    """Tree cost ~ sqrt(group), padded ~ group; attention gains 2 at a token ratio of 4."""
    cases = [
        {
            "group": group,
            "positions": 100 + 10 * group,
            "token_ratio": 1 + group / 4,
            "tree_update": side(0.1 * math.sqrt(group), 50 + group),
            "padded_update": side(0.1 * group, 50 * group),
            "cpu_time_ratio": math.sqrt(group),
        }
        for group in (1, 4, 16)
    ]
    growth = COMMON | {"name": "growth_group_cpu", "figures": {"varied": "group", "cases": cases}}
    rows = [{"side": "cascade", "speedup": 2.0}, {"side": "unshared", "speedup": 1.0}]
    attention = COMMON | {"name": "tree_attention_cpu_x", "figures": {"token_ratio": 4.0, "sides": rows}}
    for record in (growth, attention):
        (directory / f"{record['name']}.json").write_text(json.dumps(record))


def test_plots_are_drawn_from_the_records(tmp_path, capsys):
    results, plots = tmp_path / "results", tmp_path / "plots"
    results.mkdir()
    write_records(results)
    assert main(["--plots", str(plots), "--results", str(results)]) == 0
    assert capsys.readouterr().out.split() == [str(plots / "growth.svg"), str(plots / "speedup.svg")]
    growth, speedup = ((plots / name).read_text() for name in ("growth.svg", "speedup.svg"))
    for label in ("prefix tree: slope 0.50", "padded rows: slope 1.00", "group size G", "peak memory, MiB"):
        assert label in growth
    for label in ("attention alone, cascade", "update, group size G varied", "gain = token ratio"):
        assert label in speedup
    assert "unshared," not in speedup
    before = (plots / "growth.svg").read_bytes()
    assert main(["--plots", str(plots), "--results", str(results)]) == 0
    assert (plots / "growth.svg").read_bytes() == before


def test_plots_want_records_of_growth(tmp_path, capsys):
    assert main(["--plots", str(tmp_path / "plots"), "--results", str(tmp_path)]) == 2
    assert "wanted records of benchmarks/bench_growth.py, got none" in capsys.readouterr().err
    assert not (tmp_path / "plots").exists()
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "wanted --table or --plots DIR" in capsys.readouterr().err


def test_slope_is_the_exponent():
    assert slope([1, 10, 100], [3, 300, 30_000]) == pytest.approx(2)
    assert math.isnan(slope([5, 5], [1, 2]))


def test_table_shows_what_the_rows_share_above_them(tmp_path, capsys):
    write_records(tmp_path)
    assert main(["--table", "--results", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[-4:] == [["token_ratio", "=", "4"], ["side", "speedup"], ["cascade", "2"], ["unshared", "1"]]


def test_table_has_a_row_for_each_case(capsys, tmp_path):
    case = {"prompt": 64, "ours": {"median_s": 0.25}, "time_ratio": 2.0}
    record = {
        "name": "speed",
        "command": "pytest x --benchmark",
        "machine": {"cpu": "C"},
        "versions": {"torch": "2"},
        "commit": "abc",
        "figures": {"sizes": [1, 2], "cases": [case, case | {"prompt": 256, "time_ratio": 4.125}]},
    }
    (tmp_path / "speed.json").write_text(json.dumps(record))
    assert main(["--table", "--results", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[-3:] == [["prompt", "time_ratio"], ["64", "2"], ["256", "4.125"]]
    assert main(["--table", "--results", str(tmp_path / "none")]) == 2
    assert "--results: wanted a directory with benchmark records" in capsys.readouterr().err
