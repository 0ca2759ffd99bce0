import logging
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexkv_connectors.vllm.switches import Switches, SwitchReader
from flexkv_core.metrics import Counters

NOT_CACHED = Switches(load=False, save=False)


class Reading:
    """A reader, and all that it has logged and counted."""

    def __init__(self):
        self.counters = Counters()
        self.lines = []
        self._reader = SwitchReader(self.counters)

    def read(self, params):
        handler = logging.Handler()
        handler.emit = lambda record: self.lines.append(record.getMessage())
        logger = logging.getLogger("flexkv_connectors.vllm.switches")
        logger.addHandler(handler)
        try:
            return self._reader.read(params)
        finally:
            logger.removeHandler(handler)


@pytest.fixture
def reading():
    return Reading()


@pytest.mark.parametrize(
    ("params", "switches"),
    [
        (None, Switches()),
        ({}, Switches()),
        ({"flexkv": {}}, Switches()),
        ({"somebody": {"load": False}, "do_remote_decode": 1}, Switches()),
        ({"flexkv": {"load": False}}, Switches(load=False)),
        ({"flexkv": {"save": False, "namespace": "me"}}, Switches(save=False, namespace="me")),
        ({"flexkv": {"namespace": None}}, Switches()),
        ({"flexkv": {"namespace": ""}}, Switches(namespace="")),
        ({"flexkv": {"namespace": "\ud800"}}, Switches(namespace="\ud800")),
        ({"flexkv": {"namespace": "x" * 256}}, Switches(namespace="x" * 256)),
    ],
)
def test_what_can_be_read_is_done(reading, params, switches):
    assert reading.read(params) == switches
    assert not reading.lines
    assert not reading.counters.drain()


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


UNREADABLE = {
    "an unknown name": {"lod": False},
    "text for a switch": {"load": "no"},
    "a number for a switch": {"load": 0},
    "a number for a name": {"namespace": 5},
    "null": None,
    "a list": [],
    "text": "save",
    "a huge text": "\x1b[2J" * 5_000_000,
    "a huge name": {"\x1b" * 20_000_000: 1},
    "a huge namespace": {"namespace": "x" * 20_000_000},
    "a namespace a letter too long": {"namespace": "x" * 257},
    "many names": {str(number): number for number in range(200_000)},
    "depth": nested(100_000),
    "depth in a switch": {"load": nested(100_000)},
    "depth in a namespace": {"namespace": nested(100_000)},
    "half a letter": {"\ud800": True},
    "half a letter beside a switch": {"load": False, "\udfff": True},
    "a huge number": {"load": 1 << 10_000_000},
    "not a number": {"load": float("nan")},
    "a name that is no text": {1: True},
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_is_not_cached_and_costs_nothing(reading, kind):
    began_s = time.thread_time()
    switches = reading.read({"flexkv": UNREADABLE[kind]})

    assert time.thread_time() - began_s < 0.1
    assert switches == NOT_CACHED
    assert reading.counters.drain() == {"switches_refused": 1}
    (line,) = reading.lines
    assert len(line) < 400
    assert line.isascii()
    assert line.isprintable()


@pytest.mark.parametrize("params", ["flexkv", "\x1b" * 20_000_000, ["flexkv"], 7, 0.5, True])
def test_parameters_that_are_no_mapping_are_not_cached(reading, params):
    assert reading.read(params) == NOT_CACHED
    assert len(reading.lines[0]) < 400


def test_the_first_refusal_is_logged_and_all_are_counted(reading):
    for number in range(1000):
        reading.read({"flexkv": {"load": f"no {number}"}})

    (line,) = reading.lines
    assert line == (
        "request.switches_refused value={'load': 'no 0'}: expected an object of load and save, "
        "which are true or false, and namespace, a text of 256 characters at most; "
        "it is not cached; "
        "more of them are counted in switches_refused, and not logged"
    )
    assert reading.counters.drain() == {"switches_refused": 1000}


names = st.text(st.characters()) | st.sampled_from(["flexkv", "load", "save", "namespace"])
json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(names, inner),
)


@given(json_like | json_like.map(lambda ours: {"flexkv": ours}))
def test_any_parameters_are_read_or_refused_in_one_short_printable_line(params):
    reading = Reading()

    switches = reading.read(params)

    assert isinstance(switches, Switches)
    assert bool(reading.lines) <= (switches == NOT_CACHED)
    assert all(len(line) < 400 and line.isascii() and line.isprintable() for line in reading.lines)
