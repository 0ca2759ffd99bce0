import pytest

from flexkv_core.metrics import Counters


def test_counters_are_drained_as_differences():
    counters = Counters()
    counters.add("reset")
    counters.add("reset", 2)
    assert counters.drain() == {"reset": 3}
    counters.add("reset")
    assert counters.drain() == {"reset": 1}


def test_adding_nothing_is_no_change():
    counters = Counters()
    counters.add("load_bytes", 0)
    assert counters.drain() == {}


def test_a_gauge_is_told_when_it_changes():
    counters = Counters()
    counters.set("host_used_blocks", 5)
    assert counters.drain() == {"host_used_blocks": 5}
    counters.set("host_used_blocks", 5)
    assert counters.drain() == {}
    counters.set("host_used_blocks", 0)
    assert counters.drain() == {"host_used_blocks": 0}


def test_an_unknown_name_is_a_bug():
    with pytest.raises(KeyError):
        Counters().add("no_such_metric")


def test_a_gauge_is_no_counter():
    with pytest.raises(AssertionError):
        Counters().add("host_used_blocks")
