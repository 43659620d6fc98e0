"""The tables of all rounds, in Markdown: medians, and ratios of what was measured in one round."""

from __future__ import annotations

import contextlib
import json
import statistics

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.peers.systems import OURS


Row = dict[str, Any]
Rows = Sequence[Row]
Key = tuple[str, str]  # system and settings

# Measures whose rate says how they are paced; what counts are milliseconds, or the CPU.
PACED: Final = {"latency", "trickle"}
MILLISECONDS: Final = ("p50_ms", "p99_ms", "call_p50_ms", "call_p99_ms")


def read(path: Path) -> list[Row]:
    """Return the rows of a file; a line that was not written to its end is left out."""
    rows: list[Row] = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
    return rows


def one_line(row: Mapping[str, Any]) -> str:
    """Tell of one row while the others are being measured."""
    name = f"{row['what']}, {row['system']} ({row['settings']})"
    if "error" in row:
        return f"{name}: {row['error']}"
    told = [f"{row['rate']:,.0f}/s, CPU {row['worker_cpu_us']} + {row['server_cpu_us']} us"]
    told += [f"{key} {row[key]}" for key in (*MILLISECONDS[:2], "max_ms") if key in row]
    return f"{name}: {', '.join(told)}"


def tables(rows: Rows) -> str:
    """Return a table for each measure, below what it was measured on."""
    parts = [_machine(row) for row in rows if row["what"] == "machine"][-1:]
    for what, measured in by_measure(rows).items():
        parts.append(f"### {what}\n\n{_table(what, measured, rows)}")
    failed = [f"- {one_line(row)}" for row in rows if "error" in row]
    return "\n\n".join(parts + (["### failed", "\n".join(failed)] if failed else []))


def by_measure(rows: Rows) -> dict[str, dict[Key, list[Row]]]:
    """Return the rows of each measure, by system and settings; ours are the first."""
    found: defaultdict[str, defaultdict[Key, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["what"] != "machine" and "error" not in row:
            found[row["what"]][row["system"], row["settings"]].append(row)
    return {
        what: dict(sorted(measured.items(), key=lambda each: each[0][0] != OURS.name))
        for what, measured in found.items()
    }


def ratio(rows: Rows, others: Rows, figure: Callable[[Row], float]) -> float | None:
    """Return the median of the ratios of those that were measured in the same round of a run."""
    of = {(row["run"], row["round"]): row for row in others}
    pairs = [(row, of[key]) for row in rows if (key := (row["run"], row["round"])) in of]
    ratios = [figure(row) / figure(other) for row, other in pairs if figure(other)]
    return statistics.median(ratios) if ratios else None


def cpu(row: Row) -> float:
    """Return the microseconds a task of worker and server together."""
    return float(row["worker_cpu_us"] + (row["server_cpu_us"] or 0))


def rate(row: Row) -> float:
    """Return the tasks a second."""
    return float(row["rate"])


def median(rows: Iterable[Row], key: str) -> float | None:
    """Return the median of the rounds; None: it is not measured of these."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return statistics.median(values) if values else None


def _table(what: str, measured: Mapping[Key, list[Row]], rows: Rows) -> str:
    first = next(iter(measured.values()))
    paced = what in PACED
    one = by_measure(rows).get("drain", {})
    lines: list[list[str]] = []
    for (system, settings), own in measured.items():
        tasks_a_second = [rate(row) for row in own]
        beside = ratio(own, first, cpu) if paced else ratio(first, own, rate)
        line = {
            "": system,
            "settings": settings,
            "rounds": str(len(own)),
            "tasks/s": _number(statistics.median(tasks_a_second)),
            "least to most": f"{_number(min(tasks_a_second))} to {_number(max(tasks_a_second))}",
            "CPU, it ÷ ours" if paced else "rate, ours ÷ it": _number(beside, 2),
            "worker us": _number(median(own, "worker_cpu_us")),
            "server us": _number(median(own, "server_cpu_us")),
            "MB": _number(median(own, "rss_mb")),
            "÷ one process": _number(ratio(own, one.get((system, settings), []), rate), 2)
            if what == "processes"
            else "",
            **{key.removesuffix("_ms"): _number(median(own, key), 2) for key in MILLISECONDS},
            "max": _number(max((row["max_ms"] for row in own if "max_ms" in row), default=None), 1),
            "last tenth/s": _number(median(own, "rate_last_tenth")),
            "held ÷ not held": _number(median(own, "kept"), 2),
            "MB from tenth to tenth": _course(own),
        }
        if not lines:
            lines.append(list(line))
        lines.append(list(line.values()))
    return _markdown(lines)


def _course(rows: Rows) -> str:
    """Return how the memory went in the last round."""
    return " ".join(f"{each:.0f}" for each in rows[-1].get("rss_tenths_mb", []))


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a table without columns in which there is nothing."""
    heading, *body = lines
    used = [i for i in range(len(heading)) if any(line[i] for line in body)]
    shown = [[line[i] for i in used] for line in lines]
    shown.insert(1, ["---" if i < 2 else "--:" for i in range(len(used))])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in shown)


def _number(value: float | None, digits: int | None = None) -> str:
    if value is None:
        return ""
    return f"{value:,.{(1 if abs(value) < 100 else 0) if digits is None else digits}f}"


def _machine(row: Row) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in row["settings"].items())
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    return f"{row['cores']} cores, {row['system']}; {row['postgresql']}; {settings}.\n\n{versions}."
