"""The data plane of one rank: takes plans, gives them to lanes, and reports how they ended."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from flexkv_core.data.transfer.lane import Lane
from flexkv_core.data.transfer.results import refused
from flexkv_core.plan import Endpoint, EnginePages, HostSlots, Status, TransferPlan, TransferResult

__all__ = ["HOST", "PAGES", "CacheWorker", "Route"]

PAGES = "pages"
"""The engine's pages, as an end of a route."""

HOST = "host"
"""The host tier, as an end of a route. Any other end is the name of a tier."""


class Route(NamedTuple):
    """Which plans a lane executes: those from `source` to `target`."""

    source: str
    target: str


class CacheWorker:
    """Moves bytes as its plans say, and decides nothing.

    Where several ranks hold the same bytes (replicated KV heads, MLA latents), one of them is the
    owner: it alone writes into our tiers, and the others skip such plans without a result, since
    only reports of owners count for a block. Plans that write into the engine's own pages concern
    every rank.

    Thread: the worker thread of its rank. Lanes have threads of their own.
    """

    def __init__(
        self,
        rank: int,
        lanes: Mapping[Route, Lane],
        *,
        is_owner: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take over `lanes`; one lane may serve several routes."""
        self._rank = rank
        self._by_route: dict[Route, Lane] = {}
        self._lanes: tuple[Lane, ...] = ()
        self.add(lanes)
        self._is_owner = is_owner
        self._clock = clock
        self._refused: list[TransferResult] = []

    def add(self, lanes: Mapping[Route, Lane]) -> None:
        """Take over more lanes: those of a tier that was opened later."""
        self._by_route |= lanes
        self._lanes = tuple(dict.fromkeys(self._by_route.values()))

    def submit(self, plans: Iterable[TransferPlan]) -> None:
        """Start the plans of one step; `poll` reports the result of each, exactly once."""
        by_lane: dict[Lane, list[TransferPlan]] = {}
        for plan in plans:
            if not (self._is_owner or isinstance(plan.target, EnginePages)):
                continue
            route = Route(_end_of(plan.source), _end_of(plan.target))
            lane = self._by_route.get(route)
            if lane is None:
                error = f"rank {self._rank} has no lane from {route.source} to {route.target}"
                self._refused.append(refused(plan, self._rank, Status.ERROR, error))
            else:
                by_lane.setdefault(lane, []).append(plan)
        for lane, plans_of_lane in by_lane.items():
            lane.submit_all(plans_of_lane)

    def poll(self) -> list[TransferResult]:
        """Return what has ended since the last call, in any order. Never blocks."""
        results, self._refused = self._refused, []
        for lane in self._lanes:
            results += lane.poll()
        return results

    def drain(self, timeout_s: float) -> bool:
        """Wait until nothing submitted is running; False if `timeout_s` passed first."""
        end_s = self._clock() + timeout_s
        drained = True
        for lane in self._lanes:
            drained = lane.drain(max(0.0, end_s - self._clock())) and drained
        return drained

    def shutdown(self, timeout_s: float) -> bool:
        """Drain, then close every lane; a last `poll` reports what did not run.

        Returns:
            Whether everything submitted had ended within `timeout_s`.
        """
        drained = self.drain(timeout_s)
        for lane in self._lanes:
            lane.close()
        return drained


def _end_of(place: Endpoint) -> str:
    if isinstance(place, EnginePages):
        return PAGES
    return HOST if isinstance(place, HostSlots) else place.tier
