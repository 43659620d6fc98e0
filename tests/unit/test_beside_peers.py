"""What benchmarks/beside_peers.py and benchmarks/soak.py do without a server."""

from __future__ import annotations

import json
import sys

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks.beside_peers import Output, main, order
from benchmarks.peers import plots, report
from benchmarks.peers.plan import PLAN
from benchmarks.peers.systems import HERE, Home
from benchmarks.soak import PORTION, portions


SVG = "{http://www.w3.org/2000/svg}"


def row(system: str, rate: float, number: int = 1, /, **more: Any) -> dict[str, Any]:
    settings = "as it comes" if system == "nursery_queue" else "<its best>"
    of = {"run": "first", "what": "drain", "system": system, "settings": settings, "round": number}
    return {**of, "rate": rate, "worker_cpu_us": 40.0, "server_cpu_us": 20.0, **more}


def cells(table: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("|")
    ]


def test_ratios_are_of_one_round() -> None:
    """A library is compared with ours of the same round of the same run, and with no other."""
    rows = [row("peer", 1000), row("nursery_queue", 2000)]
    rows += [row("peer", 100, 2), row("nursery_queue", 400, 2)]
    rows += [row("peer", 500, 3), row("nursery_queue", 1500, 3)]
    rows += [row("peer", 90_000, run="alone")]

    heading, _, ours, peer = cells(report.tables(rows))

    assert "rate, ours ÷ it" in heading
    assert ours[:3] == ["nursery_queue", "as it comes", "3"]
    assert ours[heading.index("rate, ours ÷ it")] == "1.00"
    assert peer[heading.index("rate, ours ÷ it")] == "3.00"
    assert peer[heading.index("tasks/s")] == "750"


def test_empty_columns_are_left_out() -> None:
    """A table has the columns for which there is a figure."""
    drained = cells(report.tables([row("nursery_queue", 1)]))
    late: dict[str, float] = {
        "p50_ms": 1.25,
        "p99_ms": 3,
        "call_p50_ms": 2,
        "call_p99_ms": 4,
        "max_ms": 9,
    }
    waited = cells(report.tables([row("nursery_queue", 50, what="latency", **late)]))

    assert "p50" not in drained[0]
    assert waited[2][waited[0].index("p50")] == "1.25"
    assert waited[2][waited[0].index("max")] == "9.0"


def test_two_processes_are_compared_with_one() -> None:
    """What two worker processes bring is said of each library by its own single process."""
    rows = [row("nursery_queue", 100), row("nursery_queue", 170, what="processes")]
    heading, _, ours = cells(report.tables(rows).partition("### processes")[2])

    assert ours[heading.index("÷ one process")] == "1.70"


def test_failures_are_told() -> None:
    """A measurement that failed is in no median, and is listed."""
    failed = {"run": "first", "what": "drain", "system": "peer", "settings": "", "round": 1}
    text = report.tables([row("nursery_queue", 1), {**failed, "error": "no such library"}])

    assert "drain, peer (): no such library" in text
    assert len(cells(text)) == 3


def test_plots_are_svg(tmp_path: Path) -> None:
    """A plot has a bar for each library, and a label that is text whatever is in it."""
    path = tmp_path / "rows.jsonl"
    late = row("peer", 1, what="latency", p50_ms=1.0, p99_ms=3.0)
    rows = [row("peer", 2), row("nursery_queue", 4), late]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    drawn = plots.draw(report.read(path), tmp_path)

    assert [each.name for each in drawn] == ["performance-drain.svg", "performance-latency.svg"]
    root = ET.fromstring(drawn[0].read_text(encoding="utf-8"))  # noqa: S314  # our own
    texts = [each.text for each in root.iter(f"{SVG}text")]
    assert texts[1:] == ["nursery_queue", "4", "peer, <its best>", "2"]
    widths = [float(each.attrib["width"]) for each in root.iter(f"{SVG}rect")]
    assert widths[1] == 2 * widths[3]


def test_turns_begin_with_another_one() -> None:
    """Each measure is made of ours, and of everything once in a round, in another order."""
    for measure in PLAN.values():
        count = len(measure.entries)
        turns = [list(order(measure, turn)) for turn in range(count)]

        assert len({turn[0].system.name + turn[0].settings for turn in turns}) == count
        assert measure.entries[0].system.name == "nursery_queue"
        assert all((HERE / entry.system.adapter).exists() for entry in measure.entries)


def test_a_line_that_is_cut(tmp_path: Path) -> None:
    """A run that was killed while it wrote leaves the rows before, and those of the next one."""
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(row('peer', 1))}\n{json.dumps(row('peer', 2))[:40]}")
    before = report.read(path)
    Output(path).write(**row("peer", 3))

    assert [each["rate"] for each in before] == [1]
    assert [each["rate"] for each in report.read(path)] == [1, 3]


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        (["run", "nowhere"], 2, "run `setup nowhere` first"),
        (["run", "home", "--dsn", "postgresql://127.0.0.1:1/x"], 1, "port 1 failed"),
        (["run", "home", "--dsn", "postgresql//x"], 1, "the DSN is neither a URL"),
        (["report", "nothing.jsonl"], 1, "No such file or directory: 'nothing.jsonl'"),
        (["plot", "nothing.jsonl"], 1, "No such file or directory: 'nothing.jsonl'"),
    ],
)
def test_what_is_missing_is_told(
    command: list[str],
    code: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A directory without the peers, a server or a file that is not there: one line, no trace."""
    for program in (Home(tmp_path / "home").node, Home(tmp_path / "home").python):
        program.parent.mkdir(parents=True)
        program.touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["beside_peers", *command])

    assert main() == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: ")
    assert told in line


@pytest.mark.parametrize("backlog", [1, 50, PORTION, 100_000])
def test_portions_of_a_soak_fit_its_backlog(backlog: int) -> None:
    """However few may wait, they come, each once."""
    tasks = min(3 * backlog, 2 * PORTION) + 1
    found = list(portions(tasks, backlog))

    assert max(map(len, found)) <= backlog
    assert [number for portion in found for number in portion] == list(range(tasks))
