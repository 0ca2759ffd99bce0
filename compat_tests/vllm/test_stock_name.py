"""vLLM's own name for FlexKV's connector means ours where the user asks for it, and only there."""

import logging
import sys
import uuid
from functools import partial

import pytest

STOCK = "FlexKVConnectorV1"
VLLMS_OWN = "vllm.distributed.kv_transfer.kv_connector.v1.flexkv_connector"
OURS = "flexkv_connectors.vllm.by_device"
VARIABLE = "FLEXKV_REPLACE_STOCK_CONNECTOR"


@pytest.fixture
def registry(monkeypatch):
    """vLLM's connectors by name, as our plug-in leaves them unasked."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    from vllm.plugins import load_general_plugins

    load_general_plugins()  # only once a process: not into the copy
    own = dict(KVConnectorFactory._registry)
    monkeypatch.setattr(KVConnectorFactory, "_registry", own)
    return own


@pytest.fixture
def said(monkeypatch):
    """Collect what our plug-in says of the name."""
    messages = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("flexkv_connectors")
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "level", logging.INFO)
    return messages


@pytest.fixture
def register(registry, said, monkeypatch):
    """Return a function that loads our plug-in with a value of the variable."""
    from flexkv_connectors.vllm import register

    def load(value):
        monkeypatch.setenv(VARIABLE, value)
        register()

    return load


@pytest.fixture
def upstream(monkeypatch, tmp_path):
    """Return a function that puts a folder `flexkv` with these files on the path."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(*files):
        (tmp_path / "flexkv").mkdir()
        for file in files:
            (tmp_path / "flexkv" / file).write_text("raise AssertionError('it is imported')")

    return put


@pytest.fixture
def made(registry, register, identity, config_of, monkeypatch):
    """Return a function from a device and our options to what vLLM makes under its own name."""
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

    from flexkv_connectors.vllm.offloading import connector

    monkeypatch.setattr(connector, "is_there", lambda _engine_id: True)
    connectors = []

    def make(name, device, **options):
        config = identity.changed(config_of(), "device_config", device_type=device)
        config = identity.changed(
            config,
            "kv_transfer_config",
            kv_connector=name,
            kv_connector_extra_config=options,
            engine_id=uuid.uuid4().hex,
        )
        cache = identity.declared_cache(config_of())
        connectors.append(registry[name]()(config, KVConnectorRole.SCHEDULER, cache))
        return connectors[-1]

    yield make
    for each in connectors:
        each.shutdown()


@pytest.mark.parametrize("value", ["", "0", "false"])
def test_unasked_the_name_stays_vllms_own(registry, register, said, value):
    register(value)
    assert said == []
    assert registry[STOCK]().__module__ == VLLMS_OWN


def test_asked_for_the_name_is_ours(registry, register, said):
    for _ in range(2):
        register("1")
        assert registry[STOCK]().__module__ == OURS
    assert said == []


def test_processes_that_vllm_starts_do_not_repeat_a_warning(register, said, upstream, monkeypatch):
    monkeypatch.setattr("flexkv_connectors.vllm._parent_process", object)
    upstream("__init__.py")
    register("1")
    assert said == []


def test_who_has_installed_flexkv_keeps_it(registry, register, said, upstream):
    upstream("__init__.py")
    register("1")
    (sentence,) = said
    assert sentence.startswith('connector.not_replaced: "FlexKVConnectorV1" stays as it is: the pa')
    assert "flexkv" not in sys.modules
    assert registry[STOCK]().__module__ == VLLMS_OWN


def test_a_folder_of_that_name_without_code_is_not_flexkv(registry, register, upstream):
    upstream("flexkv-3.slab")
    register("1")
    assert registry[STOCK]().__module__ == OURS


@pytest.mark.parametrize("loader", [partial(dict), None])
def test_a_name_that_is_not_vllms_is_left_alone(registry, register, said, loader):
    del registry[STOCK]
    if loader:
        registry[STOCK] = loader
    register("1")
    (sentence,) = said
    assert sentence.endswith("it is functools" if loader else "it is unknown to this vLLM")
    assert registry.get(STOCK) is loader


def test_a_value_that_cannot_be_read_replaces_nothing_and_stops_nobody(registry, register, said):
    register("perhaps")
    (sentence,) = said
    assert sentence.endswith(f"{VARIABLE} is 'perhaps': expected true or false")
    assert registry[STOCK]().__module__ == VLLMS_OWN


@pytest.mark.parametrize("name", [STOCK, "flexkv"])
@pytest.mark.parametrize(
    ("device", "options", "kind"),
    [
        ("cpu", {"cpu_cache_gb": 0.01}, "FlexKVConnector"),
        ("cuda", {"cpu_cache_gb": 0.01}, "FlexKVOffloadedByDevice"),
        ("cuda", {"cpu_cache_gb": 1e-6}, "IdleConnector"),
    ],
)
def test_under_either_name_the_same_is_made_and_passes_for_vllms_own(
    register, said, made, name, device, options, kind
):
    from vllm.distributed.kv_transfer.kv_connector.v1.flexkv_connector import FlexKVConnectorV1

    register("1")
    connector = made(name, device, **options)
    assert type(connector).__qualname__ == kind
    assert isinstance(connector, FlexKVConnectorV1)
    assert FlexKVConnectorV1 not in type(connector).__mro__
    assert [text for text in said if "connector.replaced" in text] == [
        f"connector.replaced: {STOCK} is FlexKV Connectors here"
    ] * (name == STOCK)


def test_unasked_vllms_own_asks_for_flexkvs_package(register, made):
    register("0")
    with pytest.raises(ImportError, match="FlexKV is not installed"):
        made(STOCK, "cpu")


def test_statistics_are_looked_up_under_a_name_that_is_registered(registry, register):
    from flexkv_connectors.vllm.by_device import FlexKVByDevice

    register("1")
    name = registry[STOCK]().__name__
    assert issubclass(registry[name](), FlexKVByDevice)
