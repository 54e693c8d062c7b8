"""Reports of real tiny runs: one page that needs nothing else, safe to open, of runs that go on or differ."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from browsers import loaded, pictured
from g2rpo_fast.cli import main
from g2rpo_fast.embedded import prepare
from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.report import page, read_runs
from g2rpo_fast.report.panels import sections
from g2rpo_fast.report.series import MOST_POINTS, points, wilson, window
from g2rpo_fast.train import train
from runs import quiet, tiny_config

HOSTILE = (
    '<script>document.title = "broken in"</script><img src=x onerror="document.title=1">&lt;</pre></style>'
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A guided run of three steps, and one of one step without guidance and by other settings."""
    directory = tmp_path_factory.mktemp("report")
    embedded = tiny_config(directory, embedded={"warm_start_steps": 1}).embedded
    made = prepare(directory, embedded, seed=0, report=quiet)
    task = {"model": {"path": str(made.model_dir)}}
    task["data"] = {"path": str(made.train_path), "eval_path": str(made.eval_path)}
    short = {"run": {"steps": 1}, "guidance": {"enabled": False}, "optim": {"lr": 1e-3}}
    train(tiny_config(directory / "guided", **task, run={"steps": 3}, samples={"every": 1}), show=quiet)
    train(tiny_config(directory / "<alone>", **task, **short), show=quiet)
    (directory / "<alone>" / "config.json").write_text(
        (directory / "<alone>" / "config.json").read_text().replace('"method": null', '"method": "gspo"')
    )
    return [directory / "guided", directory / "<alone>"]


@pytest.fixture(scope="module")
def drawn(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their page."""
    file = tmp_path_factory.mktemp("page") / "page.html"
    assert main(["report", *map(str, runs), "--out", str(file)]) == 0
    return file


def changed(run: Path, to: Path) -> Path:
    """A copy without its weights, to change."""
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("checkpoints", "model", "embedded"))
    return to


def with_few_metrics(run: Path) -> dict[str, float]:
    """So that it is drawn fast; the last record."""
    records = [
        {name: record[name] for name in ("step", "loss", "time/step_s") if name in record}
        for record in read_metrics(run / "metrics.jsonl")
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return records[-1]


class Elements(HTMLParser):
    """Tags and attributes of a page, and texts inside <pre>."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_a_page_is_whole_and_needs_no_network(drawn: Path) -> None:
    text = drawn.read_text()
    assert len(text) < 5e6
    assert text.count("<svg") > 30
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\s\"'<>)]+", text)) <= namespaces
    found = Elements(text).tags
    assert {tag for tag, _ in found} & {"script", "iframe", "object", "embed", "base", "img"} == set()
    assert [given for tag, given in found if tag == "link"] == [{"rel": "icon", "href": "data:,"}]
    ids = [given["id"] for _, given in found if given.get("id")]
    references = re.findall(r'(?:url\(#|href="#)([\w-]+)', text)
    assert set(references) <= set(ids)
    for expected in ("Held-out accuracy", "Guidance profile", "optim.lr", "to watch: GSPO", "&lt;alone&gt;"):
        assert expected in text


def test_every_metric_of_every_run_is_on_the_page(runs: list[Path]) -> None:
    read = read_runs(runs)
    drawn = [one for _, panels in sections(read) for one in panels]
    named = {one.panel.name for one in drawn}
    times = {f"time/{phase}_s" for phase in ("rollout", "reward", "update", "sync", "evaluate")}
    measured = {k for run in read for r in (run.before, *run.records) for k, v in r.items() if v is not None}
    assert measured - named - times == {"step"}
    lines = {one.panel.name: [run.name for run, _ in one.lines] for one in drawn}
    assert lines["guidance/length"] == ["guided"]
    assert lines["eval/accuracy"] == ["guided", "<alone>"]


@pytest.fixture(scope="module")
def hostile(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run whose samples and metric names are markup."""
    run = changed(runs[0], tmp_path_factory.mktemp("hostile") / "run")
    row = json.loads((run / "samples.jsonl").read_text().splitlines()[-1])
    row |= {
        "prompt": HOSTILE,
        "guidance": HOSTILE,
        "sampled": HOSTILE,
        "guidance_tokens": 3,
        "prompt_id": HOSTILE,
    }
    row |= {"finish_reason": HOSTILE, "reward/" + HOSTILE: 1.0, "split": "train", "advantage": 0.0}
    (run / "samples.jsonl").write_text(json.dumps(row) + "\n")
    record = with_few_metrics(run)
    with (run / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({**record, "step": 4, "reward/" + HOSTILE: 0.5, HOSTILE: 1.0}) + "\n")
    return page(read_runs([run]))


def test_what_a_sample_says_is_text(hostile: str) -> None:
    assert {tag for tag, _ in Elements(hostile).tags} & {"script", "img"} == set()
    assert hostile.count("&lt;script&gt;document.title") >= 6


def test_a_browser_runs_nothing_of_a_sample(hostile: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(hostile)
    shown = loaded(tmp_path / "page.html")
    assert "<title>run – g2rpo-fast</title>" in shown
    assert shown.count("&lt;script&gt;document.title") >= 4
    assert "<script" not in shown


@pytest.mark.parametrize("width", [1400, 700])
def test_a_browser_draws_it_light_and_dark(width: int, drawn: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    brightness = []
    for dark in (False, True):
        picture = tmp_path / f"{dark}.png"
        pictured(drawn, picture, width=width, height=1200, dark=dark)
        pixels = imread(picture)[..., :3]
        assert pixels.shape == (1200, width, 3)
        blue = (pixels[..., 2] > pixels[..., 0] + 0.25) & (pixels[..., 2] > 0.5)
        assert blue.sum() > 500  # the first run's lines
        brightness.append(float(pixels.mean()))
    assert brightness[0] > 0.8
    assert brightness[1] < 0.25


def test_a_run_that_is_being_written_is_read_as_far_as_it_is(runs: list[Path], tmp_path: Path) -> None:
    run = changed(runs[0], tmp_path / "run")
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (run / name).open("a") as log:
            log.write('{"step": 4, "rollout/accur')
    (read,) = read_runs([run])
    assert (read.steps, read.total_steps, read.finished) == (3, 3, False)
    assert [row["step"] for row in read.rows][-1] == 3
    (run / "metrics.jsonl").write_text("")
    (run / "samples.jsonl").unlink()
    (run / "guidance_profile.json").unlink()
    assert "0 of 3, last record" in page(read_runs([run]))


def test_gaps_stay_gaps_and_long_runs_become_means(runs: list[Path], tmp_path: Path) -> None:
    run = changed(runs[0], tmp_path / "run")
    record = {"rollout/rows": 10.0, "rollout/share": 1.0, "rollout/reward_std": 0.5, "rollout/reward": 2.0}
    records = [
        {"step": s, **record, "rollout/accuracy": s % 2, "loss": None if 100 <= s < 110 else float(s)}
        for s in range(1, 401)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    read, short = read_runs([run, runs[0]])
    steps = window([short, read])
    assert steps == math.ceil(400 / MOST_POINTS) == 10
    assert (window([short]), len(points(short, "loss", steps))) == (1, 1)
    loss = points(read, "loss", 5)
    assert len(loss) == 80
    assert loss[0][:2] == (3.0, 3.0)  # of steps 1 to 5
    assert [p.x for p in loss if math.isnan(p.value)] == [103.0]
    accuracy = points(read, "rollout/accuracy", 5)
    assert accuracy[0].value == 0.6
    assert (accuracy[0].low, accuracy[0].high) == wilson(0.6, 50)
    reward = points(read, "rollout/reward", 5)[0]
    assert reward.high - reward.value == pytest.approx(1.959964 * 0.5 / math.sqrt(50))


def test_wilson_s_interval_is_the_published_one() -> None:
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert all(map(math.isnan, wilson(math.nan, 5)))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "wanted a run directory (config.json, metrics.jsonl), got nowhere: No such file"),
        (["RUN", "RUN"], "report: wanted each run once"),
        (["DAMAGED"], "metrics.jsonl:2: wanted a JSON object with a step, got '[1]'"),
        (
            ["RUN", "--out", "no/such/folder/x.html"],
            "--out: wanted a file in a folder that is there, got no/such/folder/x.html",
        ),
        ([], "report: wanted 1 to 8 run directories, got 0"),
    ],
    ids=["nowhere", "twice", "damaged", "out", "none"],
)
def test_mistakes_are_told_in_a_line(
    words: list[str],
    told: str,
    runs: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damaged = changed(runs[0], tmp_path / "damaged")
    (damaged / "metrics.jsonl").write_text('{"step": 1}\n[1]\n{"step": 2}\n')
    places = {"RUN": str(runs[0]), "DAMAGED": str(damaged)}
    try:
        status = main(["report", *(places.get(word, word) for word in words)])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    line = capsys.readouterr().err
    assert told in line
    assert line.count("\n") == 1


def test_a_live_page_follows_its_run_until_it_is_interrupted(runs: list[Path], tmp_path: Path) -> None:
    run = changed(runs[0], tmp_path / "run")
    last = with_few_metrics(run)
    file = tmp_path / "page.html"
    command = [sys.executable, "-m", "g2rpo_fast.cli", "report", str(run), "--out", str(file), "--live"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's & ignores it
    )
    assert process.stdout is not None
    assert process.stdout.readline() == f"report: open {file}; it follows the runs until Ctrl-C\n"
    assert "location.reload" in file.read_text()
    assert "3 of 3" in file.read_text()
    with (run / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({**last, "step": 7}) + "\n")
    while "7 of 3" not in file.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert err == f"g2rpo-fast: stopped by Ctrl-C. the page as it is now is in {file}\n"
    assert "location.reload" not in file.read_text()
