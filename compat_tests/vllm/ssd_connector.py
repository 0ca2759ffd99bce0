"""FlexKV with an SSD tier that a test can look into, and a disk that it can break.

Loaded by vLLM through `kv_connector_module_path`. Requests wait for SSD as long as the option
`promotion_timeout_s` says, whatever computing would take: what a test sees does not depend on how
busy the machine is.
"""

import math
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from breakable_disk import Fate, break_disk, trust_disk
from sabotage import SabotagedConnector
from typing_extensions import override
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

from flexkv_connectors.vllm import scheduler
from flexkv_connectors.vllm.prefill_speed import PrefillSpeed
from flexkv_connectors.vllm.report_timeout import ReportTimeout
from flexkv_core.identity import identification
from flexkv_core.identity.hashing import Digests, FileHasher


class NoSpeed(PrefillSpeed):
    """Says that computing takes for ever."""

    @override
    def seconds_for(self, num_tokens: int, now_s: float) -> float:
        return 1e9


scheduler.PrefillSpeed = NoSpeed  # type: ignore[misc] what the scheduler half makes


class SsdGlassConnector(SabotagedConnector):
    """The connector under test. Each added method belongs to one role's instance."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._event_counts: Counter[str] = Counter()

    @override
    def take_events(self) -> list[Any]:
        events = list(super().take_events())
        for event in events:
            name = f"{type(event).__name__} {getattr(event, 'medium', '')}"
            self._event_counts[name] += len(getattr(event, "block_hashes", [0]))
        return events

    def event_counts(self) -> dict[str, int]:
        """Scheduler: return how many blocks were announced, by event and medium."""
        return dict(self._event_counts)

    def ready_keys(self, tier: str) -> list[str]:
        """Scheduler: return the blocks that `tier` would be asked for, in hex."""
        manager = self._scheduler.session.manager
        if manager is None:
            return []
        if tier not in manager._tiers:
            return []
        nodes = [manager._index.root]
        keys = []
        for node in nodes:
            nodes += node.children.values()
            held = node.entries[manager._tiers[tier].index]
            keys += node.keys[: held.num_ready] if held is not None else []
        return [key.hex() for key in keys]

    def identifies_adapters(self) -> bool:
        """Scheduler: whether an adapter's files are being read."""
        return self._scheduler._adapters.has_work

    def limit_waits(self, request_s: float, idle_s: float) -> None:
        """Scheduler: decide how long requests wait for SSD, and an idle engine for news of it."""
        self._scheduler.session.ssd.promoter._timeout_s = request_s
        self._scheduler._timeout = ReportTimeout(idle_s)
        self._scheduler._opening = ReportTimeout(idle_s)

    def let_retry(self) -> None:
        """Scheduler: let a tier that is left alone be tried again now."""
        ssd = self._scheduler.session.ssd
        for half in (ssd.promoter, ssd.demoter):
            if half.is_off:
                half._health._next_trial_s = 0.0

    def break_disk(self, reads: Fate = "work", writes: Fate = "work") -> None:
        """Worker: decide what the disk does from now on."""
        break_disk(reads, writes)

    def trust_disk(self) -> None:
        """Worker: believe whatever is read, as a cache without checksums does."""
        trust_disk()

    def head_digests(self, page_ids: list[int]) -> list[list[str]]:
        """Worker: digest each of this rank's KV heads by itself, in each page, over all layers."""
        from hashlib import sha256

        layers = [cache.view(torch.uint8).numpy() for cache in self._kv_caches.values()]
        num_heads = layers[0].shape[1]
        return [
            [
                sha256(b"".join(layer[page, head].tobytes() for layer in layers)).hexdigest()
                for head in range(num_heads)
            ]
            for page in page_ids
        ]


class MovedModelConnector(SsdGlassConnector):
    """Once the weights are loaded, the link that names them names others: those of "next"."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        link = Path(vllm_config.model_config.model)
        if role is KVConnectorRole.WORKER:
            link.unlink()
            link.symlink_to(link.with_name("next"))
        super().__init__(vllm_config, role, kv_cache_config)


class SlowHasher(FileHasher):
    """Begins to read when the test says so, which holds for the whole process."""

    may_begin = threading.Event()

    @override
    def hash(self, path: str, *, for_git: bool) -> Digests | None:
        self.may_begin.wait()
        return super().hash(path, for_git=for_git)


class SlowHasherConnector(SsdGlassConnector):
    """Nobody knows what the model is until a test lets it be read.

    An idle engine that stepped meanwhile would do so until then.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        identification.FileHasher = SlowHasher  # type: ignore[misc] what files are read by
        super().__init__(vllm_config, role, kv_cache_config)
        if role is KVConnectorRole.SCHEDULER:
            self._scheduler._timeout = ReportTimeout(math.inf)

    def let_hash(self) -> None:
        """Worker: let the model be read, and wait until it is."""
        SlowHasher.may_begin.set()
        self._worker.session.ssd._identification.join()
