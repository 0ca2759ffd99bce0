"""Doubles for tiers, lanes and time; behaviour is added by wrapping one in another."""

import copy
import itertools
import threading
import zlib
from collections.abc import Mapping, Sequence

from typing_extensions import Self, override

from flexkv_core.block.types import BlockKey, JobId
from flexkv_core.data.tiers.base import Capabilities, Tier, TierBlock
from flexkv_core.data.tiers.memory import BlockMemory
from flexkv_core.data.transfer.lane import Lane
from flexkv_core.plan import Status, TransferPlan, TransferResult

__all__ = [
    "CountingTier",
    "DelayingLane",
    "DictTier",
    "FaultyTier",
    "ManualClock",
    "SlowTier",
    "TierWrapper",
]


class ManualClock:
    """A clock in seconds that moves only when it is told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time, as `time.monotonic` would."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.now += seconds


class DictTier(Tier):
    """A tier whose storage is a dict: key -> payload and its CRC-32, 4 bytes."""

    name = "dict"
    capabilities = Capabilities()

    def __init__(
        self,
        memory: BlockMemory,
        stored: dict[BlockKey, bytes] | None = None,
    ) -> None:
        """Open on `memory`; `stored` outlives the tier, as files outlive a process."""
        self._memory = memory
        self._is_open = True
        self.stored = {} if stored is None else stored

    @override
    def read(self, blocks: Sequence[TierBlock], deadline_s: float | None) -> list[Status]:
        return [self._read(block) for block in blocks]

    @override
    def write(self, blocks: Sequence[TierBlock], deadline_s: float | None) -> list[Status]:
        if not self._is_open:
            return [Status.ERROR] * len(blocks)
        for block in blocks:
            payload = b"".join(self._memory.pieces(block.slot))
            self.stored.setdefault(block.key, payload + _checksum(payload))
        return [Status.OK] * len(blocks)

    @override
    def delete(self, keys: Sequence[BlockKey]) -> None:
        for key in keys:
            self.stored.pop(key, None)

    @override
    def close(self) -> None:
        self._is_open = False

    def _read(self, block: TierBlock) -> Status:
        if not self._is_open:
            return Status.ERROR
        stored = self.stored.get(block.key)
        if stored is None:
            return Status.MISS
        payload, checksum = stored[:-4], stored[-4:]
        if checksum != _checksum(payload):
            return Status.CORRUPT
        for piece in self._memory.pieces(block.slot):
            piece[:], payload = payload[: len(piece)], payload[len(piece) :]
        return Status.OK


def _checksum(payload: bytes) -> bytes:
    return zlib.crc32(payload).to_bytes(4, "little")


class TierWrapper(Tier):
    """Passes everything on to another tier; subclasses change what they are about."""

    def __init__(self, inner: Tier) -> None:
        self.inner = inner
        self.name = inner.name
        self.capabilities = inner.capabilities

    @override
    def read(self, blocks: Sequence[TierBlock], deadline_s: float | None) -> list[Status]:
        return self.inner.read(blocks, deadline_s)

    @override
    def write(self, blocks: Sequence[TierBlock], deadline_s: float | None) -> list[Status]:
        return self.inner.write(blocks, deadline_s)

    @override
    def snapshot(self) -> Self:
        inner = self.inner.snapshot()
        if inner is self.inner:
            return self
        snapshot = copy.copy(self)
        snapshot.inner = inner
        return snapshot

    @override
    def delete(self, keys: Sequence[BlockKey]) -> None:
        self.inner.delete(keys)

    @override
    def close(self) -> None:
        self.inner.close()


class CountingTier(TierWrapper):
    """Remembers the keys it was asked for, in order."""

    def __init__(self, inner: Tier) -> None:
        super().__init__(inner)
        self.reads: list[BlockKey] = []
        self.writes: list[BlockKey] = []
        self.deletes: list[BlockKey] = []

    @override
    def read(self, blocks: Sequence[TierBlock], deadline_s: float | None) -> list[Status]:
        self.reads += [block.key for block in blocks]
        return super().read(blocks, deadline_s)

    @override
    def write(self, blocks: Sequence[TierBlock], deadline_s: float | None) -> list[Status]:
        self.writes += [block.key for block in blocks]
        return super().write(blocks, deadline_s)

    @override
    def delete(self, keys: Sequence[BlockKey]) -> None:
        self.deletes += keys
        super().delete(keys)


class FaultyTier(TierWrapper):
    """Fails chosen blocks.

    `faults` maps the number of a block operation (reads and writes counted together from 0) to the
    status it ends with instead of being done. Counts right only with one thread at a time.
    """

    def __init__(self, inner: Tier, faults: Mapping[int, Status]) -> None:
        super().__init__(inner)
        self._faults = faults
        self._operations = itertools.count()  # snapshots count together

    @override
    def read(self, blocks: Sequence[TierBlock], deadline_s: float | None) -> list[Status]:
        return [
            fault or super(FaultyTier, self).read([block], deadline_s)[0]
            for block, fault in zip(blocks, self._next_faults(len(blocks)), strict=True)
        ]

    @override
    def write(self, blocks: Sequence[TierBlock], deadline_s: float | None) -> list[Status]:
        return [
            fault or super(FaultyTier, self).write([block], deadline_s)[0]
            for block, fault in zip(blocks, self._next_faults(len(blocks)), strict=True)
        ]

    def _next_faults(self, num_blocks: int) -> list[Status | None]:
        return [self._faults.get(next(self._operations)) for _ in range(num_blocks)]


class SlowTier(TierWrapper):
    """Lets every read and write wait at a gate.

    `entered` is released once by each call that has arrived at `gate`, so a test knows without
    sleeping that a call is under way.
    """

    def __init__(self, inner: Tier, gate: threading.Event) -> None:
        super().__init__(inner)
        self.gate = gate
        self.entered = threading.Semaphore(0)

    @override
    def read(self, blocks: Sequence[TierBlock], deadline_s: float | None) -> list[Status]:
        self._pass_gate()
        return super().read(blocks, deadline_s)

    @override
    def write(self, blocks: Sequence[TierBlock], deadline_s: float | None) -> list[Status]:
        self._pass_gate()
        return super().write(blocks, deadline_s)

    def _pass_gate(self) -> None:
        self.entered.release()
        self.gate.wait()


class DelayingLane(Lane):
    """Holds back the results of another lane until they are released, in any order wanted."""

    def __init__(self, inner: Lane) -> None:
        self._inner = inner
        self._held: dict[JobId, TransferResult] = {}
        self._released: list[TransferResult] = []

    @override
    def submit(self, plan: TransferPlan) -> None:
        self._inner.submit(plan)

    @override
    def poll(self) -> list[TransferResult]:
        released, self._released = self._released, []
        return released

    @override
    def drain(self, timeout_s: float) -> bool:
        return self._inner.drain(timeout_s)

    @override
    def close(self) -> None:
        """Close the inner lane and release what is held: a last `poll` tells everything."""
        self._inner.close()
        self.release_all()

    def release(self, *job_ids: JobId) -> None:
        """Let `poll` tell how these jobs ended, in this order. They must have ended."""
        self._collect()
        self._released += [self._held.pop(job_id) for job_id in job_ids]

    def release_all(self) -> None:
        """Let `poll` tell how every job ended that has."""
        self._collect()
        self.release(*self._held)

    def _collect(self) -> None:
        self._held |= {result.job_id: result for result in self._inner.poll()}
