"""How far a prompt can be restored whose pages have parts in several pools. Pure functions."""

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import NamedTuple

__all__ = ["Hit", "Part", "find_hit"]


_COPY = "block_groups"
"""The policy of a pool that holds a second copy of the same pages and decides nothing. It has no
place in the answer either: to SGLang, a pool that is left out is one that was not looked at."""


class Part(NamedTuple):
    """What one pool has of the pages of a prompt whose KV is there."""

    name: str
    policy: str
    """SGLang's `PoolHitPolicy`: at which pages the prompt needs the pool."""

    window: int
    """Pages that are needed at the end, where the policy is "trailing_pages"."""

    has_page: Sequence[bool]


class Hit(NamedTuple):
    """What SGLang wants to know of a prompt; fields as in its `PoolTransferResult`."""

    num_pages: int
    """Of the longest beginning that can be restored."""

    pages_by_pool: dict[str, int]
    """Of the longest beginning for which one pool has what is needed; pools without any left
    out."""

    ends: list[int]
    """Every number of pages at which a beginning can be restored: ranks need a common one."""


def find_hit(num_kv_pages: int, parts: Iterable[Part]) -> Hit:
    """Combine what the pools have of a prompt whose first `num_kv_pages` pages of KV are there."""
    ends_by_pool = {"kv": list(range(1, num_kv_pages + 1))}
    ends_by_pool |= {part.name: _ends(part) for part in parts if part.policy != _COPY}
    ends = set.intersection(*map(set, ends_by_pool.values()))
    longest = {name: max(found) for name, found in ends_by_pool.items() if found}
    return Hit(max(ends, default=0), longest, sorted(ends))


def _ends(part: Part) -> list[int]:
    match part.policy:
        case "all_pages":
            return _ends_with_all_pages(part)
        case "trailing_pages":
            return _ends_with_trailing_pages(part)
        case _:
            return []  # what a later SGLang needs is not known here


def _ends_with_all_pages(part: Part) -> list[int]:
    num_leading = sum(1 for _ in takewhile(bool, part.has_page))
    return list(range(1, num_leading + 1))


def _ends_with_trailing_pages(part: Part) -> list[int]:
    """Return the ends of whole windows; the first ones are cut by the beginning of the pages."""
    window, num_together, ends = max(1, part.window), 0, []
    for end, has_page in enumerate(part.has_page, 1):
        num_together = num_together + 1 if has_page else 0
        if num_together >= min(window, end):
            ends.append(end)
    return ends
