"""A lane as a GPU would be: copies end in any later step, in any order, and may fail."""

import ctypes
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from flexkv_core.block.layout import BlockFormat, PagePool
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.transfer.cpu_lane import CpuLane
from flexkv_core.data.transfer.lane import Lane
from flexkv_core.plan import Endpoint, EnginePages, HostSlots, Status, TransferPlan, TransferResult


@dataclass
class Weather:
    """What lanes do to the plans they are given; one for all ranks."""

    rng: random.Random
    end_chance: float = 1.0
    """That a running copy ends in a given step."""

    fail_loads: float = 0.0
    """Chance that a load fails behind some of its leading blocks."""

    fail_saves: float = 0.0
    """Chance that a save does."""

    loads_at_once: bool = False
    """Copy in `submit`, as an engine's synchronous step needs it."""

    lose_copies: bool = False
    """Report copies that were not made: what every test must notice."""

    counts: Counter[str] = field(default_factory=Counter)


class _Copy(NamedTuple):
    """A plan that is under way."""

    plan: TransferPlan
    lane: CpuLane
    memory: NDArray[np.uint8] | None
    """What the lane reads, where that is a snapshot."""


class DelayedLane(Lane):
    """Copies like `CpuLane`, but late.

    A save reads its pages at once, as a gather on the compute stream does, and writes its slots
    when it ends; a load reads slots and writes pages when it ends.
    """

    def __init__(
        self, weather: Weather, rank: int, pages: PagePool, fmt: BlockFormat, host: HostPool
    ) -> None:
        self._weather = weather
        self._pages = pages
        self._pages_per_block = fmt.block_tokens // pages.page_tokens
        self._rank = rank
        self._lane_over: Callable[[PagePool], CpuLane] = lambda pool: CpuLane(
            rank, pool, fmt, host, num_threads=1
        )
        self._loads = self._lane_over(pages)
        self._running: list[_Copy] = []
        self._ended: list[TransferResult] = []

    @override
    def submit(self, plan: TransferPlan) -> None:
        if isinstance(plan.target, EnginePages):
            copy = _Copy(plan, self._loads, None)
            if self._weather.loads_at_once:
                self._ended.append(self._end(copy))
            else:
                self._running.append(copy)
        else:
            pool, memory = _snapshot(self._pages)
            self._running.append(_Copy(plan, self._lane_over(pool), memory))

    @override
    def poll(self) -> list[TransferResult]:
        weather = self._weather
        weather.rng.shuffle(self._running)
        chances = [weather.rng.random() < weather.end_chance for _ in self._running]
        ending = [copy for copy, ends in zip(self._running, chances, strict=True) if ends]
        self._running = [
            copy for copy, ends in zip(self._running, chances, strict=True) if not ends
        ]
        ended, self._ended = self._ended, []
        return ended + [self._end(copy) for copy in ending]

    @override
    def drain(self, timeout_s: float) -> bool:
        return not self._running

    @override
    def close(self) -> None:
        self._running.clear()

    def _end(self, copy: _Copy) -> TransferResult:
        weather, plan = self._weather, copy.plan
        is_load = isinstance(plan.target, EnginePages)
        direction = "loads" if is_load else "saves"
        weather.counts[direction] += 1
        num_good, status = plan.num_blocks, Status.OK
        if weather.rng.random() < (weather.fail_loads if is_load else weather.fail_saves):
            weather.counts[f"failed {direction}"] += 1
            num_good, status = weather.rng.randrange(plan.num_blocks), Status.ERROR
        if num_good and not weather.lose_copies:
            copy.lane.submit(self._head_of(plan, num_good))
            (result,) = copy.lane.poll()
            assert result.status is Status.OK, result
        return TransferResult(
            job_id=plan.job_id,
            rank=self._rank,
            status=status,
            num_blocks=num_good,
            epoch=plan.epoch,
            error="bad weather" if status is Status.ERROR else "",
        )

    def _head_of(self, plan: TransferPlan, num_blocks: int) -> TransferPlan:
        source, target = (self._cut(place, num_blocks) for place in (plan.source, plan.target))
        return msgspec.structs.replace(plan, source=source, target=target, num_blocks=num_blocks)

    def _cut(self, place: Endpoint, num_blocks: int) -> Endpoint:
        if isinstance(place, HostSlots):
            return HostSlots(place.slots[: 8 * num_blocks])
        assert isinstance(place, EnginePages)
        num_pages = num_blocks * self._pages_per_block - place.first_page
        return EnginePages(place.page_ids[:num_pages], place.first_page)


def _snapshot(pages: PagePool) -> tuple[PagePool, NDArray[np.uint8]]:
    """Copy all pages; the array owns the memory that the returned pool lies in."""
    original = (ctypes.c_uint8 * pages.memory_bytes).from_address(pages.memory_start)
    memory = np.array(original, dtype=np.uint8)
    shift = memory.ctypes.data - pages.memory_start
    runs = tuple(replace(run, address=run.address + shift) for run in pages.runs)
    return replace(pages, runs=runs, memory_start=memory.ctypes.data), memory
