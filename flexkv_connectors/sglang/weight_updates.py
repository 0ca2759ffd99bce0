"""Weights that SGLang changes while it serves: what was stored before is never found again.

SGLang drops its own caches then, if it is asked to, and does not inform its storage. So a plug-in
(entry point group `sglang.srt.plugins`), which SGLang loads in every process that it starts,
listens to every call that changes weights, all of them methods of one class, and to the one that
empties SGLang's own caches. A version whose class has a method that is not named here is not
served: it might change weights.

Experts that are moved between ranks keep their values, so KV stays what it was; adapters have keys
of their own (`adapter_keys`).
"""

import inspect
import logging
import pkgutil
from collections.abc import Callable, Collection
from threading import Event
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

from flexkv_connectors.sglang.adapter_keys import name_adapter
from flexkv_connectors.sglang.own_embeddings import REQUEST, keep_apart
from flexkv_connectors.sglang.settings import is_one_rank, keeps_released_weights
from flexkv_connectors.sglang.stock_flag import FACTORY, name_our_flags
from flexkv_core.env import mark_engine_start

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import CheckWeightsReqInput, ReleaseMemoryOccupationReqInput
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.managers.scheduler_components.weight_updater import (
        SchedulerWeightUpdaterManager,
    )

__all__ = [
    "HARMLESS",
    "OWNER",
    "SESSION",
    "UPDATES",
    "WeightListener",
    "begin",
    "check",
    "checked",
    "end_session",
    "flushed",
    "is_settled",
    "listen",
    "open_session",
    "register",
    "release",
    "unknown_in",
    "updated",
    "why_not_followed",
]

OWNER = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"
UPDATES = frozenset(
    {
        "update_weights_from_disk",
        "update_weights_from_distributed",
        "update_weights_from_ipc",
        "update_weights_from_tensor",
    }
)
"""Calls that change weights before they return."""

SESSION = frozenset({"begin_weight_update", "end_weight_update"})
"""Between the two, others write into the weights without notice; from 0.5.21."""

_CHECK, _RELEASE = "check_weights", "release_memory_occupation"
HARMLESS = frozenset(
    {
        "destroy_weights_update_group",
        "flush_cache_after_weight_update",
        "get_weights_by_name",
        "init_weights_update_group",
        "record_weight_version_after_update",
        "resume_memory_occupation",  # what it gives back was lost when it was released
        "save_remote_model",
        "save_sharded_model",
    }
)
"""Calls of the same class that leave weights as they are."""

_FLUSH = "sglang.srt.managers.scheduler.Scheduler.flush_cache"
_REFUSALS = frozenset(
    {
        "a weight-update session is already open; call end_weight_update() first",
        "no weight-update session is open; call begin_weight_update() first",
        *(
            f"update_weights_from_{sender} must run between "
            "begin_weight_update() and end_weight_update()"
            for sender in ("distributed", "tensor")
        ),
    }
)
"""All ranks answer so, before they touch a weight (0.5.21 to 0.5.23)."""

_NOT_READ = ("Failed to get model loader: ", "Failed to get weights iterator: ")
"""Begin what a model answers whose new weights are not there to be read (0.5.20 to 0.5.23); another
rank, or another model, may have read them."""

_READING = frozenset({"checksum", "compare", "snapshot"})
"""Actions of `check_weights` that write nothing; the other one fills weights with noise."""

logger = logging.getLogger(__name__)


class WeightListener(Protocol):
    """Whoever keeps what weights have computed."""

    def forget_weights(self) -> None:
        """Note that the weights are others now."""


_listeners: "WeakSet[WeightListener]" = WeakSet()
"""Of this process: SGLang's hook is a function, and knows of no storage."""

_changed = Event()
"""Set for good: what this process computes is no longer what its settings describe."""

_mixed = Event()
"""Set while SGLang's own caches may hold what former weights have computed: it may be
asked not to empty them, or refuse to while requests run. Nothing is stored or found until then."""

_CALL = "call"
_open: set[str] = set()
"""Changes under way: a `_CALL`, a "session", and a "release" until weights are written."""

_emptied_at: list[int] = []
"""The scheduler's `forward_ct` at the last flush since a change began, if there was one: if it is
the same when the change ends, nothing was computed in between."""

_followed: list[str] = []
"""The calls that we are told of."""


def register() -> None:
    """Ask SGLang to call us around each change of weights and behind each flush; it calls this.

    Also behind each request that it makes (see `own_embeddings` and `adapter_keys`), and where it
    would look for FlexKV's own package (`stock_flag`).
    """
    from sglang.srt.plugins.hook_registry import (  # noqa: PLC0415 only in an engine
        HookRegistry,
        HookType,
    )

    mark_engine_start()  # SGLang loads plug-ins before it starts the processes that read weights
    before: dict[str, Callable[..., None]] = dict.fromkeys(UPDATES, begin)
    before |= {"begin_weight_update": open_session, _CHECK: check, _RELEASE: release}
    after: dict[str, Callable[..., None]] = dict.fromkeys(UPDATES, updated)
    after |= {"end_weight_update": end_session, _CHECK: checked}
    owner = pkgutil.resolve_name(OWNER)
    for hooks, kind in ((before, HookType.BEFORE), (after, HookType.AFTER)):
        for name, hook in hooks.items():
            if hasattr(owner, name):
                HookRegistry.register(f"{OWNER}.{name}", hook, kind)
    HookRegistry.register(_FLUSH, flushed, HookType.AFTER)
    for hook in (keep_apart, name_adapter):
        HookRegistry.register(f"{REQUEST}.__init__", hook, HookType.AFTER)
    HookRegistry.register(FACTORY, name_our_flags, HookType.BEFORE)
    _followed[:] = [*before, *after]


def unknown_in(methods: Collection[str]) -> list[str]:
    """Return those of the public methods of SGLang's class that may change weights."""
    public = {name for name in methods if not name.startswith("_")}
    return sorted(public - UPDATES - SESSION - HARMLESS - {_CHECK, _RELEASE})


def why_not_followed() -> str | None:
    """Say why this process is not told of all changes of its weights, if it is not."""
    if not _followed:
        return (
            "its weights could change without notice: let SGLANG_PLUGINS name flexkv, or leave it "
            "unset"
        )
    methods = dict(inspect.getmembers(pkgutil.resolve_name(OWNER), inspect.isfunction))
    if unknown := unknown_in(methods):
        return f"this SGLang may change weights by {', '.join(unknown)}, which is not known here"
    return None


def listen(listener: WeightListener) -> None:
    """Tell `listener` of changes for as long as it lives, and now if there were any before."""
    _listeners.add(listener)
    if _changed.is_set():
        listener.forget_weights()


def is_settled() -> bool:
    """Tell whether all that SGLang holds was computed by the weights of now.

    Thread: any.
    """
    return not (_open or _mixed.is_set())


def begin(*_: object, **__: object) -> None:
    """Note that the weights are about to change; a flush comes within the change, or later."""
    _open.add(_CALL)
    _emptied_at.clear()


def open_session(*_: object, **__: object) -> None:
    """Forget everything before others write into the weights, and what is stored meanwhile."""
    _open_change("session")


def end_session(
    result: object, manager: "SchedulerWeightUpdaterManager", *_: object, **__: object
) -> None:
    """Note that the others have finished writing, if they had begun."""
    if not _was_refused(result, manager):
        _open.discard("session")
    updated(result, manager)


def release(_: object, request: "ReleaseMemoryOccupationReqInput") -> None:
    """Note that weights are taken off the GPU, and are lost until they are written anew."""
    if "weights" in (request.tags or ["weights"]) and not keeps_released_weights():
        _open_change("release")


def check(_: object, request: "CheckWeightsReqInput") -> None:
    """Note that weights are about to be filled with noise, if they are."""
    if request.action not in _READING:
        begin()


def checked(
    result: object, manager: "SchedulerWeightUpdaterManager", request: "CheckWeightsReqInput"
) -> None:
    """Inform all listeners that weights were filled with noise."""
    if request.action not in _READING:
        updated(result, manager)


def flushed(result: object, scheduler: "Scheduler", *_: object, **__: object) -> None:
    """Inform all listeners again if the caches that SGLang emptied held KV of former weights."""
    if not result or is_settled():
        return
    _emptied_at[:] = [scheduler.forward_ct]
    if not _open:
        _forget()
        _mixed.clear()


def updated(
    result: object, manager: "SchedulerWeightUpdaterManager", *_: object, **__: object
) -> None:
    """Inform all listeners of changed weights; a change that failed may have been made in part."""
    if _was_refused(result, manager):
        _open.discard(_CALL)
        return
    _mixed.set()
    _open.difference_update({_CALL, "release"})
    _forget()
    scheduler = manager.scheduler
    if not _open and scheduler is not None and _emptied_at == [scheduler.forward_ct]:
        _mixed.clear()
    if _mixed.is_set() and not _open:
        logger.warning(
            "connector.weights_changed: nothing is stored or found until SGLang's own caches are "
            "flushed, which may hold what other weights have computed"
        )


def _was_refused(result: object, manager: "SchedulerWeightUpdaterManager") -> bool:
    """Tell whether SGLang answers that it has left the weights of every rank alone."""
    if getattr(result, "success", True):
        return False
    message = str(getattr(result, "message", ""))
    is_only_model = manager.draft_worker is None and is_one_rank()
    return message in _REFUSALS or (message.startswith(_NOT_READ) and is_only_model)


def _open_change(name: str) -> None:
    _open.add(name)
    _emptied_at.clear()
    _forget()


def _forget() -> None:
    _changed.set()
    for listener in tuple(_listeners):
        listener.forget_weights()
