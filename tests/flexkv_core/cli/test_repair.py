import os

import pytest

from flexkv_core.cli import repair
from flexkv_core.data.tiers.ssd.format import PAGE_BYTES


@pytest.fixture
def mend(flexkv, tmp_path):
    """Runs a repair; returns its exit status."""
    return lambda: flexkv("fsck", tmp_path, "--repair").status


def test_a_bad_cell_loses_its_header_and_nothing_else_changes(make_slab, mend, problems):
    slab = make_slab().write_chain(3)
    slab.flip(slab.offset(1) + PAGE_BYTES + 9)
    before = slab.path.read_bytes()

    assert mend() == 3

    start, end = slab.offset(1), slab.offset(1) + PAGE_BYTES
    assert slab.path.read_bytes() == before[:start] + bytes(PAGE_BYTES) + before[end:]
    assert problems() == []


@pytest.mark.parametrize("lie", [{"identity": bytes(32)}, {"payload_bytes": 1}])
def test_a_lying_header_is_emptied(make_slab, mend, problems, lie):
    make_slab().write_cell(0, 0, **lie)

    assert mend() == 3
    assert problems() == []


def test_an_unreadable_slab_is_deleted(make_slab, mend):
    path = make_slab().path
    path.write_bytes(b"x" * 5000)

    assert mend() == 3
    assert not path.exists()


def test_a_temporary_slab_is_deleted(make_slab, mend):
    path = make_slab(is_temporary=True).write_chain(1).path

    assert mend() == 3
    assert not path.exists()


def test_a_truncated_tail_is_cut_off(make_slab, mend, problems):
    slab = make_slab().write_chain(2)
    os.truncate(slab.path, slab.offset(2) - 1)

    assert mend() == 3
    assert slab.path.stat().st_size == slab.offset(1)
    assert problems() == []


def test_permissions_are_taken_from_others(make_slab, mend, problems):
    path = make_slab().path
    for each, mode in ((path, 0o666), (path.parent, 0o777), (path.parent.parent, 0o755)):
        each.chmod(mode)

    assert mend() == 3
    modes = [each.stat().st_mode & 0o777 for each in (path, path.parent, path.parent.parent)]
    assert modes == [0o600, 0o700, 0o700]
    assert problems() == []


@pytest.mark.parametrize("is_temporary", [True, False])
def test_a_slab_in_use_is_left_alone(contents, flexkv, make_slab, tmp_path, is_temporary):
    slab = make_slab(is_temporary=is_temporary).write_chain(2)
    slab.flip(slab.offset(1) + PAGE_BYTES)
    before = contents()

    with slab.in_use():
        report = flexkv("fsck", tmp_path, "--repair", "--json")

    assert report.status == 1
    assert report.json["slabs"][0]["left_because"] == "in use"
    assert contents() == before


def test_another_versions_slab_is_never_deleted(contents, make_slab, mend):
    make_slab().write_at(0, b"FLEXKVS2" + b"x" * 40)
    before = contents()

    assert mend() == 1
    assert contents() == before


def test_a_misplaced_slab_is_never_changed(contents, make_slab, mend):
    slab = make_slab(is_temporary=True).write_chain(2)
    slab.flip(slab.offset(0))
    os.truncate(slab.path, slab.offset(2) - 1)
    slab.path.rename(make_slab(head=4).path.parent / "moved.slab")
    before = contents()

    assert mend() == 1
    assert contents() == before


def test_what_is_repaired_in_part_is_left_in_part(flexkv, make_slab, tmp_path):
    slab = make_slab().write_chain(1)
    slab.flip(slab.offset(0))
    make_slab(name="newer.slab").write_at(0, b"FLEXKVS2")

    report = flexkv("fsck", tmp_path, "--repair", "--json")

    assert report.status == 1
    assert (report.json["problems"], report.json["problems_left"]) == (2, 1)


@pytest.fixture
def before_lock(monkeypatch):
    """Has the given function called when a slab has been verified, and is about to be locked."""

    def call(function):
        lock = repair.lock

        def change_then_lock(number):
            function()
            return lock(number)

        monkeypatch.setattr(repair, "lock", change_then_lock)

    return call


def test_a_cell_that_was_written_again_meanwhile_stays(before_lock, flexkv, make_slab, tmp_path):
    slab = make_slab().write_chain(1)
    good = slab.path.read_bytes()
    slab.flip(slab.offset(0) + 20)
    before_lock(lambda: slab.path.write_bytes(good))

    assert flexkv("fsck", tmp_path, "--repair").status == 3
    assert slab.path.read_bytes() == good


def test_a_slab_that_has_become_readable_stays(before_lock, make_slab, mend):
    slab = make_slab().write_chain(1)
    good = slab.path.read_bytes()
    slab.path.write_bytes(b"")
    before_lock(lambda: slab.path.write_bytes(good))

    assert mend() == 1
    assert slab.path.read_bytes() == good


def test_a_name_that_has_gone_to_another_file_stays(before_lock, make_slab, mend, tmp_path):
    slab = make_slab()
    slab.path.write_bytes(b"x")
    other = tmp_path / "other"
    other.write_bytes(b"y")
    before_lock(lambda: other.replace(slab.path))

    assert mend() == 1
    assert slab.path.read_bytes() == b"y"


def test_a_write_that_fails_is_told(flexkv, make_slab, monkeypatch, tmp_path):
    slab = make_slab().write_chain(1)
    slab.flip(slab.offset(0))

    def fail(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(repair.os, "pwrite", fail)
    report = flexkv("fsck", tmp_path, "--repair", "--json")

    assert report.status == 1
    assert report.json["slabs"][0]["left_because"] == "Read-only file system"
