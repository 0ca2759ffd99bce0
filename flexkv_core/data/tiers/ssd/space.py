"""The slabs of one column: adopted, made and grown over the directories, within one quota."""

import errno
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path

from flexkv_core.block.types import BlockKey
from flexkv_core.data.tiers.ssd.directory import Directory
from flexkv_core.data.tiers.ssd.files import num_spare_files
from flexkv_core.data.tiers.ssd.format import PAGE_BYTES, SLAB_SUFFIX, Superblock, slot_bytes
from flexkv_core.data.tiers.ssd.slab import Slab

__all__ = ["Space"]

logger = logging.getLogger(__name__)

_MIN_STEP_BYTES = 64 << 20
_MAX_STEP_BYTES = 1 << 30
_NUM_STEPS = 64
"""A column reaches its quota in about this many steps: the first is quickly made, and space that is
never used is not taken."""

_MAX_ADOPTED = 64
"""Slabs of earlier processes: each takes a descriptor, and a look at every key that is searched."""

_RETRY_S = 60.0
"""How long a directory that failed or had no room is left alone."""

_ANY = (0,)
"""A slot, to be pinned for the sake of its slab."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
_NO_ROOM = "No room below ssd_directory_cap_gb, or on the file system but for its reserve"


class Space:
    """Where the slots of one column come from.

    Thread: any. `lock` guards `slabs` and their slot tables and is never held during I/O. A second
    lock, `_changing`, lets one call at a time make, grow or retire slabs; calls that found no room
    wait for it. If both are taken, `_changing` comes first.
    """

    def __init__(
        self,
        directories: Sequence[Directory],
        superblock: Superblock,
        quota_bytes: int,
        engine_id: str,
        clock: Callable[[], float] = time.monotonic,
        *,
        is_aligned: bool = True,
    ) -> None:
        """Begin without slabs.

        Args:
            directories: Slots are spread over them evenly.
            superblock: Of every slab.
            quota_bytes: Size of all slabs together.
            engine_id: The same on all ranks of an engine: they name and choose slabs alike, so
                that one engine adopts all cells of a block.
            clock: Times the retries of failed directories.
            is_aligned: Whether the memory of cells is aligned, so that direct I/O can be used.
        """
        self.lock = threading.Lock()
        self.slabs: tuple[Slab, ...] = ()
        self._superblock = superblock
        self._slot_bytes = slot_bytes(superblock.cell_bytes)
        self._quota_bytes = quota_bytes
        step_bytes = min(max(quota_bytes // _NUM_STEPS, _MIN_STEP_BYTES), _MAX_STEP_BYTES)
        self._step_slots = max(1, step_bytes // len(directories) // self._slot_bytes)
        self._engine_id = engine_id
        self._clock = clock
        self._is_aligned = is_aligned
        self._folders = {directory: directory.folder(superblock) for directory in directories}
        self._retry_s: dict[Directory, float] = dict.fromkeys(directories, 0.0)
        self._leaving: list[Slab] = []
        """Retired, and still in use; guarded by `lock`."""

        self._turn = 0
        self._is_closed = False
        self._changing = threading.Lock()

    @property
    def num_slots(self) -> int:
        """Existing slots, plus those that may be added.

        That is all the quota allows. If every directory has failed, only one slot may be added, and
        only once a directory is due for a retry: the write that relies on it may fail again.
        """
        with self.lock:
            num_slots = sum(len(slab.slots) for slab in self.slabs)
            directories = self._usable()
            num_new = sum(self._slab_in(directory) is None for directory in directories)
            num_more = max(0, self._num_slots_in(self._room() - num_new * PAGE_BYTES))
            has_failed = all(self._retry_s.values())
            return num_slots + (min(num_more, len(directories[:1])) if has_failed else num_more)

    def adopt(self) -> None:
        """Take over slabs of earlier processes, in this engine's own order, up to the quota.

        There may be thousands: those that would take too many descriptors stay leftovers.
        """
        max_slabs = min(_MAX_ADOPTED, num_spare_files())
        for directory, path in self._found():
            room = self._room()
            if self._num_slots_in(room - PAGE_BYTES) < 1 or len(self.slabs) >= max_slabs:
                return
            try:
                with directory.locked():
                    slab = Slab.adopt(path, self._superblock, room, is_aligned=self._is_aligned)
            except OSError as error:
                logger.warning("ssd.not_adopted path=%s: %s", path, error.strerror)
            else:
                self._add(slab)

    def find(self, key: BlockKey) -> tuple[Slab, int] | None:
        """Return where `key` is; under `lock`."""
        for slab in self.slabs:
            slot = slab.slots.find(key)
            if slot is not None:
                return slab, slot
        return None

    def take(self, num_slots: int) -> tuple[Slab, range] | None:
        """Take and pin up to `num_slots` adjacent free slots, growing if there is none.

        Returns:
            The slots, to be released by `unpin`; None if there is no room.
        """
        run = self._take_free(num_slots)
        if run is not None:
            return run
        with self._changing:
            run = self._take_free(num_slots)  # another call may have made room meanwhile
            if run is None and self._grow():
                run = self._take_free(num_slots)
            return run

    def unpin(self, slab: Slab, slots: Iterable[int]) -> None:
        """Unpin `slots`; the last call on a retired slab closes it."""
        with self.lock:
            slab.slots.unpin(slots)
            is_over = slab.is_retired and slab.slots.is_idle
            if is_over:
                self._leaving.remove(slab)
        if is_over:
            slab.close()

    def note_write(self, slab: Slab, error: OSError | None) -> None:
        """Tell the directory of `slab` that a write has failed for want of room, or succeeded."""
        if error is None or error.errno in _FULL:
            places = self._folders.items()
            [directory] = (it for it, folder in places if folder == slab.folder)
            directory.note("be written", error)

    def retire(self, slabs: Sequence[Slab]) -> None:
        """Remove slabs and all keys in them; they stay locked until no call uses them."""
        with self._changing:
            self._retire(slabs)

    def drop_lost(self) -> None:
        """Retire slabs whose files have been deleted."""
        lost = [slab for slab in self.slabs if slab.is_lost]
        if lost:
            logger.warning("ssd.slabs_lost paths=%s", [str(slab.path) for slab in lost])
            self.retire(lost)

    def resize(self, quota_bytes: int) -> None:
        """Use no more than `quota_bytes` from here on; the newest slabs are cut first.

        A slab of which nothing would be left, or whose end is in use, is retired whole; its file
        stays as a leftover.
        """
        with self._changing:
            self._quota_bytes = quota_bytes
            while self.slabs and self._room() < 0:
                if not self._cut(self.slabs[-1]):
                    self._retire(self.slabs[-1:])

    def unlink(self) -> None:
        """Delete the files of all slabs: their blocks are not found again.

        Slabs that were retired, or never adopted, hold the same blocks: they are deleted as well.
        """
        with self._changing:
            with self.lock:
                leaving = [*self._leaving]
                for slab in leaving:
                    slab.slots.pin(_ANY)  # else its last call could close it meanwhile
            for slab in (*self.slabs, *leaving):
                _try_to_delete(slab.path, slab.unlink)
            for slab in leaving:
                self.unpin(slab, _ANY)
            for directory, folder in self._folders.items():
                leftovers = partial(directory.delete_leftovers, self._superblock)
                _try_to_delete(folder / ("*" + SLAB_SUFFIX), leftovers)

    def close(self) -> None:
        """Retire all slabs and never make another."""
        with self._changing:
            self._is_closed = True
            self._retire(self.slabs)

    def _retire(self, slabs: Sequence[Slab]) -> None:
        with self.lock:
            retired = [slab for slab in slabs if not slab.is_retired]
            self.slabs = tuple(slab for slab in self.slabs if slab not in retired)
            for slab in retired:
                slab.is_retired = True
            idle = [slab for slab in retired if slab.slots.is_idle]
            self._leaving += [slab for slab in retired if slab not in idle]
        for slab in idle:
            slab.close()

    def _cut(self, slab: Slab) -> bool:
        """Shorten `slab` by what exceeds the quota; return False if that is impossible."""
        num_slots = self._num_slots_in(slab.size + self._room() - PAGE_BYTES)
        with self.lock:
            is_cut = num_slots > 0 and slab.slots.cut(num_slots)
        try:
            if is_cut:
                slab.resize(num_slots)
        except OSError as error:
            logger.warning("ssd.not_cut path=%s: %s", slab.path, error.strerror)
            return False
        return is_cut

    def _take_free(self, num_slots: int) -> tuple[Slab, range] | None:
        """Take slots from the slabs in turn, which spreads what is written over the drives."""
        with self.lock:
            for offset in range(len(self.slabs)):
                slab = self.slabs[(self._turn + offset) % len(self.slabs)]
                if slots := slab.slots.take(num_slots):
                    self._turn += 1
                    return slab, slots
        return None

    def _grow(self) -> bool:
        """Grow by a step in every directory that may have room; return whether one had."""
        directories = [] if self._is_closed else self._usable()
        return True in [self._grow_in(directory) for directory in directories]

    def _grow_in(self, directory: Directory) -> bool:
        try:
            with directory.locked():
                has_grown = self._extend(directory)
        except OSError as error:
            directory.note("grow", error)
            self._retry_s[directory] = self._clock() + _RETRY_S
            return False
        self._retry_s[directory] = 0.0
        if has_grown:
            directory.note("grow", None)
        return has_grown

    def _extend(self, directory: Directory) -> bool:
        """Add a step's slots to this column's slab in `directory`; False at the quota."""
        slab = self._slab_in(directory)
        own_bytes = 0 if slab else PAGE_BYTES
        wanted = min(self._step_slots, self._num_slots_in(self._room() - own_bytes))
        if wanted < 1:
            return False
        room = directory.make_room(own_bytes + wanted * self._slot_bytes)
        num_slots = self._num_slots_in(room - own_bytes)
        if num_slots < 1:
            raise OSError(errno.ENOSPC, _NO_ROOM)
        if slab is None:
            slab = self._create(directory)
        slab.resize(len(slab.slots) + num_slots)
        with self.lock:
            slab.slots.grow(num_slots)
        return True

    def _create(self, directory: Directory) -> Slab:
        folder = directory.make_folder(self._superblock)
        stem = sha256(self._engine_id.encode()).hexdigest()[:16]
        paths = (folder / f"{stem}-{number}{SLAB_SUFFIX}" for number in itertools.count())
        slabs = (Slab.create(path, self._superblock, is_aligned=self._is_aligned) for path in paths)
        slab = next(filter(None, slabs))
        self._add(slab)
        return slab

    def _add(self, slab: Slab | None) -> None:
        if slab is not None:
            with self.lock:
                self.slabs += (slab,)

    def _found(self) -> list[tuple[Directory, Path]]:
        """List this column's slabs of all directories in the order of adoption."""
        found = [(directory, path) for directory in self._retry_s for path in self._list(directory)]
        return sorted(found, key=lambda place: self._rank(place[1]))

    def _list(self, directory: Directory) -> list[Path]:
        folder = self._folders[directory]
        try:
            return list(folder.glob("*" + SLAB_SUFFIX))
        except OSError as error:
            logger.warning("ssd.not_adopted path=%s: %s", folder, error.strerror)
            return []

    def _rank(self, path: Path) -> tuple[bytes, str]:
        return sha256(self._engine_id.encode() + path.name.encode()).digest(), str(path)

    def _slab_in(self, directory: Directory) -> Slab | None:
        folder = self._folders[directory]
        return next((slab for slab in self.slabs if slab.folder == folder), None)

    def _usable(self) -> list[Directory]:
        now = self._clock()
        return [directory for directory, retry_s in self._retry_s.items() if retry_s <= now]

    def _room(self) -> int:
        """Return the bytes of the quota that no slab uses."""
        return self._quota_bytes - sum(slab.size for slab in self.slabs)

    def _num_slots_in(self, num_bytes: int) -> int:
        return num_bytes // self._slot_bytes


def _try_to_delete(path: Path, delete: Callable[[], None]) -> None:
    try:
        delete()
    except OSError as error:
        logger.warning(
            "ssd.not_deleted path=%s: %s; it may hold blocks from before a reset: delete it before"
            " the next start",
            path,
            error.strerror,
        )
