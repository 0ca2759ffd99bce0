"""The border to the operating system: whole transfers, locks, names."""

import errno
import mmap
import os
from contextlib import closing

import pytest

from flexkv_core.data.tiers.ssd.files import (
    HeaderFile,
    SlabFile,
    empty_durably,
    folder_lock,
    remove_durably,
    unreserved_bytes,
    write_durably,
)

PAGE = 4096


def pages(num_pages, fill=b""):
    buffer = memoryview(mmap.mmap(-1, num_pages * PAGE))
    if fill:
        buffer[:] = fill * len(buffer)
    return buffer


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file"


@pytest.fixture
def file(path):
    file = SlabFile.create(path)
    file.allocate(8 * PAGE)
    yield file
    file.close()


@pytest.fixture(params=["buffered", "direct"])
def any_file(request, file):
    if request.param == "direct" and not file.make_direct():
        pytest.skip("this file system has no O_DIRECT")
    return file


@pytest.fixture
def trickle(monkeypatch):
    """Let the system transfer at most `limit` bytes in a call."""

    def install(limit):
        preadv, pwritev = os.preadv, os.pwritev
        monkeypatch.setattr(os, "preadv", lambda fd, bs, at: preadv(fd, first(bs, limit), at))
        monkeypatch.setattr(os, "pwritev", lambda fd, bs, at: pwritev(fd, first(bs, limit), at))

    return install


def first(buffers, limit):
    """Return the first `limit` bytes of `buffers`."""
    kept = []
    for buffer in buffers:
        kept.append(buffer[:limit])
        limit -= len(kept[-1])
    return [buffer for buffer in kept if len(buffer)]


def test_what_was_written_is_read(any_file):
    any_file.write([pages(1, b"a"), pages(2, b"b")], PAGE)
    target = pages(3)
    assert any_file.read([target[:PAGE], target[PAGE:]], PAGE) == 3 * PAGE
    assert bytes(target) == b"a" * PAGE + b"b" * 2 * PAGE


@pytest.mark.parametrize("limit", [PAGE, 2 * PAGE])
def test_short_transfers_are_continued(any_file, trickle, limit):
    trickle(limit)
    any_file.write([pages(1, b"a"), pages(2, b"b"), pages(1, b"c")], 0)
    target = pages(4)
    assert any_file.read([target], 0) == 4 * PAGE
    assert bytes(target) == b"a" * PAGE + b"b" * 2 * PAGE + b"c" * PAGE


def test_transfers_that_end_within_a_page_are_continued_there(file, trickle):
    trickle(1000)
    file.write([pages(1, b"a"), pages(1, b"b")], 0)
    target = pages(2)
    assert file.read([target], 0) == 2 * PAGE
    assert bytes(target) == b"a" * PAGE + b"b" * PAGE


def test_direct_transfers_go_on_where_a_page_begins(file, monkeypatch):
    if not file.make_direct():
        pytest.skip("this file system has no O_DIRECT")
    offsets = []
    pwritev = os.pwritev

    def torn(fd, buffers, offset):
        offsets.append(offset)
        return pwritev(fd, buffers, offset) if len(offsets) > 1 else PAGE + 512

    monkeypatch.setattr(os, "pwritev", torn)
    file.write([pages(3, b"a")], 0)
    assert offsets == [0, PAGE]


def test_a_read_ends_with_the_file(any_file):
    any_file.truncate(3 * PAGE)
    assert any_file.read([pages(4)], 2 * PAGE) == PAGE
    assert any_file.read([pages(1)], 7 * PAGE) == 0


def test_a_direct_read_of_a_file_that_ends_within_a_page_ends_there(file):
    if not file.make_direct():
        pytest.skip("this file system has no O_DIRECT")
    file.truncate(2 * PAGE + 512)
    assert file.read([pages(4)], PAGE) == PAGE


def test_a_direct_read_that_never_comes_to_a_page_is_an_error(file, trickle):
    """It is not damage: the block may be read later."""
    file.is_direct = True
    trickle(512)
    with pytest.raises(OSError, match="no progress"):
        file.read([pages(2)], 0)


@pytest.mark.parametrize(("size", "expected"), [(PAGE, PAGE), (700, 700)])
def test_a_short_read_of_a_header_is_continued(path, file, monkeypatch, size, expected):
    """Less than a header counts as none, and its slot as free."""
    file.truncate(size)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: pread(fd, min(size, 512), at))
    with closing(HeaderFile(path)) as headers:
        assert len(headers.read(0, PAGE)) == expected


def test_a_write_without_progress_is_an_error(file, monkeypatch):
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with pytest.raises(OSError, match="no progress"):
        file.write([pages(1)], 0)


def test_a_file_system_without_direct_io_is_used_as_it_is(file, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(os, "preadv", refuse)
    assert not file.make_direct()
    monkeypatch.undo()
    file.write([memoryview(b"abc")], 1)
    target = bytearray(3)
    file.read([memoryview(target)], 1)
    assert target == b"abc"


def test_room_that_cannot_be_had_leaves_the_file_as_it_was(file, monkeypatch):
    def refuse(fd, offset, length):
        os.ftruncate(fd, offset + length)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match="full"):
        file.allocate(100 * PAGE)
    assert file.size == 8 * PAGE


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_cannot_allocate_is_made_to(any_file, path, monkeypatch, code):
    """The C library tries writes of one byte there, which fail on a file for direct I/O."""

    any_file.write([pages(8, b"a")], 0)
    fail_with(monkeypatch, "posix_fallocate", code)
    any_file.allocate(600 * PAGE)
    assert (any_file.size, path.stat().st_blocks * 512 >= 600 * PAGE) == (600 * PAGE, True)
    content = path.read_bytes()
    assert content == b"a" * 8 * PAGE + bytes(592 * PAGE)


def test_a_full_disk_that_cannot_allocate_leaves_the_file_as_it_was(any_file, monkeypatch):
    fail_with(monkeypatch, "posix_fallocate", errno.EOPNOTSUPP)
    fail_with(monkeypatch, "pwritev", errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        any_file.allocate(600 * PAGE)
    assert any_file.size == 8 * PAGE


def fail_with(monkeypatch, name, code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, name, fail)


def test_blocks_are_kept_on_a_real_file_system_without_allocation(mount_ext2):
    """An ext2 of 8 MiB: it has direct I/O, and no way to reserve space."""
    path = mount_ext2() / "file"
    file = SlabFile.create(path)
    file.make_direct()
    file.allocate(64 * PAGE)
    file.write([pages(64, b"a")], 0)
    with pytest.raises(OSError, match="No space left"):
        file.allocate(1 << 30)
    assert path.stat().st_size == 64 * PAGE
    file.close()


GIB = 1 << 30


@pytest.mark.parametrize(
    ("total", "free", "unreserved"),
    [
        (8 << 20, 8 << 20, (8 << 20) * 95 // 100),
        (100 * GIB, 100 * GIB, 95 * GIB),
        (100 * GIB, 6 * GIB, GIB),
        (100 * GIB, 2 * GIB, -3 * GIB),
        (8000 * GIB, 8000 * GIB, 7990 * GIB),
    ],
)
def test_the_last_20th_stays_free_up_to_a_limit(tmp_path, monkeypatch, total, free, unreserved):
    found = os.statvfs_result((PAGE, PAGE, total // PAGE, 0, free // PAGE, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    assert abs(unreserved_bytes(tmp_path) - unreserved) <= PAGE


def test_room_is_taken_from_the_disk(path, file):
    assert path.stat().st_blocks * 512 >= 8 * PAGE


def test_a_name_that_is_taken_is_not_created(path, file):
    assert SlabFile.create(path) is None


def test_a_file_is_taken_by_one_alone(path, file):
    assert SlabFile.take(path) is None


def test_a_closed_file_can_be_taken(path):
    SlabFile.create(path).close()
    taken = SlabFile.take(path)
    assert taken is not None
    taken.close()


@pytest.mark.parametrize("make", ["missing", "folder", "fifo", "link"])
def test_what_is_no_file_of_ours_is_not_taken(tmp_path, make):
    path = tmp_path / "trap"
    target = tmp_path / "target"
    target.touch()
    {
        "missing": lambda: None,
        "folder": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
        "link": lambda: path.symlink_to(target),
    }[make]()
    assert SlabFile.take(path) is None


def test_a_file_of_another_user_is_not_taken(path, monkeypatch):
    path.touch()
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert SlabFile.take(path) is None


def test_a_file_that_was_deleted_while_it_was_opened_is_not_taken(path, monkeypatch):
    path.touch()
    opened = os.open

    def open_then_delete(*arguments):
        fd = opened(*arguments)
        path.unlink()
        return fd

    monkeypatch.setattr(os, "open", open_then_delete)
    assert SlabFile.take(path) is None


def test_a_deleted_file_says_so(path, file):
    assert not file.is_unlinked
    path.unlink()
    assert file.is_unlinked


@pytest.mark.parametrize("what", ["os.geteuid", "fcntl.flock"])
def test_a_file_system_that_gives_files_to_others_or_has_no_locks_keeps_none(
    tmp_path, monkeypatch, what
):
    """As NFS does with what root makes; whoever tries one name after the other would never end."""
    failures = {"os.geteuid": lambda: os.getuid() + 1, "fcntl.flock": _no_locks}
    monkeypatch.setattr(what, failures[what])
    with pytest.raises(OSError, match=r"another user|No locks"):
        SlabFile.create(tmp_path / "new.slab")
    assert list(tmp_path.glob("new.slab")) == []


def _no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")


def test_only_the_file_itself_is_unlinked(path, file):
    path.rename(path.with_suffix(".old"))
    path.write_text("somebody else's")
    file.unlink(path)
    assert path.exists()


def test_unlinking_twice_is_unlinking_once(path, file):
    file.unlink(path)
    file.unlink(path)
    assert not path.exists()


def test_no_file_stays_open_that_was_not_taken(path, file, open_files):
    before = open_files()
    assert SlabFile.take(path) is None
    assert not open_files() - before


def test_a_folder_is_locked_by_one_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("flexkv_core.data.tiers.ssd.files._LOCK_WAIT_S", 0.0)
    with folder_lock(tmp_path), pytest.raises(OSError, match=r"\.lock"), folder_lock(tmp_path):
        pass


def test_a_folder_is_unlocked_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr("flexkv_core.data.tiers.ssd.files._LOCK_WAIT_S", 0.0)
    for _ in range(2):
        with folder_lock(tmp_path):
            pass


class TestDurably:
    """Small files that hold one content or another, whatever happens."""

    def test_content_takes_the_place_of_what_was_there(self, path):
        for content in (b"long before", b"now"):
            write_durably(path, content)
            assert path.read_bytes() == content
        assert path.stat().st_mode & 0o777 == 0o600

    def test_a_link_is_replaced_and_not_followed(self, path, tmp_path):
        target = tmp_path / "target"
        target.write_bytes(b"another's")
        path.symlink_to(target)
        write_durably(path, b"now")
        assert (path.is_symlink(), target.read_bytes()) == (False, b"another's")

    @pytest.mark.parametrize("call", ["pwritev", "fsync"])
    def test_what_cannot_be_written_changes_nothing(self, path, monkeypatch, call):
        write_durably(path, b"before")
        monkeypatch.setattr(os, call, _fail)
        with pytest.raises(OSError, match="Input/output error"):
            write_durably(path, b"now")
        assert path.read_bytes() == b"before"
        assert list(path.parent.iterdir()) == [path]

    def test_what_a_killed_process_left_is_no_obstacle(self, path):
        path.with_name("file.new").write_bytes(b"half")
        write_durably(path, b"now")
        assert path.read_bytes() == b"now"

    def test_no_file_stays_open(self, path, monkeypatch, open_files):
        before = open_files()
        write_durably(path, b"now")
        empty_durably(path)
        remove_durably(path)
        monkeypatch.setattr(os, "pwritev", _fail)
        with pytest.raises(OSError, match="Input/output error"):
            write_durably(path, b"now")
        assert not open_files() - before

    def test_a_file_is_emptied_or_made_empty(self, path):
        for _ in range(2):
            empty_durably(path)
            assert path.read_bytes() == b""
            write_durably(path, b"before")

    def test_a_file_is_deleted_if_there_is_one(self, path):
        write_durably(path, b"before")
        for _ in range(2):
            remove_durably(path)
            assert not path.exists()


def _fail(*_):
    raise OSError(errno.EIO, os.strerror(errno.EIO))
