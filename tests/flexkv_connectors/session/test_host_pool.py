"""Who gets how much host memory."""

from types import SimpleNamespace

import pytest

from flexkv_connectors.session import host_pool
from flexkv_connectors.session.host_pool import host_budget_bytes
from flexkv_core.config import parse_config
from flexkv_core.errors import ConfigError

GIB = 2**30


@pytest.fixture(autouse=True)
def free_memory(monkeypatch):
    """8 GiB for whoever asks for nothing, and no more than 8 for whoever asks."""

    def check(asked):
        if asked > 8 * GIB:
            raise ConfigError("too much")

    monkeypatch.setattr(
        host_pool, "default_cache_bytes", lambda num_engines: 8 * GIB // num_engines
    )
    monkeypatch.setattr(host_pool, "check_host_bytes", check)


def deployment(options, num_engines=1, num_local_owners=1):
    """Return what the budget depends on."""
    return SimpleNamespace(
        cache=parse_config(options), num_engines=num_engines, num_local_owners=num_local_owners
    )


@pytest.mark.parametrize("num_engines", [1, 4])
def test_what_is_asked_for_is_for_each_engine(num_engines):
    assert host_budget_bytes(deployment({"cpu_cache_gb": 8}, num_engines)) == 8 * GIB


def test_the_ranks_of_an_engine_share_what_is_asked_for():
    assert host_budget_bytes(deployment({"cpu_cache_gb": 8}, num_local_owners=4)) == 2 * GIB


def test_what_an_engine_asks_for_is_checked_before_its_ranks_share_it():
    with pytest.raises(ConfigError):
        host_budget_bytes(deployment({"cpu_cache_gb": 9}, num_engines=4, num_local_owners=4))


def test_engines_that_know_of_each_other_share_what_is_free_when_nothing_is_asked_for():
    assert host_budget_bytes(deployment({}, num_engines=2, num_local_owners=4)) == GIB
