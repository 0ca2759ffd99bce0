"""The guide for FlexKV's users names every option of theirs, and says truly which are ignored."""

import re

import msgspec
import pytest

from flexkv_core.config import CacheConfig
from flexkv_core.upstream_options import UPSTREAM_OPTIONS

OURS = {field.name for field in msgspec.structs.fields(CacheConfig)}


@pytest.fixture
def guide(root):
    """What the table of options says, by option."""
    _, _, table = (root / "docs" / "migration.md").read_text().partition("| option of FlexKV ")
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    return {name: says for names, says in rows for name in re.findall(r"`(\w+)`", names)}


def test_every_option_of_flexkv_is_in_the_guide_and_no_other(guide):
    assert guide.keys() - OURS == UPSTREAM_OPTIONS.keys()


def test_what_the_guide_calls_ignored_is_ignored(guide):
    ignored = {name for name, says in guide.items() if says.startswith(" ignored: ")}
    assert ignored == {name for name, one in UPSTREAM_OPTIONS.items() if one.as_here is None}
