"""What routers that follow a fleet's caches are told: pages, under the names the engine gives them.

A router joins what it hears of an engine by name and by page: of its device from the engine itself,
of the tiers below from here. So nothing is said in our blocks or under our keys.
"""

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from flexkv_core.block.types import BlockKey
from flexkv_core.events import BlocksRemoved, BlocksStored, CacheCleared, EventLog

__all__ = [
    "MEDIA",
    "Announcement",
    "Announcer",
    "BlockPages",
    "PageKind",
    "PageName",
    "PagesRemoved",
    "PagesStored",
    "names_of",
    "pack_tokens",
]

PageName = int | bytes
"""The engine's hash of all tokens up to the end of a page."""

MEDIA = {"host": "CPU", "ssd": "STORAGE"}
"""What events call our tiers: vLLM's own names. Dynamo drops events with the medium "SSD"."""

_TOKEN_BYTES = 4
_MAX_EXPECTED_BLOCKS = 16_384
"""Being saved, or lost on the way: 20 MB of names and tokens."""


def pack_tokens(token_ids: Sequence[int]) -> bytes | None:
    """Pack tokens; None if one is no unsigned integer of 32 bits, which routers cannot read."""
    try:
        return array("I", token_ids).tobytes()
    except (OverflowError, TypeError):
        return None


class PageKind(msgspec.Struct, frozen=True, gc=False):
    """What pages of a request have in common."""

    page_tokens: int
    lora_id: int | None = None
    lora_name: str | None = None
    group: tuple[int, str, int | None] | None = None
    """The cache group's number, kind and window, where an engine has more than one."""

    cache_salt: str | None = None
    """Where an engine's events do not say it with the extra keys of each page."""


class BlockPages(msgspec.Struct, frozen=True, gc=False):
    """What is told of the pages of one block, or of its last ones, whatever tier it is in."""

    names: tuple[PageName, ...]
    parent: PageName | None
    """Name of the page before them, if there is one."""

    packed_tokens: bytes
    """Of `pack_tokens`: lists and arrays of a million blocks would be walked by each collection."""

    kind: PageKind
    extra_keys: tuple[tuple[Any, ...] | None, ...] | None = None
    """What enters each name beside tokens, as the engine says it; None for nothing."""

    @property
    def token_ids(self) -> list[int]:
        """The tokens of all these pages."""
        return memoryview(self.packed_tokens).cast("I").tolist()

    def after(self, num_pages: int) -> "BlockPages":
        """Return the same without the first pages."""
        if not num_pages:
            return self
        return msgspec.structs.replace(
            self,
            names=self.names[num_pages:],
            parent=self.names[num_pages - 1],
            packed_tokens=self.packed_tokens[num_pages * self.kind.page_tokens * _TOKEN_BYTES :],
            extra_keys=self.extra_keys and self.extra_keys[num_pages:],
        )


class PagesStored(NamedTuple):
    """Consecutive blocks of one chain became findable in `tier`."""

    tier: str
    blocks: list[BlockPages]


class PagesRemoved(NamedTuple):
    """Blocks can no longer be found in `tier`."""

    tier: str
    blocks: list[BlockPages]


Announcement = PagesStored | PagesRemoved


def names_of(said: Announcement) -> list[PageName]:
    """Return the names of all pages of an announcement."""
    return [name for block in said.blocks for name in block.names]


class _Tier:
    """What is announced of one tier.

    Blocks that part within themselves have their first pages in common. Those are told once, and
    taken back with the last block: some routers count what they hear of a page, others do not.
    """

    def __init__(self) -> None:
        self.blocks: dict[BlockKey, BlockPages] = {}
        self._alike: dict[tuple[PageName, object], tuple[BlockPages, ...]] = {}
        """Blocks by their first page, whose name is the same in every cache group."""

    def add(self, key: BlockKey, pages: BlockPages) -> BlockPages:
        """Return those pages of a new block that are new."""
        first = pages.names[0], pages.kind.group
        alike = self._alike.get(first, ())
        self.blocks[key] = pages
        self._alike[first] = (*alike, pages)
        return _without_shared(pages, alike)

    def remove(self, key: BlockKey) -> BlockPages | None:
        """Return those pages of a block that left with it; None if it was not announced."""
        pages = self.blocks.pop(key, None)
        if pages is None:
            return None
        first = pages.names[0], pages.kind.group
        alike = tuple(other for other in self._alike.pop(first) if other is not pages)
        if alike:
            self._alike[first] = alike
        return _without_shared(pages, alike)


class Announcer:
    """Makes announcements of what `log` tells of keys. Thread: the scheduler's.

    What a block is called has to be known by the time it is stored: it is noted when its save is
    planned, and kept while the block is in any tier. Of blocks that an earlier process has left it
    is noted when a request comes with their tokens. Nothing else is announced.
    """

    def __init__(self) -> None:
        """Begin with nothing announced."""
        self.log = EventLog()
        self._expected: dict[BlockKey, BlockPages] = {}
        """Not in any tier yet, the oldest first."""

        self._tiers: dict[str, _Tier] = defaultdict(_Tier)

    def expect(self, keys: Sequence[BlockKey], pages: Sequence[BlockPages]) -> None:
        """Note what blocks are called that are about to be stored."""
        self._expected.update(zip(keys, pages, strict=True))
        while len(self._expected) > _MAX_EXPECTED_BLOCKS:
            del self._expected[next(iter(self._expected))]

    def pages_of(self, key: BlockKey) -> BlockPages | None:
        """Return what is told of a block, if anything ever was or will be."""
        everywhere = (tier.blocks.get(key) for tier in self._tiers.values())
        announced = next((pages for pages in everywhere if pages is not None), None)
        return self._expected.get(key) or announced

    def find(
        self,
        tier: str,
        keys: Sequence[BlockKey],
        describe: Callable[[range], Sequence[BlockPages]],
    ) -> None:
        """Announce what is in `tier` and has never been announced.

        Args:
            tier: Where the blocks are.
            keys: A chain.
            describe: Returns what the blocks at some positions of the chain are called.
        """
        known = self._tiers[tier].blocks
        first = next((at for at, key in enumerate(keys) if key not in known), len(keys))
        if first < len(keys) and (pages := describe(range(first, len(keys)))):
            self.expect(keys[first:], pages)
            self.log.append(BlocksStored(tier, keys[first:]))

    def take(self) -> list[Announcement]:
        """Return what has happened since the last call, parents before children."""
        said: list[Announcement] = []
        for event in self.log.take():
            if isinstance(event, BlocksStored):
                said += self._stored(event)
            elif isinstance(event, BlocksRemoved):
                said += self._removed(event.tier, event.keys)
            else:  # all is lost; other entries of this engine's are not ours to clear
                for name, tier in self._tiers.items():
                    said += self._removed(name, [*tier.blocks])
        return said

    def take_back(self) -> list[Announcement]:
        """Return the removal of all that was announced: the cache is off from now on."""
        self.log.append(CacheCleared())
        return self.take()

    def forget(self) -> None:
        """Note that routers have dropped all they know of this engine.

        What is still there is announced when a request comes with its tokens.
        """
        self.log.take()
        self._expected.clear()  # what they follow is not known any more
        self._tiers.clear()

    def _stored(self, event: BlocksStored) -> Iterable[PagesStored]:
        tier = self._tiers[event.tier]
        run: list[BlockPages] = []
        for key in event.keys:
            described = self.pages_of(key)
            self._expected.pop(key, None)
            if described is None or key in tier.blocks:
                continue
            pages = tier.add(key, described)
            if run and not _follows(pages, run[-1]):
                yield PagesStored(event.tier, run)
                run = []
            run.append(pages)
        if run:
            yield PagesStored(event.tier, run)

    def _removed(self, tier: str, keys: Iterable[BlockKey]) -> Iterable[PagesRemoved]:
        gone: dict[object, list[BlockPages]] = defaultdict(list)
        for key in keys:
            if pages := self._tiers[tier].remove(key):
                gone[pages.kind.group].append(pages)  # an event names one group
        return [PagesRemoved(tier, blocks) for blocks in gone.values()]


def _without_shared(pages: BlockPages, others: Iterable[BlockPages]) -> BlockPages:
    """Return `pages` without those at its beginning that any of `others` has, too."""
    return pages.after(max((_num_shared(pages, other) for other in others), default=0))


def _num_shared(pages: BlockPages, other: BlockPages) -> int:
    pairs = enumerate(zip(pages.names, other.names, strict=True))
    return next((at for at, (name, theirs) in pairs if name != theirs), len(pages.names))


def _follows(pages: BlockPages, before: BlockPages) -> bool:
    return pages.parent == before.names[-1] and pages.kind == before.kind
