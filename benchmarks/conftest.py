"""`pytest benchmarks/ --benchmark` measures and writes JSON; without the flag each case runs once, small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from provenance import Record, commit, machine, versions
from timing import Deadline

RESULTS = Path(__file__).parent / "results"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmark", action="store_true", help="measure at full size and write results/*.json")
    parser.addoption("--seconds", type=float, help="ask no more peers after this time (default: no limit)")


@pytest.fixture
def benchmark_mode(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--benchmark"))


@pytest.fixture(scope="session", autouse=True)
def deadline(request: pytest.FixtureRequest) -> Deadline:
    return Deadline(request.config.getoption("--seconds"))


@pytest.fixture
def record(request: pytest.FixtureRequest, benchmark_mode: bool) -> Record:
    """Writes `results/NAME.json`: the figures and how to get them again. A smoke test only prints them."""

    def write(name: str, figures: dict) -> None:
        result = {
            "name": name,
            "command": f"pytest {request.node.nodeid} --benchmark",
            "machine": machine(),
            "versions": versions(),
            "commit": commit(),
            "figures": figures,
        }
        text = json.dumps(result, indent=1)
        print(text)
        if benchmark_mode:
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"{name}.json").write_text(text + "\n")

    return write
