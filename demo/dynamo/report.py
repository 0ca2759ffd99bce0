"""The result as one HTML page that needs nothing else: no script, no font, no network."""

import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from demo.dynamo.chats import NUM_TURNS, NUM_USERS
from demo.dynamo.fleet import BLOCK_TOKENS, NUM_PAGES
from demo.dynamo.result import Known, Shown
from demo.report import STYLE

TEMPLATE = Path(__file__).with_name("report.html")

# Pixels of the drawing; it scales with the page.
WIDTH, ROW, BAR, LEFT, RIGHT = 560, 56, 18, 1, 100


def write_report(subject: str, rows: Sequence[Shown], known: Sequence[Sequence[Known]]) -> str:
    """Return the page."""
    kv, round_robin = rows
    headline = (
        f"KV-aware routing took {kv.hit_tokens} of {kv.prompt_tokens} prompt tokens from a cache, "
        f"round-robin {round_robin.hit_tokens}. {view_of(known)}"
    )
    return Template(TEMPLATE.read_text()).substitute(
        style=STYLE.read_text(),
        subject=escape(subject),
        moment=time.strftime("%d %B %Y, %H:%M"),
        headline=headline,
        chart=_chart(rows),
        table="\n".join(_table_row(row) for row in rows),
        workers="".join(
            f'<th scope="col" class="number">Worker {n + 1}</th>' for n in range(len(known[0]))
        ),
        known="\n".join(_known_row(user, workers) for user, workers in enumerate(known)),
        users=NUM_USERS,
        turns=NUM_TURNS,
        block_tokens=BLOCK_TOKENS,
        page_tokens=NUM_PAGES * BLOCK_TOKENS,
        last_tokens=sum(turn.answer.prompt_tokens for turn in kv.turns[-NUM_USERS:]),
    )


def view_of(known: Sequence[Sequence[Known]]) -> str:
    """Say how many blocks of the last prompts the router knew, by tier."""
    best = [max(workers, key=_num_known) for workers in known]
    vllm, host, ssd = (sum(one[tier] for one in best) for tier in range(3))
    return (
        f"Of the {sum(one.num_blocks for one in best)} blocks of the last prompts, the router knew "
        f"{vllm} in vLLM's pages, {host} more in host memory and {ssd} more on SSD."
    )


def _num_known(one: Known) -> int:
    return one.vllm + one.host + one.ssd


def _table_row(row: Shown) -> str:
    numbers = row.hit_tokens, row.vllm_tokens, row.flexkv_tokens, row.prompt_tokens
    cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
    return (
        f'<tr><th scope="row">{escape(row.routing)}</th>{cells}'
        f'<td class="number">{1000 * row.ttft_s:.0f} ms</td></tr>'
    )


def _known_row(user: int, workers: Sequence[Known]) -> str:
    cells = "".join(
        f'<td class="number">{one.vllm} + {one.host} + {one.ssd} of {one.num_blocks}</td>'
        for one in workers
    )
    return f'<tr><th scope="row">User {user + 1}</th>{cells}</tr>'


def _chart(rows: Sequence[Shown]) -> str:
    """Draw one bar a routing, in three parts, its label above it."""
    scale = (WIDTH - LEFT - RIGHT) / max(row.prompt_tokens for row in rows)
    bars = "".join(_bar(row, number * ROW, scale) for number, row in enumerate(rows))
    described = "; ".join(f"{row.routing}: {row.hit_tokens}" for row in rows)
    return (
        f'<svg viewBox="0 0 {WIDTH} {ROW * len(rows) + 4}" role="img" aria-labelledby="t d">'
        f'<title id="t">Prompt tokens by where they came from</title>'
        f'<desc id="d">Tokens hit: {escape(described)}</desc>{bars}</svg>'
    )


def _bar(row: Shown, top: int, scale: float) -> str:
    parts = {
        "vllm": row.vllm_tokens,
        "host": row.flexkv_tokens,
        "computed": row.prompt_tokens - row.hit_tokens,
    }
    drawn, left = "", float(LEFT)
    for colour, tokens in parts.items():
        width = tokens * scale
        drawn += (
            f'<rect class="{colour}" x="{left:.1f}" y="{top + 24}" width="{width:.1f}" '
            f'height="{BAR}"/>'
        )
        left += width
    return (
        f'<text x="{LEFT}" y="{top + 16}">{escape(row.routing)}</text>{drawn}'
        f'<text class="value" x="{left + 10:.1f}" y="{top + 24 + BAR / 2 + 5}">'
        f"{row.hit_tokens} hit</text>"
    )
