"""The lane between an engine's pages and host slots where both are in CPU memory."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from typing_extensions import override

from flexkv_core.layout import BlockFormat, PagePool
from flexkv_core.plan import EnginePages, HostSlots, Status, TransferPlan, TransferResult
from flexkv_core.tiers.host import HostPool
from flexkv_core.transfer.lane import Lane
from flexkv_core.transfer.pages import Planes, page_views, slot_view
from flexkv_core.transfer.results import done, refused
from flexkv_core.transfer.segments import (
    Limits,
    Segment,
    find_page_problem,
    find_slot_problem,
    segments_of,
)

__all__ = ["CpuLane"]

_MIN_SHARE_BYTES = 1 << 20
"""Less is not worth waking a thread for: that takes about 50 us, and so does 1 MiB."""


class _View(NamedTuple):
    """The same layers on both sides."""

    pages: Planes
    """`[num_pages, H, layers, N, P]`."""

    slots: Planes
    """`[num_slots, pages in a block, H, layers, N, P]`."""


_Copy = Callable[[Sequence[_View], Sequence[Segment]], None]


class CpuLane(Lane):
    """Copies in `submit`, on the caller's thread and a few more; converts the layout on the way.

    Segments are dealt out to the threads, and each is one numpy operation (for each run of layers,
    and when gathering for each plane). The GIL is free while bytes move and is taken once per
    operation, which costs up to 5 ms beside a busy Python thread: few and large is the rule.

    A plan whose ids do not fit is refused with ERROR, and one whose deadline has passed with
    TIMEOUT, before the first byte moves.
    """

    def __init__(
        self,
        rank: int,
        pages: PagePool,
        fmt: BlockFormat,
        host: HostPool,
        *,
        num_threads: int = 2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Build the views.

        Raises:
            LayoutError: `pages`, `fmt` and `host` do not belong together.
        """
        self._rank = rank
        self._slots = slot_view(host, fmt, pages)
        self._runs = page_views(pages)
        self._limits = Limits(
            num_pages=pages.num_pages,
            num_layers=pages.num_layers,
            pages_per_block=fmt.block_tokens // pages.page_tokens,
        )
        self._page_layer_bytes = pages.num_heads * pages.page_tokens * pages.token_bytes
        self._num_threads = num_threads
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="flexkv-copy")
        self._clock = clock
        self._closed = False
        self._results: list[TransferResult] = []

    @override
    def submit(self, plan: TransferPlan) -> None:
        self._results.append(self._execute(plan))

    @override
    def poll(self) -> list[TransferResult]:
        results, self._results = self._results, []
        return results

    @override
    def drain(self, timeout_s: float) -> bool:
        return True

    @override
    def close(self) -> None:
        self._closed = True
        self._threads.shutdown()

    def _execute(self, plan: TransferPlan) -> TransferResult:
        started = self._clock()
        if self._closed or (plan.deadline_s is not None and started >= plan.deadline_s):
            return refused(plan, self._rank, Status.TIMEOUT)
        copy: _Copy
        match plan.source, plan.target:
            case EnginePages() as pages, HostSlots() as slots:
                copy = _gather
            case HostSlots() as slots, EnginePages() as pages:
                copy = _scatter
            case _:
                error = "a CPU lane copies between engine pages and host slots, and nothing else"
                return refused(plan, self._rank, Status.ERROR, error)
        problem = find_slot_problem(plan, slots, len(self._slots)) or find_page_problem(
            plan, pages, self._limits
        )
        if problem:
            return refused(plan, self._rank, Status.ERROR, problem)
        layers = range(*plan.layers) if plan.layers else range(self._limits.num_layers)
        segments = segments_of(pages, slots, self._limits.pages_per_block)
        num_bytes = len(pages.page_ids) * len(layers) * self._page_layer_bytes
        self._share_out(copy, self._views(layers), segments, num_bytes)
        return done(plan, self._rank, num_bytes, self._clock() - started)

    def _views(self, layers: range) -> list[_View]:
        """Return the part of each run that lies in `layers`."""
        views = []
        for run in self._runs:
            first = max(layers.start, run.layers.start)
            end = min(layers.stop, run.layers.stop)
            if first < end:
                within = slice(first - run.layers.start, end - run.layers.start)
                slots = self._slots[:, :, :, first:end]
                views.append(_View(run.pages[:, :, within], slots))
        return views

    def _share_out(
        self, copy: _Copy, views: list[_View], segments: list[Segment], num_bytes: int
    ) -> None:
        """Run `copy` over all segments on as many threads as are worth it, this one included."""
        num_shares = max(1, min(self._num_threads, len(segments), num_bytes // _MIN_SHARE_BYTES))
        others = [
            self._threads.submit(copy, views, segments[share::num_shares])
            for share in range(1, num_shares)
        ]
        copy(views, segments[::num_shares])
        for other in others:
            other.result()


def _gather(views: Sequence[_View], segments: Sequence[Segment]) -> None:
    """Copy pages into slots, plane by plane.

    numpy walks memory in the order of the target, where the planes of a token are neighbours: with
    K and V apart in the engine its inner loop would have length 2 (measured: 0.35 x a plain copy
    instead of 0.55-0.7).
    """
    planes = [
        (view.pages[..., plane], view.slots[..., plane])
        for view in views
        for plane in range(view.pages.shape[-1])
    ]
    for segment in segments:
        for pages, slots in planes:
            slots[segment.slot, segment.in_block] = pages[segment.pages]


def _scatter(views: Sequence[_View], segments: Sequence[Segment]) -> None:
    """Copy slots into pages."""
    for segment in segments:
        for view in views:
            view.pages[segment.pages] = view.slots[segment.slot, segment.in_block]
