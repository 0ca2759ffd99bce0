"""The report needs nothing but itself, and says what was measured."""

import re
from xml.etree import ElementTree as ET

import pytest

from demo.client import Answer
from demo.report import summarise, write_report
from demo.scenario import COMPUTED, FROM_HOST, HOST, STEPS, Measurement


def one_round(ttft_s):
    answer = Answer(text="", ttft_s=ttft_s, prompt_tokens=3500, cached_tokens=0)
    shown = {step: Measurement(answer, COMPUTED, 0) for step in STEPS}
    hit = Answer(text="", ttft_s=ttft_s / 10, prompt_tokens=3500, cached_tokens=3456)
    return {**shown, HOST: Measurement(hit, FROM_HOST, 54 << 20)}


@pytest.fixture
def page():
    rows = summarise([one_round(1.0), one_round(3.0), one_round(2.0)])
    return write_report("vLLM <x> & more", rows, num_rounds=3)


def test_times_are_medians():
    rows = {row.step: row for row in summarise([one_round(1.0), one_round(3.0), one_round(2.0)])}
    assert (rows[HOST].lowest_s, rows[HOST].ttft_s, rows[HOST].highest_s) == (0.1, 0.2, 0.3)


def test_page_says_what_was_measured(page):
    assert "after 200 ms instead of 2000 ms: 10.0 times sooner" in page
    assert "3456 / 3500" in page
    assert "54.0 MiB" in page


def test_page_loads_nothing(page):
    assert re.findall(r"https?:|<script|<link|@import|url\(|src=", page) == []


def test_text_is_escaped(page):
    assert "vLLM &lt;x&gt; &amp; more" in page


def test_chart_has_a_bar_and_a_description_of_every_step(page):
    [drawing] = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    chart = ET.fromstring(drawing)
    assert len(chart.findall("rect")) == len(STEPS)
    assert all(step in chart.findtext("desc") for step in STEPS)
