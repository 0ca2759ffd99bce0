"""Excerpts of untrusted text for messages and logs: short, in printable ASCII. A leaf.

Values come from clients and files, so neither their size nor their characters may do harm: only the
beginning of a value is read, and no control character reaches a terminal.
"""

from collections.abc import Iterator, Mapping

__all__ = ["clipped", "excerpt"]

_VALUE_CHARACTERS = 80
_TEXT_CHARACTERS = 240
_MAX_BITS = 256
"""The longest integer that is written out: the time for it grows faster than its length."""


def excerpt(value: object) -> str:
    """Return the beginning of the Python repr of a JSON-like `value`: at most 80 characters.

    Cost: that of the characters returned, whatever the size or depth of `value`.
    """
    written = ""
    for piece in _pieces(value):
        written += piece
        if len(written) > _VALUE_CHARACTERS:
            return _cut(written, _VALUE_CHARACTERS)
    return written


def clipped(text: str) -> str:
    """Return the first 240 characters of `text`, with all but printable ASCII escaped."""
    written = "".join(
        character if " " <= character <= "~" else ascii(character)[1:-1]
        for character in text[: _TEXT_CHARACTERS + 1]
    )
    return written if len(written) <= _TEXT_CHARACTERS else _cut(written, _TEXT_CHARACTERS)


def _cut(written: str, num_characters: int) -> str:
    return written[: num_characters - 3] + "..."


def _pieces(value: object) -> Iterator[str]:
    """Yield the repr of `value` piece by piece; the caller may stop at any piece."""
    if isinstance(value, Mapping):
        yield "{"
        for number, (key, item) in enumerate(value.items()):
            yield ", " if number else ""
            yield from _pieces(key)
            yield ": "
            yield from _pieces(item)
        yield "}"
    elif isinstance(value, (list, tuple)):
        yield "["
        for number, item in enumerate(value):
            yield ", " if number else ""
            yield from _pieces(item)
        yield "]"
    else:
        yield _scalar(value)


def _scalar(value: object) -> str:
    if isinstance(value, (str, bytes)):
        return ascii(value[: _VALUE_CHARACTERS + 1])
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    return f"a {type(value).__name__}"
