"""Host memory and files below it, as the two halves of a connector use them."""

import random
from typing import ClassVar

import numpy as np
from world import CELL_BYTES, World, content_of, findable

from flexkv_core.block.layout import Column
from flexkv_core.control.hierarchy.lower_tier import LowerTier
from flexkv_core.control.index.radix import Refusal
from flexkv_core.control.manager import CacheManager, TierSpec
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.tiers.ssd.column_tier import BlockShare
from flexkv_core.data.tiers.ssd.tier import SsdTier
from flexkv_core.data.transfer.tier_lane import TierLane
from flexkv_core.data.worker import HOST, CacheWorker, Route
from flexkv_core.errors import TierError
from flexkv_core.metrics import Counters
from flexkv_core.plan import (
    EnginePages,
    HostSlots,
    Status,
    TierReport,
    TransferResult,
)

HOST_BLOCKS = 24
DISK_BLOCKS = 40
TIMEOUT_S = 1.0
PLAN_BYTES = 11 << 20
"""What the scheduler's half takes a block for: three of them make a plan."""


class Rank:
    """A worker: host memory, files, and the lanes between them."""

    def __init__(self, world, rank, columns):
        self.world, self.rank = world, rank
        self.block_bytes = CELL_BYTES * len(columns)
        self.host = HostPool.create(HOST_BLOCKS, self.block_bytes)
        clock = world.simulation.clock
        share = BlockShare(world.namespace(), columns, CELL_BYTES, f"engine-{world.num_starts}")
        slot_bytes = CELL_BYTES + 4096
        quota_bytes = len(columns) * (2 * 4096 + DISK_BLOCKS * slot_bytes)
        self.tier = SsdTier(self.host.memory, share, world.options(quota_bytes), clock=clock)
        self.tier.wait_recovered()
        read, write = (
            TierLane(rank, self.tier, self.host.memory, num_threads=2, clock=clock)
            for _ in range(2)
        )
        self.lanes = [read, write]
        lanes = {Route("ssd", HOST): read, Route(HOST, "ssd"): write}
        self.worker = CacheWorker(rank, lanes, clock=clock)
        self.orders = []
        self.tasks = []
        self.generation = ""
        self.is_named = world.is_named

    def deliver(self):
        """Carry out the oldest orders."""
        if self.orders:
            orders = self.orders.pop(0)
            if orders.generation:
                self.tier.begin_generation(orders.generation, keeps_name=self.is_named)
                self.generation = orders.generation
            self.tier.delete(orders.gone)
            for plan in orders.plans:
                self.worker.submit([plan])

    def report(self):
        return TierReport(
            tier="ssd",
            rank=self.rank,
            capacity_blocks=self.tier.capacity_blocks,
            recovered=self.tier.take_recovered(16),
            is_recovered=self.tier.is_recovered,
            counts=self.tier.take_counts(),
            generation=self.generation,
        )

    def move(self, plan, keys, weights):
        """Fill host memory as a save does, or compare it as a load finds it."""
        is_save = isinstance(plan.target, HostSlots)
        packed = plan.target if is_save else plan.source
        slots = np.frombuffer(packed.slots, np.int64).tolist()
        for key, slot in zip(keys, slots, strict=True):
            (place,) = self.host.memory.pieces(slot)
            content = content_of(key, weights, self.rank, self.block_bytes)
            if is_save:
                place[:] = content
            else:
                assert place == content, f"wrong bytes in slot {slot} of rank {self.rank}"
        return TransferResult(
            job_id=plan.job_id,
            rank=self.rank,
            status=Status.OK,
            num_blocks=plan.num_blocks,
            epoch=plan.epoch,
        )

    def close(self):
        for lane in self.lanes:
            lane.close()
            assert lane.drain(200.0), "a lane does not end"
        self.tier.close()
        self.host.close()


class Engine:
    """The scheduler's half, and all workers."""

    def __init__(self, world, columns_of):
        self.counters = Counters()
        self.ranks = []
        try:
            for rank, columns in enumerate(columns_of):
                self.ranks.append(Rank(world, rank, columns))
        except TierError:
            self.close()
            raise
        owners = range(len(self.ranks))
        self.manager = CacheManager(
            [
                TierSpec("host", HOST_BLOCKS),
                TierSpec("ssd", DISK_BLOCKS, world.policy, addressed_by="key"),
            ],
            ranks=len(owners),
            owners=owners,
            recorder=self.counters,
        )
        self.tier = LowerTier(
            self.manager,
            "ssd",
            owners=owners,
            block_bytes=PLAN_BYTES,
            timeout_s=TIMEOUT_S,
            recorder=self.counters,
        )
        self.requests = {}
        self.saves = {}

    def close(self):
        for rank in self.ranks:
            rank.close()


class SessionWorld(World):
    """Requests come, wait for the disk, load, and save."""

    VERBS: ClassVar = {
        "grow_chain": 8, "arrive": 30, "ask": 60, "turn": 60, "step": 10, "deliver": 20,
        "move": 20, "yield_": 20, "report": 20, "tell": 10, "abort": 2, "evict": 20, "wait": 6,
        "reset": 0.3, "restart": 0.3, "change_weather": 4, "calm": 0.5,
    }  # fmt: skip

    def __init__(self, seed, *rest):
        self.num_requests = 0
        bits = random.Random(seed).getrandbits(2)
        self.policy = ["lru", "s3fifo"][bits & 1]
        self.columns_of = _columns(num_ranks=1 + bits // 2)
        super().__init__(seed, *rest)

    def open(self):
        return Engine(self, self.columns_of)

    def arrive(self):
        engine = self.engine
        keys = self.rng.choice(self.chains).copy()
        self.num_requests += 1
        name = f"request-{self.num_requests}"
        num_wanted = engine.tier.demoter.admit(keys, 0, 0)
        engine.tier.demoter.offer(name, keys, num_wanted)
        engine.requests[name] = keys, num_wanted

    def ask(self):
        engine, compute_s = self.engine, self.rng.choice([0.01, None, 0.5, 0.5])
        if engine.requests:
            name = self.rng.choice([*engine.requests])
            keys, num_wanted = engine.requests[name]
            now_s = self.simulation.now_s
            if not engine.tier.promoter.must_wait(name, keys, now_s, compute_s):
                self._end_request(engine, name)
                self._load(engine, name, keys)
                self._save(engine, name, keys, num_wanted)

    def abort(self):
        if self.engine.requests:
            self._end_request(self.engine, self.rng.choice([*self.engine.requests]))

    def turn(self):
        """Do what an engine does in a step."""
        self.step()
        for _ in self.engine.ranks:
            for verb in ("deliver", "yield_", "move", "yield_", "report", "yield_", "tell"):
                getattr(self, verb)()

    def step(self):
        engine = self.engine
        orders = engine.tier.take_orders(self.simulation.now_s)
        for rank in engine.ranks:
            rank.orders.append(orders)

    def deliver(self):
        self.rng.choice(self.engine.ranks).deliver()

    def move(self):
        """Let a worker do one of its copies between pages and host memory."""
        rank = self.rng.choice(self.engine.ranks)
        if rank.tasks:
            task = rank.tasks.pop(self.rng.randrange(len(rank.tasks)))
            self._complete(self.engine, rank.move(*task))

    def yield_(self):
        self.simulation.preempt()

    def report(self):
        rank = self.rng.choice(self.engine.ranks)
        for result in rank.worker.poll():
            self._complete(self.engine, result)

    def tell(self):
        self._tell(self.engine, self.rng.choice(self.engine.ranks))

    def evict(self):
        self._make_room(self.engine, 1 + self.rng.randrange(HOST_BLOCKS))

    def reset(self):
        """Change the weights; the files are in order once every rank has heard of it."""
        engine = self.engine
        self.is_resetting = True
        self.new_weights()
        engine.manager.reset()
        engine.tier.reset()
        self.step()
        for rank in engine.ranks:
            while rank.orders:
                rank.deliver()
        self.is_resetting = False

    def settle(self, engine):
        for name in [*engine.requests]:
            self._end_request(engine, name)
        for _ in range(200):
            self._step_all(engine)
            if not (engine.tier.has_work or engine.manager.num_in_flight):
                self._step_all(engine)  # what is gone is forgotten
                return
        raise AssertionError("it never comes to an end")

    def _step_all(self, engine):
        self.engine, kept = engine, self.engine
        self.step()
        for rank in engine.ranks:
            while rank.orders:
                rank.deliver()
            self._tell(engine, rank)
            while rank.tasks:
                self._complete(engine, rank.move(*rank.tasks.pop()))
            for lane in rank.lanes:
                lane.drain(300.0)
            for result in rank.worker.poll():
                self._complete(engine, result)
        self.engine = kept

    def probe(self, engine):
        keys = self.fresh_chain(2)
        for _ in range(2):  # a tier without room takes what comes twice
            num_wanted = engine.tier.demoter.admit(keys, 0, 0)
        self._save(engine, "probe", keys, num_wanted)
        self.settle(engine)
        if engine.manager.lookup(keys, tier="ssd").num_ready < len(keys):
            return False
        self._make_room(engine, HOST_BLOCKS)
        assert not engine.manager.lookup(keys, tier="host").num_ready
        name = f"probe-{self.num_probes}"
        if not engine.tier.promoter.must_wait(name, keys, self.simulation.now_s, None):
            return False
        self.settle(engine)
        engine.tier.promoter.forget(name)
        self._load(engine, name, keys)
        is_back = engine.manager.lookup(keys, tier="host").num_ready == len(keys)
        return is_back and not engine.tier.is_off

    def check_idle(self, engine):
        manager, tier = engine.manager, engine.tier
        manager.check_integrity()
        assert not manager._claims, "_claims"
        assert not manager.num_in_flight
        for copies in (tier.promoter._in_flight, tier.demoter._in_flight):
            assert not copies.num_blocks
        known = findable(manager, "ssd")
        assert len(known) == manager.num_used_blocks("ssd")
        files = 0
        for rank in engine.ranks:
            files += check_columns(rank.tier, known)
        assert self.calls.num_files == files, self.calls.open_files
        assert len(self.simulation.tasks) == 1 + 4 * len(engine.ranks), self.simulation.tasks

    def _tell(self, engine, rank):
        report = rank.report()
        self.count(report.counts)
        engine.tier.handle_report(report)

    def _make_room(self, engine, num_blocks):
        self.num_requests += 1
        keys = self.fresh_chain(num_blocks)
        claim = engine.manager.reserve(f"other-{self.num_requests}", keys)
        if not isinstance(claim, Refusal):
            engine.manager.abort(claim)

    def _end_request(self, engine, name):
        del engine.requests[name]
        engine.tier.promoter.forget(name)

    def _load(self, engine, name, keys):
        lease = engine.manager.match(name, keys)
        if lease is not None:
            pages = EnginePages(range(lease.num_blocks))
            num_blocks = lease.num_blocks
            plan = engine.manager.plan_get(lease, pages, first_block=0, num_blocks=num_blocks)
            self._give(engine, plan, keys[:num_blocks])
            self.seen["loaded blocks"] += num_blocks

    def _save(self, engine, name, keys, num_wanted):
        claim = engine.manager.reserve(name, keys)
        if not isinstance(claim, Refusal):
            plan = engine.manager.plan_put(claim, EnginePages(range(claim.num_blocks)))
            self._give(engine, plan, keys[claim.first_block : claim.end_block])
            engine.saves[plan.job_id] = name, keys, num_wanted

    def _give(self, engine, plan, keys):
        for rank in engine.ranks:
            rank.tasks.append((plan, list(keys), self.weights))

    def _complete(self, engine, result):
        completion = engine.manager.complete(result)
        if completion is None:
            return
        save = engine.saves.pop(completion.job_id, None)
        if save is not None:
            engine.tier.demoter.offer(*save)
        else:
            engine.tier.conclude(completion, self.simulation.now_s)
        counts = engine.counters.drain()
        for name in ("promoted_blocks", "demoted_blocks", "restored_blocks"):
            self.seen[name] += counts.get(name, 0)
        self.seen["off"] += engine.tier.is_off


def check_columns(tier, known):
    """Check that nothing is held in the columns of a tier; return how many files are open."""
    num_files = 0
    for column in tier._columns:
        log = column._log
        num_files += len(column.space.slabs) + (log is not None and log._file is not None)
        found = []
        for slab in column.space.slabs:
            table = slab.slots
            assert table.is_idle, "slots are pinned"
            assert len(table) - table.num_free == len(table.places()), "slots are lost"
            found += [key for key, _ in table.places()]
        assert not set(found) - set(known), "blocks are kept that nobody knows"
        assert len(found) == len(set(found)), "a block is stored twice"
    return num_files


def _columns(num_ranks):
    """Return the columns of each rank: two alike on one, or one on each of two."""
    columns = [
        Column(first_head=head, num_heads=1, first_layer=0, num_layers=4) for head in range(2)
    ]
    return [columns] if num_ranks == 1 else [[column] for column in columns]
