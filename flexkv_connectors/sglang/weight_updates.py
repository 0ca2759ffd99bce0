"""Weights that SGLang changes while it serves: what was stored before is never found again.

SGLang drops its own caches then and does not tell its storage. So a plug-in of SGLang's own kind
(entry point group `sglang.srt.plugins`) listens to the calls that change weights, in 0.5.16 to
0.5.23 methods of one class, and to the one that empties SGLang's own caches. SGLang loads plug-ins
in every process it starts.
"""

from threading import Event
from typing import Protocol
from weakref import WeakSet

__all__ = [
    "WeightListener",
    "begin",
    "flushed",
    "listen",
    "register",
    "tell",
    "why_unheard",
]

_OWNER = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"
_FLUSH = "sglang.srt.managers.scheduler.Scheduler.flush_cache"
_UPDATES = (
    "update_weights_from_disk",
    "update_weights_from_distributed",
    "update_weights_from_ipc",
    "update_weights_from_tensor",
)


class WeightListener(Protocol):
    """Whoever keeps what weights have computed."""

    def forget_weights(self) -> None:
        """Note that the weights are others now."""


_listeners: "WeakSet[WeightListener]" = WeakSet()
"""Of this process: SGLang's hook is a function, and knows of no storage."""

_changed = Event()
"""Set for good: what this process computes is no longer what its settings describe."""

_mixed = Event()
"""Set while SGLang's own caches may hold what former weights have computed: it is asked to keep
them, or refuses to empty them while requests run, and goes on to store from them."""

_heard: list[str] = []


def register() -> None:
    """Ask SGLang to call us around each change of weights and behind each flush; it calls this."""
    from sglang.srt.plugins.hook_registry import (  # noqa: PLC0415 only in an engine
        HookRegistry,
        HookType,
    )

    for update in _UPDATES:
        HookRegistry.register(f"{_OWNER}.{update}", begin, HookType.BEFORE)
        HookRegistry.register(f"{_OWNER}.{update}", tell, HookType.AFTER)
    HookRegistry.register(_FLUSH, flushed, HookType.AFTER)
    _heard[:] = _UPDATES


def why_unheard() -> str | None:
    """Say why changes of weights are not heard of in this process, if they are not."""
    if _heard:
        return None
    return "its weights could change unheard: let SGLANG_PLUGINS name flexkv, or leave it unset"


def listen(listener: WeightListener) -> None:
    """Tell `listener` of changes for as long as it lives, and now if there were any before."""
    _listeners.add(listener)
    if _changed.is_set():
        listener.forget_weights()


def begin(*_: object, **__: object) -> None:
    """Note that the weights are about to change; a flush comes within the change, or later."""
    _mixed.set()


def flushed(result: object, *_: object, **__: object) -> None:
    """Tell all listeners once more if what SGLang has emptied held KV of former weights."""
    if result and _mixed.is_set():
        _mixed.clear()
        tell(None)


def tell(result: object, *_: object, **__: object) -> None:
    """Tell all listeners; also where SGLang says it failed, which may be half way."""
    del result
    _changed.set()
    for listener in tuple(_listeners):
        listener.forget_weights()
