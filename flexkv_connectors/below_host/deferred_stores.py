"""Stores that are opened once it is known what their blocks are blocks of."""

import logging
import secrets
import threading
from collections.abc import Callable
from contextlib import ExitStack

from flexkv_connectors.below_host.pool import StoredPool
from flexkv_connectors.below_host.rank import StorageRank
from flexkv_connectors.below_host.stores import PoolStores
from flexkv_core.block.namespace import Namespace
from flexkv_core.data.tiers.ssd.directory import require_folders
from flexkv_core.data.tiers.ssd.from_config import record_reset
from flexkv_core.errors import TierError
from flexkv_core.identity.origin import Origin

__all__ = ["DeferredStores"]

logger = logging.getLogger(__name__)

_Describe = Callable[[Namespace], StoredPool]
"""Describes a pool, given the namespace of the model's KV."""


class DeferredStores:
    """The stores of one rank, what is to be opened and what has been reset before that.

    The engine serves without them meanwhile: its host tier alone needs no identity.

    Thread: any. `_changing` is held while stores are opened, added to, reset or closed.
    """

    def __init__(self, rank: StorageRank, origin: Origin, describe_kv: _Describe) -> None:
        """Begin to identify the model; stores are opened once it is known, on another thread.

        Raises:
            ConfigError: None of the directories can be a folder.
            LayoutError: The pool is of a kind that we do not know.
        """
        self.opened: PoolStores | None = None
        """All that is stored; None while it is not open, and for good if it cannot be known."""

        self._namespace: Namespace | None = None
        self._rank = rank
        self._origin = origin
        self._pools: list[_Describe] = []
        self._resets: list[bool] = []
        self._is_closed = False
        self._changing = threading.Lock()
        require_folders(rank.ssd_options(rank.quota_bytes, is_replicated=True))
        self.add(describe_kv)
        # Last: it calls `_open` at once where the model is known already.
        self._identification = origin.find(rank.cache, self._open)

    def add(self, describe: _Describe) -> None:
        """Store another pool, too.

        Raises:
            ConfigError: It cannot be stored.
            LayoutError: The pool is of a kind that we do not know.
        """
        describe(self._origin.blank)  # what cannot be stored is refused while the engine starts
        with self._changing:
            self._pools.append(describe)
            if self.opened is not None and self._namespace is not None:
                self._add_now(self.opened, describe(self._namespace))

    def reset(self, *, keeps_name: bool) -> None:
        """Forget everything, also what will be found; see `SsdTier.begin_generation`.

        Raises:
            TierError: A job does not end; all other stores have forgotten everything.
        """
        with self._changing:
            if keeps_name not in self._resets:
                self._resets.append(keeps_name)  # also where open: all may be opened once more
            if self.opened is not None:
                self.opened.reset(keeps_name=keeps_name)
            elif keeps_name:
                self._record_reset()

    def close(self) -> None:
        """Let go of the files; jobs under way end first.

        Raises:
            TierError: A job does not end; it keeps its files.
        """
        self._identification.close()  # without the lock: it waits for an `_open` under way
        with self._changing:
            self._is_closed = True
            stores, self.opened = self.opened, None
            if stores is not None:
                stores.close()

    def _add_now(self, stores: PoolStores, pool: StoredPool) -> None:
        """Open one more store; if that is not possible now, all are opened together later."""
        try:
            stores.add(pool)
        except TierError as error:
            self.opened = None
            try:
                stores.close()
            finally:
                self._identification.tell_again(error)

    def _record_reset(self) -> None:
        """Let a reset outlive this process even if it never opens the files."""
        name = secrets.token_hex(8)
        for describe in self._pools:
            pool = describe(self._origin.blank)
            if not pool.is_followed_by(self._rank):
                options = self._rank.ssd_options(
                    self._rank.quota_bytes, is_replicated=pool.is_replicated
                )
                record_reset(options, pool.namespace, pool.columns, name)

    def _open(self, namespace: Namespace) -> None:
        """Open all stores, or none.

        Raises:
            LayoutError: A pool has changed.
            TierError: No directory can be used now, or there is no memory to stage blocks in.
        """
        with self._changing, ExitStack() as undo:
            if self._is_closed:
                return
            stores = PoolStores(self._rank)
            undo.callback(stores.close)
            for describe in self._pools:
                stores.add(describe(namespace))
            for keeps_name in self._resets:
                stores.reset(keeps_name=keeps_name)
            undo.pop_all()
            self._namespace, self.opened = namespace, stores
        logger.info("connector.ready namespace=%s", namespace.short)
