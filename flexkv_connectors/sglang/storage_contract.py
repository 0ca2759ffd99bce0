"""The contract of HiCache's storage backends as a test class, for any backend: SGLang has none.

Inherit it in an environment with SGLang, and say how to make a case:

class TestMyStorage(HiCacheStorageContract):
    @pytest.fixture
    def case(self):
        return MyCase(...)

The zero-copy calls (`batch_exists`, `batch_get_v1`, `batch_set_v1`) are covered, as SGLang 0.5.23
makes them: a chain's keys in order, at most 128 a call, with the keys before them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from sglang.srt.mem_cache.hicache_storage import HiCacheStorageExtraInfo

if TYPE_CHECKING:
    import torch
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorage

__all__ = ["HiCacheStorageContract", "StorageCase", "chain_of"]

_NUM_KEYS = 8


class StorageCase(ABC):
    """An empty storage over a host pool of at least 32 pages, all of different content."""

    storage: "HiCacheStorage"

    @abstractmethod
    def indices(self, page_ids: Sequence[int]) -> "torch.Tensor":
        """Return the token indices of host pages, as SGLang passes them."""

    @abstractmethod
    def page(self, page_id: int) -> bytes:
        """Return the content of a host page."""

    @abstractmethod
    def damage(self) -> None:
        """Make everything that is stored unreadable or wrong, behind the storage's back."""

    def set(self, keys: list[str], page_ids: Sequence[int], prefix: list[str]) -> list[bool]:
        """Store pages."""
        stored: list[bool] = self.storage.batch_set_v1(keys, self.indices(page_ids), _extra(prefix))
        return stored

    def get(self, keys: list[str], page_ids: Sequence[int], prefix: list[str]) -> list[bool]:
        """Load pages."""
        loaded: list[bool] = self.storage.batch_get_v1(keys, self.indices(page_ids), _extra(prefix))
        return loaded

    def pages(self, page_ids: Sequence[int]) -> list[bytes]:
        """Return the content of host pages."""
        return [self.page(page_id) for page_id in page_ids]


def chain_of(name: int) -> list[str]:
    """Return the keys of a sequence that no other name has."""
    return [f"{name:032x}{position:032x}" for position in range(1, _NUM_KEYS + 1)]


def _extra(prefix: list[str]) -> HiCacheStorageExtraInfo:
    return HiCacheStorageExtraInfo(prefix_keys=prefix)


class HiCacheStorageContract(ABC):
    """What SGLang takes for granted of every storage backend, and that bytes are right."""

    @pytest.fixture
    @abstractmethod
    def case(self) -> StorageCase:
        """Make a new case."""

    def test_pages_come_back_in_the_order_of_their_keys(self, case: StorageCase) -> None:
        """The target pages are in another order, so that places do not decide."""
        keys, expected = chain_of(1), case.pages(range(_NUM_KEYS))
        assert case.set(keys, range(_NUM_KEYS), []) == [True] * _NUM_KEYS
        targets = [31, 20, 27, 22, 29, 24, 25, 26]
        assert case.get(keys, targets, []) == [True] * _NUM_KEYS
        assert case.pages(targets) == expected

    def test_no_page_but_the_targets_changes(self, case: StorageCase) -> None:
        """Running requests share the others."""
        others = [page for page in range(32) if page not in range(20, 28)]
        before = case.pages(others)
        case.set(chain_of(1), range(_NUM_KEYS), [])
        case.get(chain_of(1), range(20, 28), [])
        assert case.pages(others) == before

    def test_exists_counts_the_leading_pages(self, case: StorageCase) -> None:
        """A page behind one that is missing does not count."""
        keys = chain_of(1)
        assert case.storage.batch_exists(keys) == 0
        case.set(keys[:5], range(5), [])
        assert case.storage.batch_exists(keys) == 5  # noqa: PLR2004 what was set
        assert case.storage.batch_exists(chain_of(2) + keys) == 0

    def test_a_call_may_begin_behind_pages_that_are_stored(self, case: StorageCase) -> None:
        """SGLang asks in batches, and only for what it does not have itself."""
        keys, expected = chain_of(1), case.pages(range(_NUM_KEYS))
        case.set(keys[:3], range(3), [])
        assert all(case.set(keys[3:], range(3, _NUM_KEYS), keys[:3]))
        assert case.storage.batch_exists(keys[3:], _extra(keys[:3])) == _NUM_KEYS - 3
        assert all(case.get(keys[3:], range(20, 25), keys[:3]))
        assert case.pages(range(20, 25)) == expected[3:]

    def test_pages_that_are_missing_are_said_and_keep_their_content(
        self, case: StorageCase
    ) -> None:
        """What was found before them is used."""
        keys = chain_of(1)
        case.set(keys[:5], range(5), [])
        before = case.pages(range(25, 28))
        assert case.get(keys, range(20, 28), []) == [True] * 5 + [False] * 3
        assert case.pages(range(25, 28)) == before

    def test_storing_again_changes_nothing(self, case: StorageCase) -> None:
        """The key says what the bytes are."""
        keys, expected = chain_of(1), case.pages(range(_NUM_KEYS))
        for _ in range(2):
            assert all(case.set(keys, range(_NUM_KEYS), []))
        assert all(case.get(keys, range(20, 28), []))
        assert case.pages(range(20, 28)) == expected

    def test_a_storage_without_keys_before_a_call_answers(self, case: StorageCase) -> None:
        """SGLang passes no `extra_info` unless it was told to."""
        keys = chain_of(1)
        indices = case.indices(range(_NUM_KEYS))
        stored = case.storage.batch_set_v1(keys, indices)
        loaded = case.storage.batch_get_v1(keys, indices)
        assert [len(stored), len(loaded)] == [_NUM_KEYS] * 2
        assert case.storage.batch_exists(keys) == sum(stored)

    def test_clear_forgets_all_and_the_storage_goes_on(self, case: StorageCase) -> None:
        """An operator clears it while the engine serves."""
        keys = chain_of(1)
        case.set(keys, range(_NUM_KEYS), [])
        case.storage.clear()
        assert case.storage.batch_exists(keys) == 0
        assert all(case.set(keys, range(_NUM_KEYS), []))

    def test_prefetch_and_backup_of_several_threads(self, case: StorageCase) -> None:
        """SGLang calls from three threads and the scheduler's."""
        keys, expected = chain_of(1), case.pages(range(_NUM_KEYS))
        case.set(keys, range(_NUM_KEYS), [])
        with ThreadPoolExecutor(4) as threads:
            done = [
                *threads.map(lambda _: case.get(keys, range(20, 28), []), range(8)),
                *threads.map(lambda name: case.set(chain_of(name), range(8), []), range(2, 10)),
            ]
            found = threads.map(lambda _: case.storage.batch_exists(keys), range(8))
        assert all(map(all, done))
        assert set(found) == {_NUM_KEYS}
        assert case.pages(range(20, 28)) == expected

    def test_wrong_bytes_are_a_miss(self, case: StorageCase) -> None:
        """SGLang notices nothing itself: it would answer from them."""
        keys = chain_of(1)
        case.set(keys, range(_NUM_KEYS), [])
        case.damage()
        before = case.pages(range(20, 28))
        assert not any(case.get(keys, range(20, 28), []))
        assert case.pages(range(20, 28)) == before
