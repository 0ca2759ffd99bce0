"""The stores of one rank, opened once it is known what their blocks are blocks of."""

import logging
import secrets
import threading
from collections.abc import Callable
from contextlib import ExitStack

from flexkv_connectors.sglang.deployment import Deployment
from flexkv_connectors.sglang.sidecars import SidecarPool
from flexkv_connectors.sglang.stores import Stores
from flexkv_core.block.namespace import Namespace
from flexkv_core.data.tiers.ssd.from_config import record_reset, ssd_options
from flexkv_core.identity.origin import Origin

__all__ = ["LateStores"]

logger = logging.getLogger(__name__)


class LateStores:
    """What there is to open, and what is to be done then; HiCache serves without it meanwhile.

    Thread: any. `_changing` is held while stores are opened, added to, reset or closed.
    """

    def __init__(self, deployment: Deployment, origin: Origin) -> None:
        """Find out what the blocks are blocks of; SGLang need not wait for that."""
        self.opened: Stores | None = None
        """All that is stored; None while it is not open, and if it will never be."""

        self._deployment = deployment
        self._origin = origin
        self._sidecars: list[Callable[[Namespace], SidecarPool]] = []
        self._resets: list[bool] = []
        self._is_closed = False
        self._changing = threading.RLock()
        self._identification = origin.find(deployment.cache, self._open)

    def add(self, describe: Callable[[Namespace], SidecarPool]) -> None:
        """Store a pool beside the KV, too.

        Args:
            describe: Describes the pool, given the namespace of the KV.

        Raises:
            ConfigError: None of the directories can be used.
            LayoutError: The pool is of a kind that we do not know.
        """
        describe(self._origin.blank)  # what cannot be stored is refused while SGLang starts
        with self._changing:
            self._sidecars.append(describe)
            if self.opened is not None:
                self.opened.add(describe(self.opened.namespace))

    def reset(self, *, keeps_name: bool) -> None:
        """Forget everything, also what will be found; see `SsdTier.begin_generation`.

        Raises:
            TierError: A call does not end; all other stores have forgotten everything.
        """
        with self._changing:
            if self.opened is not None:
                self.opened.reset(keeps_name=keeps_name)
                return
            self._resets.append(keeps_name)
            if keeps_name and not self._deployment.is_follower:
                self._record_reset()

    def _record_reset(self) -> None:
        """See to it that a reset outlives this process, whether it will open the files or not."""
        blank, deployment = self._origin.blank, self._deployment
        options = ssd_options(deployment.cache, deployment.quota_bytes)
        name = secrets.token_hex(8)
        record_reset(options, blank, deployment.columns, name)
        for describe in self._sidecars:
            pool = describe(blank)
            record_reset(options, pool.namespace, [pool.column], name)

    def close(self) -> None:
        """Let go of the files; calls under way end first.

        Raises:
            TierError: A call does not end; it keeps its files.
        """
        self._identification.close()
        with self._changing:
            self._is_closed = True
            stores, self.opened = self.opened, None
            if stores is not None:
                stores.close()

    def _open(self, namespace: Namespace) -> None:
        """Open all stores, or none.

        Raises:
            ConfigError: None of the directories can be used any more.
            LayoutError: A pool has changed.
            TierError: There is no memory to stage blocks in.
        """
        with self._changing, ExitStack() as undo:
            if self._is_closed:
                return
            stores = Stores(self._deployment, namespace)
            undo.callback(stores.close)
            for describe in self._sidecars:
                stores.add(describe(namespace))
            for keeps_name in self._resets:
                stores.reset(keeps_name=keeps_name)
            undo.pop_all()
            self.opened = stores
        logger.info("connector.ready namespace=%s", namespace.short)
