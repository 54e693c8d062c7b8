"""The catalogue of published methods: complete, consistent, found by any name, shown in any width."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from g2rpo_fast.cli import main
from g2rpo_fast.methods import (
    EVIDENCE,
    STATUS,
    Method,
    as_json,
    explain,
    find,
    load_method,
    load_methods,
    method_from_toml,
    table,
)

ENTRIES = {
    "G2RPO-A": "2508.13023", "iGRPO": "2602.09000", "Generative Actor Critic": "2512.21527",
    "TR-GRPO": "2511.00066", "lambda-GRPO": "2510.06870", "THR": "2510.03669",
    "GRPO-lambda (eligibility traces)": "2510.00194", "GRPO-CARE": "2506.16141",
    "Adaptive Guidance / Guide": "2506.13923", "VerIPO": "2505.19000", "DisCO, DisCO-b": "2505.12366",
    "SGPO": "2505.11595", "PODS": "2504.13818", "RAFT, RAFT++, Reinforce-Rej": "2504.11343",
    "GPG": "2504.02546", "MCTS preference learning": "2405.00451", "SPINE": "2511.17938",
    "multi-objective GRPO": "2503.21819", "SAGE": "2602.03143", "StreamBP": "2506.03077",
    "CRPO / Clinical-R1": "2512.00601", "Reg-GRPO / DeepVideo-R1": "2506.07464", "PAPO": "2507.06448",
    "ActiveVLN": "2509.12618", "air quality GRPO": "2511.22169", "Knapsack RL": "2509.25849",
    "VGPO": "2512.12387", "GDPO": "2601.05242", "DRPO": "2510.04474", "NGRPO": "2509.18851",
    "ExPO": "2507.02834", "Scaf-GRPO": "2510.19807", "GTPO": "2508.03772", "M-GRPO": "2511.13288",
    "Co-GRPO": "2512.22288", "DCPO": "2601.12730", "GRPO-Guard": "2510.22319", "V_0": "2602.03584",
    "TON": "2505.16854", "SPO single-stream": "2509.13232", "ReST-RL": "2508.19576", "XRPO": "2510.06672",
    "RGR-GRPO": "2511.12344", "P-GRPO / ReCode": "2508.05170", "Train Long, Think Short": "2508.08940",
    "VADE": "2511.18902", "RL-Text2Vis": "2601.04582", "GRNet goal recognition": "2210.02377",
    "SPO segment": "2505.23564", "ETR": "2601.03723", "GRPO-lambda efficient": "2505.18086",
    "DaGRPO": "2512.06337", "MathForge: DGPO, MQR": "2601.20614", "Syn-GRPO": "2511.19343",
    "Rank-GRPO": "2510.20150", "surrogate signals": "2505.19439", "AgentFlow / Flow-GRPO": "2510.05592",
    "GRIT": "2505.15879", "PRS + VSPO": "2512.07478", "Pref-GRPO": "2508.20751", "S-GRPO": "2505.07686",
    "PC-GRPO": "2512.14944", "non-smooth PDE survey": "2308.01113", "DHPO": "2601.05607",
    "Prefix Grouper": "2506.05433", "SEED-GRPO": "2505.12346",
}  # fmt: skip
"""The 66 systems that the catalogue answers for, and the paper of each."""

BASELINES = {
    "GRPO": "2402.03300", "Dr. GRPO": "2503.20783", "DAPO": "2503.14476", "BNPO": "2506.02864",
    "GSPO": "2507.18071", "CISPO": "2506.13585", "SAPO": "2511.20347", "VESPO": "2602.10693",
    "LUSPO": "2602.05261", "RLOO": "2402.14740", "REINFORCE++": "2501.03262",
    "Advantage Reweighting": "2505.12929",
}  # fmt: skip

METHODS = load_methods()

FILE = """
name = "Some Method"
arxiv = "2402.00001"
evidence = "code"
status = "runs"
summary = "does something else"
equation = "A = R"
differs = ["advantage: the reward"]
needs = []
cost = "none"
refuses = []
"""


def written(directory: Path, **texts: str) -> Path:
    for key, text in texts.items():
        (directory / f"{key}.toml").write_text(text)
    return directory


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["methods", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err.removeprefix("g2rpo-fast: ").rstrip("\n")


def test_every_entry_is_there_once_with_its_paper() -> None:
    papers = {(method.entry, method.arxiv) for method in METHODS.values() if method.entry}
    assert len(ENTRIES) == 66
    assert sorted(papers) == sorted(ENTRIES.items())
    assert len({method.name for method in METHODS.values()}) == len(METHODS)


def test_the_rest_are_baselines_of_the_field() -> None:
    assert {method.name: method.arxiv for method in METHODS.values() if not method.entry} == BASELINES


def test_every_method_says_what_it_must() -> None:
    for method in METHODS.values():
        assert method.status in STATUS, method.key
        assert method.evidence in EVIDENCE, method.key
        assert re.fullmatch(r"\d{4}\.\d{5}", method.arxiv), method.key
        assert (method.equation == "") == (method.status == "no"), method.key
        assert (method.why_not != "") == (method.status == "no"), method.key
        assert method.evidence != "code" or method.source or not method.entry, method.key
        assert len(method.summary) <= 130, method.key
        assert (method.watch != "") == (method.runnable and method.settings != {}), method.key


def test_texts_are_plain_and_speak_of_nothing_internal() -> None:
    for method in METHODS.values():
        text = as_json([method])
        assert text.isascii(), method.key
        assert "\\u" not in text, method.key
        assert not re.search(r"\bO\d+\b|\bG\d+\b|part [AB]\b|\bid \d|/work|/tmp|addend", text), method.key


def test_every_group_has_the_methods_that_must_be_in_it() -> None:
    status = {method.key: method.status for method in METHODS.values()}
    assert {"g2rpo_a", "grpo", "dr_grpo", "gspo", "cispo", "sapo", "gdpo"} <= {
        key for key in status if status[key] == "runs"
    }
    assert {key for key in status if status[key] == "no"} == {
        "generative_actor_critic", "grnet", "mqr", "nonsmooth_pde_survey", "prefix_grouper", "streambp",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("scaf_grpo", "scaf_grpo"),
        ("Scaf-GRPO", "scaf_grpo"),
        ("SCAF GRPO", "scaf_grpo"),
        ("2510.19807", "scaf_grpo"),
        ("arXiv:2510.19807v2", "scaf_grpo"),
        ("GRPO-SG", "tr_grpo"),
        ("puzzlecraft", "pc_grpo"),
        ("ReCode", "p_grpo"),
        ("cg-grpo", "p_grpo"),
        ("G²RPO-A", "g2rpo_a"),
        ("λ-GRPO", "lambda_grpo"),
        ("RAFT", "raft"),
        ("raft++", "raft_plus_plus"),
        ("Dr. GRPO", "dr_grpo"),
        ("V_0", "v0_allocation"),
        ("DisCO", "disco"),
    ],
)
def test_methods_are_found_by_any_of_their_names(name: str, key: str) -> None:
    assert find(name, METHODS).key == key


def test_every_key_name_and_alias_finds_its_own_method() -> None:
    for method in METHODS.values():
        for name in (method.key, method.name, *method.aliases):
            assert find(name, METHODS) is method


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("SPO", ["spo_chain", "spo_single_stream", "spo_tree"]),
        ("GRPO-λ", ["grpo_lambda_efficient", "grpo_lambda_traces"]),
        ("grpo-lambda", ["grpo_lambda_efficient", "grpo_lambda_traces"]),
        ("2504.11343", ["raft", "raft_plus_plus", "reinforce_rej"]),
        ("MathForge", ["dgpo", "mqr"]),
    ],
)
def test_what_may_be_several_lists_them(
    name: str, keys: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal([name], capsys)
    assert said.startswith(f"methods: {name!r} may be ")
    assert sorted(re.findall(r"(\w+) \(arXiv \d{4}\.\d{5}\)", said)) == keys


def test_an_unknown_name_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(["scaff_grpo"], capsys)
    assert said.startswith(
        "methods: wanted a method's name or arXiv identifier, got 'scaff_grpo'; the nearest"
    )
    assert "Scaf-GRPO" in said
    for word in ("", "?", "2999.99999"):
        assert f"got {word!r}; " in refusal([word], capsys)


@pytest.mark.parametrize("width", [20, 60, 80, 110, 400])
def test_no_line_of_the_table_is_wider_than_asked(width: int) -> None:
    lines = table(METHODS, width=width).splitlines()
    assert max(map(len, lines)) <= width
    shown = [line for line in lines if line.startswith("  ")]
    assert len(shown) == len(METHODS)
    if width == 400:
        assert not any(line.endswith("...") for line in lines)
        assert all(method.summary in line for method, line in zip(METHODS.values(), shown))
    if width == 80:
        assert all(key in line for key, line in zip(METHODS, shown))


def test_the_table_counts_each_group() -> None:
    lines = table(METHODS, width=200).splitlines()
    counts = {
        status: int(count)
        for line in lines
        for status, count in re.findall(r"^(runs|core|not yet|no): (\d+) \(", line)
    }
    assert list(counts) == list(STATUS)
    assert counts == {s: sum(m.status == s for m in METHODS.values()) for s in STATUS}


def test_the_page_of_a_method_says_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "DCPO"]) == 0
    out = capsys.readouterr().out
    method = METHODS["dcpo"]
    words = " ".join(out.split())
    for text in (method.name, method.arxiv, EVIDENCE["code"], method.summary, method.cost, method.default):
        assert text in words
    for items in (method.differs, method.needs, method.refuses, method.namesakes, method.aliases):
        assert all(item in words for item in items)
    assert all(line in out for line in method.equation.splitlines())
    assert "run it: g2rpo-fast train --method dcpo" in out


def test_a_page_is_wrapped_to_the_width() -> None:
    for method in METHODS.values():
        equation = {f"  {line}" for line in method.equation.splitlines()}
        page = explain(method, width=70).partition("\nsettings\n")[0]
        prose = [line for line in page.splitlines() if line not in equation]
        assert max(map(len, prose)) <= 70, method.key


def test_settings_are_shown_as_toml_that_reads_back(tmp_path: Path) -> None:
    settings = """
terms = [{ use = "clip", low = 0.2, high = inf }, { use = "kl", on = true }]
[objective]
surrogate = "clip"
levels = [1, 2.5]
[reward.weights]
"module:function" = 2
"""
    method = method_from_toml("some", FILE + settings)
    page = explain(method, width=80)
    assert page.endswith("run it: g2rpo-fast train --method some")
    shown = page.split("settings\n")[1].split("\n\nrun it")[0]
    assert method_from_toml("some", FILE + shown).settings == method.settings
    assert list(method.settings) == ["terms", "objective", "reward"]
    assert json.loads(as_json([method]))[0]["settings"]["terms"][0]["high"] == "inf"


def test_json_has_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [method["key"] for method in listed] == list(METHODS)
    assert listed[0].keys() == set(Method.__dataclass_fields__)
    assert main(["methods", "iGRPO", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert one["equation"] == METHODS["igrpo"].equation


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "a.toml: not valid TOML: "),
        (FILE + 'sumary = "x"', "a.toml: unknown key sumary; the nearest is summary"),
        (FILE + "zzz = 3", "a.toml: unknown key zzz; known: name, arxiv"),
        (FILE.replace('cost = "none"', ""), "a.toml: wanted the keys name, arxiv, "),
        (FILE.replace('cost = "none"', "cost = 3"), "a.toml: cost: wanted a text, got 3"),
        (FILE.replace("needs = []", 'needs = "x"'), "a.toml: needs: wanted a list of texts, got 'x'"),
        (FILE.replace('"code"', '"cod"'), "a.toml: evidence: wanted one of code, paper, notes, approx, got"),
        (FILE.replace('"runs"', '"ready"'), "a.toml: status: wanted one of runs, core, not yet, no, got"),
        (FILE.replace("2402.00001", "2402.1"), "a.toml: arxiv: wanted an identifier"),
        (FILE.replace("2402.00001", ""), "a.toml: arxiv: wanted an identifier"),
        (FILE.replace("A = R", ""), "a.toml: equation: wanted a text unless status = \"no\", got ''"),
        (FILE.replace('"runs"', '"no"'), 'a.toml: why_not: wanted a text if status = "no", and only then'),
        (FILE + 'why_not = "x"', 'a.toml: why_not: wanted a text if status = "no", and only then'),
    ],
)
def test_a_bad_file_is_refused_by_name(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as refused:
        load_methods(written(tmp_path, a=text))
    assert "\n" not in str(refused.value)


OTHER = FILE.replace("Some Method", "Other").replace("2402.00001", "2402.00002")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OTHER.replace("Other", "some-method"), "b.toml: 'some-method' is a name of a.toml too"),
        (OTHER + 'aliases = ["A"]', "b.toml: 'A' is a name of a.toml too"),
        (OTHER.replace("2402.00002", "2402.00001"), "b.toml: arxiv: wanted another than a.toml's, or"),
        (OTHER + 'ambiguous = ["some method"]', "b.toml: ambiguous: 'some method' is a.toml's own name"),
    ],
)
def test_a_word_that_would_mean_two_methods_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        load_methods(written(tmp_path, a=FILE, b=text))


def test_methods_of_one_entry_share_a_paper_and_words_that_are_marked(tmp_path: Path) -> None:
    shared = 'entry = "E"\nambiguous = ["Both"]\n'
    other = OTHER.replace("2402.00002", "2402.00001")
    directory = written(tmp_path, a=FILE + shared, b=other + shared)
    assert list(load_methods(directory)) == ["a", "b"]
    assert load_method("other", directory).key == "b"
    for name in ("both", "2402.00001"):
        with pytest.raises(ValueError, match=r"may be a \(arXiv 2402.00001\), b \(arXiv 2402.00001\)"):
            load_method(name, directory)


def test_a_method_without_an_identifier_has_a_source(tmp_path: Path) -> None:
    text = FILE.replace("2402.00001", "") + 'source = "its repository"\n'
    methods = load_methods(written(tmp_path, a=text, b=text.replace("Some Method", "Other")))
    assert explain(methods["a"], width=80).startswith("Some Method (its repository)")
    assert "  a  -  " in table(methods, width=80)


def run(words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    code = f"""
import atexit, sys
atexit.register(lambda: print({{"torch", "transformers", "numpy"}} & sys.modules.keys(), file=sys.stderr))
from g2rpo_fast.cli import main
sys.exit(main({words}))
"""
    environment = {"PYTHONPATH": ":".join(sys.path)} | environment
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("words", [[], ["igrpo"], ["--json"]], ids=str)
def test_methods_are_shown_without_an_import_of_pytorch(words: list[str]) -> None:
    done = run(["methods", *words], PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "set()\n")


def test_a_pipe_gets_whole_lines_and_a_terminal_what_fits() -> None:
    longest = max((method.summary for method in METHODS.values()), key=len)
    assert longest in run(["methods"]).stdout
    narrow = run(["methods"], COLUMNS="70").stdout
    assert longest not in narrow
    assert max(map(len, narrow.splitlines())) == 70


def test_a_reader_that_stops_is_no_error() -> None:
    code = "from g2rpo_fast.cli import main; import sys; sys.exit(main(['methods', '--json']))"
    started = subprocess.Popen(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert started.stdout
    assert started.stderr
    started.stdout.read(1)
    started.stdout.close()
    assert started.stderr.read() == b""
    assert started.wait() == 0
