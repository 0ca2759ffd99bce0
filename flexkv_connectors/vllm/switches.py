"""What a caller may ask for one request, in vLLM's `kv_transfer_params`.

Callers may send values of any size and shape; reading them must not slow other requests.
"""

import logging
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from flexkv_core.excerpt import excerpt
from flexkv_core.metrics import Recorder

__all__ = ["SwitchReader", "Switches"]

logger = logging.getLogger(__name__)

_MAX_NAMESPACE = 256


class Switches(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a caller may ask for one request: `kv_transfer_params={"flexkv": {...}}`."""

    load: bool = True
    """Whether cached KV may be used for it."""

    save: bool = True
    """Whether its KV may be kept for others."""

    namespace: Annotated[str, Meta(max_length=_MAX_NAMESPACE)] | None = None
    """Keeps its blocks in FlexKV apart from those of every other namespace, both ways. vLLM's own
    prefix cache knows nothing of it: only `cache_salt` keeps KV apart there, too."""


_NAMES = frozenset(Switches.__struct_fields__)
_NOTHING = Switches(load=False, save=False)


class SwitchReader:
    """Reads what callers ask for. Thread: the scheduler's."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._has_warned = False

    def read(self, kv_transfer_params: object) -> Switches:
        """Read the `flexkv` part of a request's `kv_transfer_params`.

        A request whose switches cannot be read is neither loaded nor saved: its caller may have
        wanted to keep its KV apart. Such requests are counted, and the first one is logged.

        Cost: O(1), whatever they are.
        """
        ours = _ours_of(kv_transfer_params)
        switches = _convert(ours)
        if switches is None:
            self._refuse(ours)
        return switches or _NOTHING

    def _refuse(self, ours: object) -> None:
        self._recorder.add("switches_refused")
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "request.switches_refused value=%s: expected an object of load and save, which are "
                "true or false, and namespace, a text of %d characters at most; it is not cached; "
                "more of them are counted in switches_refused, and not logged",
                excerpt(ours),
                _MAX_NAMESPACE,
            )


def _ours_of(kv_transfer_params: object) -> object:
    """Return the part that is ours; if it is no mapping, return all of it, to be refused."""
    if kv_transfer_params is None:
        return {}
    if isinstance(kv_transfer_params, Mapping):
        return kv_transfer_params.get("flexkv", {})
    return kv_transfer_params


def _convert(ours: object) -> Switches | None:
    # Unknown names are found here: msgspec raises other errors for names that are not text.
    if not isinstance(ours, Mapping) or not ours.keys() <= _NAMES:
        return None
    try:
        return msgspec.convert(ours, Switches)
    except msgspec.ValidationError:
        return None
