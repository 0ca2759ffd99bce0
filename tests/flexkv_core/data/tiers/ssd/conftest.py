"""Namespaces, columns, and tiers with host memory for the tests of the SSD tier."""

import itertools
import os
import resource
import subprocess

import numpy as np
import pytest

from flexkv_core.block.layout import Column
from flexkv_core.data.tiers.base import TierBlock
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.tiers.ssd.column_tier import BlockShare
from flexkv_core.data.tiers.ssd.follower import Follower
from flexkv_core.data.tiers.ssd.format import PAGE_BYTES, Superblock, column_identity
from flexkv_core.data.tiers.ssd.options import SsdOptions
from flexkv_core.data.tiers.ssd.tier import SsdTier
from flexkv_core.plan import Status
from flexkv_core.testing.doubles import ManualClock
from flexkv_core.testing.geometry import POISON
from flexkv_core.testing.namespaces import make_namespace

CELL_BYTES = 8192
SLOT_BYTES = PAGE_BYTES + CELL_BYTES
NUM_HOST_SLOTS = 64
DEFAULTS = {"quota_bytes": 64 << 20, "leftover_bytes": 1 << 30}

NAMESPACE = make_namespace()
COLUMNS = [Column(first_head=head, num_heads=1, first_layer=0, num_layers=4) for head in range(2)]


def key_of(number):
    return (number + 1).to_bytes(4, "big") * 8


def content_of(number, num_bytes):
    """Return bytes that no other block has anywhere, nor this one anywhere else."""
    first = (number + 1) << 32
    return np.arange(first, first + num_bytes // 8, dtype=np.uint64).tobytes()


class Rank:
    """A tier and the host memory it is opened on; block `number` has key and content of its own."""

    def __init__(self, directories, columns, cell_bytes, namespace, **options):
        self.block_bytes = len(columns) * cell_bytes
        self.host = HostPool.create(NUM_HOST_SLOTS, self.block_bytes)
        engine_id = options.pop("engine_id", "engine")
        self.clock = options.pop("clock", ManualClock())
        self.share = BlockShare(namespace, columns, cell_bytes, engine_id)
        self.tier = self._open(tuple(directories), options)

    def _open(self, directories, options):
        options = SsdOptions(**{**DEFAULTS, "directories": directories, **options})
        tier = SsdTier(self.host.memory, self.share, options, clock=self.clock)
        tier.wait_recovered()
        return tier

    def blocks(self, numbers):
        return [
            TierBlock(key_of(number), key_of(number - 1) if number else None, slot)
            for slot, number in enumerate(numbers)
        ]

    def place(self, slot):
        (place,) = self.host.memory.pieces(slot)
        return place

    def write(self, numbers):
        """Store blocks, a few in each call, as a lane does."""
        statuses = []
        for some in _batches(numbers):
            for slot, number in enumerate(some):
                self.place(slot)[:] = content_of(number, self.block_bytes)
            statuses += self.tier.write(self.blocks(some), None)
        return statuses

    def read(self, numbers):
        """Read blocks; whatever is OK has the right bytes, or the test fails."""
        statuses = []
        for some in _batches(numbers):
            self.host.buffer[:] = bytes([POISON]) * len(self.host.buffer)
            results = self.tier.read(self.blocks(some), None)
            for slot, (number, status) in enumerate(zip(some, results, strict=True)):
                if status is Status.OK:
                    assert content_of(number, self.block_bytes) == self.place(slot)
            statuses += results
        return statuses

    def recovered(self):
        """Return the numbers of all blocks that the tier reports."""
        found = []
        while not self.tier.is_recovered:
            found += self.tier.take_recovered(7)
        return sorted(int.from_bytes(stored.key[:4], "big") - 1 for stored in found)

    def close(self):
        self.tier.close()
        self.host.close()


class FollowingRank(Rank):
    """The same over a tier that reads what another has written."""

    def _open(self, directories, _):
        return Follower(self.host.memory, self.share, directories, clock=self.clock)

    def found(self, numbers):
        """Return how many of these blocks are there before the first that is not."""
        return self.tier.count_leading([key_of(number) for number in numbers])


def _batches(numbers):
    numbers = list(numbers)
    return [numbers[at : at + 8] for at in range(0, len(numbers), 8)]


def superblock_of(column=COLUMNS[0], *, namespace=NAMESPACE, **changes):
    """Return what the slabs of a column say of themselves."""
    fields = {
        "namespace": namespace,
        "column": column.name,
        "identity": column_identity(namespace, column).hex(),
        "cell_bytes": CELL_BYTES,
    }
    return Superblock(**{**fields, **changes})


class Disk:
    """A directory that outlives the tiers that are opened on it."""

    namespace = NAMESPACE
    columns = COLUMNS
    cell_bytes = CELL_BYTES
    slot_bytes = SLOT_BYTES
    key = staticmethod(key_of)
    content = staticmethod(content_of)

    def __init__(self, path):
        self.path = path
        self.ranks = []

    def open(self, *, columns=COLUMNS[:1], directories=None, namespace=NAMESPACE, **options):
        """Open a tier and find everything that is there."""
        cell_bytes = options.pop("cell_bytes", CELL_BYTES)
        directories = [self.path] if directories is None else directories
        kind = options.pop("kind", Rank)
        self.ranks.append(kind(directories, columns, cell_bytes, namespace, **options))
        return self.ranks[-1]

    def lead(self, **options):
        """Open a tier that has followers."""
        return self.open(has_followers=True, **options)

    def follow(self, **options):
        """Open a follower of whoever has the same options."""
        return self.open(kind=FollowingRank, **options)

    def store(self, numbers, **options):
        """Let a tier that is closed again store blocks."""
        rank = self.open(**options)
        assert set(rank.write(numbers)) == {Status.OK}
        rank.close()

    superblock = staticmethod(superblock_of)

    def slabs(self):
        return sorted(self.path.rglob("*.slab"))

    def logs(self):
        return sorted(self.path.glob(".*.keys*"))

    @property
    def size(self):
        return sum(slab.stat().st_size for slab in self.slabs())

    def close(self):
        for rank in self.ranks:
            rank.close()


@pytest.fixture
def disk(tmp_path):
    disk = Disk(tmp_path / "ssd")
    yield disk
    disk.close()


@pytest.fixture
def small_steps(monkeypatch):
    """Let slabs grow by four slots at a time."""
    monkeypatch.setattr("flexkv_core.data.tiers.ssd.space._MIN_STEP_BYTES", 4 * SLOT_BYTES)


@pytest.fixture(scope="session")
def superblock():
    return superblock_of()


@pytest.fixture
def limit_files():
    """Let this process open only so many more files."""
    former = resource.getrlimit(resource.RLIMIT_NOFILE)

    def limit(num_more):
        unused = (fd for fd in itertools.count() if not _is_open(fd))
        first_refused = next(itertools.islice(unused, num_more, None))
        resource.setrlimit(resource.RLIMIT_NOFILE, (first_refused, former[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, former)


def _is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.fixture
def mount(tmp_path):
    """Mount a small file system of its own; skip the test where that is not allowed."""
    mounted = []

    def mount_at(*arguments):
        target = tmp_path / "mount"
        target.mkdir()
        if os.geteuid() or _run("mount", *arguments, target):
            pytest.skip("mounting needs to be root, with the right to mount")
        mounted.append(target)
        return target

    yield mount_at
    for target in mounted:
        assert _run("umount", "--lazy", target) == 0  # a test that fails may have files open


@pytest.fixture
def mount_ext2(mount, tmp_path):
    def mount_image(num_mib=8):
        image = tmp_path / "ext2"
        with image.open("wb") as file:
            file.truncate(num_mib << 20)
        if _run("mkfs.ext2", "-q", "-F", "-b", "4096", image):
            pytest.skip("mkfs.ext2 is not installed")
        return mount("-o", "loop", image)

    return mount_image


def _run(*command):
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode
    except FileNotFoundError:
        return 127
