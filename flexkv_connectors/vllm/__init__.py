"""FlexKV behind vLLM: `--kv-transfer-config '{"kv_connector":"flexkv","kv_role":"kv_both"}'`."""

import inspect
import logging
from collections.abc import Callable

from flexkv_core.env import mark_engine_start as _mark_engine_start

__all__ = ["log_like_vllm", "register"]

logger = logging.getLogger(__name__)

_SESSION = "flexkv_connectors.vllm.connector", "FlexKVConnector"
_OFFLOADING = "flexkv_connectors.vllm.offloading.connector", "FlexKVOffloadingConnector"
_BY_DEVICE = "flexkv_connectors.vllm.by_device", "FlexKVByDevice"
_CONNECTORS = {"flexkv": _BY_DEVICE, "flexkv-session": _SESSION, "flexkv-offload": _OFFLOADING}
"""Module and class, by the names that users write."""


def register() -> None:
    """Tell vLLM about the connector; the entry point `vllm.general_plugins` calls this.

    vLLM calls it in every process it starts, and may call it more than once in one. The
    connector's module, and with it numpy and torch, is loaded only where it is used. Nothing is
    raised: that would stop every vLLM of this machine, whatever connector it uses.
    """
    _mark_engine_start()  # vLLM calls this before it reads the model's configuration
    from vllm.distributed.kv_transfer.kv_connector.factory import (  # noqa: PLC0415 lazy on purpose
        KVConnectorFactory,
    )

    registry = KVConnectorFactory._registry  # noqa: SLF001 vLLM has no public question
    for name, (module, kind) in _CONNECTORS.items():
        if name not in registry:
            KVConnectorFactory.register_connector(name, module, kind)
        elif (owner := _module_of(registry[name])) != module:
            logger.error(
                'connector.name_taken: "%s" is %s: uninstall the plug-in that it is from, or pass '
                '"kv_connector_module_path": "%s" and "kv_connector": "%s" in '
                "--kv-transfer-config",
                name,
                owner,
                module,
                kind,
            )


def log_like_vllm() -> None:
    """Log as vLLM does: it sets up the handlers of its own loggers only."""
    engine = logging.getLogger("vllm")
    for name in ("flexkv_core", "flexkv_connectors"):
        ours = logging.getLogger(name)
        if not ours.handlers:
            ours.handlers, ours.propagate = engine.handlers[:], False
            ours.setLevel(engine.getEffectiveLevel())


def _module_of(loader: Callable[[], type]) -> str:
    """Return the module from which `loader` would take its connector, without loading that."""
    closure = inspect.getclosurevars(loader).nonlocals if inspect.isfunction(loader) else {}
    return str(closure.get("module_path", loader.__module__))
