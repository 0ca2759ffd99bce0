import fcntl
import os
from contextlib import suppress

import pytest

from flexkv_core.shared_files import (
    SAFE_FLAGS,
    hold_lock,
    is_own_file,
    make_folder,
    try_lock,
    until,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".lock"


def opened(path, flags=os.O_RDWR | os.O_CREAT):
    return os.open(path, flags | SAFE_FLAGS, 0o600)


def test_a_free_lock_is_held_and_given_back(path):
    with hold_lock(path, gives_up=lambda: True) as is_held:
        assert is_held
        assert not try_lock(opened(path))
    assert try_lock(opened(path))


def test_who_gives_up_does_not_hold_it(path):
    assert try_lock(opened(path))
    with hold_lock(path, until(0.0)) as is_held:
        assert not is_held
    assert not try_lock(opened(path))


def test_a_lock_that_comes_free_is_taken(path):
    other = opened(path)
    assert try_lock(other)

    def wait():
        os.close(other)
        return False

    with hold_lock(path, wait) as is_held:
        assert is_held


def test_a_lock_is_given_back_though_a_child_has_its_file_open(path, monkeypatch):
    inherited = []
    lock = fcntl.flock

    def flock_and_fork(fd, kind):
        inherited.append(os.dup(fd))  # what a fork does to the open file
        lock(fd, kind)

    monkeypatch.setattr(fcntl, "flock", flock_and_fork)
    with suppress(ValueError), hold_lock(path, gives_up=lambda: True):
        raise ValueError
    monkeypatch.undo()
    assert try_lock(opened(path))
    for fd in inherited:
        os.close(fd)


def test_only_plain_files_of_this_user_are_its_own(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    assert is_own_file(opened(tmp_path / "file"))
    assert not is_own_file(opened(tmp_path / "pipe", os.O_RDONLY))
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert not is_own_file(opened(tmp_path / "file"))


def test_links_are_not_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"), hold_lock(tmp_path / "link", until(0)):
        pass


def test_folders_are_for_this_user_alone_with_all_that_are_made_above_them(tmp_path):
    former = os.umask(0)
    try:
        for _ in range(2):
            make_folder(tmp_path / "a" / "b" / "c")
    finally:
        os.umask(former)
    modes = [(tmp_path / made).stat().st_mode & 0o777 for made in ("a", "a/b", "a/b/c")]
    assert modes == [0o700] * 3


def test_a_folder_that_is_there_keeps_its_mode(tmp_path):
    tmp_path.chmod(0o755)
    make_folder(tmp_path)
    make_folder(tmp_path / "a")
    assert tmp_path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_is_no_folder(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises((FileExistsError, NotADirectoryError)):
        make_folder(tmp_path / name)
