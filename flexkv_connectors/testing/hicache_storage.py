"""The contract of HiCache's storage backends as a test class; SGLang itself has none.

It serves any backend. Inherit it in an environment with SGLang, and say how to make a case:

class TestMyStorage(HiCacheStorageContract):
    @pytest.fixture
    def case(self):
        return MyCase(...)

Calls are made as SGLang 0.5.23 makes them: a chain's keys in order, at most 128 a call. A
`StorageCase` goes by the zero-copy calls (`batch_get_v1`, `batch_set_v1`), which name the keys
before those of a call, and a `GenericStorageCase` by those that copy (`batch_get`, `batch_set`),
which do not. Pools beside the KV are the subject of `hicache_pools`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

import pytest
from sglang.srt.mem_cache.hicache_storage import HiCacheStorageExtraInfo
from typing_extensions import override

if TYPE_CHECKING:
    import torch
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorage
    from sglang.srt.mem_cache.pool_host import HostKVCache

__all__ = ["GenericStorageCase", "HiCacheStorageContract", "StorageCase", "chain_of", "extra_of"]

_NUM_KEYS = 8

_Prefix: TypeAlias = "list[str] | None"
"""The keys before those of a call; None where SGLang was not asked to pass them."""


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
        """Change bytes of everything that is stored, without the storage's knowledge."""

    @abstractmethod
    def cut(self) -> None:
        """Take away the end of everything that is stored, without the storage's knowledge."""

    @abstractmethod
    def attach_again(self) -> None:
        """Detach the storage and attach another to the same pages: `storage`, from then on."""

    def set(self, keys: list[str], page_ids: Sequence[int], prefix: _Prefix) -> list[bool]:
        """Store pages."""
        stored: list[bool] = self.storage.batch_set_v1(
            keys, self.indices(page_ids), extra_of(prefix)
        )
        return stored

    def get(self, keys: list[str], page_ids: Sequence[int], prefix: _Prefix) -> list[bool]:
        """Load pages."""
        loaded: list[bool] = self.storage.batch_get_v1(
            keys, self.indices(page_ids), extra_of(prefix)
        )
        return loaded

    def pages(self, page_ids: Sequence[int]) -> list[bytes]:
        """Return the content of host pages."""
        return [self.page(page_id) for page_id in page_ids]


class GenericStorageCase(StorageCase):
    """The same by calls that copy pages to and from flat tensors, one for each key."""

    pool: "HostKVCache"

    @override
    def set(self, keys: list[str], page_ids: Sequence[int], prefix: _Prefix) -> list[bool]:
        values = [self.pool.get_data_page(index) for index in self._starts(page_ids)]
        return [self.storage.batch_set(keys, values)] * len(keys)

    @override
    def get(self, keys: list[str], page_ids: Sequence[int], prefix: _Prefix) -> list[bool]:
        targets = [self.pool.get_dummy_flat_data_page() for _ in keys]
        values = self.storage.batch_get(keys, targets) or [None] * len(keys)
        num_good = next((i for i, value in enumerate(values) if value is None), len(keys))
        for index, value in zip(self._starts(page_ids), values[:num_good], strict=False):
            self.pool.set_from_flat_data_page(index, value)
        return [position < num_good for position in range(len(keys))]

    def _starts(self, page_ids: Sequence[int]) -> "torch.Tensor":
        return self.indices(page_ids)[:: self.pool.page_size]


def chain_of(name: int) -> list[str]:
    """Return the keys of a sequence that no other name has."""
    return [f"{name:032x}{position:032x}" for position in range(1, _NUM_KEYS + 1)]


def extra_of(prefix: _Prefix) -> HiCacheStorageExtraInfo:
    """Return what SGLang says beside the keys of a call."""
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
        assert case.storage.batch_exists(keys[3:], extra_of(keys[:3])) == _NUM_KEYS - 3
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

    def test_a_call_may_begin_with_pages_that_are_stored(self, case: StorageCase) -> None:
        """SGLang forgets what it has stored when it drops its own caches."""
        keys, expected = chain_of(1), case.pages(range(_NUM_KEYS))
        case.set(keys[:3], range(3), [])
        assert all(case.set(keys, range(_NUM_KEYS), []))
        assert all(case.get(keys, range(20, 28), []))
        assert case.pages(range(20, 28)) == expected

    def test_sequences_that_part_share_what_is_before(self, case: StorageCase) -> None:
        """A page is found behind the pages that its key was made of."""
        keys = chain_of(1)
        other = keys[:4] + chain_of(2)[4:]
        expected = case.pages([0, 1, 2, 3, 12, 13, 14, 15])
        assert all(case.set(keys, range(_NUM_KEYS), []))
        assert all(case.set(other[4:], range(12, 16), keys[:4]))
        assert all(case.get(other, range(20, 28), []))
        assert case.pages(range(20, 28)) == expected
        assert case.storage.batch_exists(keys) == _NUM_KEYS

    def test_what_is_stored_behind_missing_pages_is_what_is_said_to_be(
        self, case: StorageCase
    ) -> None:
        """A storage may keep such pages or not, and SGLang believes it."""
        keys = chain_of(1)
        stored = case.set(keys[3:], range(3, _NUM_KEYS), keys[:3])
        assert case.storage.batch_exists(keys[3:], extra_of(keys[:3])) == sum(stored)
        assert case.storage.batch_exists(keys) == 0

    def test_one_key_is_asked_for_like_many_and_no_key_is_no_hit(self, case: StorageCase) -> None:
        """A prompt shorter than a page has no keys."""
        keys = chain_of(1)
        case.set(keys, range(_NUM_KEYS), [])
        assert (case.storage.exists(keys[0]), case.storage.exists(chain_of(2)[0])) == (True, False)
        assert case.storage.batch_exists([]) == 0

    def test_a_storage_that_is_attached_again_has_what_it_had(self, case: StorageCase) -> None:
        """Also after a restart of the engine."""
        keys, expected = chain_of(1), case.pages(range(_NUM_KEYS))
        case.set(keys, range(_NUM_KEYS), [])
        case.attach_again()
        assert case.storage.batch_exists(keys) == _NUM_KEYS
        assert all(case.get(keys, range(20, 28), []))
        assert case.pages(range(20, 28)) == expected

    def test_a_storage_without_keys_before_a_call_answers(self, case: StorageCase) -> None:
        """SGLang passes them only where it was asked to; otherwise nothing need be stored."""
        keys = chain_of(1)
        stored = case.set(keys, range(_NUM_KEYS), None)
        loaded = case.get(keys, range(20, 28), None)
        assert loaded == stored
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
        _assert_nothing_is_loaded(case, keys)

    def test_missing_bytes_are_a_miss(self, case: StorageCase) -> None:
        """A machine that lost power leaves files shorter than they were said to be."""
        keys = chain_of(1)
        case.set(keys, range(_NUM_KEYS), [])
        case.cut()
        _assert_nothing_is_loaded(case, keys)

    def test_what_turned_out_bad_can_be_stored_again(self, case: StorageCase) -> None:
        """Or its prompt would be computed for ever."""
        keys, expected = chain_of(1), case.pages(range(_NUM_KEYS))
        case.set(keys, range(_NUM_KEYS), [])
        case.damage()
        case.get(keys, range(20, 28), [])
        case.set(keys, range(_NUM_KEYS), [])
        assert all(case.get(keys, range(20, 28), []))
        assert case.pages(range(20, 28)) == expected


def _assert_nothing_is_loaded(case: StorageCase, keys: list[str]) -> None:
    """The targets may hold anything: SGLang frees pages that were not reported as loaded."""
    others = [page for page in range(32) if page not in range(20, 28)]
    before = case.pages(others)
    assert not any(case.get(keys, range(20, 28), []))
    assert case.pages(others) == before
