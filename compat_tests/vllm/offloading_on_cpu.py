"""vLLM's own offloading on a CPU: only streams, events and the batched memcpy are simulated.

Copies run in the worst order that streams allow: as late as possible, when an event is waited for
or has been asked about a few times. Everything else is vLLM's: connector, manager, region,
descriptors, worker.

Replaced in `vllm.v1.kv_offload.cpu.gpu_worker`: `current_platform` (Stream, current_stream,
stream), `torch.Event`, `ops.swap_blocks_batch`; in `vllm.v1.kv_offload.tiering.spec`, the number of
the device, which it asks for before 0.32; and of tensors, what `is_cuda` says.
"""

import contextlib
import ctypes
import time
import types
from collections.abc import Callable
from typing import Any

import torch
from typing_extensions import override
from vllm.v1.kv_offload.cpu import gpu_worker
from vllm.v1.kv_offload.tiering import spec

__all__ = ["Event", "OffloadingOnCpu"]

_NUM_STEPS_LATE = 2
"""vLLM asks once a step."""


class _OnGpu(torch.Tensor):
    """Claims to be on a GPU, as the worker insists on."""

    is_cuda = True


class _Stream:
    """A queue of copies that have not run."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []

    def add(self, work: Callable[[], None]) -> None:
        self._waiting.append(work)

    def run(self) -> None:
        waiting, self._waiting = self._waiting, []
        for work in waiting:
            work()

    def wait_stream(self, other: "_Stream") -> None:
        self.add(other.run)

    def wait_event(self, event: "Event") -> None:
        self.add(event.synchronize)


class Event:
    """A place in a stream."""

    def __init__(self, **_: Any) -> None:
        self._stream: _Stream | None = None
        self._num_asked = 0
        self._reached_s = 0.0

    def record(self, stream: _Stream) -> None:
        self._stream = stream
        self._num_asked = 0
        stream.add(self._reach)

    def query(self) -> bool:
        self._num_asked += 1
        if self._num_asked <= _NUM_STEPS_LATE:
            return False
        self.synchronize()
        return True

    def synchronize(self) -> None:
        if self._stream is not None:
            self._stream.run()

    def elapsed_time(self, other: "Event") -> float:
        return (other._reached_s - self._reached_s) * 1e3

    def _reach(self) -> None:
        self._reached_s = time.perf_counter()


class _Platform:
    """vLLM's platform, with streams."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self._current = _Stream()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def Stream(self) -> _Stream:  # noqa: N802 as torch spells it
        return _Stream()

    def current_stream(self) -> _Stream:
        return self._current

    @contextlib.contextmanager
    def stream(self, stream: _Stream) -> Any:
        before, self._current = self._current, stream
        yield
        self._current = before

    def swap_blocks_batch(
        self,
        sources: torch.Tensor,
        targets: torch.Tensor,
        sizes: torch.Tensor,
        is_src_access_order_any: bool = False,
    ) -> None:
        copies = list(zip(sources.tolist(), targets.tolist(), sizes.tolist(), strict=True))

        def run() -> None:
            for source, target, size in copies:
                ctypes.memmove(target, source, size)

        self._current.add(run)


class _Torch:
    """torch, with other events, and one device."""

    Event = Event
    accelerator = types.SimpleNamespace(current_device_index=lambda: 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class OffloadingOnCpu(spec.TieringOffloadingSpec):
    """To be named by `spec_name` and `spec_module_path`."""

    @override
    def get_worker(self, kv_caches: Any) -> Any:
        if not self._worker:
            platform = _Platform(gpu_worker.current_platform)
            gpu_worker.current_platform = platform
            gpu_worker.torch = spec.torch = _Torch()
            gpu_worker.ops = types.SimpleNamespace(swap_blocks_batch=platform.swap_blocks_batch)
            for cache in kv_caches.tensors:
                cache.tensor = cache.tensor.as_subclass(_OnGpu)
            self._worker = self.create_worker(kv_caches)
        return self._worker
