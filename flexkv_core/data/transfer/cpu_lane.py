"""The lane between an engine's pages and host slots where both are in CPU memory."""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from typing_extensions import override

from flexkv_core.block.layout import BlockFormat, PagePool
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.transfer.lane import Lane
from flexkv_core.data.transfer.pages import Planes, page_views, slot_view
from flexkv_core.data.transfer.results import done, refused
from flexkv_core.data.transfer.segments import (
    Limits,
    Segment,
    find_page_problem,
    find_slot_problem,
    segments_of,
)
from flexkv_core.plan import EnginePages, HostSlots, Status, TransferPlan, TransferResult

__all__ = ["CpuLane"]

_MIN_SHARE_BYTES = 1 << 20
"""Less is not worth waking a thread for: that takes about 50 us, and so does 1 MiB."""

_SHORT_LOOP = 8
"""Up to 8 heads of 256 or 512 bytes, one operation for each head scatters 1.1 to 1.3 x as fast as
one for all; from 16 on it depends on the layout (2 cores of an AMD EPYC, November 2026)."""

_HEADS, _LAYERS, _TOKENS, _PLANES = -4, -3, -2, -1


class _View(NamedTuple):
    """The same layers on both sides."""

    pages: Planes
    """`[num_pages, H, layers, N, P]`."""

    slots: Planes
    """`[num_slots, pages in a block, H, layers, N, P]`."""

    def cut(self, axis: int) -> "list[_View]":
        """Return the steps of `axis`, one view each; the axis is counted from the end."""
        num_steps = self.pages.shape[axis]
        pages = np.split(self.pages, num_steps, axis)
        return [
            _View(*pair) for pair in zip(pages, np.split(self.slots, num_steps, axis), strict=True)
        ]


class _Way(NamedTuple):
    """A way to copy, and which side of a view it writes."""

    copy: Callable[[Sequence[_View], Sequence[Segment]], None]
    target_of: Callable[[_View], Planes]


class _Copy(NamedTuple):
    """What a plan comes to, once it is known to be possible."""

    plan: TransferPlan
    way: _Way
    segments: list[Segment]
    num_bytes: int


class CpuLane(Lane):
    """Copies in `submit`, on the caller's thread and a few more; converts the layout on the way.

    The segments of all plans that are submitted together are dealt out to the threads, and each is
    one numpy operation over all its layers (more where K and V are gathered from apart, heads
    scattered to token-major pages, or layers form several runs). The GIL is free while bytes move
    and is taken once per operation, which can cost 5 ms beside a busy Python thread: few and large
    is the rule.

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
        self._num_slots = host.num_slots
        self._parts = [
            (slot_view(host, fmt, part, offset), page_views(part)) for offset, part in pages.parts
        ]
        self._limits = Limits(
            num_pages=pages.num_pages,
            pages_per_block=fmt.block_tokens // pages.page_tokens,
        )
        self._page_bytes = (
            pages.num_layers * pages.num_heads * pages.page_tokens * pages.token_bytes
        )
        self._num_threads = num_threads
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="flexkv-copy")
        self._clock = clock
        self._pieces = {way: self._cut(way) for way in (_GATHER, _SCATTER)}
        """What one segment is copied by."""

        self._closed = False
        self._results: list[TransferResult] = []

    @override
    def submit(self, plan: TransferPlan) -> None:
        self.submit_all([plan])

    @override
    def submit_all(self, plans: Iterable[TransferPlan]) -> None:
        begin_s = self._clock()
        for way, copies in self._prepare_all(plans, begin_s).items():
            segments = [segment for copy in copies for segment in copy.segments]
            num_bytes = sum(copy.num_bytes for copy in copies)
            # As many threads as are worth it, this one included.
            pieces = self._pieces[way]
            num_shares = max(
                1, min(self._num_threads, len(segments), num_bytes // _MIN_SHARE_BYTES)
            )
            others = [
                self._threads.submit(way.copy, pieces, segments[share::num_shares])
                for share in range(1, num_shares)
            ]
            way.copy(pieces, segments[::num_shares])
            for other in others:
                other.result()
            byte_s = (self._clock() - begin_s) / max(1, num_bytes)
            self._results += [
                done(copy.plan, self._rank, copy.num_bytes, copy.num_bytes * byte_s)
                for copy in copies
            ]

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

    def _prepare_all(self, plans: Iterable[TransferPlan], now_s: float) -> dict[_Way, list[_Copy]]:
        """Return what to copy: saves first, so that loads may fill the same pages."""
        copies: dict[_Way, list[_Copy]] = {_GATHER: [], _SCATTER: []}
        for plan in plans:
            copy = self._prepare(plan, now_s)
            if isinstance(copy, TransferResult):
                self._results.append(copy)
            else:
                copies[copy.way].append(copy)
        return {way: some for way, some in copies.items() if some}

    def _prepare(self, plan: TransferPlan, now_s: float) -> _Copy | TransferResult:
        """Return what to copy, or why nothing can be."""
        if self._closed:
            return refused(plan, self._rank, Status.CLOSED)
        if plan.deadline_s is not None and now_s >= plan.deadline_s:
            return refused(plan, self._rank, Status.TIMEOUT)
        match plan.source, plan.target:
            case EnginePages() as pages, HostSlots() as slots:
                way = _GATHER
            case HostSlots() as slots, EnginePages() as pages:
                way = _SCATTER
            case _:
                error = "a CPU lane copies between engine pages and host slots, and nothing else"
                return refused(plan, self._rank, Status.ERROR, error)
        problem = find_slot_problem(plan, slots, self._num_slots) or find_page_problem(
            plan, pages, self._limits
        )
        if problem:
            return refused(plan, self._rank, Status.ERROR, problem)
        segments = segments_of(pages, slots, self._limits.pages_per_block)
        return _Copy(plan, way, segments, len(pages.page_ids) * self._page_bytes)

    def _cut(self, way: _Way) -> list[_View]:
        """Cut both sides into what numpy copies well in one operation."""
        views = [
            _View(run.pages, slots[:, :, :, run.layers.start : run.layers.stop])
            for slots, runs in self._parts
            for run in runs
        ]
        return [piece for view in views for piece in _cut_short_loops(view, way.target_of)]


def _gather(pieces: Sequence[_View], segments: Sequence[Segment]) -> None:
    for segment in segments:
        for pages, slots in pieces:
            slots[segment.slot, segment.in_block] = pages[segment.pages]


def _scatter(pieces: Sequence[_View], segments: Sequence[Segment]) -> None:
    for segment in segments:
        for pages, slots in pieces:
            pages[segment.pages] = slots[segment.slot, segment.in_block]


_GATHER = _Way(_gather, attrgetter("slots"))
_SCATTER = _Way(_scatter, attrgetter("pages"))


def _cut_short_loops(view: _View, target_of: Callable[[_View], Planes]) -> list[_View]:
    """Cut a view along short axes until numpy's inner loop runs over tokens, or is long.

    numpy copies in the order of the target's strides. Where K and V are gathered from apart, its
    inner loop would have length 2; where heads are scattered to token-major pages, one for each.
    """
    axis = _short_loop_axis(target_of(view))
    if axis is None:
        return [view]
    return [piece for step in view.cut(axis) for piece in _cut_short_loops(step, target_of)]


def _short_loop_axis(target: Planes) -> int | None:
    """Return the axis that numpy would run through innermost, if it is short and not the tokens."""
    axes = [axis for axis in (_HEADS, _LAYERS, _TOKENS, _PLANES) if target.shape[axis] > 1]
    inner = min(axes, key=lambda axis: abs(target.strides[axis]), default=_TOKENS)
    return None if inner == _TOKENS or target.shape[inner] > _SHORT_LOOP else inner
