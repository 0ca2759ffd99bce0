"""The class that SGLang's HiCache calls. It only delegates, each call through the fault barrier."""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import sglang
from sglang.srt.mem_cache.hicache_storage import HiCacheStorage, PoolTransferResult
from sglang.srt.observability.metrics_collector import StorageMetrics
from typing_extensions import override

from flexkv_connectors.fault_barrier import FaultBarrier, nothing
from flexkv_connectors.sglang.calls import keys_of, page_ids_of
from flexkv_connectors.sglang.deployment import read_cache_config, translate, why_not
from flexkv_connectors.sglang.identity import origin_of, why_no_identity
from flexkv_connectors.sglang.late_stores import LateStores
from flexkv_connectors.sglang.settings import read_settings
from flexkv_connectors.sglang.sidecar_hits import Part, find_hit
from flexkv_connectors.sglang.sidecars import Sidecar, describe, why_not_sidecar
from flexkv_connectors.sglang.stats import StorageStats
from flexkv_connectors.sglang.stores import KV, Activity, Stores
from flexkv_connectors.sglang.weight_updates import is_settled, listen, why_unheard
from flexkv_connectors.versions import require_supported
from flexkv_core.block.types import BlockKey
from flexkv_core.block_store.chain_store import ChainAccess
from flexkv_core.data.tiers.ssd.from_config import require_directory, ssd_options
from flexkv_core.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from sglang.srt.mem_cache.hicache_storage import (
        HiCacheStorageConfig,
        HiCacheStorageExtraInfo,
        PoolTransfer,
    )
    from sglang.srt.mem_cache.pool_host import HostKVCache

__all__ = ["FlexKVHiCacheStorage"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

_KNOWS_SIDECARS = hasattr(HiCacheStorage, "on_host_pools_registered")
"""Since 0.5.23: how earlier releases ask for pools beside the KV was not looked into."""


class FlexKVHiCacheStorage(HiCacheStorage):
    """Keeps HiCache's pages on SSD, by the chain of keys that each page ends.

    What a model keeps beside the KV of its pages is stored by the same keys, pool by pool. SGLang
    makes one instance in each rank's scheduler process. A page that fails in any way is a
    miss; SGLang computes it again.

    Thread: any, as SGLang calls it; see `ChainAccess`.
    """

    def __init__(self, storage_config: "HiCacheStorageConfig", _: dict[str, Any]) -> None:
        """Read the options; the files are opened when the host pool is known.

        Args:
            storage_config: What SGLang tells every storage backend.
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
        self._stores: LateStores | None = None
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
            or why_unheard()
        )
        if reason is not None:
            msg = f"FlexKV cannot store the pages of this engine: {reason}"
            raise ConfigError(msg)
        deployment = translate(self._cache, self._config, mem_pool_host, settings)
        require_directory(ssd_options(self._cache, deployment.quota_bytes))
        self._stores = LateStores(deployment, origin_of(settings, deployment))
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
        self._stores.add(
            lambda namespace: describe(
                str(host_pool_name), host_pool, self._config, sglang.__version__, namespace
            )
        )
        listen(self)  # again: weights that changed before concern this pool, too
        logger.info("connector.sidecar pool=%s", host_pool_name)

    @override
    def batch_exists(
        self, keys: list[str], extra_info: "HiCacheStorageExtraInfo | None" = None
    ) -> int:
        prefix = _prefix_of(extra_info)
        num_found = self._guarded(lambda stores: stores.kv.find(keys_of([*prefix, *keys])), 0)
        return max(0, num_found - len(prefix))

    @override
    def batch_get_v1(
        self,
        keys: list[str],
        host_indices: "torch.Tensor",
        extra_info: "HiCacheStorageExtraInfo | None" = None,
    ) -> list[bool]:
        return self._move_kv(ChainAccess.load, keys, host_indices, extra_info)

    @override
    def batch_set_v1(
        self,
        keys: list[str],
        host_indices: "torch.Tensor",
        extra_info: "HiCacheStorageExtraInfo | None" = None,
    ) -> list[bool]:
        if not self._says_prefix(extra_info):
            return _leading(0, len(keys))
        return self._move_kv(ChainAccess.save, keys, host_indices, extra_info)

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
        return {transfer.name: self._move(transfer, Sidecar.load) for transfer in transfers}

    @override
    def batch_set_v2(
        self,
        transfers: "list[PoolTransfer]",
        extra_info: "HiCacheStorageExtraInfo | None" = None,
    ) -> dict[str, list[bool]]:
        move = Sidecar.save if self._says_prefix(extra_info) else _save_nothing
        return {transfer.name: self._move(transfer, move) for transfer in transfers}

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

    def _guarded(self, hook: Callable[[Stores], T], instead: T) -> T:
        """Return `hook(stores)`, or `instead` if it fails or there are none yet, or any more.

        The same where SGLang may still hold what former weights have computed.
        """
        stores = None if self._stores is None else self._stores.opened
        if stores is None or not is_settled():
            return instead
        return self._barrier.run(lambda: hook(stores), lambda: instead)

    def _move_kv(
        self,
        move: Callable[[ChainAccess, Sequence[BlockKey], Sequence[int]], int],
        keys: list[str],
        host_indices: "torch.Tensor",
        extra_info: "HiCacheStorageExtraInfo | None",
    ) -> list[bool]:
        def ask(stores: Stores) -> int:
            page_ids = page_ids_of(host_indices, self.mem_pool_host.page_size, len(keys))
            chain = keys_of([*_prefix_of(extra_info), *keys])
            return 0 if page_ids is None else move(stores.kv, chain, page_ids)

        return _leading(self._guarded(ask, 0), len(keys))

    def _of_sidecar(
        self, name: str, hook: Callable[[Sidecar], list[bool]], num_pages: int
    ) -> list[bool]:
        """Return `hook(sidecar)`, or that all is missing where there is no such pool."""
        nothing = [False] * num_pages

        def ask(stores: Stores) -> list[bool]:
            sidecar = stores.sidecars.get(name)
            return nothing if sidecar is None else hook(sidecar)

        return self._guarded(ask, nothing)

    def _move(
        self, transfer: "PoolTransfer", move: "Callable[[Sidecar, PoolTransfer], list[bool]]"
    ) -> list[bool]:
        num_pages = len(transfer.keys or ())
        return self._of_sidecar(transfer.name, lambda sidecar: move(sidecar, transfer), num_pages)

    def _part(self, transfer: "PoolTransfer", keys: list[str]) -> Part:
        """Return what a pool has of pages."""
        has_page = self._of_sidecar(transfer.name, lambda pool: pool.find(keys), len(keys))
        window = len(transfer.keys or ())
        return Part(str(transfer.name), transfer.hit_policy, window, has_page)

    def _take_stats(self) -> StorageMetrics:
        nothing: list[Activity] = []
        activities = self._guarded(lambda stores: stores.take_activities(), nothing)
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


def _leading(num_good: int, num_keys: int) -> list[bool]:
    return [position < num_good for position in range(num_keys)]


def _save_nothing(_: Sidecar, transfer: "PoolTransfer") -> list[bool]:
    return [False] * len(transfer.keys or ())
