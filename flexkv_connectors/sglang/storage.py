"""The class that SGLang's HiCache calls. It only delegates, each call through the fault barrier."""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import sglang
from sglang.srt.mem_cache.hicache_storage import HiCacheStorage
from sglang.srt.observability.metrics_collector import StorageMetrics
from typing_extensions import override

from flexkv_connectors.common.fault_barrier import FaultBarrier
from flexkv_connectors.common.versions import require_supported
from flexkv_connectors.sglang.chain_store import ChainStore
from flexkv_connectors.sglang.deployment import read_cache_config, translate, why_not
from flexkv_connectors.sglang.identity import namespace_of, why_no_identity
from flexkv_connectors.sglang.opening import open_store
from flexkv_connectors.sglang.settings import read_settings
from flexkv_connectors.sglang.ssd_store import Copies
from flexkv_connectors.sglang.stats import StorageStats
from flexkv_connectors.sglang.weight_updates import listen, why_unheard
from flexkv_core.errors import ConfigError
from flexkv_core.types import BlockKey

if TYPE_CHECKING:
    import torch
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig, HiCacheStorageExtraInfo
    from sglang.srt.mem_cache.pool_host import HostKVCache

__all__ = ["FlexKVHiCacheStorage"]

T = TypeVar("T")

logger = logging.getLogger(__name__)


class FlexKVHiCacheStorage(HiCacheStorage):
    """Keeps HiCache's pages on SSD, by the chain of keys that each page ends.

    SGLang makes one instance in each rank's scheduler process. A page that fails in any way is a
    miss; SGLang computes it again.

    Thread: any, as SGLang calls it; see `ChainStore`.
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
        self._store: ChainStore | None = None
        self._stats = StorageStats(storage_config)
        self._is_warned = False

    @override
    def register_mem_pool_host(self, mem_pool_host: "HostKVCache") -> None:
        """Open the store over this rank's pages.

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
        namespace = namespace_of(settings, deployment)
        self._store = open_store(deployment, namespace)
        listen(self)
        logger.info("connector.ready namespace=%s", namespace.short)

    @override
    def register_mem_host_pool_v2(self, host_pool: "HostKVCache", host_pool_name: str) -> None:
        """Take the KV pool, which is known already, and no other.

        Raises:
            ConfigError: A page of this model has parts in other pools, and is useless without.
        """
        if host_pool_name != "kv":
            msg = (
                f"FlexKV cannot store the pages of this engine: it keeps a pool {host_pool_name} "
                "beside its KV; serve this model without FlexKV"
            )
            raise ConfigError(msg)

    @override
    def batch_exists(
        self, keys: list[str], extra_info: "HiCacheStorageExtraInfo | None" = None
    ) -> int:
        prefix = _prefix_of(extra_info)
        num_found = self._guarded(lambda store: store.find(_chain(prefix, keys)), 0)
        return max(0, num_found - len(prefix))

    @override
    def batch_get_v1(
        self,
        keys: list[str],
        host_indices: "torch.Tensor",
        extra_info: "HiCacheStorageExtraInfo | None" = None,
    ) -> list[bool]:
        num_good = self._guarded(
            lambda store: store.load(
                _chain(_prefix_of(extra_info), keys), self._page_ids(host_indices)
            ),
            0,
        )
        return _leading(num_good, len(keys))

    @override
    def batch_set_v1(
        self,
        keys: list[str],
        host_indices: "torch.Tensor",
        extra_info: "HiCacheStorageExtraInfo | None" = None,
    ) -> list[bool]:
        if extra_info is None or extra_info.prefix_keys is None:
            self._warn_about_prefix()
            return _leading(0, len(keys))
        prefix = extra_info.prefix_keys
        num_good = self._guarded(
            lambda store: store.save(_chain(prefix, keys), self._page_ids(host_indices)), 0
        )
        return _leading(num_good, len(keys))

    @override
    def exists(self, key: str) -> bool:
        return self.batch_exists([key]) == 1

    @override
    def clear(self) -> None:
        """Delete every block of this model."""
        self._guarded(lambda store: store.reset(keeps_name=True), None)

    @override
    def get_stats(self) -> StorageMetrics:
        """Report what pages were moved since the last call, and count it in `/metrics`."""
        return self._stats_barrier.run(self._take_stats, StorageMetrics)

    def forget_weights(self) -> None:
        """Note that SGLang serves other weights now."""
        keeps_name = bool(self._cache.weight_version)
        self._guarded(lambda store: store.reset(keeps_name=keeps_name), None)

    def close(self) -> None:
        """Let go of the files, whatever has failed before; what was stored stays."""
        store, self._store = self._store, None
        if store is not None:
            FaultBarrier().run(store.close, lambda: None)

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

    def _guarded(self, hook: Callable[[ChainStore], T], instead: T) -> T:
        """Return `hook(store)`, or `instead` if it fails or there is no store (any more)."""
        store = self._store
        return instead if store is None else self._barrier.run(lambda: hook(store), lambda: instead)

    def _take_stats(self) -> StorageMetrics:
        nothing: dict[str, float] = {}
        changes = self._guarded(lambda store: store.take_counts(), nothing)
        self._stats.note(changes | {"switched_off": bool(self._barrier.reason)})
        return self._stats.summary(self._guarded(lambda store: store.take_copies(), Copies([], [])))

    def _page_ids(self, host_indices: "torch.Tensor") -> list[int]:
        """Return the pages that begin at every `page_size`th index."""
        page_tokens = self.mem_pool_host.page_size
        page_ids: list[int] = (host_indices[::page_tokens] // page_tokens).tolist()
        return page_ids

    def _warn_about_prefix(self) -> None:
        if not self._is_warned:
            self._is_warned = True
            logger.warning(
                "connector.no_prefix_keys: nothing is stored, because SGLang does not say which "
                'pages come before others: add "hicache_storage_pass_prefix_keys": true to '
                "--hicache-storage-backend-extra-config"
            )


def _prefix_of(extra_info: "HiCacheStorageExtraInfo | None") -> list[str]:
    """Return the keys before those of a call; none is said where the sequence begins."""
    return (extra_info.prefix_keys if extra_info else None) or []


def _chain(prefix: Sequence[str], keys: Sequence[str]) -> list[BlockKey]:
    return [BlockKey(bytes.fromhex(key)) for key in (*prefix, *keys)]


def _leading(num_good: int, num_keys: int) -> list[bool]:
    return [position < num_good for position in range(num_keys)]
