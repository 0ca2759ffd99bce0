"""What is not called corrupt although it was read so: engines write while fsck reads."""

import pytest

from flexkv_core.cli import cells, slab_reader, verify
from flexkv_core.data.tiers.ssd.format import PAGE_BYTES


def test_a_slab_that_is_being_created_is_no_problem(make_slab, problems):
    slab = make_slab()
    slab.path.write_bytes(b"")

    with slab.in_use():
        assert problems() == []
    assert problems() == [("unreadable", None)]


def test_a_slab_that_was_created_between_two_reads_is_no_problem(make_slab, monkeypatch, problems):
    slab = make_slab()
    content = slab.path.read_bytes()
    slab.path.write_bytes(b"")
    answers = iter([lambda: False, lambda: bool(slab.path.write_bytes(content))])
    monkeypatch.setattr(verify, "is_locked", lambda _: next(answers)())

    assert problems() == []


def test_a_slab_that_grows_meanwhile_has_no_truncated_tail(make_slab, monkeypatch, problems):
    slab = make_slab().write_chain(1)
    read_at = slab_reader.read_at

    def grow_then_read(number, num_bytes, offset):
        if offset == slab.offset(1):
            slab.write_cell(1, 1)
        return read_at(number, num_bytes, offset)

    monkeypatch.setattr(slab_reader, "read_at", grow_then_read)

    assert problems() == []


@pytest.fixture
def between_reads(monkeypatch):
    """Has the given function called after a bad cell was read and before it is read again."""

    def call(function):
        monkeypatch.setattr(cells, "_drop_from_cache", lambda *_: function())

    return call


def test_a_write_that_ends_between_two_reads_is_seen(between_reads, flexkv, make_slab, tmp_path):
    slab = make_slab().write_chain(1)
    slab.flip(slab.offset(0) + 20)
    between_reads(lambda: slab.write_cell(0, 0))

    [found] = flexkv("fsck", tmp_path, "--json").json["slabs"]

    assert (found["valid"], found["changing"], found["problems"]) == (1, 0, [])


def test_what_changes_under_a_lock_is_not_called_corrupt(
    between_reads, flexkv, make_slab, tmp_path
):
    slab = make_slab().write_chain(1)
    slab.flip(slab.offset(0) + 20)
    between_reads(lambda: slab.flip(slab.offset(0) + 21))

    with slab.in_use():
        [found] = flexkv("fsck", tmp_path, "--json").json["slabs"]

    assert (found["in_use"], found["changing"], found["problems"]) == (True, 1, [])


def test_an_engine_can_start_while_a_slab_is_verified(between_reads, make_slab, problems):
    slab = make_slab().write_chain(1)
    taken = []

    def start():
        with slab.in_use():
            taken.append(slab)

    between_reads(start)

    assert problems() == []
    assert taken == [slab]


def test_what_changes_without_a_lock_is_corrupt(between_reads, make_slab, problems):
    slab = make_slab().write_chain(1)
    slab.flip(slab.offset(0) + 20)
    between_reads(lambda: slab.flip(slab.offset(0) + 21))

    assert problems() == [("corrupt_header", 0)]


def test_what_stays_bad_under_a_lock_is_corrupt(flexkv, make_slab, tmp_path):
    slab = make_slab().write_chain(1)
    slab.flip(slab.offset(0) + PAGE_BYTES)

    with slab.in_use():
        report = flexkv("fsck", tmp_path, "--json")

    [found] = report.json["slabs"]
    assert [problem["kind"] for problem in found["problems"]] == ["corrupt_payload"]
    assert report.status == 1
