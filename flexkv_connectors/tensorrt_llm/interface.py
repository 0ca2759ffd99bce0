"""What this connector imports from TensorRT-LLM at run time; nothing else does.

The interface moved from `pyexecutor/` to `pyexecutor/connectors/` between 1.2 and 1.3.
"""

import importlib
from types import ModuleType
from typing import Any, cast

from flexkv_connectors.session.orders import RankReport
from flexkv_connectors.versions import require_supported
from flexkv_core.errors import UnsupportedEngineError

__all__ = ["connector_interface", "gather_reports", "own_rank", "require_engine"]

_PYEXECUTOR = "tensorrt_llm._torch.pyexecutor"
_PLACES = (f"{_PYEXECUTOR}.connectors.kv_cache_connector", f"{_PYEXECUTOR}.kv_cache_connector")


def connector_interface() -> ModuleType:
    """Return the module with the base classes of connectors.

    Raises:
        UnsupportedEngineError: There is none.
    """
    found = [module for place in _PLACES if (module := _module_at(place)) is not None]
    if found:
        return found[0]
    msg = (
        "TensorRT-LLM with a KV cache connector interface is not installed here: install "
        "tensorrt-llm 1.1 or newer into this environment"
    )
    raise UnsupportedEngineError(msg)


def _module_at(place: str) -> ModuleType | None:
    """Return a module; None if it does not exist. What its own imports lack is an error."""
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{place}.".startswith(f"{error.name}."):
            return None
        raise


def require_engine(arguments: object) -> None:
    """Refuse an engine whose version was not checked, or whose arguments lack what we read.

    Args:
        arguments: What the engine gave to the constructor of a connector.

    Raises:
        UnsupportedEngineError: One sentence.
    """
    require_supported("tensorrt_llm", str(importlib.import_module("tensorrt_llm").__version__))
    if not hasattr(getattr(arguments, "kv_cache_config", None), "tokens_per_block"):
        msg = (
            f"this TensorRT-LLM gives a {type(arguments).__name__} to connectors that does not say "
            "how it keeps KV, as the arguments of its LLM API do from 1.1 on: install a newer one"
        )
        raise UnsupportedEngineError(msg)


def own_rank() -> int:
    """Return this process's rank among those of the engine."""
    return int(_utils().mpi_rank())


def gather_reports(report: RankReport) -> list[RankReport]:
    """Return what every rank reports. A collective: every rank calls it, or none."""
    return cast("list[RankReport]", _utils().mpi_allgather(report))


def _utils() -> Any:  # noqa: ANN401 a module without types
    return importlib.import_module("tensorrt_llm._utils")
