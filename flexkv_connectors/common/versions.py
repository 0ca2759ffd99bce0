"""Which engine versions are supported: decided here, once."""

import re
from typing import NamedTuple

from flexkv_core.errors import UnsupportedEngineError

__all__ = ["SUPPORTED", "VersionRange", "require_supported"]


class VersionRange(NamedTuple):
    """Releases `first` (included) to `end` (excluded), by their first two numbers."""

    first: tuple[int, int]
    end: tuple[int, int]


SUPPORTED = {"vllm": VersionRange((0, 28), (0, 34))}
"""Ranges whose sources were read; the README says which releases have really run."""


def require_supported(engine: str, version: str) -> None:
    """Refuse an engine version whose interfaces have not been checked.

    Args:
        engine: Key of `SUPPORTED`.
        version: What the engine says of itself, e.g. "0.32.0+cpu".

    Raises:
        UnsupportedEngineError: The version is outside the range, or cannot be read.
    """
    known = SUPPORTED[engine]
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or not known.first <= (int(numbers[1]), int(numbers[2])) < known.end:
        first, end = (".".join(map(str, pair)) for pair in known)
        msg = (
            f"{engine} {version} is installed, and this release of flexkv-connectors supports "
            f"{first} up to, but not including, {end}: install another version of one of the two"
        )
        raise UnsupportedEngineError(msg)
