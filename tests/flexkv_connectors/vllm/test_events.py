"""What routers are told of blocks, also of those whose request has ended, in bounded memory."""

import gc
import sys
import weakref
from types import SimpleNamespace

import pytest

from flexkv_connectors.vllm.events import EventFeed
from flexkv_core.block.types import BlockKey, JobId
from flexkv_core.events import BlocksStored

BLOCK_TOKENS = 4
JOB = JobId(1)


class Request(SimpleNamespace):
    """As much of a request of vLLM as events are about."""

    def __init__(self, request_id="request", num_tokens=16, **changes):
        values = {
            "request_id": request_id,
            "all_token_ids": list(range(num_tokens)),
            "lora_request": None,
            "cache_salt": None,
            "mm_features": [],
            "kv_transfer_params": None,
        }
        super().__init__(**values | changes)


@pytest.fixture(autouse=True)
def kv_events(monkeypatch):
    """What events are made of, without vLLM."""
    names = ("BlockStored", "BlockRemoved", "AllBlocksCleared")
    made = SimpleNamespace(**dict.fromkeys(names, SimpleNamespace))
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.distributed", SimpleNamespace(kv_events=made))


@pytest.fixture
def feed():
    return EventFeed(enabled=True, block_tokens=BLOCK_TOKENS)


def stored(feed, job_id=JOB, first_block=0, num_blocks=2):
    """Let blocks become findable; return the tokens that are announced, or None."""
    keys = [BlockKey(bytes([at + 1]) * 32) for at in range(num_blocks)]
    feed.log.append(BlocksStored("host", keys, None, job_id, first_block))
    events = feed.take()
    return events[0].token_ids if events else None


@pytest.mark.parametrize("has_ended", [False, True])
def test_blocks_are_announced_with_their_tokens(feed, has_ended):
    request = Request()
    feed.know(request)
    feed.expect(JOB, "request")
    request.all_token_ids += range(16, 24)
    if has_ended:
        feed.end(request)
        del request
    assert stored(feed, first_block=1) == list(range(4, 12))
    assert stored(feed, first_block=4) == list(range(16, 24))


def test_a_placeholder_for_content_is_a_token_like_others(feed):
    request = Request(all_token_ids=[-1, 2**40, 3, 4])
    feed.know(request)
    feed.expect(JOB, "request")
    feed.end(request)
    assert stored(feed, num_blocks=1) == [-1, 2**40, 3, 4]


def test_an_adapter_is_named_after_the_end(feed):
    request = Request(lora_request=SimpleNamespace(adapter_id=7, name="tuned"))
    feed.know(request)
    feed.expect(JOB, "request")
    feed.end(request)
    feed.log.append(BlocksStored("host", [BlockKey(bytes(32))], None, JOB, 0))
    [event] = feed.take()
    assert (event.lora_id, event.lora_name) == (7, "tuned")


@pytest.mark.parametrize(
    "more",
    [
        {"cache_salt": "salt"},
        {"mm_features": ["picture"]},
        {"kv_transfer_params": {"flexkv": {"namespace": "mine"}}},
    ],
)
@pytest.mark.parametrize("has_ended", [False, True])
def test_blocks_that_depend_on_more_are_not_announced(feed, more, has_ended):
    request = Request(**more)
    feed.know(request)
    feed.expect(JOB, "request")
    if has_ended:
        feed.end(request)
    assert stored(feed) is None


@pytest.mark.parametrize("more", [{}, {"mm_features": ["picture"]}])
def test_a_request_that_has_ended_is_let_go_of(feed, more):
    """It has pictures, and whatever else the engine keeps of it."""
    request = Request(**more)
    feed.know(request)
    feed.expect(JOB, "request")
    feed.end(request)
    is_alive = weakref.ref(request)
    del request
    gc.collect()
    assert is_alive() is None


def test_tokens_of_requests_that_have_ended_are_bounded(feed, monkeypatch):
    monkeypatch.setattr("flexkv_connectors.vllm.events._MAX_ENDED_BYTES", 10_000)
    for number in range(1000):
        request = Request(str(number), num_tokens=100)
        feed.know(request)
        feed.expect(JobId(number), str(number))
        feed.end(request)
    announced = [number for number in range(1000) if stored(feed, JobId(number))]
    assert announced == list(range(1000 - len(announced), 1000))
    assert 3 <= len(announced) <= 10_000 // 800


def test_a_request_that_runs_is_known_however_many_have_ended(feed, monkeypatch):
    monkeypatch.setattr("flexkv_connectors.vllm.events._MAX_ENDED_BYTES", 1000)
    feed.know(Request("long"))
    feed.expect(JOB, "long")
    for number in range(100):
        request = Request(str(number))
        feed.know(request)
        feed.end(request)
    assert stored(feed) == list(range(8))


def test_where_events_are_off_nothing_is_kept():
    feed = EventFeed(enabled=False, block_tokens=BLOCK_TOKENS)
    request = Request()
    feed.know(request)
    feed.expect(JOB, "request")
    feed.end(request)
    assert feed.take() == ()
    assert sys.getrefcount(request) == 2
