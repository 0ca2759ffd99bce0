"""The control plane against a plain dict, through any order of calls, failures and resets."""

import hashlib
import random
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from flexkv_core.events import BlocksRemoved, BlocksStored, CacheCleared, EventLog
from flexkv_core.index.radix import Refusal
from flexkv_core.job import Completion
from flexkv_core.lease import Lease, Reservation
from flexkv_core.manager import CacheManager, TierSpec
from flexkv_core.metrics import Counters
from flexkv_core.plan import EnginePages, HostSlots, Status, StoredBlocks, TransferResult

CAPACITY = {"host": 20, "ssd": 28}
NUM_RANKS = 3
OWNERS = (0, 2)
READY, WRITTEN, WRITING = "ready", "written, waiting", "being written"

Pick = Callable[[int], int]
"""Choose a number below the one given."""


@dataclass(eq=False)
class Held:
    """A lease or reservation that the caller has not seen the end of, and its keys."""

    claim: Lease | Reservation
    tier: str
    keys: tuple[bytes, ...]


@dataclass(eq=False)
class Running:
    plan: object
    source: Held | None
    target: Held | None
    waiting: list[int]
    reports: list[TransferResult] = field(default_factory=list)


class World:
    """A manager, its callers, its workers' memory, and the model it is checked against."""

    def __init__(self) -> None:
        self.events = EventLog()
        self.counters = Counters()
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
        self.blocks: dict[str, dict[bytes, str]] = {"host": {}, "ssd": {}}
        self.writer: dict[str, dict[bytes, Held]] = {"host": {}, "ssd": {}}
        self.findable: dict[str, set[bytes]] = {"host": set(), "ssd": set()}
        self.memory = {owner: [None] * CAPACITY["host"] for owner in OWNERS}
        self.open: list[Held] = []
        self.running: list[Running] = []
        self.num_late = 0

    # What the callers do

    def grow_chain(self, pick: Pick) -> None:
        """Append to a caller's own list in place, or begin another that shares a prefix."""
        chain = self.chains[pick(len(self.chains))]
        if pick(3) == 0:
            chain = chain[: pick(len(chain) + 1)]
            self.chains.append(chain)
            del self.chains[:-6]
        for _ in range(1 + pick(5)):
            if len(chain) < 24:
                self._append_key(chain, pick(2))

    def _append_key(self, chain: list[bytes], token: int) -> None:
        parent = chain[-1] if chain else None
        key = hashlib.sha256((parent or b"") + bytes([token])).digest()
        self.parent[key] = parent
        chain.append(key)

    def match(self, pick: Pick) -> None:
        tier, chain = self._any_tier(pick), self._any_chain(pick)
        known = self._leading(tier, chain, {READY})
        lease = self.manager.match(self._request(pick), chain, tier=tier)
        assert (lease.num_blocks if lease else 0) == known
        if lease:
            self.open.append(Held(lease, tier, tuple(chain[:known])))

    def reserve(self, pick: Pick) -> None:
        tier, chain = self._any_tier(pick), self._any_chain(pick)
        known = self._leading(tier, chain, {READY, WRITTEN, WRITING})
        num_free = self.manager.num_free_blocks(tier)
        reservation = self.manager.reserve(self._request(pick), chain, tier=tier)
        num_removed = self._remove_evicted(tier, set(chain[:known]))
        if known == len(chain):
            assert reservation is Refusal.NOTHING_MISSING
            return
        num_blocks = 0 if reservation is Refusal.NO_ROOM else reservation.num_blocks
        if num_blocks < len(chain) - known:
            assert num_removed + num_free == num_blocks
            self._nothing_is_evictable(tier, chain[0])
        else:
            assert num_removed == max(0, num_blocks - num_free)
        if num_blocks:
            assert reservation.first_block == known
            keys = tuple(chain[: reservation.end_block])
            held = Held(reservation, tier, keys)
            self.open.append(held)
            self.blocks[tier] |= dict.fromkeys(keys[known:], WRITING)
            self.writer[tier] |= dict.fromkeys(keys[known:], held)

    def plan(self, pick: Pick) -> None:
        if not self.open:
            return
        held = self.open[pick(len(self.open))]
        if isinstance(held.claim, Lease):
            self._plan_get(held, pick)
        else:
            self._plan_put(held)

    def _plan_get(self, held: Held, pick: Pick) -> None:
        first = pick(held.claim.num_blocks)
        num = 1 + pick(held.claim.num_blocks - first)
        keys = held.keys[first : first + num]
        plan = self.manager.plan_get(
            held.claim, EnginePages([7]), first_block=first, num_blocks=num, deadline_s=1.5
        )
        assert (plan is None) == (not self._still_there(held, keys))
        if plan:
            assert plan.deadline_s == 1.5
            self._start(Running(plan, held, None, list(range(NUM_RANKS))))
            self._check_place(plan.source, keys)

    def _plan_put(self, held: Held) -> None:
        pages = EnginePages([1, 2, 3], 1)
        plan = self.manager.plan_put(held.claim, pages)
        assert (plan is None) == (not self._still_mine(held))
        if plan:
            assert plan.source is pages
            self._start(Running(plan, None, held, list(OWNERS)))

    def copy(self, pick: Pick) -> None:
        leases = [held for held in self.open if isinstance(held.claim, Lease)]
        if not leases:
            return
        source = leases[pick(len(leases))]
        tier = "ssd" if source.tier == "host" else "host"
        known = self._leading(tier, source.keys, {READY, WRITTEN, WRITING})
        request = source.claim.request_id
        reservation = self.manager.reserve(request, source.keys, tier=tier)
        self._remove_evicted(tier, set(source.keys[:known]))
        if isinstance(reservation, Refusal):
            return
        keys = source.keys[: reservation.end_block]
        target = Held(reservation, tier, keys)
        self.open.append(target)
        self.blocks[tier] |= dict.fromkeys(keys[known:], WRITING)
        self.writer[tier] |= dict.fromkeys(keys[known:], target)
        plan = self.manager.plan_copy(source.claim, reservation)
        assert (plan is None) == (not self._still_there(source, keys[known:]))
        if plan:
            self._start(Running(plan, source, target, list(OWNERS)))
            self._check_place(plan.source, keys[known:])
            self._check_place(plan.target, keys[known:], written=False)

    def end(self, pick: Pick) -> None:
        if self.open:
            held = self.open.pop(pick(len(self.open)))
            if isinstance(held.claim, Lease):
                self.manager.release(held.claim)
            else:
                self.manager.abort(held.claim)
                self._finish(held, 0)

    def cancel(self, pick: Pick) -> None:
        request = self._request(pick)
        self.manager.cancel(request)
        ended = [held for held in self.open if held.claim.request_id == request]
        self.open = [held for held in self.open if held not in ended]
        for held in ended:
            if isinstance(held.claim, Reservation):
                self._finish(held, 0)

    # What the workers do

    def report(self, pick: Pick) -> None:
        if not self.running:
            return
        job = self.running[pick(len(self.running))]
        rank = job.waiting.pop(pick(len(job.waiting)))
        num = job.plan.num_blocks if pick(4) else pick(job.plan.num_blocks + 1)
        status = Status.OK if num == job.plan.num_blocks else Status(1 + pick(4))
        self._copy_bytes(job, rank, num)
        result = TransferResult(
            job_id=job.plan.job_id,
            rank=rank,
            status=status,
            num_blocks=num,
            epoch=job.plan.epoch,
        )
        job.reports.append(result)
        completion = self.manager.complete(result)
        self.num_late += job.plan.epoch < self.manager._epoch
        assert (completion is None) == bool(job.waiting)
        if completion:
            self._complete(job, completion)

    def _complete(self, job: Running, completion: Completion) -> None:
        self.running.remove(job)
        assert completion.num_blocks == min(result.num_blocks for result in job.reports)
        assert completion.status == max(result.status for result in job.reports)
        num_published = self._finish(job.target, completion.num_blocks) if job.target else 0
        assert completion.num_published == num_published

    def report_nonsense(self, pick: Pick) -> None:
        """Repeat a report, invent a job, send one from a rank that has no part, or too old."""
        fields = {"job_id": 10**9, "rank": 0, "status": Status.ERROR, "num_blocks": 0, "epoch": 0}
        if self.running:
            job = self.running[pick(len(self.running))]
            fields |= {"job_id": job.plan.job_id, "rank": 99, "epoch": job.plan.epoch}
            if job.reports:
                fields["rank"] = job.reports[0].rank
            elif pick(2):
                fields |= {"rank": job.waiting[0], "epoch": job.plan.epoch - 1}
        assert self.manager.complete(TransferResult(**fields)) is None
        self.num_late += 1

    # What goes wrong for everybody

    def drop(self, pick: Pick) -> None:
        tier, chain = self._any_tier(pick), self._any_chain(pick)
        keys = chain[: pick(len(chain) + 1)]
        self.manager.drop_from(keys, tier=tier)
        if keys:
            self._drop(tier, keys[-1])

    def reset(self) -> None:
        self.manager.reset()
        for tier in self.blocks:
            self.blocks[tier].clear()
            self.writer[tier].clear()

    # The model

    def _leading(self, tier: str, chain, states) -> int:
        for position, key in enumerate(chain):
            if self.blocks[tier].get(key) not in states:
                return position
        return len(chain)

    def _drop(self, tier: str, bad: bytes) -> None:
        for key in [key for key in self.blocks[tier] if bad in self._path(key)]:
            del self.blocks[tier][key]
            self.writer[tier].pop(key, None)

    def _finish(self, held: Held, num_good: int) -> int:
        keys, blocks = held.keys[held.claim.first_block :], self.blocks[held.tier]
        for position, key in enumerate(keys):
            if self.writer[held.tier].get(key) is not held:
                continue
            if position < num_good:
                blocks[key] = WRITTEN
                del self.writer[held.tier][key]
            else:
                self._drop(held.tier, key)
        return self._publish(held.tier)

    def _publish(self, tier: str) -> int:
        blocks, num_published = self.blocks[tier], -1
        published = [None]
        while published:
            num_published += len(published)
            published = [
                key
                for key, state in blocks.items()
                if state == WRITTEN
                and (self.parent[key] is None or blocks[self.parent[key]] == READY)
            ]
            blocks |= dict.fromkeys(published, READY)
        return num_published

    def _path(self, key: bytes | None) -> list[bytes]:
        path = []
        while key is not None:
            path.append(key)
            key = self.parent[key]
        return path

    def _remove_evicted(self, tier: str, spared: set[bytes]) -> int:
        """Take what the manager says it evicted out of the model, if it was allowed to."""
        events = self.events.take()
        evicted = [key for event in events for key in event.keys]
        assert all(isinstance(event, BlocksRemoved) and event.tier == tier for event in events)
        leased = {key for held in self._holders(Lease) if held.tier == tier for key in held.keys}
        for key in evicted:
            assert self.blocks[tier].pop(key) == READY
            assert key not in leased or not self._is_leased(tier, key)
            assert key not in spared
        for key in self.blocks[tier]:
            assert self.parent[key] is None or self.parent[key] in self.blocks[tier]
        self.findable[tier] -= set(evicted)
        return len(evicted)

    def _is_leased(self, tier: str, key: bytes) -> bool:
        """Return whether a living lease covers `key`; it may have been dropped and come back."""
        return any(
            key in held.keys and self._still_there(held, [key])
            for held in self._holders(Lease)
            if held.tier == tier
        )

    def _nothing_is_evictable(self, tier: str, root: bytes) -> None:
        """Check that every block left shares its first block with something in use."""
        held = [held for held in self._holders((Lease, Reservation)) if held.tier == tier]
        roots = {root} | {each.keys[0] for each in held}
        assert {self._path(key)[-1] for key in self.blocks[tier]} <= roots

    def _holders(self, kind) -> list[Held]:
        running = [held for job in self.running for held in (job.source, job.target) if held]
        return [held for held in self.open + running if isinstance(held.claim, kind)]

    def _still_there(self, held: Held, keys) -> bool:
        """Ask the residencies themselves: a dropped block that came back is another block."""
        end = held.keys.index(keys[-1])
        deepest = held.claim.residency
        while deepest.start > end:
            deepest = deepest.parent
        return deepest.is_alive

    def _still_mine(self, held: Held) -> bool:
        keys = held.keys[held.claim.first_block :]
        return all(self.writer[held.tier].get(key) is held for key in keys)

    # Bytes

    def _start(self, job: Running) -> None:
        self.running.append(job)
        for held in (job.source, job.target):
            if held:
                self.open.remove(held)
        if isinstance(job.plan.target, HostSlots):
            for owner in OWNERS:
                for slot in _unpack(job.plan.target):
                    self.memory[owner][slot] = "torn"

    def _copy_bytes(self, job: Running, rank: int, num_good: int) -> None:
        """Read at the last moment what the plan says, write what the rank says it wrote."""
        if job.source:
            first = len(job.source.keys)
            keys = self._plan_keys(job)
            assert first >= len(keys)
            self._check_place(job.plan.source, keys)
        if job.target and isinstance(job.plan.target, HostSlots) and rank in OWNERS:
            keys = job.target.keys[job.target.claim.first_block :]
            slots = _unpack(job.plan.target)
            for slot, key in list(zip(slots, keys, strict=True))[:num_good]:
                assert self.memory[rank][slot] == "torn"
                self.memory[rank][slot] = key

    def _plan_keys(self, job: Running) -> tuple[bytes, ...]:
        if job.target:
            return job.target.keys[job.target.claim.first_block :]
        return job.keys

    def _check_place(self, place, keys, *, written: bool = True) -> None:
        if isinstance(place, StoredBlocks):
            assert list(place.keys) == list(keys)
            return
        slots = _unpack(place)
        assert len(slots) == len(keys)
        for owner in OWNERS:
            if written:
                assert [self.memory[owner][slot] for slot in slots] == list(keys)

    # Choices

    @staticmethod
    def _any_tier(pick: Pick) -> str:
        return ("host", "ssd")[pick(2)]

    def _any_chain(self, pick: Pick) -> list[bytes]:
        return self.chains[pick(len(self.chains))]

    @staticmethod
    def _request(pick: Pick) -> str:
        return f"request-{pick(4)}"
