"""vLLM's own tiering manager over our tier, without an engine: rows, requests and steps by hand."""

import time
import uuid
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from identity_rig import changed, declared_cache
from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.config import build_offloading_config
from vllm.v1.kv_offload.base import (
    OffloadKey,
    ReqContext,
    ScheduleEndContext,
    make_offload_key,
)
from vllm.v1.kv_offload.factory import OffloadingSpecFactory

from flexkv_connectors.vllm.offloading.engine import OffloadingEngine, TierRequest
from flexkv_connectors.vllm.offloading.options import read_options, translated
from flexkv_connectors.vllm.offloading.support import why_no_ssd, why_not
from flexkv_core.config import parse_config
from flexkv_core.identity import origin

__all__ = [
    "OffloadRig",
    "OffloadingEngine",
    "TierRequest",
    "key_of",
    "manager_below_vllms_own",
    "parse_config",
    "read_options",
    "translated",
    "why_no_ssd",
    "why_not",
]


def key_of(number: int, group: int = 0) -> OffloadKey:
    """Return vLLM's key of a block."""
    return make_offload_key(bytes([number]) * 32, group)


def manager_below_vllms_own(engine: OffloadingEngine, **options: Any) -> Any:
    """Build vLLM's manager as its own connector does, with our tier named by its module alone."""
    config = translated(engine, uses_ssd=True)
    (tier,) = config.kv_transfer_config.kv_connector_extra_config["secondary_tiers"]
    del tier["engine"]
    tier |= options
    offloading = build_offloading_config(config, engine.kv_cache_config)
    return OffloadingSpecFactory.create_spec(offloading).get_manager()


class OffloadRig:
    """What vLLM's scheduler half of the connector calls, in its order."""

    def __init__(self, config: VllmConfig, directory: Path, **options: Any) -> None:
        """Build vLLM's manager with our tier; wait until the tier is open."""
        extra = {"cpu_cache_gb": 0.01, "ssd_cache_gb": 0.1, "ssd_cache_dir": str(directory)}
        transfer = changed(
            config,
            "kv_transfer_config",
            kv_connector_extra_config=extra | options,
            engine_id=uuid.uuid4().hex,
        )
        self.engine = OffloadingEngine(transfer, declared_cache(config), read_options(transfer))
        offloading = build_offloading_config(self.translated(), self.engine.kv_cache_config)
        self._spec = OffloadingSpecFactory.create_spec(offloading)
        # As if the engine started now: the model may have been written a moment ago.
        with mock.patch.object(origin, "engine_start_s", return_value=time.time()):
            self.manager = self._spec.get_manager()
        (self.tier,) = self.manager.secondary_tiers
        self._contexts: dict[str, ReqContext] = {}

    def translated(self) -> VllmConfig:
        """Return vLLM's configuration with the tier in it."""
        return translated(self.engine, uses_ssd=True)

    def open(self) -> "OffloadRig":
        """Wait until the model is known and what was stored is found."""
        self.tier._stores._identification.join()
        self.tier._store.wait_restored()
        return self

    def begin(self, name: str, request: TierRequest | None = None) -> ReqContext:
        """Let a request arrive."""
        context = self._contexts[name] = ReqContext(req_id=name)
        self.engine.requests[name] = request or TierRequest()
        self.manager.on_new_request(context)
        return context

    def end(self, name: str) -> None:
        """Let a request end."""
        self.manager.on_request_finished(self._contexts.pop(name))

    def save(self, name: str, contents: dict[OffloadKey, int]) -> None:
        """Let a device store rows, each full of one byte."""
        context = self._contexts[name]
        output = self.manager.prepare_store(list(contents), context)
        for key, row in zip(output.keys_to_store, output.store_spec.block_ids, strict=True):
            self.rows[row] = contents[key]
        self.manager.complete_store(output.keys_to_store, context)

    def lookup(self, name: str, key: OffloadKey) -> str:
        """Ask for one block, as the scheduler does once a step; return the name of the answer."""
        return str(self.manager.lookup(key, self._contexts[name]).name)

    def find(self, name: str, key: OffloadKey) -> str:
        """Ask until there is an answer, step by step."""
        while (found := self.lookup(name, key)) in ("HIT_PENDING", "RETRY"):
            self.step()
        return found

    def load(self, name: str, key: OffloadKey) -> set[int]:
        """Return the bytes that the row of a block consists of."""
        spec = self.manager.prepare_load([key], self._contexts[name])
        self.manager.complete_load([key], self._contexts[name])
        return set(self.rows[spec.block_ids[0]].tolist())

    def step(self) -> None:
        """End a step of the scheduler."""
        self.manager.on_schedule_end(ScheduleEndContext(new_req_ids=(), preempted_req_ids=()))

    def settle(self) -> None:
        """Step until no job is under way."""
        while self.manager.has_pending_work():
            self.step()

    def forget_rows(self) -> None:
        """Drop what vLLM's host tier holds, and leave the tier below as it is."""
        self.manager.primary_tier.reset_cache()

    @property
    def rows(self) -> np.ndarray:
        """vLLM's host memory, `[num_rows, row_bytes]`."""
        return np.asarray(self.manager.primary_tier.get_kv_memoryview()).view(np.uint8)

    def close(self) -> None:
        """Shut down, as vLLM does."""
        self.manager.shutdown()
