"""The connector's GPU half over simulated devices: vLLM's schedulers, no GPU.

The simulated model computes at once, so what is queued on its stream has run before it goes on;
the side streams run late, and in any order.
"""

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fakes import device_config
from typing_extensions import override
from vllm.config import VllmConfig

from flexkv_connectors.session import gpu_share, worker
from flexkv_connectors.session.deployment import PageShape
from flexkv_connectors.session.gpu_share import StagingSplit
from flexkv_connectors.vllm.kv_caches import page_pool
from flexkv_core.block.layout import BlockFormat
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.transfer.device import Event, Ids, Stream
from flexkv_core.testing.cuda_runtime import FakeCuda
from flexkv_core.testing.device import SimulatedDevice, SimulatedEvent


def pretend_gpus(monkeypatch: Any, places: Callable[[], StagingSplit]) -> FakeCuda:
    """Make the worker halves of this process believe that their tensors are on GPUs.

    Returns:
        What pins their memory.
    """
    cuda = FakeCuda()
    monkeypatch.setattr(worker, "are_on_gpu", lambda layers: True)
    monkeypatch.setattr(gpu_share, "find_cuda_runtime", lambda: cuda.runtime)
    monkeypatch.setattr(gpu_share, "staging_places", lambda *sizes: places())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    return cuda


def with_gpu(config: VllmConfig) -> VllmConfig:
    """Return the configuration of an engine whose KV is on a GPU."""
    changed = copy.copy(config)
    changed.device_config = device_config("cuda")
    return changed


class LateEvent:
    """Asking it lets time pass on its device."""

    def __init__(self, device: "LateDevice", inner: SimulatedEvent) -> None:
        self._device = device
        self.inner = inner

    def query(self) -> bool:
        self._device.pass_time()
        return self.inner.query()


class LateDevice(SimulatedDevice):
    """Computes at once, and copies some of what is queued whenever it is asked how far it is."""

    def __init__(
        self,
        gpus: "SimulatedGpus",
        layers: Sequence[torch.Tensor],
        fmt: BlockFormat,
        host: HostPool,
        num_places: int,
    ) -> None:
        _, heads, tokens, content = layers[0].shape
        shape = PageShape(heads, tokens, content * layers[0].element_size())
        pages = page_pool({str(index): layer for index, layer in enumerate(layers)}, shape)
        super().__init__(pages, fmt, host, num_places, lambda ready: gpus.rng.choice(ready))
        self._gpus = gpus

    @override
    def gather(self, page_ids: Ids, part_ids: Ids) -> None:
        super().gather(page_ids, part_ids)
        self._gpus.num_pages_gathered += len(page_ids)
        self._compute()

    @override
    def record(self, stream: Stream) -> Any:
        event = LateEvent(self, super().record(stream))
        self._compute()
        return event

    @override
    def wait(self, stream: Stream, event: Event) -> None:
        assert isinstance(event, LateEvent)
        super().wait(stream, event.inner)

    def pass_time(self) -> None:
        """Run a few pieces of work, or none."""
        while self._gpus.rng.random() > self._gpus.slowness and self.step():
            self._gpus.num_steps += 1

    def _compute(self) -> None:
        while work := self._queues[Stream.COMPUTE]:
            work.popleft()()


class SimulatedGpus:
    """Devices that run late, under every worker half of this process."""

    def __init__(self, monkeypatch: Any) -> None:
        self.rng = random.Random(0)
        self.slowness = 0.1
        """Chance, after each piece of work, that no time is left for another."""

        self.places = StagingSplit(save=4, load=1)
        self.num_steps = 0
        self.num_pages_gathered = 0
        self.devices: list[LateDevice] = []
        self.cuda = pretend_gpus(monkeypatch, lambda: self.places)
        monkeypatch.setattr(gpu_share, "CudaDevice", self._device)

    def set_rings(self, *, save: int, load: int) -> None:
        """Let devices of engines to come have so many places in staging."""
        self.places = StagingSplit(save, load)

    def _device(
        self, layers: Sequence[torch.Tensor], fmt: BlockFormat, host: HostPool, num_places: int
    ) -> LateDevice:
        device = LateDevice(self, layers, fmt, host, num_places)
        self.devices.append(device)
        return device
