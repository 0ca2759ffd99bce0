"""A block store that writes and one that follows it, as engines with a host tier use them."""

import mmap
import random
from typing import ClassVar

import numpy as np
from session_world import check_columns
from world import CELL_BYTES, World, content_of, findable

from flexkv_core.block.layout import BlockFormat, Column
from flexkv_core.block_store.block_store import open_follower, open_writer
from flexkv_core.block_store.blocks import Access, Blocks
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.tiers.memory import PageMemory, PagePiece
from flexkv_core.data.tiers.ssd.column_tier import BlockShare
from flexkv_core.data.tiers.ssd.follower import Follower
from flexkv_core.data.tiers.ssd.tier import SsdTier
from flexkv_core.data.transfer.cpu_lane import CpuLane
from flexkv_core.data.transfer.direct_lane import DirectLane
from flexkv_core.data.transfer.staged_lane import StagedLane
from flexkv_core.data.transfer.tier_lane import TierLane
from flexkv_core.errors import TierError
from flexkv_core.plan import Status
from flexkv_core.testing.geometry import make_pages, read_block, write_page

NUM_PAGES = 32
STAGING = 6
DISK_BLOCKS = 40
FORMAT = BlockFormat(num_heads=1, num_layers=2, block_tokens=4, token_bytes=512, cell_heads=1)
COLUMN = Column(first_head=0, num_heads=1, first_layer=0, num_layers=2)
QUOTA = 2 * 4096 + DISK_BLOCKS * (4096 + CELL_BYTES)


class Pages:
    """An engine's pages: staged, or stored as they are."""

    def __init__(self, *, is_staged):
        self.is_staged = is_staged
        if is_staged:
            self.memory, self.pool = make_pages("LBNHC", L=2, B=NUM_PAGES, N=4, H=1, C=512)
            self.host = HostPool.create(2 * STAGING, FORMAT.block_bytes)
            self.tier_memory = self.host.memory
        else:
            self.memory = np.frombuffer(mmap.mmap(-1, NUM_PAGES * CELL_BYTES), np.uint8)
            piece = PagePiece(self.memory.ctypes.data, CELL_BYTES, CELL_BYTES)
            self.tier_memory = PageMemory([piece], NUM_PAGES, self.memory)

    def lane(self, tier, clock, direction):
        far = TierLane(0, tier, self.tier_memory, num_threads=2, clock=clock)
        if not self.is_staged:
            return DirectLane(0, far)
        near = CpuLane(0, self.pool, FORMAT, self.host, clock=clock)
        first = direction * STAGING
        return StagedLane(0, near, far, range(first, first + STAGING), clock=clock)

    def read(self, page):
        if self.is_staged:
            return read_block(self.pool, [page])
        return self.memory[page * CELL_BYTES : (page + 1) * CELL_BYTES].tobytes()

    def write(self, page, content):
        block = np.frombuffer(content, np.uint8)
        if self.is_staged:
            write_page(self.pool, page, 0, block)
        else:
            self.memory[page * CELL_BYTES : (page + 1) * CELL_BYTES] = block

    def close(self):
        if self.is_staged:
            self.host.close()


class Side:
    """A rank: its store, its pages, and the jobs that use them."""

    def __init__(self, store, tier, pages, lanes):
        self.store, self.tier, self.pages, self.lanes = store, tier, pages, lanes
        self.free = [*range(NUM_PAGES)]
        self.found = {page: pages.read(page) for page in self.free}
        """What the free pages hold: nobody may change it."""

        self.jobs = {}
        self.num_poisoned = 0

    def take(self, num_pages):
        taken, self.free = self.free[:num_pages], self.free[num_pages:]
        for page in taken:
            assert self.pages.read(page) == self.found[page], "a page has changed after the report"
        return taken

    def give_back(self, pages):
        for page in pages:
            self.found[page] = self.pages.read(page)
        self.free += pages

    def poison(self, pages):
        """Fill pages with what no block holds."""
        for page in pages:
            self.num_poisoned += 1
            content = content_of(b"poison", -self.num_poisoned, 0, CELL_BYTES)
            self.pages.write(page, content)
            self.found[page] = content


class Engine:
    """The writer, and a follower if there is one."""

    def __init__(self, world):
        clock = world.simulation.clock
        names = {"num_layers": 2, "cell_layers": 2, "block_tokens": 4}
        share = BlockShare(
            world.namespace(**names), [COLUMN], CELL_BYTES, f"engine-{world.num_starts}"
        )
        pages = Pages(is_staged=world.is_staged)
        options = world.options(QUOTA, has_followers=world.is_followed)
        tier = SsdTier(pages.tier_memory, share, options, clock=clock)
        lanes = tuple(pages.lane(tier, clock, direction) for direction in range(2))
        limits = {"access": world.access, "load_limit_s": 5.0, "clock": clock}
        store = open_writer(tier, lanes, eviction_policy=world.policy, **limits)
        self.sides = [Side(store, tier, pages, lanes)]
        if world.is_followed:
            pages = Pages(is_staged=world.is_staged)
            tier = Follower(pages.tier_memory, share, options.directories, clock=clock)
            lane = pages.lane(tier, clock, 0)
            self.sides.append(Side(open_follower(tier, lane, **limits), tier, pages, [lane]))

    def close(self):
        for side in reversed(self.sides):
            side.store.close()
            side.pages.close()


class StoreWorld(World):
    """Pages are saved and loaded by key, by jobs that are polled, awaited and cancelled."""

    VERBS: ClassVar = {
        "grow_chain": 6, "save": 40, "load": 40, "poll": 60, "await_": 20, "cancel": 4,
        "look_up": 10, "yield_": 40, "take_counts": 4, "wait": 8, "resize": 0.3, "reset": 0.3,
        "restart": 0.3, "change_weather": 4, "calm": 0.5,
    }  # fmt: skip

    def __init__(self, seed, *rest):
        bits = random.Random(seed).getrandbits(4)
        self.is_staged = bool(bits & 1)
        self.access = Access.SINGLE if bits & 2 else Access.CHAIN
        self.is_followed = bool(bits & 4)
        self.policy = ["lru", "s3fifo"][bool(bits & 8)]
        super().__init__(seed, *rest)

    def open(self):
        return Engine(self)

    def save(self):
        side = self.engine.sides[0]
        before, keys = self._some_keys()
        pages = side.take(len(keys))
        keys = keys[: len(pages)]
        for key, page in zip(keys, pages, strict=True):
            side.pages.write(page, content_of(key, self.weights, 0, CELL_BYTES))
        self._submit(side, side.store.submit_save, before, keys, pages, is_load=False)

    def load(self):
        side = self.rng.choice(self.engine.sides)
        before, keys = self._some_keys()
        pages = side.take(len(keys))
        side.poison(pages)
        self._submit(side, side.store.submit_load, before, keys[: len(pages)], pages, is_load=True)

    def poll(self):
        side = self.rng.choice(self.engine.sides)
        for result in side.store.poll():
            self._take(side, result)

    def await_(self):
        side = self.rng.choice(self.engine.sides)
        if side.jobs:
            self._take(side, side.store.wait(self.rng.choice([*side.jobs])))

    def cancel(self):
        side = self.rng.choice(self.engine.sides)
        if side.jobs:
            side.store.cancel(self.rng.choice([*side.jobs]))

    def look_up(self):
        side = self.rng.choice(self.engine.sides)
        before, keys = self._some_keys()
        found = side.store.lookup(keys, before)
        assert self.access is Access.SINGLE or found == sorted(found, reverse=True)

    def yield_(self):
        self.simulation.preempt()

    def take_counts(self):
        for side in self.engine.sides:
            self.count(side.store.take_counts())
            side.store.take_copies()

    def resize(self):
        self.engine.sides[0].store.resize(self.rng.choice([QUOTA // 2, QUOTA]))

    def reset(self):
        """Change the weights, with no job under way."""
        engine = self.engine
        self.is_resetting = True
        try:
            for side in engine.sides:
                side.store.reset(keeps_name=self.is_named)
        except TierError:  # it said that nothing was forgotten: begin again without the files
            self.seen["not reset"] += 1
            self.new_weights()
            self.restart()
            return
        self.new_weights()
        self.is_resetting = False

    def settle(self, engine):
        for side in engine.sides:
            for job_id in [*side.jobs]:
                self._take(side, side.store.wait(job_id))
            for lane in side.lanes:
                # What was reported as late goes on until the disk answers.
                assert lane.drain(1e5), "a lane does not end"

    def probe(self, engine):
        side = engine.sides[0]
        side.store.resize(QUOTA)
        side.store.wait_restored()
        keys = self.fresh_chain(2)
        pages = side.take(2)
        for key, page in zip(keys, pages, strict=True):
            side.pages.write(page, content_of(key, self.weights, 0, CELL_BYTES))
        saved = side.store.wait(side.store.submit_save(Blocks(keys, pages))).statuses
        side.give_back(pages)
        works = saved == [Status.OK] * 2
        for reader in engine.sides:
            pages = reader.take(2)
            reader.poison(pages)
            job_id = reader.store.submit_load(Blocks(keys, pages))
            reader.jobs[job_id] = keys, pages, self.weights, True
            is_found = all(reader.store.lookup(keys))
            result = reader.store.wait(job_id)
            self._take(reader, result)
            works = is_found and result.statuses == [Status.OK] * 2 and works
        return works

    def check_idle(self, engine):
        writer = engine.sides[0]
        catalog = writer.store._catalog
        catalog._manager.check_integrity()
        assert not catalog._manager._claims
        assert not catalog._manager.num_in_flight
        writer.tier.delete(catalog._manager.take_gone("ssd"))
        known = findable(catalog._manager, "ssd")
        files = check_columns(writer.tier, known)
        for side in engine.sides:
            for queue in side.store._queues:
                assert (queue._jobs, queue._ended, queue._awaited) == ({}, {}, set())
            for lane in side.lanes:
                if self.is_staged:
                    assert len(lane._ring._free) == STAGING, "staging is lost"
                    assert not lane._parts
            assert sorted(side.free) == [*range(NUM_PAGES)]
        if self.is_followed:
            (column,) = engine.sides[1].tier._columns
            files += column._log is not None
            files += sum(slab is not None for slab in column._slabs)
        assert self.calls.num_files == files, self.calls.open_files
        num_lanes = sum(len(side.lanes) for side in engine.sides)
        assert len(self.simulation.tasks) == 1 + 2 * num_lanes, self.simulation.tasks

    def _some_keys(self):
        chain = self.rng.choice(self.chains)
        end = self.rng.randrange(len(chain) + 1)
        first = self.rng.randrange(end + 1) if self.rng.random() < 0.2 else 0
        return chain[:first], chain[first:end]

    def _submit(self, side, submit, before, keys, pages, *, is_load):
        if len(keys) < len(pages):
            side.give_back(pages[len(keys) :])
            pages = pages[: len(keys)]
        limit_s = self.rng.choice([None, None, None, 0.0, 0.2, 3.0])
        deadline_s = None if limit_s is None else self.simulation.now_s + limit_s
        job_id = submit(Blocks(keys, pages, before), deadline_s)
        side.jobs[job_id] = keys, pages, self.weights, is_load

    def _take(self, side, result):
        keys, pages, weights, is_load = side.jobs.pop(result.job_id)
        for key, page, status in zip(keys, pages, result.statuses, strict=True):
            content = side.pages.read(page)
            if not is_load or status is Status.OK:
                expected = content_of(key, weights, 0, CELL_BYTES)
                assert content == expected, f"wrong bytes in page {page}: {status.name}"
                self.seen["loaded blocks" if is_load else f"saved {status.name}"] += 1
            elif self.is_staged and content != side.found[page]:
                # A good block behind one that failed: its page is filled, and not to be used.
                expected = content_of(key, weights, 0, CELL_BYTES)
                assert content == expected, f"{status.name} changed page {page}"
        side.give_back(pages)
