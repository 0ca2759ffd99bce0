"""A disk that a test can break: imported in the engine's process, before slabs are opened."""

import threading
from collections.abc import Sequence
from typing import Literal

from typing_extensions import override

from flexkv_core.data.tiers.ssd import slab
from flexkv_core.data.tiers.ssd.files import SlabFile

__all__ = ["Fate", "break_disk", "trust_disk"]

Fate = Literal["work", "fail", "hang"]


class BreakableFile(SlabFile):
    """Reads and writes as the test last said, which holds for the whole process.

    fail: the system says EIO.
    hang: nothing returns before the fate is another one.
    """

    reads: Fate = "work"
    writes: Fate = "work"
    changed = threading.Condition()

    @override
    def read(self, buffers: Sequence[memoryview], offset: int) -> int:
        self._suffer("reads")
        return super().read(buffers, offset)

    @override
    def write(self, buffers: Sequence[memoryview], offset: int) -> None:
        self._suffer("writes")
        super().write(buffers, offset)

    def _suffer(self, direction: str) -> None:
        with self.changed:
            self.changed.wait_for(lambda: getattr(self, direction) != "hang")
        if getattr(self, direction) == "fail":
            raise OSError(5, "a test said so")


slab.SlabFile = BreakableFile  # type: ignore[misc] what slabs are made of


def break_disk(reads: Fate = "work", writes: Fate = "work") -> None:
    """Decide what the disk does from now on."""
    with BreakableFile.changed:
        BreakableFile.reads, BreakableFile.writes = reads, writes
        BreakableFile.changed.notify_all()


def trust_disk() -> None:
    """Believe whatever is read, as a cache without checksums does."""
    slab.Slab._is_valid = lambda *_: True  # type: ignore[method-assign]
