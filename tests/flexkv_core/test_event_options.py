"""An option with parts: as a file has it, and as JSON in an environment variable."""

import msgspec
import pytest

from flexkv_core.config import parse_config
from flexkv_core.errors import ConfigError
from flexkv_core.event_options import EventOptions

PARTS = {"endpoint": "tcp://*:5557", "topic": "kv@pod@model", "buffer_steps": 5, "format": "map"}


@pytest.mark.parametrize("written", [PARTS, msgspec.json.encode(PARTS).decode()])
def test_parts_are_read_from_a_mapping_and_from_json(written):
    assert parse_config({"events": written}).events == EventOptions(**PARTS)


@pytest.mark.parametrize("written", [None, ""])
def test_without_it_nothing_is_published(written):
    assert parse_config({"events": PARTS}, {"events": written}).events is None


@pytest.mark.parametrize(
    "written",
    [
        "tcp://*:5557",
        "[" * 4000,
        '{"endpoint": "' + "a" * 5000 + '"}',
        {},
        PARTS | {"replay_endpont": "tcp://*:5558"},
        PARTS | {"format": "json"},
        PARTS | {"buffer_steps": 0},
        PARTS | {"topic": "\udcff"},
    ],
)
def test_what_cannot_be_used_is_one_short_sentence(written):
    with pytest.raises(ConfigError, match=r"^events is .*: expected endpoint, such as") as caught:
        parse_config({"events": written})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("form", "can"), [("map", True), ("array", False)])
def test_only_a_map_can_say_a_salt(form, can):
    assert EventOptions(endpoint="tcp://*:1", format=form).can_say_salts is can
