"""FlexKV behind TensorRT-LLM: its `kv_connector_config` names this package and two classes.

connector_module: flexkv_connectors.tensorrt_llm
connector_scheduler_class: FlexKVScheduler
connector_worker_class: FlexKVWorker
"""

import importlib

__all__ = ["FlexKVScheduler", "FlexKVWorker"]


def __getattr__(name: str) -> object:
    """Load the classes, and with them the engine, when they are asked for."""
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    connector = importlib.import_module(f"{__name__}.connector")
    return getattr(connector, name)
