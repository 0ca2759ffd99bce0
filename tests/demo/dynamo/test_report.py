"""The report of the demo of Dynamo needs nothing but itself, and says what was counted."""

import re
from xml.etree import ElementTree as ET

import pytest

from demo.client import Answer
from demo.dynamo.chats import Turn
from demo.dynamo.report import view_of, write_report
from demo.dynamo.result import Known, Shown

KNOWN = [[Known(5, 3, 2, 12), Known(4, 0, 0, 12)], [Known(2, 0, 0, 12), Known(1, 0, 9, 12)]]


def shown(routing, vllm_tokens, flexkv_tokens):
    answer = Answer("", ttft_s=0.5, prompt_tokens=1000, cached_tokens=vllm_tokens + flexkv_tokens)
    return Shown(routing, [Turn(0, 1, answer)], vllm_tokens, flexkv_tokens)


@pytest.fixture
def page():
    rows = [shown("KV-aware", 500, 300), shown("round-robin", 300, 100)]
    return write_report("Dynamo <x> & more", rows, KNOWN)


def test_the_router_is_shown_by_the_worker_that_it_knows_best():
    sentence = "24 blocks of the last prompts, the router knew 6 in vLLM's pages, 3 more"
    assert sentence in view_of(KNOWN)
    assert "11 more on SSD" in view_of(KNOWN)


def test_page_says_what_was_counted(page):
    assert "took 800 of 1000 prompt tokens from a cache, round-robin 400" in page
    assert "5 + 3 + 2 of 12" in page
    assert "500 ms" in page


def test_page_loads_nothing(page):
    assert re.findall(r"https?:|<script|<link|@import|url\(|src=", page) == []


def test_text_is_escaped(page):
    assert "Dynamo &lt;x&gt; &amp; more" in page


def test_parts_of_a_bar_are_the_prompt(page):
    [drawing] = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    widths = [float(part.get("width")) for part in ET.fromstring(drawing).findall("rect")]
    assert sum(widths[:3]) == pytest.approx(sum(widths[3:]), abs=0.5)
    assert widths[0] + widths[1] == pytest.approx(4 * widths[2], rel=0.01)
