"""What identities cover, and that they are of what the engine has read."""

import errno
import fcntl
import logging
import os
import shutil
import threading
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from model_rig import COMMIT, NO_HUB, STARTED_S, add_to_hub, begin, identify, local, overwrite

from flexkv_core.errors import LayoutError, TierError
from flexkv_core.identity import digest_cache, hashing, identification
from flexkv_core.identity.checkpoint import Checkpoint
from flexkv_core.identity.digest_cache import DigestCache
from flexkv_core.identity.hashing import FileHasher
from flexkv_core.identity.stamps import Stamp

BEFORE_S = STARTED_S - 10
AFTER_S = STARTED_S + 10
UNKNOWN = "identity.unknown of=model: nothing of it outlives this process, because "


def of_hub(hub, revision=None):
    return Checkpoint(model="org/model", revision=revision, hub_cache=hub)


def snapshot_of(hub, commit=COMMIT):
    return hub / "models--org--model" / "snapshots" / commit


def reason_in(caplog):
    """Return what the one warning says."""
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    message = record.getMessage()
    assert message.startswith(UNKNOWN)
    assert "\n" not in message
    return message.removeprefix(UNKNOWN)


@pytest.fixture
def reads(monkeypatch):
    """Counts the bytes that are read of each file."""
    counts, preadv = Counter(), os.preadv

    def counting(fd, *arguments):
        num_bytes = preadv(fd, *arguments)
        counts[Path(f"/proc/self/fd/{fd}").readlink().name] += num_bytes
        return num_bytes

    monkeypatch.setattr(os, "preadv", counting)
    return counts


# What an identity covers


def test_an_identity_is_by_content(folder, directory):
    found = identify(local(folder), directory)

    assert found.startswith("content:")
    assert len(found) == len("content:") + 64


@pytest.mark.parametrize(
    ("name", "offset", "num_bytes"),
    [
        ("model-1.safetensors", 30_001, 64),  # a row of an embedding
        ("model-2.safetensors", 45_000, 2_500),  # a twentieth of a tensor
        ("model-2.safetensors", 49_999, 1),
        ("config.json", 15, 1),
        ("layers/attention.py", 8, 1),
    ],
)
def test_any_changed_byte_makes_another_model(folder, directory, name, offset, num_bytes):
    before = identify(local(folder), directory)
    path = folder / name
    content = path.read_bytes()
    overwrite(path, offset, bytes(byte ^ 1 for byte in content[offset : offset + num_bytes]))
    assert path.stat().st_size == len(content)

    assert identify(local(folder), directory) not in (before, None)
    overwrite(path, 0, content)
    assert identify(local(folder), directory) == before


def test_a_tokenizer_is_not_the_model(folder, directory):
    before = identify(local(folder), directory)
    (folder / "tokenizer.json").write_text('{"changed": true}')

    assert identify(local(folder), directory) == before


def test_copies_on_two_machines_are_one_model_whatever_lies_beside_it(folder, directory, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    for name in (
        ".git/config",
        ".gitattributes",
        "README.md",
        "chat_template.jinja",
        "generation_config.json",
        "original/consolidated.00.pth",
        "pytorch_model.bin",
        "tokenizer_config.json",
    ):
        (tmp_path / "copy" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "copy" / name).write_text("{}")

    assert identify(local(tmp_path / "copy"), tmp_path / "other") == identify(
        local(folder), directory
    )


def test_other_names_make_another_model(folder, directory):
    before = identify(local(folder), directory)
    (folder / "model-1.safetensors").rename(folder / "model-3.safetensors")

    assert identify(local(folder), directory) not in (before, None)


def test_a_model_from_the_hub_is_its_copy_elsewhere(folder, hub, directory):
    found = identify(local(folder), directory)

    assert identify(of_hub(hub), directory) == found
    assert identify(of_hub(hub, "main"), directory) == found
    assert identify(of_hub(hub, COMMIT), directory) == found
    assert identify(local(snapshot_of(hub)), directory) == found


@pytest.mark.parametrize("name", ["config.json", "model-1.safetensors"])
def test_a_file_rewritten_through_the_link_of_a_snapshot_makes_another_model(hub, directory, name):
    before = identify(of_hub(hub, COMMIT), directory)
    overwrite(snapshot_of(hub) / name, 15, b"2")

    assert identify(of_hub(hub, COMMIT), directory) not in (before, None)


def test_a_model_and_its_draft_have_an_identity_each(folder, hub, directory):
    overwrite(folder / "config.json", 15, b"2")
    checkpoints = {"model": of_hub(hub), "draft": local(folder)}

    assert identify(checkpoints, directory) == {
        "model": identify(of_hub(hub), directory),
        "draft": identify(local(folder), directory),
    }


def test_with_a_name_for_the_weights_configuration_and_code_still_count(folder, directory):
    named = local(folder, weights=False, load_format="dummy")
    before = identify(named, directory)
    overwrite(folder / "model-1.safetensors", 0, b"other")
    assert identify(named, directory) == before

    overwrite(folder / "config.json", 15, b"2")
    assert identify(named, directory) not in (before, None)


def test_with_a_name_for_the_weights_a_model_need_not_lie_here(directory):
    checkpoints = [
        Checkpoint(model=model, revision=revision, hub_cache=NO_HUB, weights=False)
        for model, revision in (("s3://a", None), ("s3://b", None), ("s3://a", "v2"))
    ]
    found = [identify(checkpoint, directory) for checkpoint in checkpoints]

    assert len(set(found)) == 3
    assert all(name.startswith("named:") for name in found)


# What says that there is none


def test_a_model_that_is_not_on_this_machine_has_no_identity(hub, directory, caplog):
    assert identify(of_hub(hub, "f" * 40), directory) is None
    assert reason_in(caplog) == (
        "the files of org/model are not on this machine: set weight_version"
    )


def test_a_model_without_weights_has_no_identity(folder, directory, caplog):
    for path in folder.glob("*.safetensors"):
        path.unlink()

    assert identify(local(folder), directory) is None
    assert reason_in(caplog) == f"there are no weight files in {folder}: set weight_version"


def test_a_load_format_that_reads_elsewhere_has_no_identity(folder, directory, caplog):
    assert identify(local(folder, load_format="tensorizer"), directory) is None
    assert reason_in(caplog) == (
        "load_format=tensorizer does not say which weights are read: set weight_version"
    )


def test_a_file_that_cannot_be_read_is_named(folder, directory, caplog):
    (folder / "model-1.safetensors").unlink()
    (folder / "model-1.safetensors").symlink_to("nowhere")

    assert identify(local(folder), directory) is None
    assert "nowhere cannot be read (No such file or directory): set weight" in reason_in(caplog)


def test_a_read_that_fails_is_a_reason(folder, directory, caplog, monkeypatch):
    def failing(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", failing)

    assert identify(local(folder), directory) is None
    assert reason_in(caplog) == (
        f"{folder / 'config.json'} cannot be read (Input/output error): set weight_version"
    )


# As the engine has read it


@pytest.mark.parametrize("name", ["model-1.safetensors", "config.json", "layers/attention.py"])
def test_a_file_written_after_the_start_is_not_what_was_read(
    folder, directory, times, caplog, name
):
    times.set(BEFORE_S, folder / name)
    assert identify(local(folder), directory) is not None

    times.set(AFTER_S, folder / name)
    assert identify(local(folder), directory) is None
    assert reason_in(caplog) == (
        f"{name} was written after the engine had started: restart the engine"
    )


def test_nothing_is_read_of_a_model_that_cannot_be_identified(folder, directory, times, reads):
    times.set(AFTER_S, folder / "model-2.safetensors")

    assert identify(local(folder), directory) is None
    assert not reads


def test_a_tokenizer_written_after_the_start_harms_nothing(folder, directory, times):
    times.set(AFTER_S, folder / "tokenizer.json")

    assert identify(local(folder), directory) is not None


@pytest.mark.parametrize("name", ["", "layers"])
def test_a_folder_that_was_changed_after_the_start_is_not_what_was_read(
    folder, directory, times, caplog, name
):
    times.set(AFTER_S, folder / name)

    assert identify(local(folder), directory) is None
    assert reason_in(caplog).startswith(f"the folder {folder / name} was written after")


def test_a_download_beside_the_model_harms_nothing(folder, directory, times):
    (folder.parent / "other").mkdir()
    times.set(AFTER_S, folder.parent, folder.parent / "other")

    assert identify(local(folder), directory) is not None


def test_a_model_unpacked_right_before_the_start_is_known(folder, directory, times):
    times.set(STARTED_S - 0.01, folder, folder / "layers", *folder.rglob("*"))

    assert identify(local(folder), directory) is not None


def test_a_link_repointed_after_the_start_is_not_what_was_read(folder, directory, times, caplog):
    link = folder.parent / "current"
    link.symlink_to(folder)
    assert identify(local(link), directory) == identify(local(folder), directory)

    times.set(AFTER_S, link)
    assert identify(local(link), directory) is None
    assert reason_in(caplog).startswith(f"the link {link} was written after")


def test_a_link_to_a_file_counts_as_well(folder, directory, times, caplog):
    weights = folder / "model-1.safetensors"
    weights.rename(folder.parent / "weights")
    weights.symlink_to(folder.parent / "weights")
    assert identify(local(folder), directory) is not None

    times.set(AFTER_S, weights)
    assert identify(local(folder), directory) is None
    assert reason_in(caplog).startswith(f"the link {weights} was written after")


# The cache of the hub's client


def everything_in(hub):
    return [hub, *hub.rglob("*")]


def test_what_the_engine_itself_has_downloaded_is_known(hub, directory, times):
    times.set(AFTER_S, *everything_in(hub))

    assert identify(of_hub(hub), directory) is not None
    assert identify(of_hub(hub, COMMIT), directory) is not None


@pytest.mark.parametrize("name", ["config.json", "model-1.safetensors"])
def test_what_was_downloaded_and_changed_is_not_what_was_read(hub, directory, times, caplog, name):
    overwrite(snapshot_of(hub) / name, 15, b"2")
    times.set(AFTER_S, *everything_in(hub))

    assert identify(of_hub(hub), directory) is None
    assert reason_in(caplog).startswith(f"{name} was written after")


def test_a_change_is_seen_as_long_as_nothing_has_been_remembered_of_it(hub, directory, times):
    times.set(AFTER_S, *everything_in(hub))
    overwrite(snapshot_of(hub) / "config.json", 15, b"2")

    assert identify(of_hub(hub), directory) is None
    assert identify(of_hub(hub), directory) is None


def test_a_snapshot_that_has_been_repointed_after_the_start_is_not_what_was_read(
    hub, directory, times, caplog
):
    link = snapshot_of(hub) / "config.json"
    times.set(AFTER_S, link)

    assert identify(of_hub(hub), directory) is None
    assert reason_in(caplog).startswith(f"the link {link} was written after")


def test_another_file_of_a_snapshot_that_comes_later_harms_nothing(hub, directory, times):
    times.set(AFTER_S, snapshot_of(hub))

    assert identify(of_hub(hub), directory) is not None


def test_a_link_into_the_cache_from_elsewhere_is_judged_by_its_time(
    folder, hub, directory, times, caplog
):
    times.set(AFTER_S, *everything_in(hub))
    path = folder / "config.json"
    path.unlink()
    path.symlink_to(snapshot_of(hub) / "config.json")
    assert identify(local(folder), directory) is not None

    times.set(AFTER_S, path)
    assert identify(local(folder), directory) is None
    assert reason_in(caplog).startswith(f"the link {path} was written after")


def test_a_link_to_another_repository_is_judged_by_its_time(folder, hub, directory, times, caplog):
    add_to_hub(hub / "models--org--other", folder)
    link = snapshot_of(hub) / "config.json"
    target = link.readlink().name
    link.unlink()
    link.symlink_to(hub / "models--org--other" / "blobs" / target)
    times.set(AFTER_S, *everything_in(hub))

    assert identify(of_hub(hub), directory) is None
    assert reason_in(caplog).startswith(f"the link {link} was written after")


def test_a_folder_of_a_snapshot_counts_if_a_file_in_it_is_not_proven(hub, directory, times, caplog):
    overwrite(snapshot_of(hub) / "config.json", 15, b"2")
    assert identify(of_hub(hub), directory) is not None

    times.set(AFTER_S, snapshot_of(hub))
    assert identify(of_hub(hub), directory) is None
    assert reason_in(caplog).startswith(f"the folder {snapshot_of(hub)} was written after")


def test_a_folder_of_links_into_the_cache_counts(hub, directory, tmp_path, times, caplog):
    links = tmp_path / "links"
    links.mkdir()
    for path in snapshot_of(hub).glob("*.*"):
        (links / path.name).symlink_to(path)
    assert identify(local(links), directory) is not None

    times.set(AFTER_S, links)
    assert identify(local(links), directory) is None
    assert reason_in(caplog).startswith(f"the folder {links} was written after")


def test_a_branch_that_moved_after_the_start_may_have_meant_another_snapshot(
    folder, hub, directory, times, caplog
):
    overwrite(folder / "config.json", 15, b"2")
    add_to_hub(hub / "models--org--model", folder, "f" * 40)
    reference = hub / "models--org--model" / "refs" / "main"
    assert identify(of_hub(hub), directory) == identify(local(folder), directory)

    times.set(AFTER_S, reference)
    assert identify(of_hub(hub), directory) is None
    assert reason_in(caplog).startswith(f"the revision in {reference} was written after")
    assert identify(of_hub(hub, COMMIT), directory) is not None


# Clocks of file servers


@pytest.mark.parametrize("shift_s", [-200, 200])
def test_a_server_whose_clock_is_wrong_does_not_cost_the_identity(
    folder, directory, times, mounted, shift_s
):
    mounted("nfs4")
    everything = [folder, *folder.rglob("*")]
    times.set(STARTED_S - 3600 + shift_s, *everything)

    assert identify(local(folder), directory) is not None


@pytest.mark.parametrize(
    ("kind", "is_known"), [("nfs4", False), ("fuse.sshfs", False), ("xfs", True)]
)
def test_a_change_after_the_start_is_seen_by_the_clock_of_a_server_that_is_behind(
    folder, directory, times, mounted, caplog, kind, is_known
):
    mounted(kind)
    times.set(STARTED_S - 1000, *folder.rglob("*"), folder)
    times.set(AFTER_S - 200, folder / "model-1.safetensors")

    assert (identify(local(folder), directory) is not None) == is_known
    if not is_known:
        assert "or less than 300 s before it by another machine's clock" in reason_in(caplog)


def test_a_download_to_a_server_whose_clock_is_wrong_is_known(hub, directory, times, mounted):
    mounted("nfs4")
    times.set(AFTER_S - 200, *everything_in(hub))

    assert identify(of_hub(hub), directory) is not None


def test_without_times_only_what_is_proven_by_its_name_is_known(
    folder, hub, directory, times, reads, caplog
):
    times.set(0, *everything_in(hub), folder, *folder.rglob("*"))

    with caplog.at_level(logging.INFO):
        assert identify(of_hub(hub), directory) is not None
    assert "identity.hashed_at_every_start path=" in caplog.text
    num_bytes = reads.total()
    assert identify(of_hub(hub), directory) is not None
    assert reads.total() == 2 * num_bytes > 0
    caplog.clear()
    assert identify(local(folder), directory) is None
    assert reason_in(caplog) == (
        "the file system keeps no time of config.json: copy the model to another"
    )


# While it is hashed


class Meddler(FileHasher):
    """Does something when a file has been read."""

    def __init__(self, *arguments, done):
        super().__init__(*arguments)
        self._done = done

    def hash(self, path, **what):
        found = super().hash(path, **what)
        self._done(Path(path).name)
        return found


@pytest.fixture
def when_hashed(monkeypatch):
    """Registers what is to be done when a file has been read, by its name."""

    def register(done):
        monkeypatch.setattr(
            identification, "FileHasher", lambda *arguments: Meddler(*arguments, done=done)
        )

    return register


@pytest.mark.parametrize("name", ["model-1.safetensors", "model-2.safetensors", "config.json"])
@pytest.mark.parametrize("begun", ["config.json", "model-2.safetensors"])
def test_a_file_that_is_changed_while_it_is_hashed_has_no_identity(
    folder, directory, when_hashed, caplog, name, begun
):
    when_hashed(lambda done: done == begun and overwrite(folder / name, 3, b"x"))

    assert identify(local(folder), directory) is None
    assert reason_in(caplog).startswith(f"{name} was changed while it was being identified")


def test_nothing_more_is_read_once_a_file_has_changed(folder, directory, when_hashed, reads):
    when_hashed(lambda done: overwrite(folder / done, 3, b"x"))

    assert identify(local(folder), directory) is None
    assert set(reads) == {"config.json"}


def test_a_stamp_that_is_never_the_same_leaves_no_identity(folder, directory, caplog):
    name, take = folder / "model-1.safetensors", Stamp.take.__func__
    looks = Counter()

    def unsteady(cls, path):
        looks[path] += 1
        found = take(cls, path)
        is_off = path == str(name) and looks[path] == 2
        return msgspec.structs.replace(found, mtime_ns=1) if is_off else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stamp, "take", classmethod(unsteady))
        assert identify(local(folder), directory) is None
    assert reason_in(caplog) == (
        "model-1.safetensors looks different every time: copy the model to another file system"
    )


def test_a_file_that_is_added_meanwhile_leaves_no_identity(folder, directory, when_hashed, caplog):
    when_hashed(lambda done: (folder / "more_config.json").write_text("{}"))

    assert identify(local(folder), directory) is None
    assert "more_config.json was changed while" in reason_in(caplog)


def test_a_file_beside_it_that_is_changed_meanwhile_harms_nothing(folder, directory, when_hashed):
    when_hashed(lambda done: overwrite(folder / "tokenizer.json", 0, b"[]"))

    assert identify(local(folder), directory) is not None


def test_a_link_that_is_repointed_meanwhile_leaves_no_identity(
    folder, directory, when_hashed, caplog
):
    link = folder.parent / "current"
    link.symlink_to(folder)
    shutil.copytree(folder, folder.parent / "copy")

    def repoint(_):
        link.unlink()
        link.symlink_to("copy")

    when_hashed(repoint)

    assert identify(local(link), directory) is None
    assert "was changed while" in reason_in(caplog)


# What is remembered


def test_a_second_process_reads_nothing(folder, hub, directory, reads):
    found = [identify(local(folder), directory), identify(of_hub(hub), directory)]
    assert reads["model-1.safetensors"] == 50_000
    reads.clear()

    assert [identify(local(folder), directory), identify(of_hub(hub), directory)] == found
    assert not reads


def test_what_is_remembered_is_told_before_the_engine_goes_on(folder, directory):
    identify(local(folder), directory)
    told = []
    begin(local(folder), directory, told.append)

    assert len(told) == 1


def test_only_a_changed_file_is_read_again(folder, directory, reads):
    identify(local(folder), directory)
    reads.clear()
    overwrite(folder / "config.json", 15, b"2")
    identify(local(folder), directory)

    assert set(reads) == {"config.json"}


def test_what_may_be_changed_within_a_tick_of_the_clock_is_not_remembered(
    folder, directory, times, now, reads
):
    now.time = lambda: STARTED_S + 1
    times.set(STARTED_S - 0.5, folder / "model-1.safetensors")
    assert identify(local(folder), directory) is not None
    reads.clear()

    assert identify(local(folder), directory) is not None
    assert set(reads) == {"model-1.safetensors"}


def test_hashing_goes_on_where_it_was_killed(folder, directory, when_hashed, reads):
    engine = None

    def kill(done):
        if done == "model-1.safetensors":
            engine.close()

    def hashed_as_late_as_possible(*arguments):
        ready.wait()
        return Meddler(*arguments, done=kill)

    ready = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identification, "FileHasher", hashed_as_late_as_possible)
        told = []
        engine = begin(local(folder), directory, told.append)
        ready.set()
        engine.join()
    assert told == []
    reads.clear()

    assert identify(local(folder), directory) is not None
    assert reads["model-2.safetensors"] == 50_000
    assert "model-1.safetensors" not in reads
    assert "config.json" not in reads


def test_the_longest_unused_model_is_forgotten(folder, hub, directory, monkeypatch, reads):
    models = [local(folder / f"model-{number}.safetensors") for number in (1, 2)]
    monkeypatch.setattr(digest_cache, "_MAX_ENTRIES", 2)
    for model in (*models, models[0], local(snapshot_of(hub) / "model-1.safetensors")):
        identify(model, directory)
    reads.clear()
    identify(models[0], directory)
    assert not reads
    identify(models[1], directory)
    assert reads["model-2.safetensors"] == 50_000


@pytest.mark.parametrize("content", [b"", b"FLEXKVD1" + bytes(100), None])
def test_a_damaged_memory_costs_hashing_again(folder, directory, reads, content):
    found = identify(local(folder), directory)
    path = directory / ".digests"
    written = path.read_bytes()
    path.write_bytes(written[:-20] + b"0" + written[-19:] if content is None else content)
    reads.clear()

    assert identify(local(folder), directory) == found
    assert reads["model-1.safetensors"] == 50_000
    assert path.read_bytes() == written


def test_without_a_directory_nothing_is_remembered_and_all_is_known(
    folder, directory, tmp_path, reads
):
    (tmp_path / "file").write_text("no directory")
    found = identify(local(folder), tmp_path / "file" / "ssd")
    reads.clear()

    assert identify(local(folder), tmp_path / "file" / "ssd") == found
    assert reads["model-1.safetensors"] == 50_000
    assert identify(local(folder), directory) == found


@pytest.mark.parametrize("from_hub", [False, True])
def test_a_warm_start_asks_once_for_each_file(folder, tmp_path, directory, monkeypatch, from_hub):
    for number in range(3, 101):
        (folder / f"model-{number}.safetensors").write_bytes(b"%d" % number)
    add_to_hub(tmp_path / "hub" / "models--org--model", folder)
    checkpoint = of_hub(tmp_path / "hub") if from_hub else local(folder)
    found = identify(checkpoint, directory)
    asked, stat = Counter(), os.stat

    def counting(path, **how):
        asked[how.get("follow_symlinks", True)] += 1
        return stat(path, **how)

    monkeypatch.setattr(os, "stat", counting)

    assert identify(checkpoint, directory) == found
    assert 102 <= asked[True] < 102 + 20
    assert asked[False] == 102 * from_hub


# Beside the engine


def test_engines_that_start_together_read_each_file_once(folder, directory, reads, monkeypatch):
    monkeypatch.setattr(digest_cache, "_HASHING_POLL_S", 0.001)
    told = []
    engines = [begin(local(folder), directory, told.append) for _ in range(4)]
    for engine in engines:
        engine.join()

    assert len(told) == 4
    assert all(one == told[0] for one in told)
    assert reads["model-1.safetensors"] == 50_000


def test_one_that_waits_for_another_is_closed_at_once(folder, directory):
    directory.mkdir()
    with (directory / ".hashing").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        told = []
        engine = begin(local(folder), directory, told.append)
        engine.close()
        engine.join()

    assert told == []


def test_one_whose_turn_never_comes_hashes_beside_the_other(folder, directory, monkeypatch, caplog):
    """The other may have been stopped."""
    monkeypatch.setattr(digest_cache, "_HASHING_WAIT_S", 0.0)
    monkeypatch.setattr(digest_cache, "_HASHING_POLL_S", 0.001)
    directory.mkdir()
    with (directory / ".hashing").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert identify(local(folder), directory) is not None
    assert caplog.text.count("identity.hashed_twice") == 1


def test_a_memory_that_stays_locked_is_waited_for_once(folder, directory, monkeypatch, caplog):
    monkeypatch.setattr(digest_cache, "_LOCK_WAIT_S", 0.0)
    directory.mkdir()
    with (directory / ".digests.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert identify(local(folder), directory) is not None
    assert caplog.text.count("identity.not_remembered") == 1


def test_one_that_reads_slowly_is_closed_at_once(folder, directory, monkeypatch, caplog):
    seconds = iter(range(0, 10**9, 10**5))
    reading = threading.Event()

    def monotonic():
        reading.set()
        return next(seconds)

    monkeypatch.setattr(hashing.time, "monotonic", monotonic)
    told = []
    engine = begin(local(folder), directory, told.append)
    reading.wait()
    engine.close()
    engine.join()

    assert told == []
    assert "identity.unknown" not in caplog.text


def test_it_reads_with_a_priority_that_what_it_tells_does_not_inherit(
    folder, directory, when_hashed
):
    niceness = []

    def note(_):
        niceness.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    when_hashed(note)
    begin(local(folder), directory, note).join()

    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert niceness == [19, 19, 19, 19, own] != [own] * 5


def test_nothing_is_told_after_it_was_closed(folder, directory, when_hashed):
    told, engines = [], []
    begun = threading.Event()

    def close(_):
        begun.wait()
        engines[0].close()

    when_hashed(close)
    engines.append(begin(local(folder), directory, told.append))
    begun.set()
    engines[0].join()

    assert told == []


def test_nothing_is_told_if_it_was_closed_at_the_last_moment(folder, directory, monkeypatch):
    told, engines = [], []
    begun = threading.Event()

    def close(*_):
        begun.wait()
        engines[0].close()

    monkeypatch.setattr(DigestCache, "use", close)
    engines.append(begin(local(folder), directory, told.append))
    begun.set()
    engines[0].join()

    assert told == []


def test_it_may_be_closed_by_whom_it_tells(folder, directory):
    told, engines = [], []
    begun = threading.Event()

    def then(identities):
        begun.wait()
        engines[0].close()
        told.append(identities)

    engines.append(begin(local(folder), directory, then))
    begun.set()
    engines[0].join()

    assert len(told) == 1


def test_a_tier_that_cannot_be_used_is_tried_again_until_it_can(
    folder, directory, caplog, monkeypatch
):
    """Said once when it begins and once when it ends, whether the model was remembered or not."""
    monkeypatch.setattr(identification, "_RETRY_S", 0.0)
    for _ in range(2):
        caplog.clear()
        told = []

        def then(identities, told=told):
            told.append(identities)
            if len(told) < 4:
                raise TierError("ssd", ".lock is held")

        engine = begin(local(folder), directory, then)
        engine.join()

        assert told == told[:1] * 4
        assert not engine.is_unknown
        lines = [record.getMessage() for record in caplog.records if "tier." in record.msg]
        assert len(lines) == 2
        assert lines[0].startswith("tier.off tier=ssd: .lock is held")
        assert lines[1].startswith("tier.on tier=ssd")


def test_a_tier_that_cannot_be_used_is_not_tried_after_the_end(folder, directory):
    has_been_told = threading.Event()
    told = []

    def then(identities):
        told.append(identities)
        has_been_told.set()
        raise TierError("ssd", ".lock is held")

    engine = begin(local(folder), directory, then)
    has_been_told.wait()
    engine.close()
    engine.join()
    assert len(told) == 1


def test_an_error_of_ours_about_what_it_tells_is_logged(folder, directory, caplog):
    def then(_):
        raise LayoutError("no room")

    for _ in range(2):
        caplog.clear()
        begin(local(folder), directory, then).join()

        [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert record.getMessage() == "identity.of_no_use: no room"


def test_the_log_says_what_is_read_and_for_how_long(folder, directory, caplog):
    with caplog.at_level(logging.INFO):
        identify(local(folder), directory)
    lines = [record.getMessage() for record in caplog.records]

    assert lines[0] == "identity.hashing files=4 gb=0.0"
    assert lines[-1].startswith("identity.hashed files=4 gb=0.0 s=")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        identify(local(folder), directory)
    assert caplog.records == []
