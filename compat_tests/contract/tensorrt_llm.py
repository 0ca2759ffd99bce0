"""TensorRT-LLM's connector interface as data: it cannot be installed where the tests run.

Read from the sources at the commits named. A generation is what one place of the interface file
has looked like; a release is as its generation, or between two.
"""

import abc
import enum
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

__all__ = [
    "GENERATIONS",
    "Generation",
    "Method",
    "RequestState",
    "forget_connector",
    "stand_ins",
    "stand_ins_for_the_manager",
]


class Method(NamedTuple):
    """One method that the engine calls."""

    parameters: tuple[str, ...]
    is_abstract: bool


_WORKER: Mapping[str, Method] = {
    "__init__": Method(("llm_args",), False),
    "bind_connector_meta": Method(("metadata",), False),
    "get_connector_meta": Method((), False),
    "register_forward_pass_callable": Method((), False),
    "register_kv_caches": Method(("kv_cache_tensor",), True),
    "start_load_kv": Method(("stream",), True),
    "wait_for_layer_load": Method(("layer_idx", "stream"), True),
    "save_kv_layer": Method(("layer_idx", "stream"), True),
    "wait_for_save": Method(("stream",), True),
    "get_finished": Method(("finished_gen_req_ids", "started_loading_req_ids"), True),
}

_SCHEDULER: Mapping[str, Method] = {
    "__init__": Method(("llm_args",), False),
    "build_connector_meta": Method(("scheduler_output",), True),
    "get_num_new_matched_tokens": Method(("request", "num_computed_tokens"), True),
    "request_finished": Method(("request", "cache_block_ids"), True),
    "update_state_after_alloc": Method(("request", "block_ids"), True),
}


@dataclass(frozen=True)
class Generation:
    """One state of the interface."""

    version: str
    """A release of that time."""

    module: str
    commit: str
    worker: Mapping[str, Method] = field(default_factory=lambda: _WORKER)
    scheduler: Mapping[str, Method] = field(default_factory=lambda: _SCHEDULER)


_PYEXECUTOR = "tensorrt_llm._torch.pyexecutor"

GENERATIONS = (
    Generation(
        version="1.1.0",
        module=f"{_PYEXECUTOR}.kv_cache_connector",
        commit="00fdcbff5ad82a6438b3e0c9dbc5480b6ee52bdc",
    ),
    Generation(
        version="1.4.0rc1",
        module=f"{_PYEXECUTOR}.connectors.kv_cache_connector",
        commit="035ab91cad04b7b77a479a9526edecfbc742c661",
        worker={**_WORKER, "register_kv_cache_layout": Method(("layout",), False)},
        scheduler={
            **_SCHEDULER,
            "request_finished_by_layer_group": Method(
                ("request", "cache_block_ids_by_layer_group"), False
            ),
            "update_state_after_alloc_by_layer_group": Method(
                ("request", "block_ids_by_layer_group"), False
            ),
            "wait_for_initialization": Method((), False),
        },
    ),
)


class RequestState(enum.Enum):
    """The states of a request that connectors have to do with."""

    CONTEXT_INIT = 0
    DISAGG_GENERATION_TRANS_IN_PROGRESS = 1
    DISAGG_CONTEXT_TRANS_IN_PROGRESS = 2
    GENERATION_IN_PROGRESS = 3


def stand_ins(
    generation: Generation,
    *,
    rank: Callable[[], int] = lambda: 0,
    gather: Callable[[Any], list[Any]] = lambda item: [item],
    broadcast: Callable[..., Any] = lambda item, root=0: item,
) -> dict[str, ModuleType]:
    """Return modules for `sys.modules` that are enough to import a connector, by name.

    Args:
        generation: Where the interface is, and what its base classes have.
        rank: MPI's rank of the caller.
        gather: MPI's allgather.
        broadcast: MPI's broadcast.
    """
    interface = _module(
        generation.module,
        KvCacheConnectorWorker=_base("KvCacheConnectorWorker", generation.worker),
        KvCacheConnectorScheduler=_base("KvCacheConnectorScheduler", generation.scheduler),
    )
    utils = _module(
        "tensorrt_llm._utils", mpi_rank=rank, mpi_allgather=gather, mpi_broadcast=broadcast
    )
    root = _module("tensorrt_llm", __version__=generation.version)
    modules = {module.__name__: module for module in (root, utils, interface)}
    parts = generation.module.split(".")
    for end in range(2, len(parts)):
        name = ".".join(parts[:end])
        modules[name] = _module(name)
    return modules


def stand_ins_for_the_manager() -> dict[str, ModuleType]:
    """Return what the engine's own interface file imports from its compiled parts."""
    empty = {name: type(name, (), {}) for name in ("KvCacheConnectorManager", "LlmRequest")}
    return {
        module.__name__: module
        for module in (
            _module("tensorrt_llm.bindings", LlmRequestState=RequestState),
            _module("tensorrt_llm.bindings.internal"),
            _module("tensorrt_llm.bindings.internal.batch_manager", **empty),
            _module("tensorrt_llm.llmapi"),
            _module("tensorrt_llm.llmapi.llm_args", TorchLlmArgs=object),
            _module("tensorrt_llm.logger", logger=None),
            _module(f"{_PYEXECUTOR}.llm_request", get_draft_token_length=lambda request: 0),
            _module(f"{_PYEXECUTOR}.scheduler", ScheduledRequests=object),
            _module(f"{_PYEXECUTOR}.kv_cache"),
            _module(
                f"{_PYEXECUTOR}.kv_cache.kv_cache_manager_v2", KVCacheManagerV2=type("V2", (), {})
            ),
        )
    }


def forget_connector() -> None:
    """Drop what was imported with earlier stand-ins."""
    for name in [name for name in sys.modules if name.startswith("tensorrt_llm")]:
        del sys.modules[name]
    sys.modules.pop("flexkv_connectors.tensorrt_llm.connector", None)


def _module(name: str, **content: object) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = []
    vars(module).update(content)
    return module


def _base(name: str, methods: Mapping[str, Method]) -> type:
    """Make a base class with these methods; a concrete one remembers what it is given."""

    def concrete(method_name: str) -> Callable[..., Any]:
        def method(self: Any, *given: object) -> None:
            vars(self)[f"_given_to_{method_name}"] = given

        return method

    made = {
        method_name: abc.abstractmethod(concrete(method_name))
        if method.is_abstract
        else concrete(method_name)
        for method_name, method in methods.items()
    }
    return abc.ABCMeta(name, (), {**made, "supports_attention_dp": False})
