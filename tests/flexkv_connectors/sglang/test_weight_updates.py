import gc
from threading import Event

import pytest

from flexkv_connectors.sglang import weight_updates


class Listener:
    def __init__(self, told):
        self.told = told

    def forget_weights(self):
        self.told.append("told")


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setattr(weight_updates, "_changed", Event())
    monkeypatch.setattr(weight_updates, "_mixed", Event())
    return []


def test_a_listener_is_told_and_sglangs_answer_is_left_alone(told):
    listener = Listener(told)
    weight_updates.listen(listener)
    assert weight_updates.tell(("success", ""), "updater", recv_req=None) is None
    assert told == ["told"]


def test_a_listener_that_is_gone_is_not_kept_alive(told):
    weight_updates.listen(Listener(told))
    gc.collect()
    weight_updates.tell(None)
    assert told == []


def test_who_listens_after_a_change_is_told_of_it(told):
    early = Listener(told)
    weight_updates.listen(early)
    assert told == []
    weight_updates.tell(None)
    late = Listener(told)
    weight_updates.listen(late)
    assert told == ["told", "told"]


def change_weights(*, flushes):
    """Do as SGLang does: the flush, if there is one, is a part of the change."""
    weight_updates.begin("updater", "request")
    if flushes is not None:
        weight_updates.flushed(flushes)
    weight_updates.tell(None)


@pytest.mark.parametrize("flushes", [None, False])
def test_what_sglang_kept_of_former_weights_is_forgotten_with_its_next_flush(told, flushes):
    listener = Listener(told)
    weight_updates.listen(listener)
    change_weights(flushes=flushes)
    told.clear()
    weight_updates.flushed(False)
    assert told == []
    weight_updates.flushed(True)
    assert told == ["told"]


def test_a_flush_that_drops_nothing_of_former_weights_is_not_told(told):
    listener = Listener(told)
    weight_updates.listen(listener)
    weight_updates.flushed(True)
    assert told == []
    change_weights(flushes=True)
    assert told
    told.clear()
    weight_updates.flushed(True)
    assert told == []
