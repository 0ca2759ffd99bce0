"""The demo of Dynamo fails unless all that it shows is true."""

from dataclasses import replace

import pytest

from demo.client import Answer
from demo.dynamo.chats import Turn
from demo.dynamo.result import FROM_FLEXKV, Known, Shown, check, tokens_from
from demo.process import DemoError

NOTHING = [[Known(3, 0, 0, 9), Known(0, 0, 0, 9)]]
SSD = [[Known(3, 0, 0, 9), Known(0, 0, 2, 9)]]


def shown(routing, hits, text="a", ttft_s=(9.0, 1.0, 3.0)):
    turns = [
        Turn(0, number, Answer(text, seconds, 1000, hits if number == 2 else 0))
        for number, seconds in enumerate(ttft_s)
    ]
    return Shown(routing, turns, vllm_tokens=64, flexkv_tokens=hits - 64)


def test_what_is_true_passes():
    check(shown("KV-aware", 640), shown("round-robin", 512), SSD)


@pytest.mark.parametrize(
    ("kv", "round_robin", "known", "sentence"),
    [
        (shown("KV-aware", 576), shown("round-robin", 512), SSD, "not 1.25 times"),
        (shown("KV-aware", 640), shown("round-robin", 512), NOTHING, "knows nothing"),
        (shown("KV-aware", 640), shown("round-robin", 512, "b"), SSD, "two answers in turn 1"),
        (replace(shown("KV-aware", 640), vllm_tokens=0), shown("r", 512), SSD, "workers 576"),
        (shown("KV-aware", 640), replace(shown("r", 512), vllm_tokens=0), SSD, "workers 448"),
    ],
)
def test_what_is_not_true_is_refused(kv, round_robin, known, sentence):
    with pytest.raises(DemoError, match=sentence):
        check(kv, round_robin, known)


def test_times_never_fail_the_demo():
    slow = shown("KV-aware", 640, ttft_s=(9.0, 100.0, 100.0))
    check(slow, shown("round-robin", 512), SSD)


def test_the_first_turn_has_no_part_in_the_time():
    assert shown("KV-aware", 640).ttft_s == 2.0


def test_tokens_of_all_workers_are_counted_by_source():
    counter = 'vllm:prompt_tokens_by_source_total{model="demo",source="%s"}'
    other = counter % "local_cache_hit"
    workers = [{counter % FROM_FLEXKV: 64.0, other: 1.0}, {counter % FROM_FLEXKV: 128.0}]
    assert tokens_from(FROM_FLEXKV, workers) == 192
