"""The class that SGLang's HiCache calls; each call goes through the fault barrier."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import sglang
from sglang.srt.mem_cache.hicache_storage import HiCacheStorage, PoolTransferResult
from sglang.srt.observability.metrics_collector import StorageMetrics
from typing_extensions import override

from flexkv_connectors.below_host.deferred_stores import DeferredStores
from flexkv_connectors.below_host.stores import PoolActivity, PoolStores
from flexkv_connectors.fault_barrier import FaultBarrier, nothing
from flexkv_connectors.sglang.adapter_keys import identify_adapters
from flexkv_connectors.sglang.arguments import keys_of, page_ids_of
from flexkv_connectors.sglang.deployment import read_cache_config, translate, why_not
from flexkv_connectors.sglang.identity import origin_of, why_no_identity
from flexkv_connectors.sglang.pools import KV, describe_kv, describe_sidecar, why_not_sidecar
from flexkv_connectors.sglang.settings import read_settings
from flexkv_connectors.sglang.sidecar_hits import Part, find_hit
from flexkv_connectors.sglang.stats import StorageStats
from flexkv_connectors.sglang.weight_updates import is_settled, listen, why_not_followed
from flexkv_connectors.versions import require_supported
from flexkv_core.block.types import JobId
from flexkv_core.block_store.block_store import BlockStore
from flexkv_core.block_store.blocks import Blocks
from flexkv_core.errors import ConfigError
from flexkv_core.identity.identification import Identification
from flexkv_core.plan import Status

if TYPE_CHECKING:
    import torch
    from sglang.srt.mem_cache.hicache_storage import (
        HiCacheStorageConfig,
        HiCacheStorageExtraInfo,
        PoolTransfer,
    )
    from sglang.srt.mem_cache.pool_host import HostKVCache

__all__ = ["FlexKVHiCacheStorage"]

_Submit: TypeAlias = Callable[[BlockStore, Blocks], JobId]

logger = logging.getLogger(__name__)

_KNOWS_SIDECARS = hasattr(HiCacheStorage, "on_host_pools_registered")
"""Since 0.5.23: how earlier releases ask for pools beside the KV was not looked into."""


class FlexKVHiCacheStorage(HiCacheStorage):
    """Keeps HiCache's pages on SSD, by the chain of keys that each page ends.

    What a model keeps beside the KV of its pages is stored by the same keys, pool by pool. SGLang
    makes one instance in each rank's scheduler process. A page that fails in any way is a
    miss; SGLang computes it again.

    Thread: any, as SGLang calls it.
    """

    def __init__(self, storage_config: "HiCacheStorageConfig", _: dict[str, Any]) -> None:
        """Read the options; the files are opened when the host pool is known.

        Args:
            storage_config: What SGLang passes to every storage backend.
            _: Options of the factory; there are none.

        Raises:
            UnsupportedEngineError: This SGLang was never checked.
            ConfigError: An option cannot be used.
        """
        require_supported("sglang", sglang.__version__)
        self._config = storage_config
        self._cache = read_cache_config(storage_config.extra_config)
        self._barrier = FaultBarrier()
        self._stats_barrier = FaultBarrier(without="FlexKV's metrics")
        self._stores: DeferredStores | None = None
        self._adapters: list[Identification] = []
        self._page_tokens: dict[str, int] = {}
        """By pool."""

        self._stats = StorageStats(storage_config)
        self._is_warned = False

    @override
    def register_mem_pool_host(self, mem_pool_host: "HostKVCache") -> None:
        """Open the store over this rank's pages, as soon as it is known what they are pages of.

        Raises:
            ConfigError: The engine cannot be served.
            LayoutError: The host pool is of a kind that we do not know.
        """
        super().register_mem_pool_host(mem_pool_host)
        settings = read_settings()
        reason = (
            why_not(self._config, settings)
            or why_no_identity(settings, self._cache.weight_version)
            or why_not_followed()
        )
        if reason is not None:
            msg = f"FlexKV cannot store the pages of this engine: {reason}"
            raise ConfigError(msg)
        deployment = translate(self._cache, self._config, mem_pool_host, settings)
        self._page_tokens[KV] = mem_pool_host.page_size
        self._adapters = identify_adapters(settings, self._cache)  # first: it has less to read
        self._stores = DeferredStores(
            deployment.rank, origin_of(settings, deployment), partial(describe_kv, deployment)
        )
        listen(self)

    @override
    def register_mem_host_pool_v2(self, host_pool: "HostKVCache", host_pool_name: str) -> None:
        """Open a store for a pool beside the KV; the KV pool itself is known already.

        Raises:
            ConfigError: The pool cannot be stored, and KV is useless without it.
            LayoutError: It is of a kind that we do not know.
        """
        if host_pool_name == KV or self._stores is None:
            return
        why_old = None if _KNOWS_SIDECARS else "which is stored from SGLang 0.5.23 on"
        reason = why_old or why_not_sidecar(self._config, str(host_pool_name), host_pool)
        if reason is not None:
            msg = (
                f"FlexKV cannot store the pages of this engine: it keeps a pool {host_pool_name} "
                f"beside its KV, {reason}; serve this model without FlexKV"
            )
            raise ConfigError(msg)
        name = str(host_pool_name)
        self._page_tokens[name] = host_pool.page_size
        self._stores.add(
            partial(describe_sidecar, name, host_pool, self._config, sglang.__version__)
        )
        listen(self)  # again: weights that changed before concern this pool, too
        logger.info("connector.sidecar pool=%s", host_pool_name)

    @override
    def batch_exists(
        self, keys: list[str], extra_info: "HiCacheStorageExtraInfo | None" = None
    ) -> int:
        return sum(self._find(KV, keys, _prefix_of(extra_info)))

    @override
    def batch_get_v1(
        self,
        keys: list[str],
        host_indices: "torch.Tensor",
        extra_info: "HiCacheStorageExtraInfo | None" = None,
    ) -> list[bool]:
        before = _prefix_of(extra_info)
        load = partial(self._move, BlockStore.submit_load, KV, keys, host_indices, before)
        return self._barrier.run(load, partial(_none_of, keys))

    @override
    def batch_set_v1(
        self,
        keys: list[str],
        host_indices: "torch.Tensor",
        extra_info: "HiCacheStorageExtraInfo | None" = None,
    ) -> list[bool]:
        if not self._says_prefix(extra_info):
            return _none_of(keys)
        before = _prefix_of(extra_info)
        save = partial(self._move, BlockStore.submit_save, KV, keys, host_indices, before)
        return self._barrier.run(save, partial(_none_of, keys))

    @override
    def batch_exists_v2(
        self,
        keys: list[str],
        pool_transfers: "list[PoolTransfer] | None" = None,
        extra_info: "HiCacheStorageExtraInfo | None" = None,
    ) -> PoolTransferResult:
        num_pages = self.batch_exists(keys, extra_info)
        parts = [self._part(transfer, keys[:num_pages]) for transfer in pool_transfers or ()]
        return PoolTransferResult(*find_hit(num_pages, parts))

    @override
    def batch_get_v2(
        self,
        transfers: "list[PoolTransfer]",
        extra_info: "HiCacheStorageExtraInfo | None" = None,
    ) -> dict[str, list[bool]]:
        return self._move_parts(BlockStore.submit_load, transfers)

    @override
    def batch_set_v2(
        self,
        transfers: "list[PoolTransfer]",
        extra_info: "HiCacheStorageExtraInfo | None" = None,
    ) -> dict[str, list[bool]]:
        if not self._says_prefix(extra_info):
            return {transfer.name: _none_of(transfer.keys or ()) for transfer in transfers}
        return self._move_parts(BlockStore.submit_save, transfers)

    @override
    def exists(self, key: str) -> bool:
        return self.batch_exists([key]) == 1

    @override
    def clear(self) -> None:
        """Delete every block of this model."""
        self._reset(keeps_name=True)

    @override
    def get_stats(self) -> StorageMetrics:
        """Report what pages were moved since the last call, and count it in `/metrics`."""
        return self._stats_barrier.run(self._take_stats, StorageMetrics)

    def forget_weights(self) -> None:
        """Note that SGLang serves other weights now."""
        self._reset(keeps_name=bool(self._cache.weight_version))

    def close(self) -> None:
        """Let go of the files, whatever has failed before; what was stored stays."""
        stores, self._stores = self._stores, None
        if stores is not None:
            FaultBarrier().run(stores.close, nothing)
        for adapter in self._adapters:
            adapter.close()

    @override
    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> None:
        """Answer a miss: SGLang asks like this only without `interface_v1`, which we insist on."""

    @override
    def batch_get(
        self, keys: list[str], target_locations: Any = None, target_sizes: Any = None
    ) -> "list[torch.Tensor | None]":
        return [None] * len(keys)

    @override
    def set(
        self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None
    ) -> bool:
        return False

    @override
    def batch_set(
        self,
        keys: list[str],
        values: Any = None,
        target_locations: Any = None,
        target_sizes: Any = None,
    ) -> bool:
        return False

    def _reset(self, *, keeps_name: bool) -> None:
        """Forget everything, also what was not opened yet."""
        stores = self._stores
        if stores is not None:
            self._barrier.run(lambda: stores.reset(keeps_name=keeps_name), nothing)

    @property
    def _usable_stores(self) -> PoolStores | None:
        """The stores; None where every lookup is a miss and nothing is stored.

        That is before the model is identified, after `close`, and while SGLang may still hold KV
        that former weights have computed (`is_settled`).
        """
        return self._stores.opened if self._stores is not None and is_settled() else None

    def _store_of(self, name: str) -> BlockStore | None:
        stores = self._usable_stores
        return None if stores is None else stores.get(name)

    def _find(self, name: str, keys: Sequence[str], before: Sequence[str] = ()) -> list[bool]:
        """Tell for each page of a pool whether it is stored."""

        def ask() -> list[bool]:
            store = self._store_of(name)
            return _none_of(keys) if store is None else store.lookup(keys_of(keys), keys_of(before))

        return self._barrier.run(ask, partial(_none_of, keys))

    def _move(
        self,
        submit: _Submit,
        name: str,
        keys: Sequence[str],
        host_indices: "torch.Tensor | None",
        before: Sequence[str] = (),
    ) -> list[bool]:
        """Load or save pages of a pool, and return for each whether that went well."""
        store = self._store_of(name)
        if store is None:
            return _none_of(keys)
        page_ids = page_ids_of(host_indices, self._page_tokens[name], len(keys))
        if page_ids is None:
            return _none_of(keys)
        job_id = submit(store, Blocks(keys_of(keys), page_ids, keys_of(before)))
        return [status is Status.OK for status in store.wait(job_id).statuses]

    def _move_parts(
        self, submit: _Submit, transfers: "list[PoolTransfer]"
    ) -> dict[str, list[bool]]:
        moved = {}
        for transfer in transfers:
            keys = transfer.keys or ()
            moved[transfer.name] = _none_of(keys)  # of KV, which these calls say no prefix for
            if transfer.name != KV:
                move = partial(self._move, submit, transfer.name, keys, transfer.host_indices)
                moved[transfer.name] = self._barrier.run(move, partial(_none_of, keys))
        return moved

    def _part(self, transfer: "PoolTransfer", keys: list[str]) -> Part:
        """Return what a pool beside the KV has of pages."""
        has_page = _none_of(keys) if transfer.name == KV else self._find(transfer.name, keys)
        window = len(transfer.keys or ())
        return Part(str(transfer.name), transfer.hit_policy, window, has_page)

    def _take_stats(self) -> StorageMetrics:
        stores = self._usable_stores
        no_activity: list[PoolActivity] = []
        activities = (
            no_activity
            if stores is None
            else self._barrier.run(stores.take_activities, lambda: no_activity)
        )
        self._stats.note(KV, {"switched_off": bool(self._barrier.reason)})
        return self._stats.take(activities)

    def _says_prefix(self, extra_info: "HiCacheStorageExtraInfo | None") -> bool:
        """Tell whether SGLang says which pages come before a call's; warn once if not."""
        if extra_info is not None and extra_info.prefix_keys is not None:
            return True
        if not self._is_warned:
            self._is_warned = True
            logger.warning(
                "connector.no_prefix_keys: nothing is stored, because SGLang does not say which "
                'pages come before others: add "hicache_storage_pass_prefix_keys": true to '
                "--hicache-storage-backend-extra-config"
            )
        return False


def _prefix_of(extra_info: "HiCacheStorageExtraInfo | None") -> list[str]:
    """Return the keys before those of a call; none is said where the sequence begins."""
    return (extra_info.prefix_keys if extra_info else None) or []


def _none_of(keys: Sequence[str]) -> list[bool]:
    return [False] * len(keys)
