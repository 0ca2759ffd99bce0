import fcntl
import os
import threading
import time

import pytest

from flexkv_core import checked_text
from flexkv_core.identity import digest_cache
from flexkv_core.identity.digest_cache import DigestCache
from flexkv_core.identity.hashing import Digests
from flexkv_core.identity.stamps import Stamp

A, B = Digests("a" * 64), Digests("b" * 64, "b" * 40)


def stamp(number, path="/model/file"):
    return Stamp(f"{path}-{number}", number + 1, 7, 1, 2)


def remembered(directory):
    return DigestCache([directory])._digests


def test_what_was_remembered_is_known_to_the_next_process(directory):
    DigestCache([directory]).remember({stamp(1): A, stamp(2): B})

    found = DigestCache([directory])
    assert found.get(stamp(1)) == A
    assert found.get(stamp(2)) == B
    assert found.get(stamp(3)) is None


@pytest.mark.parametrize(
    "other",
    [
        Stamp("/g", 2, 3, 4, 5),
        Stamp("/f", 9, 3, 4, 5),
        Stamp("/f", 2, 9, 4, 5),
        Stamp("/f", 2, 3, 9, 5),
        Stamp("/f", 2, 3, 4, 9),
    ],
)
def test_a_digest_is_of_exactly_its_stamp(directory, other):
    DigestCache([directory]).remember({Stamp("/f", 2, 3, 4, 5): A})

    assert DigestCache([directory]).get(Stamp("/f", 2, 3, 4, 5)) == A
    assert DigestCache([directory]).get(other) is None


def test_processes_that_remember_at_once_lose_nothing(directory):
    memories = [DigestCache([directory]) for _ in range(8)]

    def work(number):
        for each in range(10):
            memories[number].remember({stamp(10 * number + each): A})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(remembered(directory)) == 80


def test_what_others_have_remembered_since_is_known_after_a_look(directory):
    found = DigestCache([directory])
    DigestCache([directory]).remember({stamp(1): A})
    assert found.get(stamp(1)) is None
    found.reload()

    assert found.get(stamp(1)) == A


def test_the_longest_unused_are_forgotten(directory, monkeypatch):
    monkeypatch.setattr(digest_cache, "_MAX_ENTRIES", 3)
    for number in range(3):
        DigestCache([directory]).remember({stamp(number): A})
    DigestCache([directory]).use({stamp(0): A})
    DigestCache([directory]).remember({stamp(3): A})

    assert set(remembered(directory)) == {stamp(0), stamp(2), stamp(3)}


def test_what_is_only_used_is_not_remembered(directory):
    found = DigestCache([directory])
    found.remember({stamp(1): A})
    found.use({stamp(1): A, stamp(2): A})

    assert set(remembered(directory)) == {stamp(1)}


def test_a_memory_that_grows_too_large_forgets_the_older_half(directory, monkeypatch):
    monkeypatch.setattr(digest_cache, "_MAX_BYTES", 2000)
    for number in range(30):
        DigestCache([directory]).remember({stamp(number): A})

    assert (directory / ".digests").stat().st_size < 2020
    kept = set(remembered(directory))
    assert stamp(29) in kept
    assert stamp(0) not in kept
    assert len(kept) > 5


def test_a_memory_in_which_nothing_changes_is_not_written(directory):
    DigestCache([directory]).remember({stamp(1): A, stamp(2): A})
    before = (directory / ".digests").stat()
    DigestCache([directory]).use({stamp(2): A, stamp(1): A})

    assert (directory / ".digests").stat() == before


def test_a_memory_is_for_its_user_alone(directory):
    DigestCache([directory]).remember({stamp(1): A})

    assert (directory / ".digests").stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700


def damaged(content):
    return [
        b"",
        content[:10],
        content[:-1],
        content + b" ",
        content.replace(b"FLEXKVD1", b"FLEXKVD2"),
        content.replace(b"aaaa", b"abaa"),
        checked_text._PREFIX.pack(b"FLEXKVD1", 2, checked_text.xxh3_64_intdigest(b"{}")) + b"{}",
        checked_text._PREFIX.pack(b"FLEXKVD1", 2, checked_text.xxh3_64_intdigest(b"\xff\xff"))
        + b"\xff\xff",
    ]


def test_a_damaged_or_foreign_file_is_an_empty_memory(directory):
    DigestCache([directory]).remember({stamp(1): A})
    path = directory / ".digests"
    content = path.read_bytes()
    for other in damaged(content):
        path.write_bytes(other)
        assert remembered(directory) == {}
    path.write_bytes(content)

    assert remembered(directory) == {stamp(1): A}


def test_a_digest_that_is_none_is_a_damaged_memory(directory):
    DigestCache([directory]).remember({stamp(1): A})
    DigestCache([directory]).remember({stamp(1): Digests("not hex")})

    assert remembered(directory) == {}


def test_a_link_is_not_followed(directory, tmp_path):
    DigestCache([directory]).remember({stamp(1): A})
    (directory / ".digests").rename(tmp_path / "elsewhere")
    (directory / ".digests").symlink_to(tmp_path / "elsewhere")
    content = (tmp_path / "elsewhere").read_bytes()
    assert remembered(directory) == {}

    DigestCache([directory]).remember({stamp(2): A})
    assert set(remembered(directory)) == {stamp(2)}
    assert (tmp_path / "elsewhere").read_bytes() == content


def test_a_file_of_somebody_else_is_not_believed(directory, monkeypatch):
    DigestCache([directory]).remember({stamp(1): A})
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)

    assert remembered(directory) == {}


def test_a_pipe_in_its_place_is_no_reason_to_wait(directory):
    directory.mkdir()
    os.mkfifo(directory / ".digests")
    assert remembered(directory) == {}

    DigestCache([directory]).remember({stamp(1): A})
    assert remembered(directory) == {stamp(1): A}


def test_the_first_directory_that_can_be_written_to_is_used(directory, tmp_path):
    (tmp_path / "file").write_text("")
    directories = [tmp_path / "file" / "ssd", directory, tmp_path / "third"]
    DigestCache(directories).remember({stamp(1): A})

    assert remembered(directory) == {stamp(1): A}
    assert not (tmp_path / "third").exists()


def test_without_a_directory_nothing_is_remembered_and_nobody_waits(tmp_path):
    (tmp_path / "file").write_text("")
    found = DigestCache([tmp_path / "file" / "ssd"])
    found.remember({stamp(1): A})

    with found.hashing(threading.Event()) as is_alone:
        assert is_alone
    assert DigestCache([]).get(stamp(1)) is None


def test_a_full_disk_is_told_and_nothing_is_lost(directory, monkeypatch, caplog):
    DigestCache([directory]).remember({stamp(1): A})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(digest_cache, "_replace", full)
    DigestCache([directory]).remember({stamp(2): A})

    path = directory / ".digests"
    assert f"identity.not_remembered path={path}: No space left on device" in caplog.text
    assert remembered(directory) == {stamp(1): A}


def test_a_name_that_is_no_text_is_not_remembered(directory):
    DigestCache([directory]).remember({stamp(1, "/\udcff"): A, stamp(2): A})

    assert set(remembered(directory)) == {stamp(2)}


def test_a_cache_that_stays_locked_is_given_up(directory, monkeypatch):
    DigestCache([directory]).remember({stamp(1): A})
    monkeypatch.setattr(digest_cache, "_LOCK_WAIT_S", 0.0)
    with (directory / ".digests.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        DigestCache([directory]).remember({stamp(2): A})
        assert remembered(directory) == {stamp(1): A}


def test_one_hashes_at_a_time(directory, monkeypatch):
    monkeypatch.setattr(digest_cache, "_HASHING_POLL_S", 0.001)
    first, second = DigestCache([directory]), DigestCache([directory])
    begun, order = threading.Event(), []

    def wait():
        begun.set()
        with second.hashing(threading.Event()) as is_alone:
            order.append(("second", is_alone))

    thread = threading.Thread(target=wait)
    with first.hashing(threading.Event()) as is_alone:
        thread.start()
        begun.wait()
        order.append(("first", is_alone))
    thread.join()

    assert order == [("first", True), ("second", True)]


def test_who_is_stopped_does_not_wait_to_hash(directory):
    stop = threading.Event()
    stop.set()
    with (
        DigestCache([directory]).hashing(threading.Event()),
        DigestCache([directory]).hashing(stop) as alone,
    ):
        assert not alone


def test_a_file_system_without_locks_remembers_nothing_and_lets_everybody_hash(
    directory, monkeypatch
):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    found = DigestCache([directory])
    with found.hashing(threading.Event()) as is_alone:
        assert is_alone
    found.remember({stamp(1): A})

    assert not (directory / ".digests").exists()


def test_a_large_cache_is_read_and_written_fast(directory):
    entries = {stamp(number): A for number in range(digest_cache._MAX_ENTRIES)}
    begin_s = time.perf_counter()
    DigestCache([directory]).remember(entries)
    assert len(remembered(directory)) == digest_cache._MAX_ENTRIES

    assert time.perf_counter() - begin_s < 5
