"""A device without a GPU: queues that run late, and in the worst order that is allowed."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from typing_extensions import override

from flexkv_core.block.layout import BlockFormat, PagePool
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.transfer.device import Device, Event, Ids, Stream
from flexkv_core.testing.geometry import POISON, Bytes, read_block, write_page

__all__ = ["SimulatedDevice", "SimulatedEvent"]


@dataclass(eq=False)
class SimulatedEvent:
    """A point in a queue of `SimulatedDevice`."""

    has_passed: bool = False

    def query(self) -> bool:
        """Return whether it has passed."""
        return self.has_passed


@dataclass(frozen=True)
class _Gate:
    """Holds a queue until an event has passed."""

    event: SimulatedEvent


_Work = Callable[[], None] | _Gate


class SimulatedDevice(Device):
    """Pages and staging in plain memory, copied one block or page at a time.

    Nothing runs when it is queued. `step` runs one piece of work, of whichever of the queues whose
    turn it may be `choose` names; waiting for an event runs as many as it takes. So a copy that is
    not ordered behind what it needs is run before it by some `choose`.
    """

    def __init__(
        self,
        pages: PagePool,
        fmt: BlockFormat,
        host: HostPool,
        num_places: int,
        choose: Callable[[Sequence[Stream]], Stream],
    ) -> None:
        """Poison the staging area.

        Args:
            pages: The engine's pages, in plain memory.
            fmt: How a block is stored.
            host: Where slots lie.
            num_places: Blocks in staging.
            choose: Which of the queues that can go on does.
        """
        self.num_places = num_places
        self.pages_per_block = fmt.block_tokens // pages.page_tokens
        self._pages = pages
        heads = (fmt.num_heads, fmt.num_layers, self.pages_per_block, -1)
        self._staging = np.full((num_places, fmt.block_bytes), POISON, np.uint8)
        self._parts = self._staging.reshape(num_places, *heads)
        memory = np.frombuffer(host.buffer, np.uint8)[: host.num_slots * host.slot_stride]
        self._slots = memory.reshape(host.num_slots, host.slot_stride)[:, : fmt.block_bytes]
        self._choose = choose
        self._queues: dict[Stream, deque[_Work]] = {stream: deque() for stream in Stream}

    @override
    def gather(self, page_ids: Ids, part_ids: Ids) -> None:
        for page, part in zip(page_ids.tolist(), part_ids.tolist(), strict=True):
            self.queue(Stream.COMPUTE, partial(self._gather, page, part))

    @override
    def copy_out(self, places: Ids, slots: Ids) -> None:
        for place, slot in zip(places.tolist(), slots.tolist(), strict=True):
            self._copy(Stream.OUT, self._slots[slot], self._staging[place])

    @override
    def copy_in(self, slots: Ids, places: Ids) -> None:
        for slot, place in zip(slots.tolist(), places.tolist(), strict=True):
            self._copy(Stream.IN, self._staging[place], self._slots[slot])

    @override
    def scatter(self, part_ids: Ids, page_ids: Ids) -> None:
        for part, page in zip(part_ids.tolist(), page_ids.tolist(), strict=True):
            self.queue(Stream.IN, partial(self._scatter, part, page))

    @override
    def record(self, stream: Stream) -> SimulatedEvent:
        event = SimulatedEvent()
        self.queue(stream, lambda: setattr(event, "has_passed", True))
        return event

    @override
    def wait(self, stream: Stream, event: Event) -> None:
        assert isinstance(event, SimulatedEvent)
        self._queues[stream].append(_Gate(event))

    @override
    def wait_for(self, event: Event, timeout_s: float) -> bool:
        """Run until `event`; a device given no time does nothing."""
        while timeout_s > 0 and not event.query() and self.step():
            pass
        return event.query()

    def queue(self, stream: Stream, work: Callable[[], None]) -> None:
        """Queue `work`: on COMPUTE, what an engine's forward pass would do."""
        self._queues[stream].append(work)

    def step(self) -> bool:
        """Run one piece of work; False if there is none that may run."""
        for queue in self._queues.values():
            while queue and isinstance(gate := queue[0], _Gate) and gate.event.has_passed:
                queue.popleft()
        ready = [
            stream
            for stream, queue in self._queues.items()
            if queue and not isinstance(queue[0], _Gate)
        ]
        if not ready:
            return False
        work = self._queues[self._choose(ready)].popleft()
        assert not isinstance(work, _Gate)
        work()
        return True

    def finish(self) -> None:
        """Run everything."""
        while self.step():
            pass

    def _copy(self, stream: Stream, target: Bytes, source: Bytes) -> None:
        """Queue the two halves of a copy: it may be seen torn."""
        middle = len(source) // 2
        for half in (slice(middle), slice(middle, None)):
            self.queue(stream, partial(np.copyto, target[half], source[half]))

    def _gather(self, page: int, part: int) -> None:
        place, position = divmod(part, self.pages_per_block)
        parts = self._parts[place]
        content = np.frombuffer(read_block(self._pages, [page]), np.uint8)
        parts[:, :, position] = content.reshape(*parts.shape[:2], -1)

    def _scatter(self, part: int, page: int) -> None:
        place, position = divmod(part, self.pages_per_block)
        write_page(self._pages, page, position, self._staging[place])
