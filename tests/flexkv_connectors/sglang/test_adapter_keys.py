"""What the keys of requests with adapters begin with."""

import time
from types import SimpleNamespace

import pytest
from engine_values import deployment, settings

from flexkv_connectors.sglang import adapter_keys
from flexkv_connectors.sglang.adapter_keys import identify_adapters, name_adapter


@pytest.fixture(autouse=True)
def start(monkeypatch):
    """Return a function that begins a process of an engine; the first one has begun."""

    def start(at_s=None):
        at_s = at_s or time.time() + 60  # after the files were written
        monkeypatch.setattr(adapter_keys, "engine_start_s", lambda: at_s)
        monkeypatch.setattr(adapter_keys, "_identities", {})
        monkeypatch.setattr(adapter_keys, "_prefixes", {})

    start()
    return start


@pytest.fixture
def adapter(tmp_path):
    """Return a function that writes an adapter, and returns its folder."""

    def write(weights, name="adapter"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(weights)
        return str(folder)

    return write


def identify(**adapters):
    for adapter in identify_adapters(settings(adapters=adapters), deployment().rank.cache):
        adapter.join()


def extra_key_of(adapter_id, extra_key=None):
    """Return the extra key of a new request: SGLang has put the id of its adapter behind it."""
    own = extra_key if adapter_id is None else (extra_key or "") + adapter_id
    request = SimpleNamespace(lora_id=adapter_id, extra_key=own)
    name_adapter(None, request)
    return request.extra_key


def test_an_adapter_with_other_weights_under_its_old_name_has_other_keys(start, adapter):
    keys = []
    for weights in (b"one", b"two", b"one"):
        start()
        identify(a=adapter(weights))
        keys.append(extra_key_of("a"))
    assert keys[0] == keys[2] != keys[1]
    assert all(key.startswith("content:") and key.endswith("a") for key in keys)


def test_keys_do_not_depend_on_which_others_there_are(start, adapter):
    identify(a=adapter(b"one"))
    alone = extra_key_of("a", "extra")
    start()
    identify(b=adapter(b"two", "other"), a=adapter(b"one"))
    assert extra_key_of("a", "extra") == alone
    assert extra_key_of("b", "extra") != alone


def test_a_request_without_an_adapter_keeps_its_keys(adapter):
    identify(a=adapter(b"one"))
    assert extra_key_of(None) is None
    assert extra_key_of(None, "extra") == "extra"


def test_an_adapter_that_is_not_known_has_keys_of_this_engine_alone(start):
    keys = []
    for at_s in (1.0, 2.0, 1.0):
        start(at_s)
        keys.append(extra_key_of("a"))
    assert keys[0] == keys[2] != keys[1]  # all ranks of an engine agree


def test_keys_stay_what_they_were_at_the_first_request(adapter):
    first = extra_key_of("a")
    identify(a=adapter(b"one"))
    assert extra_key_of("a") == first


def test_an_adapter_that_was_written_after_the_start_is_not_known(start, adapter):
    start(1.0)
    identify(a=adapter(b"one"))
    assert extra_key_of("a") == "since:1.0a"


def test_an_adapter_that_is_not_there_is_not_known_and_others_are(adapter, caplog):
    identify(a="/no/adapter", b=adapter(b"one"))
    assert extra_key_of("a").startswith("since:")
    assert extra_key_of("b").startswith("content:")
    assert "/no/adapter" in caplog.text
