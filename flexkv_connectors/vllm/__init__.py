"""FlexKV behind vLLM: `--kv-transfer-config '{"kv_connector":"flexkv","kv_role":"kv_both"}'`."""

__all__ = ["register"]

_MODULE = "flexkv_connectors.vllm.connector"
_NAME = "flexkv"


def register() -> None:
    """Tell vLLM about the connector; the entry point `vllm.general_plugins` calls this.

    vLLM calls it in every process it starts, and may call it more than once in one. The
    connector's module, and with it numpy and torch, is loaded only where it is used.

    Raises:
        ConfigError: Another plug-in has taken the name.
    """
    from vllm.distributed.kv_transfer.kv_connector.factory import (  # noqa: PLC0415 lazy on purpose
        KVConnectorFactory,
    )

    if _NAME not in KVConnectorFactory._registry:  # noqa: SLF001 vLLM has no public question
        KVConnectorFactory.register_connector(_NAME, _MODULE, "FlexKVConnector")
        return
    _require_ours(KVConnectorFactory.get_connector_class_by_name(_NAME))


def _require_ours(connector: type) -> None:
    if connector.__module__ == _MODULE:
        return
    from flexkv_core.errors import ConfigError  # noqa: PLC0415 rare path, kept out of import time

    msg = (
        f'the connector name "{_NAME}" is already taken by {connector.__module__}: uninstall that '
        f'plug-in, or pass "kv_connector_module_path": "{_MODULE}" and "kv_connector": '
        '"FlexKVConnector" in --kv-transfer-config'
    )
    raise ConfigError(msg)
