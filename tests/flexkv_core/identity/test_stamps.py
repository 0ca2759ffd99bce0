import os

import pytest
from model_rig import overwrite

from flexkv_core.identity.stamps import Paths, Stamp


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_text("content")
    return path


def test_a_file_left_alone_keeps_its_stamp(file):
    before = Stamp.take(str(file))
    file.read_text()

    assert Stamp.take(str(file)) == before
    assert before.size == 7
    assert before.shows_changes
    assert before.changed_s == max(file.stat().st_mtime_ns, file.stat().st_ctime_ns) / 1e9


def rewrite(path):
    overwrite(path, 0, b"CONTENT")


def replace(path):
    new = path.with_name("new")
    new.write_text("CONTENT")
    new.replace(path)


def grow(path):
    with path.open("a") as file:
        file.write("more")


@pytest.mark.parametrize("change", [rewrite, replace, grow])
def test_a_change_shows_in_the_stamp(file, change):
    before = Stamp.take(str(file))
    change(file)

    assert Stamp.take(str(file)) != before


def test_a_stamp_is_of_the_file_or_of_the_link(file, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(file)

    assert Stamp.take(str(link)).inode == file.stat().st_ino
    assert Stamp.take_link(str(link)).inode == link.lstat().st_ino != file.stat().st_ino


@pytest.mark.parametrize(
    ("inode", "mtime_ns", "ctime_ns", "shows_changes"),
    [(5, 1, 1, True), (5, 0, 1, True), (0, 1, 1, False), (5, 1, 0, False)],
)
def test_a_file_system_without_inodes_or_times_tells_nothing(
    inode, mtime_ns, ctime_ns, shows_changes
):
    assert Stamp("/f", inode, 7, mtime_ns, ctime_ns).shows_changes == shows_changes


def test_a_path_without_links_leads_to_itself(file):
    assert Paths().follow(str(file)) == (str(file), ())
    assert Paths().follow("/") == ("/", ())


def test_every_link_on_the_way_is_told(tmp_path):
    (tmp_path / "v2" / "weights").mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "b").write_text("")
    (tmp_path / "v2" / "weights" / "w").symlink_to("../../blobs/b")
    (tmp_path / "current").symlink_to("v2")
    (tmp_path / "model").symlink_to(tmp_path / "current")
    path = f"{tmp_path}/./model//weights/../weights/w"

    real, links = Paths().follow(path)

    assert real == os.path.realpath(path) == str(tmp_path / "blobs" / "b")
    names = ("model", "current", "v2/weights/w")
    assert [link.path for link in links] == [str(tmp_path / name) for name in names]
    assert [link.inode for link in links] == [(tmp_path / name).lstat().st_ino for name in names]


def test_dots_behind_a_link_lead_out_of_where_it_leads(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")

    assert Paths().follow(f"{tmp_path}/link/..")[0] == str(tmp_path / "a")


def test_a_circle_is_an_error(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")

    with pytest.raises(OSError, match="form a loop"):
        Paths().follow(str(tmp_path / "a"))


def test_what_is_not_there_leads_to_itself(tmp_path):
    assert Paths().follow(f"{tmp_path}/no/where") == (f"{tmp_path}/no/where", ())


def test_a_change_shows_although_the_times_of_the_file_were_set_back(file):
    before, found = Stamp.take(str(file)), file.stat()
    rewrite(file)
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    after = Stamp.take(str(file))
    assert after.mtime_ns == before.mtime_ns
    assert after != before


def test_a_file_that_claims_to_be_old_was_changed_when_its_times_were_set(file):
    os.utime(file, ns=(0, 10**9))
    assert Stamp.take(str(file)).changed_s == file.stat().st_ctime_ns / 1e9 > 1
