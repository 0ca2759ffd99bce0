import json
import sys
from types import ModuleType

import pytest

from flexkv_connectors.sglang.stock_flag import name_our_flags
from flexkv_core.config import parse_config
from flexkv_core.errors import ConfigError

OF_SGLANG = {
    "backend_name",
    "module_path",
    "class_name",
    "interface_v1",
    "hicache_storage_pass_prefix_keys",
}


def refusal():
    with pytest.raises(ConfigError) as refused:
        name_our_flags("context")
    return str(refused.value)


def test_without_flexkvs_package_its_flag_is_refused_in_one_sentence():
    sentence = refusal()
    assert sentence.startswith("--enable-flexkv needs the package flexkv, which is not installed: ")
    assert "\n" not in sentence
    assert ". " not in sentence


def test_what_it_says_instead_can_be_typed():
    options = json.loads(refusal().split("'")[1])
    assert options.keys() > OF_SGLANG
    assert parse_config({name: value for name, value in options.items() if name not in OF_SGLANG})


def test_whoever_has_that_package_keeps_the_flag(monkeypatch):
    monkeypatch.setitem(sys.modules, "flexkv", ModuleType("flexkv"))
    name_our_flags("context")
