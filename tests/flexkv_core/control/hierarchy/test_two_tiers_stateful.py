"""Host memory and a disk below it, through failures, resets and crashes, against plain dicts."""

import hashlib
import random
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from flexkv_core.control.hierarchy.lower_tier import LowerTier
from flexkv_core.control.index.radix import Refusal
from flexkv_core.control.manager import CacheManager, TierSpec
from flexkv_core.metrics import Counters
from flexkv_core.plan import (
    EnginePages,
    HostSlots,
    Status,
    StoredBlocks,
    StoredKey,
    TierOrders,
    TierReport,
    TransferPlan,
    TransferResult,
)

HOST_BLOCKS = 24
DISK_BLOCKS = 40
MAX_CHAIN = 18
OWNERS = (0, 2)
TIMEOUT_S = 1.0
BLOCK_BYTES = 11 << 20
"""Three blocks make a plan."""

TORN = b"torn"

Pick = Callable[[int], int]
"""Choose a number from 0 up to, not including, the one given."""


@dataclass
class Store:
    """One generation of blocks on one owner's disk."""

    weights: int
    blocks: dict[bytes, bytes] = field(default_factory=dict)


@dataclass
class Task:
    """One owner's share of a plan."""

    plan: TransferPlan
    store: Store
    keys: list[bytes]
    weights: int


@dataclass
class Owner:
    """A worker: its host memory is lost in a crash, the first generation on its disk is not."""

    rank: int
    memory: list[bytes] = field(default_factory=lambda: [TORN] * HOST_BLOCKS)
    store: Store = field(default_factory=lambda: Store(0))
    durable: Store | None = None
    capacity_blocks: int = DISK_BLOCKS
    unreported: list[bytes] = field(default_factory=list)
    is_recovered: bool = False
    generation: str = ""
    orders: list[TierOrders] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    results: list[TransferResult] = field(default_factory=list)
    harmed: set[bytes] = field(default_factory=set)
    """Blocks that the disk lost or changed, and that were not written again."""

    def __post_init__(self) -> None:
        self.durable = self.store

    def payload(self, key: bytes, weights: int) -> bytes:
        return b"%d %d " % (self.rank, weights) + key


@dataclass(eq=False)
class Request:
    request_id: str
    keys: list[bytes]
    num_wanted: int
    asked_s: float | None = None
    patience_s: float = TIMEOUT_S


class World:
    """An engine's scheduler, its workers and their disks."""

    def __init__(self) -> None:
        self.parent: dict[bytes, bytes | None] = {}
        self.chains: list[list[bytes]] = [[]]
        self.owners = {rank: Owner(rank) for rank in OWNERS}
        self.now_s = 1000.0
        self.num_requests = 0
        self.seen = dict.fromkeys(("crash", "promoted", "demoted", "restored", "late", "off"), 0)
        self._begin_process()

    def _begin_process(self) -> None:
        self.counters = Counters()
        self.manager = CacheManager(
            [TierSpec("host", HOST_BLOCKS), TierSpec("ssd", DISK_BLOCKS, "lru", "key")],
            ranks=3,
            owners=OWNERS,
            recorder=self.counters,
        )
        self.tier = LowerTier(
            self.manager,
            "ssd",
            owners=OWNERS,
            block_bytes=BLOCK_BYTES,
            timeout_s=TIMEOUT_S,
            recorder=self.counters,
        )
        self.weights = self.epoch = 0
        self.weights_of: dict[str, int] = {}
        self.requests: list[Request] = []
        self.saves: dict[int, Request] = {}

    def call(self, verb: str, pick: Pick) -> None:
        owner = [self.owners[_any(OWNERS, pick)]] if verb in BY_OWNER else []
        getattr(self, verb)(*owner, pick)

    def grow_chain(self, pick: Pick) -> None:
        chain = _any(self.chains, pick)
        if not pick(3):
            chain = chain[: pick(len(chain) + 1)]
            self.chains = [*self.chains[-5:], chain]
        for _ in range(min(1 + pick(6), MAX_CHAIN - len(chain))):
            parent = chain[-1] if chain else None
            chain.append(hashlib.sha256((parent or b"") + bytes([pick(2)])).digest())
            self.parent[chain[-1]] = parent

    def arrive(self, pick: Pick) -> None:
        keys = _any(self.chains, pick).copy()
        self.num_requests += 1
        self.manager.note_use(keys)
        num_wanted = self.tier.demoter.admit(keys, 0, 0)
        assert num_wanted <= len(keys)
        request = Request(f"request-{self.num_requests}", keys, num_wanted)
        self.tier.demoter.offer(request.request_id, keys, num_wanted)
        self.requests.append(request)

    def ask(self, pick: Pick) -> None:
        """Ask about a request; if it need not wait, load what is there and save the rest."""
        if not self.requests:
            return
        request = _any(self.requests, pick)
        compute_s = _any([0.01, None, 0.5, 0.5], pick)
        if request.asked_s is None:
            request.asked_s = self.now_s
            num_missing = self._num_ready(request.keys, "ssd") - self._num_ready(request.keys)
            if compute_s is not None:
                request.patience_s = min(TIMEOUT_S, max(0, num_missing) * compute_s / 2)
        waits = self.tier.promoter.must_wait(
            request.request_id, request.keys, self.now_s, compute_s
        )
        if waits:
            assert self.now_s < request.asked_s + request.patience_s
            return
        self._end_request(request)
        self._load(request)
        self._save(request)

    def abort(self, pick: Pick) -> None:
        if self.requests:
            self._end_request(_any(self.requests, pick))

    def step(self, _: Pick) -> None:
        orders = self.tier.take_orders(self.now_s)
        if orders.generation:
            self.weights_of[orders.generation] = self.weights
        for owner in self.owners.values():
            owner.orders.append(orders)
            told = owner.is_recovered and owner.generation == self.tier._generation
            is_news = any(plan.epoch == self.epoch for plan in orders.plans)
            assert told or not is_news, "a worker may not have opened the tier yet"

    def settle(self, _: Pick) -> None:
        """Let the workers do well all that there is to be done."""
        self.step(well)
        for owner in self.owners.values():
            while owner.orders:
                self.deliver(owner, well)
            while owner.unreported or not owner.is_recovered:
                self.find(owner, well)
            while owner.tasks:
                self.work(owner, well)
            while owner.results:
                self.report(owner, well)

    def deliver(self, owner: Owner, pick: Pick) -> None:
        """Let one worker take in its next orders."""
        if not owner.orders:
            return
        orders = owner.orders.pop(0)
        if orders.generation:
            owner.store = Store(self.weights_of[orders.generation])
            owner.harmed.clear()
            owner.generation = orders.generation
            owner.unreported.clear()
            owner.is_recovered = False
        for key in orders.gone:
            owner.store.blocks.pop(key, None)
        for plan in orders.plans:
            stored = plan.source if isinstance(plan.source, StoredBlocks) else plan.target
            owner.tasks.append(Task(plan, owner.store, list(stored.keys), owner.store.weights))

    def work(self, owner: Owner, pick: Pick) -> None:
        """Let one worker carry out one of its tasks, well or badly."""
        if not owner.tasks:
            return
        task = owner.tasks.pop(pick(len(owner.tasks)))
        status, num_good = Status.OK, len(task.keys)
        if not pick(16):
            num_good = pick(num_good)
            status = _any([Status.ERROR, Status.ERROR, Status.TIMEOUT, Status.BUSY], pick)
        elif task.plan.deadline_s is not None and self.now_s >= task.plan.deadline_s:
            num_good, status = pick(num_good), Status.TIMEOUT
        num_moved = num_good if status is Status.OK else pick(len(task.keys) + 1)
        statuses = [self._move(owner, task, block) for block in range(max(num_moved, num_good))]
        bad = next((at for at, one in enumerate(statuses[:num_good]) if one != Status.OK), None)
        if bad is not None:
            status, num_good = statuses[bad], bad
        result = TransferResult(
            job_id=task.plan.job_id,
            rank=owner.rank,
            status=status,
            num_blocks=num_good,
            epoch=task.plan.epoch,
            seconds=pick(3) / 100,
        )
        owner.results.append(result)

    def _move(self, owner: Owner, task: Task, block: int) -> Status:
        plan, key = task.plan, task.keys[block]
        if isinstance(plan.source, EnginePages):
            owner.memory[_slots(plan.target)[block]] = owner.payload(key, task.weights)
            return Status.OK
        if isinstance(plan.target, EnginePages):
            assert owner.memory[_slots(plan.source)[block]] == owner.payload(key, task.weights)
            return Status.OK
        if isinstance(plan.target, StoredBlocks):
            payload = owner.memory[_slots(plan.source)[block]]
            assert payload == owner.payload(key, task.weights)
            return self._store(owner, task.store.blocks, key, payload)
        return self._fetch(owner, task.store.blocks, key, _slots(plan.target)[block])

    @staticmethod
    def _store(owner: Owner, blocks: dict, key, payload) -> Status:
        if key not in blocks and len(blocks) >= max(owner.capacity_blocks, 1):
            return Status.ERROR
        if key not in blocks:
            blocks[key] = payload
            owner.harmed.discard(key)
        return Status.OK

    @staticmethod
    def _fetch(owner: Owner, blocks: dict, key, slot) -> Status:
        payload = blocks.get(key)
        owner.memory[slot] = TORN
        if payload is None:
            return Status.MISS
        if payload == TORN:
            del blocks[key]
            return Status.CORRUPT
        owner.memory[slot] = payload
        return Status.OK

    def report(self, owner: Owner, pick: Pick) -> None:
        if not owner.results:
            return
        result = owner.results.pop(pick(len(owner.results)))
        completion = self.manager.complete(result)
        if completion is None:
            return
        request = self.saves.pop(completion.job_id, None)
        if request is not None:
            self.tier.demoter.offer(request.request_id, request.keys, request.num_wanted)
            return
        self.tier.conclude(completion, self.now_s)
        self.seen["late"] += result.epoch < self.epoch
        self.seen["off"] += self.tier.is_off

    def find(self, owner: Owner, pick: Pick) -> None:
        """Let one worker tell what it has found on its disk, now and then twice."""
        num_found = 1 + pick(12)
        keys = owner.unreported[:num_found]
        del owner.unreported[:num_found]
        found = [StoredKey(key, self.parent[key]) for key in keys if key in owner.store.blocks]
        if not pick(4):
            found += found
        owner.is_recovered = not owner.unreported
        self._digest(owner, found)

    def _digest(self, owner: Owner, found: list[StoredKey]) -> None:
        report = TierReport(
            tier="ssd",
            rank=owner.rank,
            capacity_blocks=owner.capacity_blocks,
            recovered=found,
            is_recovered=owner.is_recovered,
            generation=owner.generation,
        )
        self.tier.handle_report(report)

    def resize_disk(self, owner: Owner, pick: Pick) -> None:
        owner.capacity_blocks = _any(
            [pick(DISK_BLOCKS), DISK_BLOCKS - 5, DISK_BLOCKS, DISK_BLOCKS + 5], pick
        )
        self._digest(owner, [])

    def harm(self, owner: Owner, pick: Pick) -> None:
        """Let one disk lose or change a block."""
        if not owner.store.blocks:
            return
        key = _any(sorted(owner.store.blocks), pick)
        owner.harmed.add(key)
        if pick(2):
            del owner.store.blocks[key]
        else:
            owner.store.blocks[key] = TORN

    def evict(self, pick: Pick) -> None:
        """Let somebody else need a part of host memory."""
        self.num_requests += 1
        keys = [
            hashlib.sha256(b"%d %d" % (self.num_requests, at)).digest() for at in range(HOST_BLOCKS)
        ]
        claim = self.manager.reserve(f"other-{self.num_requests}", keys[: 1 + pick(HOST_BLOCKS)])
        if not isinstance(claim, Refusal):
            self.manager.abort(claim)

    def hear_nothing(self, _: Pick) -> None:
        """Let the engine step for a minute while no worker reports."""
        for _ in range(62):
            self.now_s += 1.0
            self.step(well)

    def wait(self, pick: Pick) -> None:
        self.now_s += _any([31.0, 2.0, 0.2, 0.05, 0.01, 0.01], pick)

    def reset(self, _: Pick) -> None:
        self.manager.reset()
        self.tier.reset()
        self.weights += 1
        self.epoch += 1

    def crash(self, pick: Pick) -> None:
        """Lose the scheduler, host memory and what was under way; the disks stay as they are."""
        self.seen["crash"] += 1
        self._count()
        for rank, old in self.owners.items():
            unreported = sorted(old.durable.blocks)
            random.Random(pick(100)).shuffle(unreported)
            self.owners[rank] = Owner(
                rank,
                store=old.durable,
                unreported=unreported,
                capacity_blocks=old.capacity_blocks,
                harmed=old.harmed | {key for key in unreported if old.durable.blocks[key] == TORN},
            )
        self._begin_process()

    def _load(self, request: Request) -> None:
        lease = self.manager.match(request.request_id, request.keys)
        if lease is None:
            return
        pages = EnginePages(range(lease.num_blocks))
        plan = self.manager.plan_get(lease, pages, first_block=0, num_blocks=lease.num_blocks)
        self._start(plan, request.keys[: lease.num_blocks])
        result = TransferResult(
            job_id=plan.job_id, rank=1, status=Status.OK, num_blocks=plan.num_blocks,
            epoch=plan.epoch,
        )  # fmt: skip
        assert self.manager.complete(result) is None

    def _save(self, request: Request) -> None:
        claim = self.manager.reserve(request.request_id, request.keys)
        if not isinstance(claim, Refusal):
            plan = self.manager.plan_put(claim, EnginePages(range(claim.num_blocks)))
            self._start(plan, request.keys[claim.first_block : claim.end_block])
            self.saves[plan.job_id] = request

    def _start(self, plan: TransferPlan, keys: list[bytes]) -> None:
        for owner in self.owners.values():
            owner.tasks.append(Task(plan, owner.store, keys, self.weights))

    def _end_request(self, request: Request) -> None:
        self.requests.remove(request)
        self.tier.promoter.forget(request.request_id)

    def _num_ready(self, keys: list[bytes], tier: str = "host") -> int:
        return self.manager.lookup(keys, tier=tier).num_ready

    def _count(self) -> None:
        counts = self.counters.drain()
        for name in ("promoted", "demoted", "restored"):
            self.seen[name] += counts.get(f"{name}_blocks", 0)
        assert min(counts.values(), default=0) >= 0

    def check(self) -> None:
        self.manager.check_integrity()
        on_disk = self._findable_on_disk()
        for owner in self.owners.values():
            assert on_disk <= owner.store.blocks.keys() | owner.harmed
            for orders in owner.orders:
                assert on_disk.isdisjoint(orders.gone), "a worker is about to forget it"
        assert on_disk.isdisjoint(self.tier._useless)
        for rank in OWNERS:
            assert self.tier.promoter._in_flight.num_blocks <= HOST_BLOCKS // 2, rank

    def _findable_on_disk(self) -> set[bytes]:
        found: set[bytes] = set()
        nodes = [self.manager._index.root]
        for node in nodes:
            nodes += node.children.values()
            held = node.entries[1]
            if held is not None:
                found.update(node.keys[: held.num_ready])
        return found

    def drain(self) -> None:
        """Let everything end well, and find nothing left behind."""

        while self.requests:
            self.abort(well)
        for _ in range(200):
            self.settle(well)
            if not self.tier.has_work and not self.manager.num_in_flight:
                break
        else:
            raise AssertionError("it never comes to an end")
        self.settle(well)
        self._expect_nothing_left()

    def _expect_nothing_left(self) -> None:
        self.check()
        promoter, demoter = self.tier.promoter, self.tier.demoter
        for flights in (promoter._in_flight, demoter._in_flight):
            assert (flights.num_blocks, flights._in_flight, flights._overdue) == (0, {}, set())
        assert (promoter._waits, promoter._plans, demoter._waiting) == ({}, [], {})
        findable = self._findable_on_disk()
        for owner in self.owners.values():
            assert owner.store.blocks.keys() <= findable
        used, free = self.manager.num_used_blocks, self.manager.num_free_blocks
        assert used("ssd") == len(findable)
        assert used("ssd") + free("ssd") == self.tier.capacity_blocks
        self.manager.reset()
        self.tier.reset()
        assert free() == HOST_BLOCKS
        assert free("ssd") == self.tier.capacity_blocks


def well(number: int) -> int:
    """Pick what is never a failure."""
    return number - 1


def _any(items, pick: Pick):
    return items[pick(len(items))]


def _slots(place: HostSlots) -> list[int]:
    return array("q", place.slots).tolist()


SERVE = ["grow_chain", "arrive", "ask", "step", "deliver", "work", "report", "find", "settle"]
BY_OWNER = {"deliver", "work", "report", "find", "resize_disk", "harm"}
DISTURB = ["abort", "resize_disk", "harm", "evict", "wait", "hear_nothing", "reset", "crash"]


class TwoTiersMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @rule(data=st.data(), verb=st.sampled_from(SERVE))
    def serve(self, data, verb):
        self.world.call(verb, lambda n: data.draw(st.integers(0, n - 1)))

    @rule(data=st.data(), verb=st.sampled_from(DISTURB))
    def disturb(self, data, verb):
        self.world.call(verb, lambda n: data.draw(st.integers(0, n - 1)))

    @invariant()
    def holds(self):
        self.world.check()

    def teardown(self):
        self.world.drain()


TestTwoTiersAgainstDicts = TwoTiersMachine.TestCase
TestTwoTiersAgainstDicts.settings = settings(max_examples=40, stateful_step_count=60, deadline=None)


def run(seed, num_calls):
    rng = random.Random(seed)
    world = World()
    weights = {
        "grow_chain": 8, "arrive": 25, "ask": 60, "step": 40, "deliver": 80, "work": 120,
        "report": 120, "find": 30, "abort": 2, "resize_disk": 0.5, "harm": 1, "evict": 30,
        "wait": 6, "hear_nothing": 0.3, "reset": 0.2, "crash": 0.3, "settle": 3,
    }  # fmt: skip
    for verb in rng.choices(list(weights), list(weights.values()), k=num_calls):
        world.call(verb, rng.randrange)
        world.check()
    world.drain()
    world._count()
    return world


def test_ten_thousand_random_calls_leave_nothing_behind_and_have_seen_everything():
    world = run(20261122, 10_000)
    assert min(world.seen.values()) > 0
