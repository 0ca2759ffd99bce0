"""A store over an SSD tier in a temporary directory, and an engine's pages of random bytes."""

import numpy as np

from flexkv_core.block.layout import BlockFormat, Column
from flexkv_core.block_store.block_store import open_writer
from flexkv_core.block_store.blocks import Access, Blocks
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.tiers.memory import PageMemory, PagePiece
from flexkv_core.data.tiers.ssd.column_tier import BlockShare
from flexkv_core.data.tiers.ssd.options import SsdOptions
from flexkv_core.data.tiers.ssd.tier import SsdTier
from flexkv_core.data.transfer.cpu_lane import CpuLane
from flexkv_core.data.transfer.direct_lane import DirectLane
from flexkv_core.data.transfer.staged_lane import StagedLane
from flexkv_core.data.transfer.tier_lane import TierLane
from flexkv_core.plan import Status
from flexkv_core.testing.doubles import ManualClock
from flexkv_core.testing.geometry import make_pages, read_block
from flexkv_core.testing.namespaces import make_namespace

NUM_PAGES = 32
STAGING = 4


def chain(first, num_keys):
    return [(first + number + 1).to_bytes(4, "big") * 8 for number in range(num_keys)]


class Store:
    """A store as an engine that waits asks it."""

    access: Access

    def find(self, keys):
        """Tell how many leading blocks are there, or for each whether it is."""
        found = self.store.lookup(keys)
        return sum(found) if self.access is Access.CHAIN else found

    def load(self, keys, page_ids):
        return self._wait(self.store.submit_load, keys, page_ids)

    def save(self, keys, page_ids):
        return self._wait(self.store.submit_save, keys, page_ids)

    def _wait(self, submit, keys, page_ids):
        """Move pages of the last blocks of a chain, or of each key."""
        first = len(keys) - len(page_ids) if self.access is Access.CHAIN else 0
        job_id = submit(Blocks(keys[first:], page_ids, keys[:first]))
        statuses = self.store.wait(job_id).statuses
        assert len(statuses) == len(page_ids)
        good = [status is Status.OK for status in statuses]
        if self.access is Access.SINGLE:
            return good
        assert good == sorted(good, reverse=True)
        return sum(good)

    def close(self):
        self.store.close()


class DirectRig(Store):
    """One process of an engine whose pages are stored as they are, in one piece each."""

    def __init__(
        self,
        directory,
        *,
        access=Access.CHAIN,
        wrap=lambda tier: tier,
        load_limit_s=30.0,
        waits=True,
        quota_bytes=64 << 20,
    ):
        self.pages = np.random.default_rng(1).integers(0, 256, (NUM_PAGES, 4096), np.uint8)
        memory = PageMemory([PagePiece(self.pages.ctypes.data, 4096, 4096)], NUM_PAGES)
        column = Column(first_head=0, num_heads=1, first_layer=0, num_layers=1)
        options = SsdOptions(directories=(directory,), quota_bytes=quota_bytes)
        clock = ManualClock()  # no deadline passes
        share = BlockShare(make_namespace(), [column], 4096, "engine")
        self.tier = SsdTier(memory, share, options, clock=clock)
        seen = wrap(self.tier)
        self.access = access
        self.store = open_writer(
            self.tier,
            tuple(DirectLane(0, TierLane(0, seen, memory, clock=clock)) for _ in range(2)),
            access=access,
            eviction_policy="lru",
            load_limit_s=load_limit_s,
            clock=clock,
        )
        if waits:
            self.store.wait_restored()


class Rig(Store):
    """One process of an engine."""

    def __init__(
        self, directory, *, access=Access.CHAIN, quota_bytes=64 << 20, wrap=lambda tier: tier
    ):
        self.memory, self.pages = make_pages("PLBNHC", P=2, L=2, B=NUM_PAGES, N=16, H=2, C=32)
        self.memory[:] = np.random.default_rng(1).integers(0, 256, self.memory.size, np.uint8)
        fmt = BlockFormat(num_heads=2, num_layers=2, block_tokens=16, token_bytes=64, cell_heads=1)
        columns = [
            Column(first_head=head, num_heads=1, first_layer=0, num_layers=2) for head in range(2)
        ]
        self.host = HostPool.create(2 * STAGING, fmt.block_bytes)
        options = SsdOptions(directories=(directory,), quota_bytes=quota_bytes)
        namespace = make_namespace(num_layers=2, cell_layers=2)
        share = BlockShare(namespace, columns, fmt.cell_bytes, "engine")
        self.tier = SsdTier(self.host.memory, share, options)
        seen = wrap(self.tier)
        self.access = access
        self.store = open_writer(
            self.tier,
            tuple(self._lane(fmt, seen, first) for first in (0, STAGING)),
            access=access,
            eviction_policy="lru",
            load_limit_s=30.0,
        )
        self.store.wait_restored()

    def _lane(self, fmt, tier, first_slot):
        near = CpuLane(0, self.pages, fmt, self.host)
        far = TierLane(0, tier, self.host.memory, num_threads=1)
        return StagedLane(0, near, far, range(first_slot, first_slot + STAGING))

    def content(self, page_ids):
        return [read_block(self.pages, [page]) for page in page_ids]

    def close(self):
        super().close()
        self.host.close()
