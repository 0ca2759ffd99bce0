"""The contract of storage backends for models whose pages have parts beside their KV.

Such a part lies in a host pool of its own (a sliding window, a state, an indexer). SGLang stores it
before the KV of the same pages, and asks for both at once: how far a prompt can be restored.
Inherit `SidecarContract` as `hicache_storage` says.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest
from sglang.srt.mem_cache.hicache_storage import (
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
    PoolTransferResult,
)

from flexkv_connectors.testing.hicache_storage import StorageCase, chain_of, extra_of

if TYPE_CHECKING:
    import torch

__all__ = ["SidecarCase", "SidecarContract"]

_NUM_KEYS = 8
_WINDOW = 2


class SidecarCase(ABC):
    """A case of the KV, and a pool `name` of at least 32 pages that belongs to the same storage."""

    kv: StorageCase
    name: PoolName

    @abstractmethod
    def page(self, page_id: int) -> bytes:
        """Return the content of a page of the sidecar's pool."""

    def indices(self, page_ids: Sequence[int]) -> "torch.Tensor":
        """Return the indices of the sidecar's pages, as SGLang passes them.

        As many for each page as its pool has tokens in a page; a state has one.
        """
        return self.kv.indices(page_ids)

    def set(self, keys: list[str], page_ids: Sequence[int]) -> list[bool]:
        """Store pages of the sidecar."""
        transfer = self._transfer(keys, page_ids)
        return self._result_of(self.kv.storage.batch_set_v2([transfer], extra_of([])))

    def get(self, keys: list[str], page_ids: Sequence[int]) -> list[bool]:
        """Load pages of the sidecar."""
        transfer = self._transfer(keys, page_ids)
        return self._result_of(self.kv.storage.batch_get_v2([transfer], extra_of([])))

    def find(self, keys: list[str], policy: PoolHitPolicy, num_pages: int) -> PoolTransferResult:
        """Ask how far both parts are there; `num_pages` of the sidecar are needed at the end."""
        transfer = PoolTransfer(name=self.name, keys=keys[-num_pages:], hit_policy=policy)
        return self.kv.storage.batch_exists_v2(keys, [transfer], extra_of([]))

    def attach_again(self) -> None:
        """Detach the storage and attach another to the same pools."""
        self.kv.attach_again()

    def pages(self, page_ids: Sequence[int]) -> list[bytes]:
        """Return the content of pages of the sidecar's pool."""
        return [self.page(page_id) for page_id in page_ids]

    def _transfer(self, keys: list[str], page_ids: Sequence[int]) -> PoolTransfer:
        return PoolTransfer(name=self.name, host_indices=self.indices(page_ids), keys=keys)

    def _result_of(self, results: dict[str, list[bool]]) -> list[bool]:
        return results[self.name]


class SidecarContract(ABC):
    """What SGLang takes for granted of storages that keep more than KV."""

    @pytest.fixture
    @abstractmethod
    def case(self) -> SidecarCase:
        """Make a new case."""

    def test_parts_come_back_each_to_its_own_pool(self, case: SidecarCase) -> None:
        """The same keys stand for different bytes in different pools."""
        keys, expected = chain_of(1), case.pages(range(_NUM_KEYS))
        kv_expected = case.kv.pages(range(8, 16))
        assert all(case.set(keys, range(_NUM_KEYS)))
        assert all(case.kv.set(keys, range(8, 16), []))
        assert all(case.get(keys, range(20, 28)))
        assert all(case.kv.get(keys, range(20, 28), []))
        assert case.pages(range(20, 28)) == expected
        assert case.kv.pages(range(20, 28)) == kv_expected

    def test_without_its_kv_a_part_is_no_hit(self, case: SidecarCase) -> None:
        """SGLang stores the parts first, and may be killed before the KV."""
        keys = chain_of(1)
        case.set(keys, range(_NUM_KEYS))
        assert case.find(keys, PoolHitPolicy.ALL_PAGES, _NUM_KEYS).kv_hit_pages == 0

    def test_a_part_needed_for_all_pages_ends_the_hit_where_it_ends(
        self, case: SidecarCase
    ) -> None:
        """The indexer of sparse attention is one."""
        keys = chain_of(1)
        case.set(keys[:5], range(5))
        case.kv.set(keys, range(_NUM_KEYS), [])
        found = case.find(keys, PoolHitPolicy.ALL_PAGES, _NUM_KEYS)
        assert found.kv_hit_pages == 5  # noqa: PLR2004 what was set

    def test_a_part_needed_at_the_end_allows_the_ends_where_it_is(self, case: SidecarCase) -> None:
        """A sliding window is stored where a sequence ended; all ranks need the same end."""
        keys = chain_of(1)
        case.set(keys[1:3] + keys[4:6], [1, 2, 4, 5])
        case.kv.set(keys, range(_NUM_KEYS), [])
        found = case.find(keys, PoolHitPolicy.TRAILING_PAGES, _WINDOW)
        assert found.kv_hit_pages == 6  # noqa: PLR2004 where the second window ends
        ends = [3, 6]
        assert getattr(found, "restorable_prefix_pages", ends) == ends  # SGLang has it from 0.5.20

    def test_parts_that_are_missing_are_said_and_keep_their_content(
        self, case: SidecarCase
    ) -> None:
        """Each page answers for itself."""
        keys = chain_of(1)
        case.set(keys[:5], range(5))
        before = case.pages(range(25, 28))
        assert case.get(keys, range(20, 28)) == [True] * 5 + [False] * 3
        assert case.pages(range(25, 28)) == before

    def test_indices_that_do_not_fit_the_keys_are_refused(self, case: SidecarCase) -> None:
        """Or a page of another request would be read or written."""
        keys, before = chain_of(1), case.pages(range(32))
        assert not any(case.set(keys, range(_NUM_KEYS - 1)))
        assert not any(case.get(keys, range(_NUM_KEYS - 1)))
        assert case.pages(range(32)) == before
        assert all(case.set(keys, range(_NUM_KEYS)))

    def test_no_part_is_asked_for_and_the_kv_decides(self, case: SidecarCase) -> None:
        """As `batch_exists` would."""
        keys = chain_of(1)
        case.kv.set(keys[:5], range(5), [])
        found = case.kv.storage.batch_exists_v2(keys, None, extra_of([]))
        assert found.kv_hit_pages == 5  # noqa: PLR2004 what was set

    def test_a_storage_that_is_attached_again_has_its_parts(self, case: SidecarCase) -> None:
        """Also after a restart of the engine."""
        keys, expected = chain_of(1), case.pages(range(_NUM_KEYS))
        case.set(keys, range(_NUM_KEYS))
        case.kv.set(keys, range(_NUM_KEYS), [])
        case.attach_again()
        found = case.find(keys, PoolHitPolicy.ALL_PAGES, _NUM_KEYS)
        assert found.kv_hit_pages == _NUM_KEYS
        assert all(case.get(keys, range(20, 28)))
        assert case.pages(range(20, 28)) == expected

    def test_clear_forgets_the_parts(self, case: SidecarCase) -> None:
        """Or they would be found with the KV of whatever comes after."""
        keys = chain_of(1)
        case.set(keys, range(_NUM_KEYS))
        case.kv.storage.clear()
        assert not any(case.get(keys, range(20, 28)))
        assert all(case.set(keys, range(_NUM_KEYS)))

    def test_wrong_bytes_of_a_part_are_said_to_be_missing(self, case: SidecarCase) -> None:
        """SGLang notices nothing itself: it would answer from them."""
        keys = chain_of(1)
        case.set(keys, range(_NUM_KEYS))
        case.kv.damage()
        assert not any(case.get(keys, range(20, 28)))

    def test_a_part_that_turned_out_bad_can_be_stored_again(self, case: SidecarCase) -> None:
        """Or its prompt would be computed for ever."""
        keys, expected = chain_of(1), case.pages(range(_NUM_KEYS))
        case.set(keys, range(_NUM_KEYS))
        case.kv.damage()
        case.get(keys, range(20, 28))
        assert all(case.set(keys, range(_NUM_KEYS)))
        assert all(case.get(keys, range(20, 28)))
        assert case.pages(range(20, 28)) == expected

    def test_no_page_of_a_part_but_the_targets_changes(self, case: SidecarCase) -> None:
        """Running requests share the others."""
        others = [page for page in range(32) if page not in range(20, 28)]
        before = case.pages(others)
        case.set(chain_of(1), range(_NUM_KEYS))
        case.get(chain_of(1), range(20, 28))
        assert case.pages(others) == before
