"""Calls that never fail on a local disk, and do on a network share or where descriptors run out."""

import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest

from flexkv_core.data.tiers.ssd.directory import Directory
from flexkv_core.plan import Status
from flexkv_core.testing.namespaces import make_namespace

OK, _, MISS, CORRUPT, TIMEOUT, ERROR, _ = Status


@pytest.fixture
def fail(monkeypatch):
    """Let an `os` function fail, after it has done its work if that is said."""

    def install(name, code, *, works=False):
        original = getattr(os, name)

        def function(*arguments, **options):
            if works:
                original(*arguments, **options)
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, name, function)

    return install


@pytest.mark.xfail(raises=OSError, strict=True, reason="a slab is closed by whoever uses it last")
def test_a_slab_that_cannot_be_closed_well_costs_its_blocks_alone(disk, fail):
    """An exception would end the lane's thread, and with it the lane."""
    rank = disk.open()
    rank.write(range(4))
    for slab in disk.slabs():
        slab.unlink()
    fail("close", errno.EIO, works=True)
    assert rank.read(range(4)) == [MISS] * 4


@pytest.mark.xfail(raises=OSError, strict=True, reason="a slab's own close is not guarded")
def test_a_tier_whose_slabs_cannot_be_closed_well_is_closed(disk, fail):
    rank = disk.open(columns=disk.columns)
    rank.write(range(4))
    fail("close", errno.EIO, works=True)
    rank.close()


@pytest.mark.xfail(raises=OSError, strict=True, reason="the size of a log is asked for unguarded")
@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO])
def test_a_follower_whose_log_is_stale_finds_nothing(disk, fail, code):
    """An engine asks in its scheduler's step."""
    writer, follower = disk.lead(), disk.follow()
    writer.write(range(4))
    assert follower.found(range(4)) == 4
    fail("fstat", code)
    assert follower.found(range(4)) == 0


@pytest.mark.xfail(strict=True, reason="a slab that could not be opened once is never opened again")
def test_a_follower_that_could_not_open_a_slab_tries_again(disk, monkeypatch):
    """The writer replaces its log when slabs change: perhaps never again."""
    writer, follower = disk.lead(), disk.follow()
    writer.write(range(4))
    opened = os.open

    def fail(path, *arguments):
        if str(path).endswith(".slab"):
            raise OSError(errno.EMFILE, "Too many open files")
        return opened(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        assert follower.found(range(4)) == 0
    follower.clock.advance(61)
    assert follower.found(range(4)) == 4


@pytest.mark.xfail(strict=True, reason="a record that cannot be opened now counts as unreadable")
def test_where_no_file_can_be_opened_a_reset_says_what_has_to_be_deleted(disk, fail, caplog):
    """The records are as they were: the next start would believe them."""
    rank = disk.open(namespace=make_namespace(weight_version="v1"))
    fail("open", errno.EMFILE)
    rank.tier.begin_generation("next", keeps_name=True)
    assert "may be found again" in caplog.text


@pytest.mark.xfail(strict=True, reason="a slab that was retired is no longer the tier's to delete")
def test_a_reset_deletes_slabs_that_seemed_lost_too(disk, monkeypatch):
    """A single `fstat` that fails makes a slab look deleted, and it stays where it is."""
    rank = disk.open(namespace=make_namespace(weight_version="v1"))
    rank.write(range(4))

    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fail)
        assert rank.read(range(4)) == [MISS] * 4
    rank.tier.begin_generation("next", keeps_name=True)
    assert disk.slabs() == []


@pytest.mark.xfail(strict=True, reason="a log is not closed if it cannot be deleted")
def test_a_log_of_an_ended_process_that_cannot_be_deleted_is_closed(disk, monkeypatch):
    """It is tried again whenever room is needed: one descriptor more each time."""
    path = disk.path / ".0123456789abcdef.keys"
    disk.path.mkdir()
    path.touch(mode=0o600)

    def fail(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    directory = Directory(disk.path, None, 0)
    with monkeypatch.context() as patch, directory.locked():
        patch.setattr(Path, "unlink", fail)
        with suppress(OSError):
            directory.make_room(4096)
    assert not [fd for fd in Path("/proc/self/fd").iterdir() if points_to(fd, path)]


def points_to(link, path):
    try:
        return link.readlink() == path
    except OSError:
        return False


@pytest.mark.xfail(strict=True, reason="less than a page counts as the end of the file")
def test_a_direct_read_of_less_than_a_page_is_continued(disk, monkeypatch):
    """It would be taken for damage, and the block erased."""
    rank = disk.open()
    rank.write(range(2))
    preadv, sizes = os.preadv, [512]

    def read_little(fd, buffers, offset):
        if sizes:
            return preadv(fd, [memoryview(buffers[0])[: sizes.pop()]], offset)
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", read_little)
    assert rank.read(range(2)) == [OK, OK]
