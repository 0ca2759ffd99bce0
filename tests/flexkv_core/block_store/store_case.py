"""A rank that writes and one that follows it, over pages that are staged or moved directly."""

import numpy as np
from store_rig import STAGING

from flexkv_core.block.layout import BlockFormat, Column
from flexkv_core.block_store.block_store import open_follower, open_writer
from flexkv_core.block_store.blocks import Blocks
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.tiers.memory import PageMemory, PagePiece
from flexkv_core.data.tiers.ssd.column_tier import BlockShare
from flexkv_core.data.tiers.ssd.follower import Follower
from flexkv_core.data.tiers.ssd.options import SsdOptions
from flexkv_core.data.tiers.ssd.tier import SsdTier
from flexkv_core.data.transfer.cpu_lane import CpuLane
from flexkv_core.data.transfer.direct_lane import DirectLane
from flexkv_core.data.transfer.staged_lane import StagedLane
from flexkv_core.data.transfer.tier_lane import TierLane
from flexkv_core.plan import Status
from flexkv_core.testing.block_store_contract import BlockStoreCase, ScriptedTier
from flexkv_core.testing.doubles import ManualClock
from flexkv_core.testing.geometry import make_pages, read_block
from flexkv_core.testing.namespaces import make_namespace

NUM_PAGES = 16
FORMAT = BlockFormat(num_heads=2, num_layers=2, block_tokens=16, token_bytes=64, cell_heads=2)
COLUMNS = [Column(first_head=0, num_heads=2, first_layer=0, num_layers=2)]
SHARE = BlockShare(make_namespace(), COLUMNS, FORMAT.block_bytes, "engine")


class Pages:
    """An engine's pages, and a way to lanes and tiers over them."""

    def __init__(self, *, is_staged, seed):
        self.memory, self.pages = make_pages("PLBNHC", P=2, L=2, B=NUM_PAGES, N=16, H=2, C=32)
        self.memory[:] = np.random.default_rng(seed).integers(0, 256, self.memory.size, np.uint8)
        self.is_staged = is_staged
        if is_staged:
            self.host = HostPool.create(2 * STAGING, FORMAT.block_bytes)
            self.tier_memory = self.host.memory
            return
        size = self.memory.size // NUM_PAGES
        piece = PagePiece(self.memory.ctypes.data, size, size)
        self.tier_memory = PageMemory([piece], NUM_PAGES)

    def lane(self, tier, clock, direction):
        far = TierLane(0, tier, self.tier_memory, num_threads=1, clock=clock)
        if not self.is_staged:
            return DirectLane(0, far)
        near = CpuLane(0, self.pages, FORMAT, self.host, clock=clock)
        first = direction * STAGING
        return StagedLane(0, near, far, range(first, first + STAGING), clock=clock)

    def content(self, page_id):
        if self.is_staged:
            return read_block(self.pages, [page_id])
        return b"".join(map(bytes, self.tier_memory.pieces(page_id)))

    def close(self):
        if self.is_staged:
            self.host.close()


class StoreCase(BlockStoreCase):
    """A rank that writes; where another one follows it, that one is asked."""

    def __init__(self, directory, *, access, is_staged, is_writer):
        self.access, self.is_writer, self.clock = access, is_writer, ManualClock()
        self.sides = [Pages(is_staged=is_staged, seed=1)]
        self.tier, self.writer = self._open_writer(directory)
        self.store = self.writer
        if not is_writer:
            self.sides.append(Pages(is_staged=is_staged, seed=2))
            self.tier, self.store = self._open_follower(directory)

    def _open_writer(self, directory):
        options = SsdOptions(
            directories=(directory,), quota_bytes=64 << 20, has_followers=not self.is_writer
        )
        pages = self.sides[0]
        tier = SsdTier(pages.tier_memory, SHARE, options, clock=self.clock)
        scripted = ScriptedTier(tier)
        lanes = [pages.lane(scripted, self.clock, direction) for direction in range(2)]
        store = open_writer(
            tier,
            lanes,
            access=self.access,
            eviction_policy="lru",
            load_limit_s=30.0,
            clock=self.clock,
        )
        store.wait_restored()
        return scripted, store

    def _open_follower(self, directory):
        pages = self.sides[1]
        tier = Follower(pages.tier_memory, SHARE, [directory], clock=self.clock)
        scripted = ScriptedTier(tier)
        lane = pages.lane(scripted, self.clock, 0)
        store = open_follower(tier, lane, access=self.access, load_limit_s=30.0, clock=self.clock)
        return scripted, store

    def put(self, keys, page_ids):
        """Store blocks; a writer elsewhere has the content of the asked rank's pages."""
        asked, writing = self.sides[-1], self.sides[0]
        own = writing.memory.copy()
        writing.memory[:] = asked.memory
        job_id = self.writer.submit_save(Blocks(keys, page_ids))
        assert set(self.writer.wait(job_id).statuses) == {Status.OK}
        if not self.is_writer:
            writing.memory[:] = own

    def page(self, page_id):
        return self.sides[-1].content(page_id)

    def close(self):
        for store in {self.store, self.writer}:
            store.close()
        for pages in self.sides:
            pages.close()
