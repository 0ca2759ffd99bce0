import pytest

from flexkv_core.cli import disks
from flexkv_core.cli.disks import disk_notes, disk_problems, find_disk
from flexkv_core.config import parse_config


@pytest.fixture
def mounts(tmp_path):
    """Makes the kernel's list of file systems: the place and the type of each."""

    def make(*places):
        path = tmp_path / "mountinfo"
        lines = [f"22 1 0:21 / {place} rw shared:1 - {kind} none rw\n" for place, kind in places]
        path.write_text("".join(lines))
        return path

    return make


def test_a_missing_directory_is_judged_by_the_folder_above_it(tmp_path):
    disk = find_disk(tmp_path / "a" / "b")
    assert not disk.exists
    assert disk.device == tmp_path.stat().st_dev
    assert list(tmp_path.iterdir()) == []


def test_the_innermost_and_latest_mount_counts(tmp_path, mounts):
    listed = mounts(
        ("/", "ext4"), (tmp_path, "xfs"), (tmp_path, "tmpfs"), (tmp_path / "other", "nfs")
    )
    assert find_disk(tmp_path / "cache", listed).file_system == "tmpfs"


def test_a_mount_with_a_space_is_found(tmp_path, mounts):
    (tmp_path / "a b").mkdir()
    listed = mounts(("/", "ext4"), (str(tmp_path / "a b").replace(" ", "\\040"), "xfs"))
    assert find_disk(tmp_path / "a b", listed).file_system == "xfs"


def test_memory_and_containers_are_noted(tmp_path, mounts):
    in_memory = find_disk(tmp_path, mounts((tmp_path, "tmpfs")))
    in_container = find_disk(tmp_path, mounts((tmp_path, "overlay")))
    said = " ".join(disk_notes([in_memory, in_container]))
    assert "is in memory (tmpfs)" in said
    assert "mount a volume" in said


def test_a_directory_that_takes_no_file_is_a_problem(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(disks.tempfile, "TemporaryFile", refuse)
    config = parse_config({"ssd_cache_gb": 1e-3, "ssd_cache_dir": str(tmp_path)})
    [problem] = disk_problems([find_disk(tmp_path)], config)
    assert problem.startswith(f"{tmp_path}: nothing can be written there")


def test_room_on_one_file_system_counts_once_and_slabs_count_as_room(make_slab, tmp_path):
    make_slab(tmp_path / "a").write_chain(3)
    found = [find_disk(tmp_path / name) for name in ("a", "b")]
    held = found[0].bytes_on_disk
    assert held > 0
    room_gb = (found[0].bytes_free + held) / 2**30
    named = {"ssd_cache_dir": [str(tmp_path / "a"), str(tmp_path / "b")]}
    [problem] = disk_problems(found, parse_config({"ssd_cache_gb": room_gb + 1, **named}))
    assert "set it lower, or free some" in problem
    assert not list(disk_problems(found, parse_config({"ssd_cache_gb": room_gb - 1, **named})))
