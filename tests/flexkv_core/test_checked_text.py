"""What was written is read again, and nothing else is."""

import msgspec
import pytest

from flexkv_core.checked_text import pack_text, unpack_text

MAGIC = b"FLEXKVT1"


class Value(msgspec.Struct, forbid_unknown_fields=True):
    name: str


class Other(msgspec.Struct, forbid_unknown_fields=True):
    number: int


CONTENT = pack_text(MAGIC, Value("a"))


def test_a_value_is_read_from_the_beginning_of_what_follows():
    assert unpack_text(MAGIC, CONTENT + b"more", Value) == (Value("a"), len(CONTENT))


@pytest.mark.parametrize("position", range(len(CONTENT)))
def test_a_byte_that_is_another_is_seen(position):
    damaged = bytearray(CONTENT)
    damaged[position] ^= 1
    assert unpack_text(MAGIC, bytes(damaged), Value) is None


@pytest.mark.parametrize("num_bytes", range(len(CONTENT)))
def test_content_that_is_cut_off_is_seen(num_bytes):
    assert unpack_text(MAGIC, CONTENT[:num_bytes], Value) is None


def test_another_kind_of_value_is_none_of_ours():
    assert unpack_text(MAGIC, CONTENT, Other) is None
    assert unpack_text(b"FLEXKVT2", CONTENT, Value) is None
