"""Which engine versions are supported: decided here, once."""

import re
from typing import NamedTuple

from flexkv_core.errors import UnsupportedEngineError

__all__ = ["SUPPORTED", "VersionRange", "require_supported"]


class VersionRange(NamedTuple):
    """Releases `first` (included) to `end` (excluded), by as many numbers as each has."""

    first: tuple[int, ...]
    end: tuple[int, ...]


SUPPORTED = {
    "sglang": VersionRange((0, 5, 20), (0, 6)),
    "tensorrt_llm": VersionRange((1, 1), (1, 5)),
    "vllm": VersionRange((0, 28), (0, 34)),
}
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
    release, *_ = re.split(r"[^\d.]", version)
    numbers = tuple(map(int, filter(None, release.split("."))))
    if not known.first <= numbers < known.end:
        first, end = (".".join(map(str, pair)) for pair in known)
        msg = (
            f"{engine} {version} is installed, and this release of flexkv-connectors supports "
            f"{first} up to, but not including, {end}: install another version of one of the two"
        )
        raise UnsupportedEngineError(msg)
