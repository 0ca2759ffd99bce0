"""FlexKV behind vLLM: `--kv-transfer-config '{"kv_connector":"flexkv","kv_role":"kv_both"}'`."""

import inspect
import logging
from collections.abc import Callable
from multiprocessing import parent_process as _parent_process
from typing import TYPE_CHECKING

from flexkv_connectors import upstream_package as _upstream_package
from flexkv_core.env import mark_engine_start as _mark_engine_start
from flexkv_core.env import replaces_stock_connector as _replaces_stock_connector
from flexkv_core.errors import ConfigError as _ConfigError

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

__all__ = ["log_like_vllm", "register"]

logger = logging.getLogger(__name__)

_SESSION = "flexkv_connectors.vllm.connector", "FlexKVConnector"
_OFFLOADING = "flexkv_connectors.vllm.offloading.connector", "FlexKVOffloadingConnector"
_BY_DEVICE = "flexkv_connectors.vllm.by_device", "FlexKVByDevice"
_CONNECTORS = {"flexkv": _BY_DEVICE, "flexkv-session": _SESSION, "flexkv-offload": _OFFLOADING}
"""Module and class, by the names that users write."""

_STOCK = "FlexKVConnectorV1"
_STOCK_MODULE = "vllm.distributed.kv_transfer.kv_connector.v1.flexkv_connector"


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
    _replace_stock(KVConnectorFactory)


def log_like_vllm() -> None:
    """Log as vLLM does: it sets up the handlers of its own loggers only."""
    engine = logging.getLogger("vllm")
    for name in ("flexkv_core", "flexkv_connectors"):
        ours = logging.getLogger(name)
        if not ours.handlers:
            ours.handlers, ours.propagate = engine.handlers[:], False
            ours.setLevel(engine.getEffectiveLevel())


def _replace_stock(factory: "type[KVConnectorFactory]") -> None:
    """Let vLLM's own name for FlexKV mean us if the user asks for that, or say why not."""
    registry = factory._registry  # noqa: SLF001 vLLM has no public question
    owner = _module_of(registry[_STOCK]) if _STOCK in registry else "unknown to this vLLM"
    try:
        if not _replaces_stock_connector() or owner == _BY_DEVICE[0]:
            return
        reason = _why_stock_stays(owner)
    except _ConfigError as error:
        reason = str(error)
    if reason is None:
        del registry[_STOCK]
        factory.register_connector(_STOCK, *_BY_DEVICE)
    elif _parent_process() is None:  # once, not in every process of an engine
        logger.warning('connector.not_replaced: "%s" stays as it is: %s', _STOCK, reason)


def _why_stock_stays(owner: str) -> str | None:
    if _upstream_package.is_installed():
        return f"the package {_upstream_package.PACKAGE}, which it is made for, is installed"
    return None if owner == _STOCK_MODULE else f"it is {owner}"


def _module_of(loader: Callable[[], type]) -> str:
    """Return the module from which `loader` would take its connector, without loading that."""
    closure = inspect.getclosurevars(loader).nonlocals if inspect.isfunction(loader) else {}
    return str(closure.get("module_path", loader.__module__))
