"""Policies by name."""

import pytest

from flexkv_core.control.eviction.policies import POLICIES, create_policy
from flexkv_core.errors import ConfigError


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_made_by_its_name(name):
    assert type(create_policy(name, 10)) is POLICIES[name]


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'s3-fifo'.*lru, s3fifo.*'s3fifo'\?"):
        create_policy("s3-fifo", 10)
