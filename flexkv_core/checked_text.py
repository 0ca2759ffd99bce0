"""Small values in files: JSON after a magic number, its length and its checksum."""

import struct
from typing import TypeVar

import msgspec
from xxhash import xxh3_64_intdigest

__all__ = ["pack_text", "unpack_text"]

_PREFIX = struct.Struct("<8sIQ")  # magic, bytes of JSON, their XXH3

_T = TypeVar("_T")


def pack_text(magic: bytes, value: msgspec.Struct) -> bytes:
    """Return `value` in JSON, after a magic number, its length and its checksum."""
    text = msgspec.json.encode(value)
    return _PREFIX.pack(magic, len(text), xxh3_64_intdigest(text)) + text


def unpack_text(magic: bytes, content: bytes, kind: type[_T]) -> tuple[_T, int] | None:
    """Read what `pack_text` wrote from the beginning of `content`; None for anything else.

    Returns:
        The value, and how many bytes it takes.
    """
    if len(content) < _PREFIX.size:
        return None
    found, length, stated = _PREFIX.unpack_from(content)
    end = _PREFIX.size + length
    text = content[_PREFIX.size : end]
    if found != magic or len(text) != length or xxh3_64_intdigest(text) != stated:
        return None
    try:
        return msgspec.json.decode(text, type=kind), end
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
