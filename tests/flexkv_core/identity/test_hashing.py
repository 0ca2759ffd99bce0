import errno
import hashlib
import os
import random
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from flexkv_core.identity import hashing
from flexkv_core.identity.hashing import Digests, FileHasher, digest_of_files, yield_to_others

CHUNK = 1000


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(hashing, "_CHUNK_BYTES", CHUNK)


@pytest.fixture
def content():
    return random.Random(1).randbytes(10 * CHUNK + 7)


@pytest.fixture
def path(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    return path


def hash_file(path, *, for_git=False, stop=None, progress=lambda num_bytes: None):
    return FileHasher(stop or threading.Event(), progress).hash(str(path), for_git=for_git)


class Disk:
    """Stands for the calls on a file: what is cached, what is read, what is given back."""

    def __init__(self, monkeypatch, cached=(), *, refuses=None):
        self.cached, self.refuses = cached, refuses
        self.read, self.given_back, self.advice = [], [], []
        self._preadv = os.preadv
        monkeypatch.setattr(os, "preadv", self.preadv)
        monkeypatch.setattr(os, "posix_fadvise", self.posix_fadvise)

    def preadv(self, fd, buffers, offset, flags=0):
        if flags == os.RWF_NOWAIT:
            if self.refuses:
                raise OSError(self.refuses, os.strerror(self.refuses))
            room = next((span.stop - offset for span in self.cached if offset in span), 0)
            if not room:
                raise BlockingIOError
            buffers = [buffers[0][:room]]
        else:
            assert flags == 0
            self.read.append((offset, len(buffers[0])))
        return self._preadv(fd, buffers, offset)

    def posix_fadvise(self, fd, offset, length, advice):
        if advice == os.POSIX_FADV_DONTNEED:
            self.given_back.append((offset, length))
        else:
            self.advice.append((offset, length, advice))


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 10 * CHUNK])
def test_digests_are_those_of_the_whole_file(tmp_path, content, size):
    path = tmp_path / "file"
    path.write_bytes(content[:size])

    found = hash_file(path, for_git=True)
    assert found.sha256 == hashlib.sha256(content[:size]).hexdigest()
    assert found.git == hashlib.sha1(b"blob %d\0" % size + content[:size]).hexdigest()
    assert hash_file(path).git is None


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_calls_a_file_the_same(path):
    done = subprocess.run(
        ["git", "hash-object", "--no-filters", path], check=True, capture_output=True, text=True
    )

    assert hash_file(path, for_git=True).git == done.stdout.strip()


def test_what_is_cached_stays_so_and_what_is_not_does_not(monkeypatch, path, content):
    disk = Disk(monkeypatch, [range(2 * CHUNK), range(5 * CHUNK, 5 * CHUNK + 400)])

    assert hash_file(path).sha256 == hashlib.sha256(content).hexdigest()
    assert disk.advice == [(0, 0, os.POSIX_FADV_RANDOM)]
    assert disk.given_back[:4] == [
        (2 * CHUNK, CHUNK),
        (3 * CHUNK, CHUNK),
        (4 * CHUNK, CHUNK),
        (5 * CHUNK + 400, CHUNK - 400),
    ]
    kept = {*range(2 * CHUNK), *range(5 * CHUNK, 5 * CHUNK + 400)}
    gone = {byte for offset, size in disk.given_back for byte in range(offset, offset + size)}
    assert kept | gone == set(range(len(content)))
    assert kept & gone == set()


def test_a_file_that_is_cached_is_not_given_back(monkeypatch, path, content):
    disk = Disk(monkeypatch, [range(len(content))])

    assert hash_file(path).sha256 == hashlib.sha256(content).hexdigest()
    assert sum(size for _, size in disk.given_back) == 0


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_cannot_say_what_is_cached_is_read_all_the_same(
    monkeypatch, path, content, number
):
    disk = Disk(monkeypatch, [range(len(content))], refuses=number)

    assert hash_file(path).sha256 == hashlib.sha256(content).hexdigest()
    assert sum(size for _, size in disk.given_back) == len(content)


class Pauses(threading.Event):
    """Notes for how long somebody would wait."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def wait(self, timeout=None):
        self.seconds.append(timeout)
        return self.is_set()


def test_a_slow_disk_is_busy_for_half_of_the_time(monkeypatch, path):
    Disk(monkeypatch, [range(8 * CHUNK)])
    times = iter(range(0, 1000, 5))
    monkeypatch.setattr(hashing.time, "monotonic", lambda: next(times))
    pauses = Pauses()
    hash_file(path, stop=pauses)

    assert pauses.seconds == [5] * 4  # two chunks, the rest, the end


def test_it_stops_within_a_chunk(path):
    stop, done = threading.Event(), []

    def progress(num_bytes):
        done.append(num_bytes)
        stop.set()

    assert hash_file(path, stop=stop, progress=progress) is None
    assert done == [CHUNK]


def test_all_bytes_are_told(path, content):
    done = []
    hash_file(path, progress=done.append)

    assert sum(done) == len(content)


def test_what_is_not_a_plain_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match=f"not a plain file: '{path}'"):
            hash_file(path)


def test_a_file_that_is_gone_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        hash_file(tmp_path / "missing")


def test_digests_are_known_by_the_name_of_either_kind():
    found = Digests("a" * 64, "b" * 40)

    assert found.include("a" * 64)
    assert found.include("b" * 40)
    assert not found.include("c" * 64)
    assert not Digests("a" * 64).include("b" * 40)


def test_files_are_told_apart_by_names_and_contents():
    a, b = Digests("a" * 64, "c" * 40), Digests("b" * 64)
    lists = [
        {},
        {"f": a},
        {"f": b},
        {"g": a},
        {"f": a, "g": b},
        {"f": b, "g": a},
        {"f": a, "g": a},
        {"fg": a},
    ]

    assert len({digest_of_files(files) for files in lists}) == len(lists)
    assert digest_of_files({"g": b, "f": a}) == digest_of_files({"f": Digests("a" * 64), "g": b})
    assert len(digest_of_files({})) == 32


def test_a_digest_of_files_is_the_same_for_ever():
    digest = digest_of_files({"config.json": Digests("0" * 64), "w\udcff": Digests("f" * 64)})

    assert digest.hex() == "04e2f98bb2f45535cde81e176eb8e6cd70864746172ce813404b852a3f76511d"


def test_a_thread_that_yields_has_the_lowest_priorities():
    found = []

    def work():
        yield_to_others()
        thread = threading.get_native_id()
        found.append(os.getpriority(os.PRIO_PROCESS, thread))
        found.append(ioprio_of_this_thread())

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert found == [19, 3 << 13]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before != 19


def ioprio_of_this_thread():
    number = hashing._IOPRIO_SET[hashing.platform.machine()] + 1
    return hashing.ctypes.CDLL(None).syscall(number, *hashing._IOPRIO_THIS_THREAD)


def test_a_machine_that_does_not_let_it_yield_is_no_error(monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refuse)
    monkeypatch.setattr(hashing.platform, "machine", lambda: "other")

    yield_to_others()
