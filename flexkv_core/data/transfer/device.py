"""What a GPU lane needs of a device: concurrent streams, and events between them."""

import enum
from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Device", "Event", "Ids", "Stream"]

Ids = NDArray[np.int64]


class Stream(enum.Enum):
    """A queue of work on the device; work in different streams runs in any order."""

    COMPUTE = "compute"
    """The engine's own: the one its forward pass is queued on when the lane is called."""

    OUT = "out"
    """From staging to host memory."""

    IN = "in"
    """From host memory to staging, and from there into pages."""


class Event(Protocol):
    """A point in a stream."""

    def query(self) -> bool:
        """Return whether everything queued before it has ended. Never blocks."""


class Device(ABC):
    """One rank's pages, a staging area beside them in device memory, and the rank's host slots.

    Staging is a row of places, each of which holds one block as it is stored: `[H, L, N, C]`. Part
    `p` of place `s` is filled by one page of the engine; its id is `s * pages_per_block + p`. All
    ids are checked by the caller.

    Every method but `wait_for` only queues work. Thread: that of the model runner.
    """

    num_places: int
    pages_per_block: int

    @abstractmethod
    def gather(self, page_ids: Ids, part_ids: Ids) -> None:
        """On COMPUTE: copy page `page_ids[i]` into part `part_ids[i]` of staging."""

    @abstractmethod
    def copy_out(self, places: Ids, slots: Ids) -> None:
        """On OUT: copy place `places[i]` of staging into host slot `slots[i]`."""

    @abstractmethod
    def copy_in(self, slots: Ids, places: Ids) -> None:
        """On IN: copy host slot `slots[i]` into place `places[i]` of staging."""

    @abstractmethod
    def scatter(self, part_ids: Ids, page_ids: Ids) -> None:
        """On IN: copy part `part_ids[i]` of staging into page `page_ids[i]`."""

    @abstractmethod
    def record(self, stream: Stream) -> Event:
        """Return an event for everything queued on `stream` so far."""

    @abstractmethod
    def wait(self, stream: Stream, event: Event) -> None:
        """Make what is queued on `stream` from now on wait for `event`."""

    @abstractmethod
    def wait_for(self, event: Event, timeout_s: float) -> bool:
        """Block this thread until `event`; return False if `timeout_s` passed first."""
