import gc
from threading import Event
from types import SimpleNamespace

import pytest

from flexkv_connectors.sglang import weight_updates

NOISE = SimpleNamespace(action="reset_tensors")
DONE = SimpleNamespace(success=True, message="")
NO_SESSION = (
    "update_weights_from_tensor must run between begin_weight_update() and end_weight_update()"
)
NO_WEIGHTS = "Failed to get weights iterator: Repo id must be in the form 'repo_name'."


def failure(message):
    return SimpleNamespace(success=False, message=message)


class Listener:
    def __init__(self, told):
        self.told = told

    def forget_weights(self):
        self.told.append("told")


class Engine:
    """Calls our hooks around its own calls, as SGLang does."""

    def __init__(self):
        self.forward_ct = 0
        self.manager = SimpleNamespace(scheduler=self, draft_worker=None)

    def compute(self):
        self.forward_ct += 1

    def flush(self, *, is_idle=True):
        weight_updates.flushed(is_idle, self)

    def update(self, answer=DONE, *, flushes=None):
        """Write weights; the flush, if there is one, is a part of the call."""
        weight_updates.begin(self.manager, "request")
        if flushes is not None:
            self.flush(is_idle=flushes)
        weight_updates.updated(answer, self.manager, "request")

    def begin_session(self):
        weight_updates.open_session(self.manager, "request")

    def end_session(self, answer=DONE):
        weight_updates.end_session(answer, self.manager, "request")

    def check(self, request):
        weight_updates.check(self.manager, request)
        weight_updates.checked(DONE, self.manager, request)

    def release(self, *tags):
        weight_updates.release(self.manager, SimpleNamespace(tags=tags))


@pytest.fixture
def told(monkeypatch):
    for name, fresh in (
        ("_changed", Event()),
        ("_mixed", Event()),
        ("_open", set()),
        ("_emptied_at", []),
    ):
        monkeypatch.setattr(weight_updates, name, fresh)
    monkeypatch.setattr(weight_updates, "keeps_released_weights", lambda: False)
    monkeypatch.setattr(weight_updates, "is_one_rank", lambda: True)
    return []


@pytest.fixture
def engine(told):
    engine = Engine()
    engine.listener = Listener(told)
    weight_updates.listen(engine.listener)
    return engine


def test_a_listener_is_told_and_sglangs_answer_is_left_alone(told, engine):
    assert weight_updates.updated(DONE, engine.manager, recv_req=None) is None
    assert told == ["told"]


def test_a_listener_that_is_gone_is_not_kept_alive(told, engine):
    engine.listener = None
    gc.collect()
    engine.update()
    assert told == []


def test_who_listens_after_a_change_is_told_of_it(told, engine):
    assert told == []
    engine.update()
    late = Listener(told)
    weight_updates.listen(late)
    assert told == ["told", "told"]


@pytest.mark.parametrize("flushes", [None, False])
def test_what_sglang_kept_of_former_weights_is_forgotten_with_its_next_flush(told, engine, flushes):
    engine.update(flushes=flushes)
    told.clear()
    engine.flush(is_idle=False)
    assert (told, weight_updates.is_settled()) == ([], False)
    engine.flush()
    assert (told, weight_updates.is_settled()) == (["told"], True)


def test_a_flush_that_drops_nothing_of_former_weights_is_not_told(told, engine):
    engine.flush()
    assert told == []
    engine.update(flushes=True)
    assert told
    assert weight_updates.is_settled()
    told.clear()
    engine.flush()
    assert told == []


def test_while_others_write_nothing_is_settled_and_each_end_of_it_is_told(told, engine):
    engine.begin_session()
    assert (told, weight_updates.is_settled()) == (["told"], False)
    engine.flush()
    assert not weight_updates.is_settled()
    engine.end_session()
    assert told == ["told", "told"]


def test_a_flush_within_a_session_counts_unless_something_was_computed_after_it(engine):
    for computes, is_settled in ((False, True), (True, False)):
        engine.begin_session()
        engine.update(flushes=True)
        if computes:
            engine.compute()
        engine.end_session()
        assert weight_updates.is_settled() == is_settled
    engine.flush()
    assert weight_updates.is_settled()


def test_a_flush_before_a_change_says_nothing_of_what_came_between(engine):
    engine.update()
    engine.flush()
    engine.update()
    assert not weight_updates.is_settled()


def test_weights_that_were_filled_with_noise_are_others_and_a_checksum_changes_none(told, engine):
    engine.check(SimpleNamespace(action="checksum"))
    assert (told, weight_updates.is_settled()) == ([], True)
    engine.check(NOISE)
    assert (told, weight_updates.is_settled()) == (["told"], False)


@pytest.mark.parametrize("tags", [(), ("kv_cache", "weights")])
def test_released_weights_are_lost_until_they_are_written_anew(told, engine, tags):
    engine.release(*tags)
    engine.flush()
    assert (told, weight_updates.is_settled()) == (["told"], False)
    engine.update(flushes=True)
    assert weight_updates.is_settled()


def test_released_weights_that_come_back_are_no_change(told, engine, monkeypatch):
    engine.release("kv_cache")
    monkeypatch.setattr(weight_updates, "keeps_released_weights", lambda: True)
    engine.release("weights")
    assert (told, weight_updates.is_settled()) == ([], True)


@pytest.mark.parametrize("message", [NO_SESSION, NO_WEIGHTS])
def test_an_update_that_sglang_refuses_leaves_everything_as_it_was(told, engine, message):
    engine.update(failure(message))
    assert (told, weight_updates.is_settled()) == ([], True)
    engine.update()
    told.clear()
    engine.update(failure(message))
    assert (told, weight_updates.is_settled()) == ([], False)
    engine.flush()
    assert weight_updates.is_settled()


def test_the_end_of_a_session_that_nobody_opened_is_no_change(told, engine):
    engine.end_session(
        failure("no weight-update session is open; call begin_weight_update() first")
    )
    assert (told, weight_updates.is_settled()) == ([], True)


@pytest.mark.parametrize(
    "message", ["Failed to update weights: no such tensor", f"{NO_SESSION}!", "", None]
)
def test_an_update_that_fails_in_another_way_may_have_changed_weights(told, engine, message):
    engine.update(failure(message))
    assert (told, weight_updates.is_settled()) == (["told"], False)


@pytest.mark.parametrize("has_draft", [True, False])
def test_weights_that_one_cannot_read_another_may_have_read(told, engine, monkeypatch, has_draft):
    engine.manager.draft_worker = object() if has_draft else None
    monkeypatch.setattr(weight_updates, "is_one_rank", lambda: has_draft)
    engine.update(failure(NO_WEIGHTS))
    assert (told, weight_updates.is_settled()) == (["told"], False)


def test_within_a_session_a_refusal_settles_nothing(engine):
    engine.begin_session()
    engine.update(failure(NO_SESSION))
    assert not weight_updates.is_settled()


def test_a_way_to_change_weights_that_is_not_known_is_named():
    known = weight_updates.UPDATES | weight_updates.SESSION | weight_updates.HARMLESS
    assert weight_updates.unknown_in({*known, "check_weights", "_select_runners"}) == []
    assert weight_updates.unknown_in({*known, "update_by_dream"}) == ["update_by_dream"]
