"""Weights change in place under one name: nothing of before is found again, whatever comes back.

The content of a page says of which weights it is.
"""

import errno
import os
import random
import shutil
from pathlib import Path

import msgspec
import pytest

from flexkv_core.data.tiers.ssd.files import HeaderFile
from flexkv_core.data.tiers.ssd.generations import Generations
from flexkv_core.data.tiers.ssd.slab import Slab
from flexkv_core.plan import Status

OK, _, MISS, CORRUPT, TIMEOUT, ERROR, _ = Status
GENERATIONS = "flexkv_core.data.tiers.ssd.generations"


@pytest.fixture
def named(disk):
    return msgspec.structs.replace(disk.namespace, weight_version="v1")


@pytest.fixture
def engine(disk, named):
    """Opens a tier for weights that have a name."""

    def start(**options):
        return disk.open(**{"namespace": named, "columns": disk.columns, **options})

    return start


@pytest.fixture
def untold(monkeypatch):
    """How it was: nothing on the disk tells one generation from another."""

    def forget():
        monkeypatch.setattr(Generations, "_record_all", lambda self, _: [""] * len(self._records))

    return forget


def fail(code):
    def function(*_, **__):
        raise OSError(code, os.strerror(code))

    return function


def reset(rank, name="reset"):
    rank.tier.begin_generation(name, keeps_name=True)


class TestWhatComesBack:
    """In some way the old slabs outlive the reset; a later start must not find them."""

    @pytest.fixture(params=["folder", "adopted half", "not adopted", "not read", "copied"])
    def come_back(self, request, disk, engine, named, monkeypatch):
        """Stores blocks, resets, and lets those of before be there again."""
        away = disk.path.parent / "away"
        folder = disk.path / named.short
        quota = {"quota_bytes": 2 * (4096 + 6 * disk.slot_bytes)}

        def rename():
            rank = engine()
            folder.rename(away)
            reset(rank)
            rank.close()
            shutil.rmtree(folder, ignore_errors=True)
            away.rename(folder)

        def adopt_half():
            ranks = [engine(engine_id=name) for name in "ab"]
            for rank, numbers in zip(ranks, (range(6, 12), range(12, 18)), strict=True):
                rank.write(numbers)
                rank.close()
            rank = engine(**quota)
            reset(rank)
            rank.close()

        def fail_to(kind, name, code):
            with monkeypatch.context() as patch:
                patch.setattr(kind, name, fail(code))
                rank = engine()
            reset(rank)
            rank.close()

        def copy():
            shutil.copytree(folder, away)
            rank = engine()
            reset(rank)
            rank.close()
            shutil.copytree(away, folder, dirs_exist_ok=True)

        ways = {
            "folder": rename,
            "adopted half": adopt_half,
            "not adopted": lambda: fail_to(Slab, "adopt", errno.EMFILE),
            "not read": lambda: fail_to(HeaderFile, "__init__", errno.EIO),
            "copied": copy,
        }

        def run():
            rank = engine(**quota)
            rank.write(range(6))
            rank.close()
            ways[request.param]()

        return run

    def test_it_is_not_found(self, come_back, engine):
        come_back()
        rank = engine()
        assert rank.recovered() == []
        assert set(rank.read(range(18))) == {MISS}

    def test_it_was_found_when_nothing_told_generations_apart(self, come_back, engine, untold):
        untold()
        come_back()
        assert engine().recovered() != []

    def test_what_comes_after_is_found(self, come_back, engine):
        come_back()
        rank = engine()
        rank.write([20])
        rank.close()
        assert engine().recovered() == [20]


def test_without_a_reset_a_restart_finds_every_block(engine):
    rank = engine()
    rank.write(range(8))
    rank.close()
    assert engine().recovered() == list(range(8))


def test_a_rank_of_another_degree_reads_its_part_after_a_reset(disk, engine):
    rank = engine()
    reset(rank)
    rank.write(range(8))
    rank.close()
    assert engine(columns=disk.columns[1:]).recovered() == list(range(8))


def test_a_damaged_record_costs_the_blocks_and_no_more(disk, engine):
    rank = engine()
    rank.write(range(8))
    rank.close()
    min(disk.path.glob(".*.generation")).write_bytes(b"anything")
    rank = engine()
    assert rank.recovered() == []
    rank.write([20])
    rank.close()
    assert engine().recovered() == [20]


def test_two_engines_that_are_reset_one_after_the_other(disk, engine):
    first, second = engine(engine_id="first"), engine(engine_id="second")
    for number, rank in enumerate((first, second)):
        rank.write([number])
        reset(rank, name=f"reset {number}")
        rank.write([10 + number])
    first.close()
    second.close()
    assert engine().recovered() == [11]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
class TestNoRecord:
    """No directory can be told of the generation."""

    def test_what_is_stored_then_serves_this_run_alone(self, disk, engine, monkeypatch, code):
        rank = engine()
        monkeypatch.setattr(f"{GENERATIONS}.write_durably", fail(code))
        rank.write([1])
        reset(rank)
        assert rank.read([1]) == [MISS]
        assert rank.write([2]) == rank.read([2]) == [OK]
        rank.close()
        assert disk.slabs() == []

    def test_what_was_stored_before_is_not_found_again(self, disk, engine, monkeypatch, code):
        rank = engine()
        rank.write([1])
        folder = next(disk.path.glob("[0-9a-f]*"))
        folder.rename(disk.path / "away")
        with monkeypatch.context() as patch:
            patch.setattr(f"{GENERATIONS}.write_durably", fail(code))
            reset(rank)
        rank.close()
        (disk.path / "away").rename(folder)
        assert engine().recovered() == []

    def test_a_start_without_one_is_told_and_serves(self, disk, engine, monkeypatch, caplog, code):
        with monkeypatch.context() as patch:
            patch.setattr(f"{GENERATIONS}.write_durably", fail(code))
            rank = engine()
        assert caplog.text.count("ssd.generation_not_recorded") == 1
        assert rank.write([1]) == rank.read([1]) == [OK]
        rank.close()
        assert disk.slabs() == []

    def test_the_next_reset_may_be_recorded_again(self, engine, monkeypatch, code):
        with monkeypatch.context() as patch:
            patch.setattr(f"{GENERATIONS}.write_durably", fail(code))
            rank = engine()
            reset(rank, name="not recorded")
        reset(rank)
        rank.write([1])
        rank.close()
        assert engine().recovered() == [1]


def test_weights_that_lost_their_name_do_not_get_it_back(disk, engine):
    """By an update in place without a name of its own, and then a cache that is cleared."""
    rank = engine()
    rank.tier.begin_generation("nameless", keeps_name=False)
    reset(rank)
    rank.write([1])
    rank.close()
    assert disk.slabs() == []


def test_weights_without_a_name_leave_no_record(disk):
    rank = disk.open()
    rank.write([1])
    reset(rank)
    rank.close()
    assert list(disk.path.glob(".*.generation")) == []


def test_slabs_of_an_older_generation_give_way(disk, engine):
    room = 2 * (4096 + 8 * disk.slot_bytes)
    rank = engine()
    rank.write(range(8))
    folder = next(disk.path.glob("[0-9a-f]*"))
    folder.rename(disk.path / "away")
    reset(rank)
    rank.close()
    (disk.path / "away").rename(folder)
    rank = engine(quota_bytes=room, directory_cap_bytes=room)
    assert rank.write(range(20, 28)) == [OK] * 8
    assert len(disk.slabs()) == len(disk.columns)


@pytest.mark.parametrize("keeps_name", [True, False])
def test_a_follower_goes_with_its_writer(disk, named, keeps_name):
    """Whatever the generations of the writer are called, and however often it was reset."""
    options = {"columns": disk.columns, "namespace": named}
    disk.store(range(3), **options)
    writer, follower = disk.lead(**options), disk.follow(**options)
    for number in range(3):
        assert follower.found(range(9)) == (3 if number == 0 else 0)
        writer.write(range(3, 9) if number == 0 else range(number))
        assert follower.found(range(9)) == (9 if number == 0 else number)
        assert follower.read(range(number)) == [OK] * number
        writer.tier.begin_generation(f"g{number}", keeps_name=keeps_name)
        follower.tier.begin_generation()


def test_a_follower_goes_with_a_writer_that_could_not_record(disk, named, monkeypatch):
    writer, follower = disk.lead(namespace=named), disk.follow(namespace=named)
    monkeypatch.setattr(f"{GENERATIONS}.write_durably", fail(errno.ENOSPC))
    reset(writer)
    follower.tier.begin_generation()
    writer.write(range(4))
    assert follower.found(range(4)) == 4
    assert follower.read(range(4)) == [OK] * 4


class World:
    """One engine after the other on two directories, and everything that may happen to these."""

    NUM_KEYS = 12

    def __init__(self, engine, disk, path, monkeypatch, seed):
        self.random = random.Random(seed)
        self.weights = self.num_names = self.num_hits = 0
        self.directories = [path / "a", path / "b"]
        self.away = []
        self._engine, self._disk, self._patch = engine, disk, monkeypatch
        self.rank = self.open()

    def open(self):
        return self._engine(
            directories=self.directories,
            engine_id=self.random.choice("xyz"),
            quota_bytes=2 * (2 * 4096 + self.random.choice([6, 16]) * self._disk.slot_bytes),
        )

    def number(self, key):
        """Return the number of a page, which says of which weights it is."""
        return key + self.NUM_KEYS * self.weights

    def blocks(self, keys):
        found = self.rank.blocks(keys)
        for block, key in zip(found, keys, strict=True):
            yield (
                block,
                self.rank.place(block.slot),
                self._disk.content(self.number(key), self.rank.block_bytes),
            )

    def some(self):
        return self.random.sample(range(self.NUM_KEYS), 6)

    def write(self):
        blocks = list(self.blocks(self.some()))
        for _, place, content in blocks:
            place[:] = content
        self.rank.tier.write([block for block, *_ in blocks], None)

    def read(self):
        blocks = list(self.blocks(self.some()))
        statuses = self.rank.tier.read([block for block, *_ in blocks], None)
        for (_, place, content), status in zip(blocks, statuses, strict=True):
            assert status is not OK or place == content, "a page of former weights"
            self.num_hits += status is OK

    def reset(self):
        self.weights += 1
        self.num_names += 1
        with self._patch.context() as patch:
            self.break_something(patch)
            reset(self.rank, name=f"reset {self.num_names}")

    def break_something(self, patch):
        """Let what a reset does fail in one way or none."""
        match self.random.randrange(5):
            case 0:
                patch.setattr(f"{GENERATIONS}.write_durably", fail(errno.ENOSPC))
            case 1:
                patch.setattr("os.fsync", fail(errno.EIO))
            case 2:
                for name in ("unlink", "replace"):
                    self.refuse_below(self.directories[1], name, patch)
                patch.setattr("os.ftruncate", fail(errno.EROFS))

    @staticmethod
    def refuse_below(directory, name, patch):
        """Let a directory be read-only, as far as a method of paths is concerned."""
        original = getattr(Path, name)

        def method(path, *arguments, **options):
            if directory in path.parents:
                raise OSError(errno.EROFS, "Read-only file system")
            return original(path, *arguments, **options)

        patch.setattr(Path, name, method)

    def restart(self):
        self.rank.close()
        with self._patch.context() as patch:
            match self.random.randrange(5):
                case 0:
                    patch.setattr(HeaderFile, "__init__", fail(errno.EMFILE))
                case 1:
                    patch.setattr(Slab, "adopt", fail(errno.EIO))
            self.rank = self.open()

    def kill(self):
        for column in self.rank.tier._columns:
            for slab in column.space.slabs:
                slab.close()
        self.rank.tier._columns = ()
        self.rank = self.open()

    def rename(self):
        """Take a namespace's folder away, or bring one back."""
        if self.away:
            away, folder = self.away.pop()
            shutil.copytree(away, folder, dirs_exist_ok=True)
            shutil.rmtree(away)
            return
        for folder in self.random.choice(self.directories).glob("[0-9a-f]*"):
            away = folder.parent / f"away-{folder.name}"
            folder.rename(away)
            self.away.append((away, folder))

    def damage(self):
        """Change a record."""
        for path in self.random.choice(self.directories).glob(".*.generation"):
            path.write_bytes(path.read_bytes()[:-1])

    def step(self):
        actions = [self.write] * 6 + [self.read] * 6 + [self.restart] * 2
        actions += [self.kill, self.reset, self.reset, self.rename, self.rename, self.damage]
        self.random.choice(actions)()


@pytest.fixture
def run(engine, disk, tmp_path, monkeypatch):
    """Lets worlds pass by, and returns how many pages were found."""

    def run_worlds(seeds):
        num_hits = 0
        for seed in seeds:
            world = World(engine, disk, tmp_path / str(seed), monkeypatch, seed)
            for _ in range(100):
                world.step()
            world.rank.close()
            num_hits += world.num_hits
        return num_hits

    return run_worlds


def test_whatever_happens_no_page_of_former_weights_is_read(run):
    assert run(range(12)) > 500


def test_before_generations_were_told_apart_such_pages_were_read(run, untold):
    untold()
    with pytest.raises(AssertionError, match="former weights"):
        run(range(12))
