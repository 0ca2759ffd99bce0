"""The control plane against a plain dict, through any order of calls, failures and resets."""

import hashlib
import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from flexkv_core.control.index.radix import Refusal
from flexkv_core.control.job import Completion
from flexkv_core.control.lease import Lease, Reservation
from flexkv_core.control.manager import CacheManager, TierSpec
from flexkv_core.events import BlocksRemoved, BlocksStored, EventLog
from flexkv_core.metrics import Counters
from flexkv_core.plan import (
    Endpoint,
    EnginePages,
    HostSlots,
    Status,
    StoredBlocks,
    TransferPlan,
    TransferResult,
)

CAPACITY = {"host": 40, "ssd": 60}
NUM_RANKS = 3
OWNERS = (0, 2)
MAX_CHAIN = 24
TORN = b"half written"

Pick = Callable[[int], int]
"""Choose a number from 0 up to, not including, the one given."""


@dataclass(eq=False)
class Block:
    """The model of one stored block. A block that was dropped and comes back is another one."""

    key: bytes
    state: str = "writing"
    was_found: bool = False
    """On a disk: nobody knows its tokens, so no event tells of it."""


@dataclass(eq=False)
class Held:
    """A lease or reservation, and the model's blocks from `first_block` of it on."""

    claim: Lease | Reservation
    tier: str
    blocks: list[Block]

    @property
    def is_lease(self) -> bool:
        return isinstance(self.claim, Lease)


@dataclass(eq=False)
class Running:
    """A plan in flight, the blocks it moves, and who reads and writes for it."""

    plan: TransferPlan
    keys: list[bytes]
    held: list[Held]
    waiting: list[int]
    reports: list[TransferResult] = field(default_factory=list)


class World:
    """A manager, its callers, its workers' memory, and a dict of blocks for each tier."""

    def __init__(self) -> None:
        self.events, self.counters = EventLog(), Counters()
        self.manager = CacheManager(
            [
                TierSpec("host", CAPACITY["host"]),
                TierSpec("ssd", CAPACITY["ssd"], "s3fifo", "key"),
            ],
            ranks=NUM_RANKS,
            owners=OWNERS,
            recorder=self.counters,
            events=self.events,
        )
        self.parent: dict[bytes, bytes | None] = {}
        self.chains: list[list[bytes]] = [[]]
        self.tiers: dict[str, dict[bytes, Block]] = {"host": {}, "ssd": {}}
        self.findable: dict[str, set[bytes]] = {"host": set(), "ssd": set()}
        self.memory = {owner: [TORN] * CAPACITY["host"] for owner in OWNERS}
        self.stores: dict[int, set[bytes]] = {owner: set() for owner in OWNERS}
        self.capacity = dict(CAPACITY)
        self.open: list[Held] = []
        self.running: list[Running] = []
        self.epoch = self.num_late = self.num_counted_late = 0

    def grow_chain(self, pick: Pick) -> None:
        """Append to a caller's own list in place, or begin one that shares a prefix with it."""
        chain = self._any(self.chains, pick)
        if not pick(3):
            chain = chain[: pick(len(chain) + 1)]
            self.chains = [*self.chains[-5:], chain]
        for _ in range(min(1 + pick(6), MAX_CHAIN - len(chain))):
            parent = chain[-1] if chain else None
            chain.append(hashlib.sha256((parent or b"") + bytes([pick(2)])).digest())
            self.parent[chain[-1]] = parent

    def match(self, pick: Pick) -> None:
        tier, chain = self._any(["host", "ssd"], pick), self._any(self.chains, pick)
        known = self._leading_blocks(tier, chain, {"ready"})
        lease = self.manager.match(self._any_request(pick), chain, tier=tier)
        assert (lease.num_blocks if lease else 0) == len(known)
        if lease:
            self.open.append(Held(lease, tier, known))

    def use(self, pick: Pick) -> None:
        chain = self._any(self.chains, pick)
        states = {"ready", "written", "writing"}
        known = [self._leading_blocks(tier, chain, states) for tier in ("host", "ssd")]
        assert self.manager.note_use(chain) == any(known)

    def reserve(self, pick: Pick) -> None:
        tier, chain = self._any(["host", "ssd"], pick), self._any(self.chains, pick)
        self._reserve(self._any_request(pick), tier, chain)

    def _reserve(self, request_id: str, tier: str, chain: list[bytes]) -> Held | None:
        known = self._leading_blocks(tier, chain, {"ready", "written", "writing"})
        num_missing, num_free = len(chain) - len(known), self.manager.num_free_blocks(tier)
        claim = self.manager.reserve(request_id, chain, tier=tier)
        num_evicted = self._see_evictions(tier, spared=known)
        num_blocks = 0 if isinstance(claim, Refusal) else claim.num_blocks
        if claim is Refusal.STILL_LEAVING:
            in_use = {self._path(held.blocks[0].key)[-1] for held in self._all_held()}
            assert not num_evicted
            assert chain[0] in in_use, "runs are held whole"
            return None
        assert (claim is Refusal.NOTHING_MISSING) == (not num_missing)
        assert num_evicted == max(0, num_blocks - num_free)
        if num_blocks < num_missing:
            self._expect_nothing_to_evict(tier, chain)
        if isinstance(claim, Refusal):
            return None
        assert claim.first_block == len(known)
        held = Held(claim, tier, [Block(key) for key in chain[len(known) : claim.end_block]])
        self.tiers[tier] |= {block.key: block for block in held.blocks}
        self.open.append(held)
        return held

    def plan(self, pick: Pick) -> None:
        if not self.open:
            return
        held = self._any(self.open, pick)
        if not held.is_lease:
            pages = EnginePages([1, 2, 3], 1)
            self._start(self.manager.plan_put(held.claim, pages), held.blocks, [held])
            return
        first = pick(len(held.blocks))
        num = 1 + pick(len(held.blocks) - first)
        plan = self.manager.plan_get(
            held.claim, EnginePages([7]), first_block=first, num_blocks=num, deadline_s=1.5
        )
        self._start(plan, held.blocks[first : first + num], [held])

    def copy(self, pick: Pick) -> None:
        """Promote or demote, planning at once what could be reserved."""
        leases = [held for held in self.open if held.is_lease]
        if not leases:
            return
        source = self._any(leases, pick)
        keys = [block.key for block in source.blocks]
        tier = "ssd" if source.tier == "host" else "host"
        target = self._reserve(source.claim.request_id, tier, keys)
        if target:
            first, end = target.claim.first_block, target.claim.end_block
            plan = self.manager.plan_copy(source.claim, target.claim)
            self._start(plan, source.blocks[first:end], [source, target])

    def _start(self, plan: TransferPlan | None, blocks: list[Block], held: list[Held]) -> None:
        """Expect a plan exactly where all of `blocks` are what they were when they were claimed."""
        assert (plan is not None) == all(self._is_there(held[0].tier, block) for block in blocks)
        if plan is None:
            return
        self.forget()
        for each in held:
            self.open.remove(each)
        ranks = range(NUM_RANKS) if isinstance(plan.target, EnginePages) else OWNERS
        keys = [block.key for block in blocks]
        self.running.append(Running(plan, keys, held, list(ranks)))
        self._expect_bytes(plan.source, keys)
        self._write_bytes(plan.target, [TORN] * len(keys), OWNERS)

    def end(self, pick: Pick) -> None:
        if self.open:
            held = self.open.pop(pick(len(self.open)))
            (self.manager.release if held.is_lease else self.manager.abort)(held.claim)
            self._finish(held, 0)

    def cancel(self, pick: Pick) -> None:
        request_id = self._any_request(pick)
        self.manager.cancel(request_id)
        ended = [held for held in self.open if held.claim.request_id == request_id]
        self.open = [held for held in self.open if held not in ended]
        for held in ended:
            self._finish(held, 0)

    def report(self, pick: Pick) -> None:
        if not self.running:
            return
        job = self._any(self.running, pick)
        rank = job.waiting.pop(pick(len(job.waiting)))
        num = len(job.keys) if pick(4) else pick(len(job.keys) + 1)
        status = Status.OK if num == len(job.keys) else Status(1 + pick(4))
        self._expect_bytes(job.plan.source, job.keys)
        self._write_bytes(job.plan.target, job.keys[:num], {rank} & set(OWNERS))
        if isinstance(job.plan.target, StoredBlocks) and job.plan.epoch == self.epoch:
            self.stores[rank].update(job.keys[:num])
        result = self._result(job, rank=rank, status=status, num_blocks=num)
        job.reports.append(result)
        self.num_late += result.epoch < self.epoch
        completion = self.manager.complete(result)
        assert (completion is None) == bool(job.waiting)
        if completion:
            self._end_job(job, completion)

    def _end_job(self, job: Running, completion: Completion) -> None:
        self.running.remove(job)
        num_published = sum(self._finish(held, completion.num_blocks) for held in job.held)
        assert completion.num_blocks == min(report.num_blocks for report in job.reports)
        assert completion.status == max(report.status for report in job.reports)
        assert completion.num_published == num_published

    def report_nonsense(self, pick: Pick) -> None:
        """Report again, on a job nobody knows, from a rank without a part, or of an old epoch."""
        result = TransferResult(job_id=10**9, rank=0, status=Status.ERROR, num_blocks=0)
        if self.running:
            job = self._any(self.running, pick)
            wrong = [{"rank": 99}, {"rank": job.waiting[0], "epoch": job.plan.epoch - 1}]
            wrong += [{"rank": report.rank} for report in job.reports]
            result = self._result(job, **self._any(wrong, pick))
        assert self.manager.complete(result) is None
        self.num_late += 1

    @staticmethod
    def _result(job: Running, **fields) -> TransferResult:
        fields = {"status": Status.OK, "num_blocks": 0, "epoch": job.plan.epoch} | fields
        return TransferResult(job_id=job.plan.job_id, **fields)

    def drop(self, pick: Pick) -> None:
        tier, chain = self._any(["host", "ssd"], pick), self._any(self.chains, pick)
        keys = chain[: pick(len(chain) + 1)]
        self.manager.drop_from(keys, tier=tier)
        if keys:
            self._drop(tier, keys[-1])

    def reset(self) -> None:
        self.manager.reset()
        self.epoch += 1
        self.tiers = {"host": {}, "ssd": {}}
        self.stores = {owner: set() for owner in OWNERS}

    def restore(self, pick: Pick) -> None:
        """Let every owner find a chain on its disk."""
        chain = self._any(self.chains, pick)
        known = self._leading_blocks("ssd", chain, {"ready", "written", "writing"})
        num_known = self.manager.restore(chain, tier="ssd").num_known
        self._see_evictions("ssd", spared=known)
        assert len(known) <= num_known <= len(chain)
        found = chain[len(known) : num_known]
        self.tiers["ssd"] |= {key: Block(key, "written", was_found=True) for key in found}
        self.forget()
        for store in self.stores.values():
            store.update(found)
        self._publish("ssd")

    def resize(self, pick: Pick) -> None:
        """Let the disk give less, or more again."""
        wanted = pick(CAPACITY["ssd"] + 20)
        self.manager.resize(wanted, tier="ssd")
        num_evicted = self._see_evictions("ssd", spared=[])
        num_used = self.manager.num_used_blocks("ssd")
        assert not num_evicted or num_used >= wanted
        self.capacity["ssd"] = max(wanted, num_used)

    def forget(self) -> None:
        """Let the workers forget what left the tier."""
        for key in self.manager.take_gone("ssd"):
            for store in self.stores.values():
                store.discard(key)

    def _leading_blocks(self, tier: str, chain: Sequence[bytes], states: set[str]) -> list[Block]:
        leading = []
        for key in chain:
            block = self.tiers[tier].get(key)
            if block is None or block.state not in states:
                break
            leading.append(block)
        return leading

    def _is_there(self, tier: str, block: Block) -> bool:
        return self.tiers[tier].get(block.key) is block

    def _drop(self, tier: str, bad: bytes) -> None:
        blocks = self.tiers[tier]
        self.tiers[tier] = {key: blocks[key] for key in blocks if bad not in self._path(key)}

    def _finish(self, held: Held, num_good: int) -> int:
        """End a claim; return how many blocks become findable."""
        if held.is_lease:
            return 0
        for position, block in enumerate(held.blocks):
            if position < num_good:
                block.state = "written"
            elif self._is_there(held.tier, block):
                self._drop(held.tier, block.key)
        return self._publish(held.tier)

    def _publish(self, tier: str) -> int:
        blocks, num_published = self.tiers[tier], 0
        for key in sorted(blocks, key=lambda key: len(self._path(key))):
            before = blocks.get(self.parent[key])
            if blocks[key].state == "written" and (before is None or before.state == "ready"):
                blocks[key].state = "ready"
                num_published += 1
                if blocks[key].was_found:
                    self.findable[tier].add(key)
        return num_published

    def _path(self, key: bytes | None) -> list[bytes]:
        path = []
        while key is not None:
            path.append(key)
            key = self.parent[key]
        return path

    def _see_evictions(self, tier: str, spared: list[Block]) -> int:
        """Take what the manager evicted out of the model, if it had a right to."""
        events = self.events.take()
        assert all(isinstance(event, BlocksRemoved) and event.tier == tier for event in events)
        evicted = [self.tiers[tier].pop(key) for event in events for key in event.keys]
        in_use = {id(block) for held in self._all_held() for block in held.blocks}
        in_use |= {id(block) for block in spared}
        assert not in_use & {id(block) for block in evicted}
        assert {block.state for block in evicted} <= {"ready"}
        assert {self.parent[key] for key in self.tiers[tier]} <= {None, *self.tiers[tier]}
        self.findable[tier] -= {block.key for block in evicted}
        return len(evicted)

    def _expect_nothing_to_evict(self, tier: str, chain: list[bytes]) -> None:
        """Check that every block left begins like something in use: runs are held whole."""
        assert self.manager.num_free_blocks(tier) == 0 or not self.tiers[tier]
        used = [self._path(held.blocks[0].key)[-1] for held in self._all_held()]
        assert {self._path(key)[-1] for key in self.tiers[tier]} <= {chain[0], *used}

    def _all_held(self) -> list[Held]:
        return self.open + [held for job in self.running for held in job.held]

    def _write_bytes(self, place: Endpoint, keys: list[bytes], owners: Sequence[int]) -> None:
        for owner in owners if isinstance(place, HostSlots) else ():
            for slot, key in zip(_unpack(place), keys, strict=False):
                self.memory[owner][slot] = key

    def _expect_bytes(self, place: Endpoint, keys: list[bytes]) -> None:
        if isinstance(place, StoredBlocks):
            assert list(place.keys) == keys
        if isinstance(place, HostSlots):
            for memory in self.memory.values():
                assert [memory[slot] for slot in _unpack(place)] == keys

    def check(self) -> None:
        self.manager.check_integrity()
        self.follow_events()
        self.forget()
        self.num_counted_late += self.counters.drain().get("late_results", 0)
        assert self.num_counted_late == self.num_late
        assert self.manager.num_in_flight == len(self.running)
        for tier, blocks in self.tiers.items():
            ready = {key for key, block in blocks.items() if block.state == "ready"}
            assert self.findable[tier] == ready
            num_used = self.manager.num_used_blocks(tier)
            assert num_used >= len(blocks)
            assert num_used == len(blocks) or self._all_held()
            assert num_used + self.manager.num_free_blocks(tier) == self.capacity[tier]
        for store in self.stores.values():
            assert store >= self.findable["ssd"]
            assert store == self.tiers["ssd"].keys() or self._all_held()

    def follow_events(self) -> None:
        for event in self.events.take():
            self._follow(event)

    def _follow(self, event: object) -> None:
        if isinstance(event, BlocksStored):
            chain = self._path(event.keys[-1])[::-1]
            assert list(event.keys) == chain[-len(event.keys) :]
            self.findable[event.tier] |= set(event.keys)
        elif isinstance(event, BlocksRemoved):
            assert set(event.keys) <= self.findable[event.tier]
            self.findable[event.tier] -= set(event.keys)
        else:
            self.findable = {"host": set(), "ssd": set()}

    def drain(self) -> None:
        """Report every plan, end every claim, and find everything free after a reset."""
        while self.running:
            self.report(lambda _: 0)
        while self.open:
            self.end(lambda _: 0)
        self.check()
        self.reset()
        self.check()
        for tier, capacity in self.capacity.items():
            assert self.manager.num_free_blocks(tier) == capacity

    @staticmethod
    def _any(items: list, pick: Pick):
        return items[pick(len(items))]

    @staticmethod
    def _any_request(pick: Pick) -> str:
        return f"request-{pick(4)}"


def _unpack(place: HostSlots) -> list[int]:
    return array("q", place.slots).tolist()


class ManagerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @rule(
        data=st.data(),
        verb=st.sampled_from(
            ["grow_chain", "use", "match", "reserve", "plan", "copy", "report", "end"]
        ),
    )
    def call(self, data, verb):
        getattr(self.world, verb)(lambda n: data.draw(st.integers(0, n - 1)))

    @rule(
        data=st.data(),
        verb=st.sampled_from(["cancel", "drop", "report_nonsense", "restore", "resize"]),
    )
    def disturb(self, data, verb):
        getattr(self.world, verb)(lambda n: data.draw(st.integers(0, n - 1)))

    @rule()
    def reset(self):
        self.world.reset()

    @invariant()
    def holds(self):
        self.world.check()

    def teardown(self):
        self.world.drain()


TestManagerAgainstDict = ManagerMachine.TestCase
TestManagerAgainstDict.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_a_hundred_thousand_random_calls_leave_no_pin_and_no_slot_behind():
    rng = random.Random(20261122)
    world = World()
    weights = {
        "grow_chain": 10,
        "use": 20,
        "match": 20,
        "reserve": 20,
        "plan": 30,
        "copy": 15,
        "report": 90,
        "end": 8,
        "cancel": 2,
        "drop": 1,
        "report_nonsense": 2,
        "restore": 5,
        "resize": 1,
    }
    verbs = rng.choices(list(weights), list(weights.values()), k=100_000)
    for number, verb in enumerate(verbs):
        getattr(world, verb)(rng.randrange)
        world.follow_events()
        if number % 2_000 == 0:
            world.reset()
        if number % 100 == 0:
            world.check()
    world.drain()
