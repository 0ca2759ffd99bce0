"""Records of generations: what is believed, what is written, and what a failure leaves behind."""

import errno
import os
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from flexkv_core.data.tiers.ssd.directory import Directory
from flexkv_core.data.tiers.ssd.generations import Generation, Generations

FOLDERS = ("a", "b")


@pytest.fixture
def folders(tmp_path):
    return [tmp_path / name for name in FOLDERS]


@pytest.fixture
def named(disk):
    return msgspec.structs.replace(disk.namespace, weight_version="v1")


@pytest.fixture
def generations(folders, named, disk):
    """Opens the records of a rank that has one column."""

    def make(only=folders, namespace=named, columns=disk.columns[:1]):
        return Generations([Directory(path, None, 0) for path in only], namespace, columns)

    return make


@pytest.fixture
def refuse(monkeypatch):
    """Let calls of a function of files.py fail below some folders, with an error."""

    def install(name, folders, code=errno.EROFS):
        module = "flexkv_core.data.tiers.ssd.generations"
        original = __import__(module, fromlist=[name]).__dict__[name]

        def function(path, *arguments):
            if path.parent in folders:
                raise OSError(code, os.strerror(code))
            return original(path, *arguments)

        monkeypatch.setattr(f"{module}.{name}", function)

    return install


def records(folder):
    return sorted(folder.glob(".*.generation"))


def said(folder):
    [record] = records(folder)
    return Generation.unpack(record.read_bytes())


def say(folder, generation):
    [record] = records(folder)
    record.write_bytes(generation.pack())


def test_without_a_record_a_new_generation_begins(generations, folders):
    assert generations().resume("first") == ["first"]
    assert [said(folder) for folder in folders] == [Generation(1, "first")] * 2


def test_with_a_record_it_goes_on(generations):
    generations().resume("first")
    assert generations().resume("another") == ["first"]


def test_a_reset_counts_on(generations, folders):
    generations().resume("first")
    assert generations().begin("second") == ["second"]
    assert [said(folder) for folder in folders] == [Generation(2, "second")] * 2
    assert generations().resume("another") == ["second"]


def test_the_highest_count_wins_and_is_told_to_all(generations, folders):
    for folder, token in zip(folders, ("first", "second"), strict=True):
        generations([folder]).resume(token)
    generations(folders[1:]).begin("newest")
    assert generations().resume("another") == ["newest"]
    assert said(folders[0]) == said(folders[1]) == Generation(2, "newest")


def test_a_directory_that_is_new_gets_the_record(generations, folders):
    generations(folders[:1]).resume("first")
    generations().resume("another")
    assert generations(folders[1:]).resume("third") == ["first"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"first", b"fjrst")),
        lambda path: path.unlink() or path.symlink_to("/dev/zero"),
        lambda path: path.unlink() or os.mkfifo(path),
    ],
    ids=["empty", "cut", "changed", "link", "pipe"],
)
def test_a_record_that_cannot_be_read_may_have_said_anything(generations, folders, damage):
    generations().resume("first")
    damage(records(folders[1])[0])
    assert generations().resume("second") == ["second"]
    assert [said(folder) for folder in folders] == [Generation(2, "second")] * 2


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.EACCES, errno.ESTALE])
def test_a_record_that_is_there_and_cannot_be_opened_is_as_good_as_damaged(
    generations, folders, monkeypatch, code
):
    generations().resume("first")
    original = os.open

    def fail(path, *arguments):
        if str(path).endswith(".generation"):
            raise OSError(code, os.strerror(code))
        return original(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        assert generations().resume("second") == ["second"]
    assert said(folders[0]).token == "second"


def test_where_a_directory_cannot_be_the_others_keep_the_record(generations, folders):
    folders[0].write_text("in the way")
    assert generations().resume("first") == ["first"]
    assert generations().begin("second") == ["second"]
    assert said(folders[1]) == Generation(2, "second")


def test_where_no_directory_keeps_it_there_is_none(generations, folders, refuse, caplog):
    refuse("write_durably", folders)
    assert generations().resume("first") is None
    assert caplog.text.count("ssd.generation_not_recorded") == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_record_that_cannot_be_replaced_is_deleted(
    generations, folders, refuse, caplog, monkeypatch, code
):
    """A directory without a record is as good as one with the newest."""
    generations().resume("first")
    refuse("write_durably", folders[1:], code)
    assert generations().begin("second") == ["second"]
    assert records(folders[1]) == []
    assert caplog.text == ""
    monkeypatch.undo()
    assert generations(folders[1:]).resume("third") == ["third"]


class TestNoDirectory:
    """None can be told of the reset: what they say is spoilt."""

    @pytest.mark.parametrize("lost", [[], ["a"], ["b"]], ids=["none lost", "a lost", "b lost"])
    def test_no_generation_is_known(self, generations, folders, refuse, monkeypatch, lost):
        generations().resume("first")
        for folder in folders:
            if folder.name in lost:
                records(folder)[0].unlink()
        refuse("write_durably", folders, errno.ENOSPC)
        assert generations().begin("second") is None
        monkeypatch.undo()
        assert generations().resume("another") == ["another"]

    def test_one_that_can_be_spoilt_is_enough(self, generations, folders, refuse, monkeypatch):
        generations().resume("first")
        refuse("write_durably", folders)
        for name in ("empty_durably", "remove_durably"):
            refuse(name, folders[1:])
        assert generations().begin("second") is None
        monkeypatch.undo()
        assert said(folders[1]).token == "first"
        assert generations().resume("another") == ["another"]

    def test_if_none_can_be_it_is_told_what_to_do(self, generations, folders, refuse, caplog):
        generations().resume("first")
        for name in ("write_durably", "empty_durably", "remove_durably"):
            refuse(name, folders)
        assert generations().begin("second") is None
        assert f"{folders[0]}', '{folders[1]}']: blocks from before the reset may" in caplog.text


class TestNotNow:
    """No file can be opened now: what a record says may well be read at the next start."""

    @pytest.fixture
    def refuse_all(self, monkeypatch):
        @contextmanager
        def refuse(names, below):
            with monkeypatch.context() as patch:
                for name in names:
                    patch.setattr(os, name, _refusing(getattr(os, name), below))
                yield

        return refuse

    def test_records_are_deleted_which_needs_no_open_file(self, generations, folders, refuse_all):
        rank = generations()
        rank.resume("first")
        with refuse_all(["open"], folders):
            assert rank.begin("second") is None
        assert records(folders[0]) == records(folders[1]) == []
        assert generations().resume("another") == ["another"]

    def test_where_that_fails_too_it_is_told_and_tried_again_in_the_end(
        self, generations, folders, refuse_all, caplog
    ):
        rank = generations()
        rank.resume("first")
        with refuse_all(["open", "unlink"], folders):
            assert rank.begin("second") is None
        assert "blocks from before the reset may be found again: delete" in caplog.text
        assert said(folders[0]).token == "first"
        rank.close()
        assert generations().resume("another") == ["another"]

    def test_a_reset_that_was_recorded_is_left_in_the_end(self, generations):
        rank = generations()
        rank.resume("first")
        rank.begin("second")
        rank.close()
        assert generations().resume("another") == ["second"]

    def test_a_record_with_a_higher_count_does_not_outlive_a_reset(
        self, generations, folders, refuse_all, monkeypatch
    ):
        """It could not be read when the count was chosen, nor replaced, and can be read again."""
        generations().resume("first")
        for number in range(3):
            generations(folders[1:]).begin(f"reset {number}")
        records(folders[0])[0].unlink()
        refused, remove = folders[1:], Generations._remove_others

        def can_be_read_again(*arguments):
            refused.clear()
            remove(*arguments)

        with refuse_all(["open"], refused):
            rank = generations()

            monkeypatch.setattr(Generations, "_remove_others", can_be_read_again)
            assert rank.begin("newest") == ["newest"]
        assert generations().resume("another") == ["newest"]


def _refusing(original, below):
    def function(path, *arguments, **options):
        if any(str(path).startswith(str(folder)) for folder in below):
            raise OSError(errno.EMFILE, "Too many open files")
        return original(path, *arguments, **options)

    return function


class TestStaleRecord:
    """One directory is read-only at the reset, and what it says can not even be deleted."""

    @pytest.fixture
    def reset(self, generations, folders, refuse, monkeypatch):
        def reset():
            generations().resume("first")
            for name in ("write_durably", "remove_durably"):
                refuse(name, folders[1:])
            assert generations().begin("second") == ["second"]
            monkeypatch.undo()

        return reset

    def test_it_is_told_where_and_what_to_do(self, folders, reset, caplog):
        reset()
        assert caplog.text.count("ssd.generation_not_recorded") == 1
        assert f"directory={folders[1]}: Read-only file system" in caplog.text

    def test_the_newer_record_wins_at_the_next_start(self, generations, folders, reset):
        reset()
        assert said(folders[1]) == Generation(1, "first")
        assert generations().resume("another") == ["second"]
        assert said(folders[1]) == said(folders[0])

    def test_it_counts_again_only_where_the_newer_record_is_gone(self, generations, folders, reset):
        reset()
        assert generations(folders[1:]).resume("another") == ["first"]


def test_a_start_deletes_no_record_that_it_could_only_not_replace_in_time(
    generations, folders, monkeypatch
):
    """Somebody else holds the lock: the record is the newest all the same."""
    generations().resume("first")
    with monkeypatch.context() as patch:
        patch.setattr("flexkv_core.data.tiers.ssd.directory.folder_lock", _time_out)
        assert generations().resume("another") is None
    assert generations().resume("another") == ["first"]


def test_engines_that_start_at_once_share_a_generation(generations, monkeypatch):
    """Both have found nothing before either has written."""
    first, second = generations(), generations()
    write = _HeldBack(monkeypatch)
    assert first.resume("a") is second.resume("b") is None
    write.goes_on()
    assert first._record_all(*write.calls[0]) == second._record_all(*write.calls[1]) == ["a"]


def test_of_engines_that_are_reset_at_once_the_last_wins(generations, folders, monkeypatch):
    generations().resume("first")
    first, second = generations(), generations()
    write = _HeldBack(monkeypatch)
    assert first.begin("a") is second.begin("b") is None
    write.goes_on()
    assert first._record_all(*write.calls[0]) == ["a"]
    assert second._record_all(*write.calls[1]) == ["b"]
    assert said(folders[0]) == said(folders[1]) == Generation(3, "b")


def test_a_count_that_cannot_be_read_at_the_reset_is_remembered(generations, folders, monkeypatch):
    """The other directory has lost its record: a new one must not begin at 1."""
    rank = generations()
    rank.resume("first")
    rank.begin("second")
    records(folders[1])[0].unlink()
    folders[0].rename(folders[0].with_name("away"))
    folders[0].write_text("in the way")
    assert rank.begin("third") == ["third"]
    folders[0].unlink()
    folders[0].with_name("away").rename(folders[0])
    assert generations().resume("another") == ["third"]


def test_an_engine_that_was_not_reset_goes_behind_one_that_was(generations, folders):
    first, second = generations(), generations()
    assert first.resume("first") == second.resume("another") == ["first"]
    first.begin("second")
    first.begin("third")
    assert second.begin("other") == ["other"]
    assert said(folders[0]) == Generation(4, "other")


def test_every_column_has_a_record_of_its_own(generations, folders, disk):
    generations(columns=disk.columns[:1]).begin("reset")
    assert generations(columns=disk.columns).resume("first") == ["reset", "first"]
    assert len(records(folders[0])) == 2


def test_another_namespace_has_a_record_of_its_own(generations, named):
    generations().resume("first")
    other = msgspec.structs.replace(named, weight_version="v2")
    assert generations(namespace=other).resume("other") == ["other"]


def test_weights_without_a_name_have_no_record(generations, folders, disk):
    nameless = generations(namespace=disk.namespace, columns=disk.columns)
    assert nameless.resume("first") == nameless.begin("second") == ["", ""]
    assert [records(folder) for folder in folders] == [[], []]


def test_a_record_is_for_its_user_alone_and_not_seen_by_listings(generations, folders):
    generations().resume("first")
    [record] = records(folders[0])
    assert record.stat().st_mode & 0o777 == 0o600
    assert record.name.startswith(".")


def test_a_record_has_been_synced_with_its_folder(generations, folders, monkeypatch):
    synced = []
    original = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: synced.append(str(_opened(fd).readlink())) or original(fd)
    )
    generations().resume("first")
    expected = [[f"{records(folder)[0]}.new", str(folder)] for folder in folders]
    assert synced == expected[0] + expected[1]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_record_that_was_not_synced_does_not_count(generations, folders, monkeypatch, code):
    def fail(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    assert generations().resume("first") is None
    assert [path for folder in folders for path in folder.iterdir() if path.name != ".lock"] == []


def test_a_file_system_that_cannot_sync_folders_is_enough(generations, monkeypatch):
    original = os.fsync

    def fail_for_folders(fd):
        if _opened(fd).is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        original(fd)

    monkeypatch.setattr(os, "fsync", fail_for_folders)
    assert generations().resume("first") == ["first"]


class _HeldBack:
    """Holds back what is to be written, until the test lets it go on."""

    def __init__(self, monkeypatch):
        self.calls = []
        self._patch = monkeypatch
        monkeypatch.setattr(Generations, "_record_all", lambda _, *arguments: self.note(arguments))

    def note(self, arguments):
        self.calls.append(arguments)

    def goes_on(self):
        self._patch.undo()


def _opened(fd):
    return Path(f"/proc/self/fd/{fd}")


def _time_out(_):
    raise OSError(errno.ETIMEDOUT, ".lock is held by another process")
