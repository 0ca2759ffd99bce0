"""The result as one HTML page that needs nothing else: no script, no font, no network."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import median, median_low
from string import Template

from demo.scenario import (
    COLD,
    COMPUTED,
    FROM_HOST,
    FROM_SSD,
    FROM_VLLM,
    HOST,
    KILLED,
    STEPS,
    Measurement,
)

TEMPLATE = Path(__file__).with_name("report.html")
STYLE = Path(__file__).with_name("style.css")
COLOURS = {COMPUTED: "computed", FROM_VLLM: "vllm", FROM_HOST: "host", FROM_SSD: "ssd"}

# Pixels of the drawing; it scales with the page.
WIDTH, ROW, BAR, LEFT, RIGHT = 560, 56, 18, 1, 90


@dataclass(frozen=True, slots=True)
class Row:
    """One step over all rounds: medians, and the spread of its times."""

    step: str
    ttft_s: float
    lowest_s: float
    highest_s: float
    cached_tokens: int
    prompt_tokens: int
    loaded_bytes: int
    source: str


def summarise(rounds: Sequence[Mapping[str, Measurement]]) -> list[Row]:
    """Return one row a step."""
    return [_row(step, [shown[step] for shown in rounds]) for step in STEPS]


def _row(step: str, shown: Sequence[Measurement]) -> Row:
    times = [one.answer.ttft_s for one in shown]
    return Row(
        step=step,
        ttft_s=median(times),
        lowest_s=min(times),
        highest_s=max(times),
        cached_tokens=median_low(one.answer.cached_tokens for one in shown),
        prompt_tokens=median_low(one.answer.prompt_tokens for one in shown),
        loaded_bytes=median_low(one.loaded_bytes for one in shown),
        source=shown[0].source,
    )


def write_report(subject: str, rows: Sequence[Row], num_rounds: int) -> str:
    """Return the page."""
    ttft_s = {row.step: row.ttft_s for row in rows}
    cold, host, ssd = (ttft_s[step] for step in (COLD, HOST, KILLED))
    headline = (
        f"Once vLLM had dropped its own cache, a prompt whose KV was in host memory got its first "
        f"token after {_milliseconds(host)} instead of {_milliseconds(cold)}: {cold / host:.1f} "
        f"times sooner. From SSD, after the server had been killed and started again, it took "
        f"{_milliseconds(ssd)}: {cold / ssd:.1f} times sooner."
    )
    return Template(TEMPLATE.read_text()).substitute(
        style=STYLE.read_text(),
        subject=escape(subject),
        moment=time.strftime("%d %B %Y, %H:%M"),
        headline=headline,
        num_rounds=num_rounds,
        chart=_chart(rows),
        table="\n".join(_table_row(row) for row in rows),
    )


def _table_row(row: Row) -> str:
    spread = f"({1000 * row.lowest_s:.0f} to {1000 * row.highest_s:.0f})"
    return (
        f'<tr><th scope="row">{escape(row.step)}</th>'
        f'<td class="number">{_milliseconds(row.ttft_s)} <span class="muted">{spread}</span></td>'
        f'<td class="number">{row.cached_tokens} / {row.prompt_tokens}</td>'
        f'<td class="number">{row.loaded_bytes / 2**20:.1f} MiB</td>'
        f"<td>{escape(row.source)}</td></tr>"
    )


def _chart(rows: Sequence[Row]) -> str:
    """Draw one bar a step, its label above it; the thin line is the spread over the rounds."""
    scale = (WIDTH - LEFT - RIGHT) / max(row.highest_s for row in rows)
    bars = "".join(_bar(row, number * ROW, scale) for number, row in enumerate(rows))
    described = "; ".join(f"{row.step}: {_milliseconds(row.ttft_s)}" for row in rows)
    return (
        f'<svg viewBox="0 0 {WIDTH} {ROW * len(rows) + 4}" role="img" aria-labelledby="t d">'
        f'<title id="t">Median time to first token of each request</title>'
        f'<desc id="d">{escape(described)}</desc>{bars}</svg>'
    )


def _bar(row: Row, top: int, scale: float) -> str:
    length, middle = row.ttft_s * scale, top + 24 + BAR / 2
    low, high = LEFT + row.lowest_s * scale, LEFT + row.highest_s * scale
    return (
        f'<text x="{LEFT}" y="{top + 16}">{escape(row.step)}'
        f'<tspan class="muted" dx="8">{escape(row.source)}</tspan></text>'
        f'<rect class="{COLOURS[row.source]}" x="{LEFT}" y="{top + 24}" width="{length:.1f}" '
        f'height="{BAR}" rx="3"/>'
        f'<path class="spread" d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8'
        f'M{high:.1f} {middle - 4}v8"/>'
        f'<text class="value" x="{high + 10:.1f}" y="{middle + 5}">'
        f"{_milliseconds(row.ttft_s)}</text>"
    )


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"
