"""How events for routers are published, where we publish them ourselves. A leaf."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = ["EventOptions", "decoded"]

_MAX_TEXT = 256
_MAX_WRITTEN = 4096
_MAX_STEPS = 10**6

_Text = Annotated[str, Meta(pattern=r"\A[^\ud800-\udfff]*\Z", max_length=_MAX_TEXT)]
"""Text that can be encoded in UTF-8, since it goes onto the wire."""


class EventOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One option with several parts, named as in vLLM's `--kv-events-config`."""

    endpoint: _Text
    """Where batches are published: an address with `*`, or a path, is opened here; any other is one
    where a consumer listens."""

    replay_endpoint: _Text | None = None
    """Where consumers ask for batches that they have missed, opened here whatever the address; None
    for nowhere."""

    buffer_steps: Annotated[int, Meta(ge=1, le=_MAX_STEPS)] = 10_000
    """Batches that are kept to be asked for; as many may wait for a slow consumer."""

    topic: _Text = ""
    """What consumers subscribe to; llm-d expects kv@POD@MODEL."""

    format: Literal["array", "map"] = "array"
    """How an event is encoded: Dynamo reads both, llm-d positional arrays."""

    @property
    def can_say_salts(self) -> bool:
        """Whether an event can name the salt of its blocks."""
        return self.format == "map"


def decoded(written: object) -> object:
    """Return the parts of the option, which an environment variable has as JSON."""
    if not isinstance(written, str) or len(written) > _MAX_WRITTEN:
        return written
    try:
        parts: object = msgspec.json.decode(written)
    except (msgspec.DecodeError, RecursionError):
        return written
    return parts
