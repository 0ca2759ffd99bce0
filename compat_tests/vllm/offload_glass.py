"""The connector below vLLM's offloading, with a look inside and a hand in it, for test engines."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from breakable_disk import Fate, break_disk
from offloading_on_cpu import Event
from router_view import RouterView
from typing_extensions import override
from vllm.distributed.kv_events import KVCacheEvent
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_offload.cpu.gpu_worker import CPUOffloadingWorker

from flexkv_connectors.vllm.offloading.connector import FlexKVOffloadingConnector
from flexkv_connectors.vllm.offloading.drift import tails_of

__all__ = ["OffloadGlassConnector"]

_WAITS: dict[str, tuple[type, str, Any]] = {
    "for a load": (Event, "query", lambda _event: True),
    "before pages are used again": (CPUOffloadingWorker, "wait", lambda _worker, _jobs: None),
}
"""Where vLLM waits for a copy, and what takes the wait out."""


class _RouterOfTiers(RouterView):
    """It is shown nothing of the device, where blocks are whose children are in our tiers."""

    @override
    def _knows(self, name: int) -> bool:
        return True


class OffloadGlassConnector(FlexKVOffloadingConnector):
    """What tests ask of it; the scheduler's side, unless it is said."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tails: list[int] = []
        self._router = _RouterOfTiers()

    @override
    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        offered = tails_of(scheduler_output).values()
        self._tails += [end for tails in offered for _, _, end in tails]
        return super().build_connector_meta(scheduler_output)

    @override
    def take_events(self) -> list[KVCacheEvent]:
        events = [*super().take_events()]
        self._router.publish(SimpleNamespace(events=events))
        return events

    def told(self) -> dict[str, int]:
        """Return how many pages routers believe to be in each tier."""
        return {medium: len(names) for medium, names in self._router.media.items()}

    def tails(self) -> list[int]:
        """Return up to which tokens vLLM has offered states to store, of all requests."""
        return self._tails

    def engine_id(self) -> str:
        """Return what the region of this engine is called after."""
        return str(self._engine.vllm_config.kv_transfer_config.engine_id)

    def wait_open(self) -> None:
        """Wait until the model is known, and what earlier engines left is found."""
        for tier in self.connector_scheduler.manager.secondary_tiers:
            tier._stores._identification.join()
            tier._store.wait_restored()

    def forget_rows(self) -> None:
        """Drop what the host tier holds; no request may be running."""
        self.connector_scheduler.manager.primary_tier.reset_cache()

    def exchange_rows(self) -> None:
        """Let each row hold what another one held."""
        view = self.connector_scheduler.manager.primary_tier.get_kv_memoryview()
        rows = np.asarray(view)
        rows[:] = np.roll(rows, 1, axis=0)

    def break_disk(self, reads: Fate = "work", writes: Fate = "work") -> None:
        """Decide what the disk does from now on."""
        break_disk(reads, writes)

    def skip_wait(self, which: str) -> None:
        """Worker: have vLLM not wait there, until `wait_again`."""
        mock.patch.object(*_WAITS[which]).start()

    def wait_again(self) -> None:
        """Worker: undo `skip_wait`."""
        mock.patch.stopall()

    def audit(self) -> dict[str, int]:
        """Return how much is held of what an engine without work holds nothing of."""
        scheduler = self.connector_scheduler
        manager = scheduler.manager
        (tier,) = manager.secondary_tiers
        rows = manager.primary_tier._policy.chunks.values()
        return {
            "requests": len(scheduler._req_status),
            "requests of the manager": len(manager._req_state),
            "requests of the tier": len(self._engine.requests),
            "copies": len(scheduler._jobs),
            "pages that wait for a copy": len(scheduler._block_id_to_pending_jobs),
            "jobs of the manager": len(manager._jobs),
            "jobs of the tier": len(tier._jobs),
            "pinned rows": sum(row.ref_cnt != 0 for row in rows),
        }
