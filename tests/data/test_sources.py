"""Where rows come from: every format says the same, names what is wrong, and is known by its content."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import pyarrow as pa
import pyarrow.parquet
import pytest

from g2rpo_fast.config import Config, plain
from g2rpo_fast.data import DataConfig
from g2rpo_fast.data.content import content_of
from g2rpo_fast.data.prompts import load_prompts
from g2rpo_fast.data.settled import check_places, settle
from g2rpo_fast.data.sources import fetched, is_hub_id
from g2rpo_fast.embedded.tokenizer import build_tokenizer
from g2rpo_fast.progress import Progress

ROWS = [
    {"prompt": f"{n}+{n}=", "answer": str(2 * n), "trace": f' {n} and "{n}",\nso', "level": 5 - n}
    for n in range(1, 4)
]
TOKENIZER = build_tokenizer("\n" + "".join(map(chr, range(32, 127))))


def as_lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_zst(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(pa.compress(as_lines(rows), codec="zstd", asbytes=True))


def write_folder(path: Path, rows: list[dict[str, Any]]) -> None:
    path.mkdir()
    (path / "train.jsonl").write_bytes(as_lines(rows))
    (path / "test.jsonl").write_bytes(as_lines(rows[:1]))


def write_saved(path: Path, rows: list[dict[str, Any]]) -> None:
    train = datasets.Dataset.from_list(rows)
    datasets.DatasetDict({"train": train, "test": train.select([0])}).save_to_disk(path)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], Any]] = {
    "d.jsonl": lambda path, rows: path.write_bytes(as_lines(rows)),
    "d.jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress(as_lines(rows))),
    "d.jsonl.zst": write_zst,
    "lines.json": lambda path, rows: path.write_bytes(as_lines(rows)),
    "d.json": lambda path, rows: path.write_text("\ufeff \n" + json.dumps(rows, indent=2) + "\n"),
    "d.json.gz": lambda path, rows: path.write_bytes(gzip.compress(json.dumps(rows).encode())),
    "d.csv": write_csv,
    "d.parquet": lambda path, rows: pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path),
    "folder": write_folder,
    "saved": write_saved,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def load(place: Any, *, split: str = "train", **settings: Any) -> Any:
    config = DataConfig(path=place, **settings)
    train, held_out = settle(config, Path(), seed=0, progress=Progress())
    return load_prompts(train if split == "train" else held_out, config, TOKENIZER, split=split)


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_holds_the_same_prompts(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, ROWS)
    prompts = load(str(tmp_path / name)).prompts
    assert [p.text for p in prompts] == ["1+1=", "2+2=", "3+3="]
    assert [TOKENIZER.decode(list(p.trace_ids)) for p in prompts] == [row["trace"] for row in ROWS]
    levels = [str(row["level"]) if name == "d.csv" else row["level"] for row in ROWS]  # a CSV has texts
    assert [p.row for p in prompts] == [
        {**row, "level": level} for row, level in zip(ROWS, levels, strict=True)
    ]
    assert [p.id for p in prompts] == (
        ["train:2", "train:4", "train:6"] if name == "d.csv" else ["train:1", "train:2", "train:3"]
    )


def test_rows_of_python_are_as_those_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(as_lines(ROWS))
    wanted = load(str(tmp_path / "d.jsonl")).prompts
    for given in (ROWS, tuple(ROWS), datasets.Dataset.from_list(ROWS)):
        found = load(given)
        assert found.prompts == wanted
        assert found.path == "data.path (3 rows from Python)"


def test_splits_are_those_named(tmp_path: Path) -> None:
    for name in ("folder", "saved"):
        path = str(tmp_path / name)
        WRITERS[name](tmp_path / name, ROWS)
        assert len(load(path, split="eval", eval_path=path).prompts) == 1
        assert len(load(path, split="eval", eval_split="train").prompts) == 3
        assert len(load(path).prompts) == 3
        held_out = fetched(path, DataConfig(path=path, split="test"), key="data.path")
        assert str(held_out) == f"{path} (test)"
        assert len(load_prompts(held_out, DataConfig(), TOKENIZER, split="train").prompts) == 1
        with pytest.raises(
            ValueError, match=r"data\.path: wanted .*data\.split 'dev'\), got .*(dev|train, test)"
        ):
            fetched(path, DataConfig(path=path, split="dev"), key="data.path")


def test_several_paths_are_read_as_one(tmp_path: Path) -> None:
    for name in ("d.jsonl", "d.csv"):
        WRITERS[name](tmp_path / name, ROWS[:2])
    paths = [str(tmp_path / name) for name in ("d.jsonl", "d.csv")]
    loaded = load(paths)
    assert [p.id for p in loaded.prompts] == ["train:1:1", "train:1:2", "train:2:2", "train:2:4"]
    assert (loaded.num_rows, loaded.path) == (4, ", ".join(paths))
    assert load(paths[:1]) == load(paths[0])
    (tmp_path / "d.jsonl").write_text("bad\n" + json.dumps(ROWS[0]))
    (row,) = load(paths, on_bad_row="skip").skipped
    assert (row.line, row.reason.startswith(f"{paths[0]}: not JSON")) == (1, True)


def test_several_places_may_be_rows_of_python_too(tmp_path: Path) -> None:
    WRITERS["d.csv"](tmp_path / "d.csv", ROWS[:2])
    places = [datasets.Dataset.from_list(ROWS), str(tmp_path / "d.csv"), ROWS[1:]]
    loaded = load(places, weights=(1, 2, 3))
    assert loaded.sizes == (3, 2, 2)
    assert [p.text for p in loaded.prompts] == [f"{n}+{n}=" for n in (1, 2, 3, 1, 2, 2, 3)]
    sections: Any = {"model": {"path": "m"}, "data": {"path": places}}
    named = ["3 rows from Python", str(tmp_path / "d.csv"), "2 rows from Python"]
    assert plain(Config(**sections))["data"]["path"] == named


BAD: dict[str, tuple[str, str | bytes, str]] = {
    "one of an array": ("d.json", '[{"prompt": "x", "answer": ""}]', "row 1: column 'answer': empty answer"),
    "no object": ("d.json", '[{"prompt": "x", "answer": "1", "trace": "t"}, 7]', "row 2: wanted a JSON"),
    "not a number": ("d.json", '[{"prompt": "x", "answer": NaN}]', "row 1: not JSON: NaN is no number"),
    "no comma": ("d.json", '[{"a": 1} {"a": 1}]', "after row 1: not JSON: Expecting ',' delimiter"),
    "cut off": ("d.json", '[{"a": 1}, {"a"', "after row 1: not JSON"),
    "after the end": ("d.json", '[{"a": 1}] x', "after row 1: not JSON: Expecting the end of the array"),
    "cells": ("d.csv", 'prompt,answer,trace\nx,1\n', "line 2: wanted 3 values, as the header has, got 2"),
    "line": ("d.csv", 'prompt,answer,trace\n"a\nb",1,t\n\n"",1,t\n', "line 5: column 'prompt': empty prompt"),
    "twice": ("d.csv", "prompt,prompt\nx,1\n", "line 1: wanted each column once, got prompt, prompt"),
    "quotes": ("d.csv", 'prompt,answer\n"x"y,1\n', "line 2: not CSV"),
    "latin": ("d.csv", b"prompt,answer\n\xe9,1\n", "not CSV in UTF-8"),
    "no gzip": ("d.jsonl.gz", "{}", "data.path: wanted a file that can be read to its end, got"),
    "half": ("d.jsonl.gz", gzip.compress(as_lines(ROWS))[:-9], "wanted a file that can be read to its end"),
    "no zstd": ("d.jsonl.zst", "{}", "data.path: wanted a file that can be read to its end"),
    "no parquet": ("d.parquet", "PAR1 is not all", "data.path: wanted a file of Parquet, got"),
    "none": ("d.csv", "", "has no rows"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named_with_file_and_place(case: str, tmp_path: Path) -> None:
    name, content, said = BAD[case]
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError) as caught:
        load(str(path))
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["d.parquet", "rows"])
def test_numbers_of_other_formats_keep_their_value_as_answers(name: str, tmp_path: Path) -> None:
    rows = [{"prompt": "x", "answer": value, "trace": None} for value in (5e-05, 1e16, 0.1, 2.0)]
    if name != "rows":
        WRITERS[name](tmp_path / name, rows)
    place = rows if name == "rows" else str(tmp_path / name)
    answers = [p.answer for p in load(place).prompts]
    assert answers == ["0.00005", "10000000000000000", "0.1", "2.0"]
    rows[2]["answer"] = float("nan")
    if name != "rows":
        WRITERS[name](tmp_path / name, rows)
    with pytest.raises(ValueError, match=r"\n  row 3: column 'answer': wanted a finite number, got nan"):
        load(place)


def test_parts_of_what_has_none_and_streams_are_refused(tmp_path: Path) -> None:
    WRITERS["d.csv"](tmp_path / "d.csv", ROWS)
    path = str(tmp_path / "d.csv")
    parts: list[tuple[dict[str, Any], str]] = [({"split": "train"}, "split"), ({"subset": "main"}, "subset")]
    for settings, key in parts:
        with pytest.raises(
            ValueError, match=rf"data\.{key}: wanted none, or a folder or hub id as data\.path"
        ):
            check_places(DataConfig(path=path, **settings))
    with pytest.raises(ValueError, match=r"data\.eval_split: wanted none, .* as data\.eval_path"):
        check_places(DataConfig(path=path, eval_split="test"))
    with pytest.raises(ValueError, match=r"data\.path: wanted a task by itself, got"):
        check_places(DataConfig(path=[path, "reasoning_gym:chain_sum"]))
    dataset = datasets.Dataset.from_list(ROWS)
    for given, said in (
        (dataset.to_iterable_dataset(), "got IterableDataset: a stream cannot be visited"),
        (
            datasets.DatasetDict({"dev": dataset}),
            "wanted one split, such as dataset['dev'], got DatasetDict",
        ),
        (dataset.select([]), "got a Dataset without any"),
        ([], "wanted a place of rows, or rows, got none"),
        ([ROWS[0], 3], "wanted paths alone, or dicts alone, got 3 among dicts"),
    ):
        with pytest.raises(ValueError) as caught:
            DataConfig(path=given)
        assert said in str(caught.value)


def test_content_is_that_of_the_rows(tmp_path: Path) -> None:
    def content(place: Any) -> Any:
        return content_of(settle(DataConfig(path=place), Path(), seed=0, progress=Progress())[0])

    for name in WRITERS:
        WRITERS[name](tmp_path / name, ROWS)
        found = content(str(tmp_path / name))
        assert (found["rows"], len(found["blake2b"])) == (3, 32)
    dataset = datasets.Dataset.from_list(ROWS)
    assert content(dataset) == content(ROWS) == content(str(tmp_path / "saved"))
    assert content(ROWS[::-1]) != content(ROWS) != content([*ROWS[:2], {**ROWS[2], "level": 9}])
    csv_, lines = (str(tmp_path / name) for name in ("d.csv", "d.jsonl"))
    assert content([csv_, lines]) == content([csv_, lines]) != content([lines, csv_])
    assert content([csv_, lines])["rows"] == 6
    assert content([csv_]) == content(csv_)


def test_a_record_of_the_run_holds_no_rows() -> None:
    given: Any = {
        "model": {"path": "m"},
        "data": {"path": datasets.Dataset.from_list(ROWS), "eval_path": ROWS},
    }
    data = plain(Config(**given))["data"]
    assert (data["path"], data["eval_path"]) == ("3 rows from Python", "3 rows from Python")


def test_hub_ids_are_told_from_files(tmp_path: Path) -> None:
    assert is_hub_id("openai/gsm8k")
    assert not any(map(is_hub_id, ("data/rows.jsonl", "rows", "a/b/c", "data/rows.json.gz", str(tmp_path))))


def test_a_hub_id_that_cannot_be_had_is_one_line() -> None:
    code = """
from g2rpo_fast.data import DataConfig
from g2rpo_fast.data.sources import fetched
try:
    fetched("openai/nosuch", DataConfig(subset="main"), key="data.path")
except ValueError as error:
    print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    (line,) = done.stdout.splitlines()
    assert line.startswith(
        "data.path: wanted a file, or a folder or hub id that datasets can load (its data.subset"
    )
    assert "got 'openai/nosuch', subset 'main': " in line


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", "JSON lines"),
        ("a.json", "JSON"),
        ("a.csv.gz", "CSV"),
        ("a.parquet", "Parquet"),
        ("a.txt", "JSON lines"),
    ],
)
def test_a_file_that_is_missing_is_told_by_its_format(name: str, kind: str, tmp_path: Path) -> None:
    place = str(tmp_path / name)
    with pytest.raises(ValueError) as error:
        fetched(place, DataConfig(), key="data.path")
    assert str(error.value) == f"data.path: wanted a file of {kind}, got {place!r}, which is not a file"
