"""The figures of the pages: bars, in SVG that is written by hand.

A page may be light or dark, and its reader's choice is not told to an image: so the ground is
transparent, and every colour can be read on both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Final

import attrs

from benchmarks.peers.report import Key, Rows, by_measure, median
from benchmarks.peers.systems import OURS


WIDTH, LABELS, VALUES = 760, 300, 110  # pixels; bars have what is left
BAR, GAP, HEAD = 18, 14, 44
TEXT, OURS_COLOUR, PEER_COLOUR = "#7d8590", "#2f81f7", "#8b949e"
FONT: Final = "system-ui, -apple-system, 'Segoe UI', sans-serif"


@attrs.frozen
class Bar:
    """One of several things, in one or two figures: the second is drawn paler, behind the first."""

    label: str
    ours: bool
    value: float
    behind: float
    text: str


def draw(rows: Rows, folder: Path) -> list[Path]:
    """Write the figures that these rows are enough for, and return their paths."""
    measured = by_measure(rows)
    charts: dict[str, str] = {}
    if drained := measured.get("drain"):
        title = "No-op tasks a second, one worker process: more is better"
        charts["performance-drain"] = chart(title, _rates(drained))
    if picked_up := measured.get("latency"):
        title = "Milliseconds from the commit to the start, p50 and p99 (pale): less is better"
        charts["performance-latency"] = chart(title, _latencies(picked_up))
    paths: list[Path] = []
    for name, svg in charts.items():
        paths.append(folder / f"{name}.svg")
        paths[-1].write_text(svg, encoding="utf-8")
    return paths


def chart(title: str, bars: Sequence[Bar]) -> str:
    """Return horizontal bars, one below the other."""
    height = HEAD + len(bars) * (BAR + GAP)
    longest = max(max(bar.value, bar.behind) for bar in bars)
    scale = (WIDTH - LABELS - VALUES) / longest
    parts = [_text(0, 20, title, "start", bold=True)]
    for number, bar in enumerate(bars):
        y = HEAD + number * (BAR + GAP)
        colour = OURS_COLOUR if bar.ours else PEER_COLOUR
        parts += [
            _text(LABELS - 10, y + 13, bar.label, "end", bold=bar.ours),
            _bar(y, bar.behind * scale, colour, 0.4),
            _bar(y, bar.value * scale, colour, 1),
            _text(LABELS + max(bar.value, bar.behind) * scale + 8, y + 13, bar.text, "start"),
        ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"',
            f' width="{WIDTH}" height="{height}" font-family="{FONT}" font-size="13">',
            f"<title>{escape(title)}</title>",
            *parts,
            "</svg>\n",
        ]
    )


def _rates(measured: Mapping[Key, Rows]) -> list[Bar]:
    bars = [
        _as_bar(key, rate, 0, f"{rate:,.0f}")
        for key, rows in measured.items()
        if (rate := median(rows, "rate")) is not None
    ]
    return sorted(bars, key=lambda bar: -bar.value)


def _latencies(measured: Mapping[Key, Rows]) -> list[Bar]:
    bars: list[Bar] = []
    for key, rows in measured.items():
        p50, p99 = median(rows, "p50_ms"), median(rows, "p99_ms")
        if p50 is not None and p99 is not None:
            bars.append(_as_bar(key, max(p50, 0), max(p99, 0), f"{p50:.1f}, {p99:.1f}"))
    return sorted(bars, key=lambda bar: bar.value)


def _as_bar(key: Key, value: float, behind: float, text: str) -> Bar:
    system, settings = key
    ours = system == OURS.name
    return Bar(system if ours else f"{system}, {settings}", ours, value, behind, text)


def _bar(y: float, width: float, colour: str, opacity: float) -> str:
    return (
        f'<rect x="{LABELS}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2" fill="{colour}"'
        f' fill-opacity="{opacity:g}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y}" fill="{TEXT}" text-anchor="{anchor}"{weight}>'
        f"{escape(text)}</text>"
    )
