"""Options of storage below a host tier, and who writes for whom."""

import pytest
from host_tier import rank

from flexkv_connectors.below_host.rank import parse_options
from flexkv_core.errors import ConfigError

SSD = {"ssd_cache_gb": 1, "ssd_cache_dir": "/nowhere"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "nowhere to store"),
        (SSD | {"cpu_cache_gb": 1}, "cpu_cache_gb means nothing here: set --host-size"),
        (SSD | {"min_load_tokens": 1}, "min_load_tokens means nothing here"),
        (SSD | {"ssd_cache_gib": 1}, "did you mean ssd_cache_gb"),
        (SSD | {"events": {"endpoint": "tcp://*:0"}}, "publishes none .*: leave it out"),
    ],
)
def test_options_that_cannot_be_used_are_refused_in_one_sentence(options, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        parse_options(options, "set --host-size")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("num_replicas", "is_follower", "has_followers"),
    [(1, False, False), (2, False, True), (2, True, False)],
)
def test_the_first_of_several_replicas_has_followers(
    tmp_path, num_replicas, is_follower, has_followers
):
    place = rank(tmp_path, num_replicas=num_replicas, is_follower=is_follower)
    assert place.has_followers is has_followers
    assert place.ssd_options(1, is_replicated=True).has_followers is has_followers
    assert not place.ssd_options(1, is_replicated=False).has_followers
