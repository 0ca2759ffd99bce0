"""How the adapters that vLLM loads are announced to us.

vLLM's engine core loads and removes adapters on demand of the user, and has no hook for that: two
of its methods are wrapped once a connector follows adapters, in the process of that connector.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from flexkv_connectors.fault_barrier import FaultBarrier, nothing
from flexkv_connectors.vllm.adapters import Adapters
from flexkv_core.block.namespace import canonical_dtype, settings_digest
from flexkv_core.env import engine_start_s, hub_cache_folder
from flexkv_core.identity.as_read import Judge, Mounts

if TYPE_CHECKING:
    from vllm.config import VllmConfig

__all__ = ["follow_adapters", "wrap_loads"]

_MARK = "__wrapped_by_flexkv__"
_METHODS = "add_lora", "remove_lora"

_followers: WeakKeyDictionary[Adapters, FaultBarrier] = WeakKeyDictionary()
"""Who follows loads in this process: one, unless it runs several engines."""


def follow_adapters(vllm_config: "VllmConfig", barrier: FaultBarrier) -> Adapters:
    """Follow the adapters of an engine; nothing is wrapped if it takes none."""
    if vllm_config.lora_config is None:
        return Adapters(b"", None, Judge(0.0, Mounts("")))
    from vllm import envs  # noqa: PLC0415 vLLM is loaded by its own processes
    from vllm.v1.engine import core  # noqa: PLC0415 the same

    started_s = engine_start_s()
    adapters = Adapters(
        _settings_of(vllm_config),
        None if envs.VLLM_USE_MODELSCOPE else hub_cache_folder(),
        Judge(started_s, Mounts.read()),
        oldest_s=0.0 if wrap_loads(core.EngineCore) else started_s,
    )
    _followers[adapters] = barrier
    return adapters


def wrap_loads(core: type) -> bool:
    """Notify followers of what an engine core loads; return False if its methods are unknown."""
    if not all(callable(getattr(core, name, None)) for name in _METHODS):
        return False
    for name, wrap in zip(_METHODS, (_wrap_load, _wrap_removal), strict=True):
        method = getattr(core, name)
        if not hasattr(method, _MARK):
            wrapper = wrap(method)
            setattr(wrapper, _MARK, True)
            setattr(core, name, wrapper)
    return True


# The wrappers keep names, signatures and annotations: vLLM turns arguments into what those say.


def _wrap_load(add_lora: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(add_lora)
    def wrapper(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 vLLM's
        _, lora, *_ = *args, *kwargs.values(), None
        _notify(lambda adapters: adapters.begin_load(lora), lambda: lora.lora_int_id)
        result = add_lora(*args, **kwargs)
        _notify(lambda adapters: adapters.end_load(lora), lambda: lora.lora_int_id)
        return result

    return wrapper


def _wrap_removal(remove_lora: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(remove_lora)
    def wrapper(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 vLLM's
        _, number, *_ = *args, *kwargs.values(), None
        result = remove_lora(*args, **kwargs)
        _notify(lambda adapters: adapters.note_removal(number), lambda: number)
        return result

    return wrapper


def _notify(what: Callable[[Adapters], None], number: Callable[[], Any]) -> None:
    """Notify the follower. With several, whose engine it is is unknown: all doubt the adapter."""
    followers = list(_followers.items())
    note = what if len(followers) == 1 else lambda adapters: adapters.doubt(number())
    for adapters, barrier in followers:
        barrier.run(partial(note, adapters), nothing)


def _settings_of(vllm_config: "VllmConfig") -> bytes:
    """Return a digest of the options that change what an adapter does."""
    lora = vllm_config.lora_config
    names = str(lora.lora_dtype), str(vllm_config.model_config.dtype)
    dtype, model_dtype = map(canonical_dtype, names)
    settings = {
        "dtype": "" if dtype == model_dtype else dtype,
        "mixed": lora.enable_mixed_moe_lora_format,
        "modules": sorted(lora.target_modules or ()),
        "shared": getattr(lora, "enable_moe_shared_loras", False),
        "tower": lora.enable_tower_connector_lora,
    }
    return bytes.fromhex(settings_digest(settings))
