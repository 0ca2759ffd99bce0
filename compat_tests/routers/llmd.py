"""What llm-d's router believes of its engines' caches, from the frames that they publish.

A model of what in llm-d-router decides a score: the names and tokens of blocks, their tiers and
groups, and how often each was announced. What llm-d itself made of the frames in
`llmd_golden.json` is what this must make of them. Bounds on memory are left out.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

WEIGHTS: Mapping[str, float] = {"gpu": 1.0, "cpu": 0.8}
"""By tier, unless the operator says otherwise; a tier without a weight counts `UNKNOWN_WEIGHT`."""

UNKNOWN_WEIGHT = 1.0
INDEXED_KINDS = ("full_attention", "mla_attention", "sink_full_attention")
"""Of groups: of all others, llm-d knows no prefix."""

_MIN_NAME = 2**32
"""A smaller number has fewer than 8 bytes in a frame, which llm-d does not read as a name."""

_FNV_OFFSET, _FNV_PRIME, _U64 = 0xCBF29CE484222325, 0x100000001B3, 2**64 - 1

ExtraKeys = Sequence[Sequence[Any] | None]
"""By block: what makes its KV beside tokens, as vLLM says it."""


class RefusedError(ValueError):
    """A frame that llm-d drops whole."""


class Stored(msgspec.Struct, array_like=True, tag="BlockStored"):
    """Blocks that came into a tier; fields in vLLM's order."""

    block_hashes: list[int | bytes]
    parent_block_hash: int | bytes | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[list[Any] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class Removed(msgspec.Struct, array_like=True, tag="BlockRemoved"):
    """Blocks that left a tier."""

    block_hashes: list[int | bytes]
    medium: str | None = None
    group_idx: int | None = None


class Cleared(msgspec.Struct, array_like=True, tag="AllBlocksCleared"):
    """An engine that has lost everything, in every tier."""


Event = Stored | Removed | Cleared
_FIELDS = {
    kind.__struct_config__.tag: kind.__struct_fields__ for kind in (Stored, Removed, Cleared)
}


class _Batch(msgspec.Struct, array_like=True):
    """A frame: always three items."""

    ts: float
    events: list[Any]
    data_parallel_rank: int | None


class Place(NamedTuple):
    """Where a block is."""

    pod: str
    tier: str
    group: int | None


def parse(payload: bytes) -> list[Event]:
    """Read the events of a frame.

    Raises:
        RefusedError: llm-d does not read it.
    """
    try:
        batch = msgspec.msgpack.decode(payload, type=_Batch)
        return [msgspec.convert(_as_array(event), Event) for event in batch.events]
    except msgspec.DecodeError as error:
        raise RefusedError(str(error)) from error


def _as_array(event: Any) -> Any:
    if not isinstance(event, dict):
        return event
    tag = event.get("type")
    return [tag, *(event.get(field) for field in _FIELDS.get(tag, ()))]


def block_keys(
    tokens: Sequence[int], block_tokens: int, parent: int, extra_keys: ExtraKeys | None = None
) -> list[int]:
    """Return llm-d's keys of the whole blocks of `tokens`.

    Args:
        tokens: From the first token behind the parent on.
        block_tokens: Of llm-d's blocks, which may have another size than the engine's.
        parent: Key of the block before, or `root_key`.
        extra_keys: By block of the engine.
    """
    num_keys = len(tokens) // block_tokens
    keys: list[int] = []
    for number, texts in enumerate(_texts_of(extra_keys or (), num_keys)):
        chunk = tokens[number * block_tokens : (number + 1) * block_tokens]
        parent = _hash(parent, chunk, [{"Hash": text} for text in texts] or None)
        keys.append(parent)
    return keys


def root_key(model: str, seed: str = "") -> int:
    """Return the parent of a model's first blocks."""
    return _hash(_fnv64a(seed.encode()), None, model)


class Index:
    """The blocks of all pods."""

    def __init__(
        self, block_tokens: int = 16, seed: str = "", weights: Mapping[str, float] | None = None
    ) -> None:
        self._block_tokens = block_tokens
        self._seed = seed
        self._weights = {**WEIGHTS, **(weights or {})}
        self._places: dict[int, set[Place]] = {}
        """By key."""

        self._keys: dict[int, list[int]] = {}
        """By the engine's name of a block; they outlive a clear."""

        self._num_stored: Counter[tuple[int, Place]] = Counter()
        """How often a name was announced there: as often it is to be removed."""

        self._kinds: dict[tuple[str, int], str] = {}
        """Of groups, by pod and number."""

    def ingest(self, topic: str, payload: bytes) -> None:
        """Believe what a frame says.

        Args:
            topic: `kv@<pod>@<model>`; what comes with another one is never found.
            payload: The events, in vLLM's encoding.

        Raises:
            RefusedError: llm-d drops the frame.
        """
        parts = topic.split("@")
        pod, model = parts[1:] if len(parts) == 3 else (topic, "")
        for event, names, parent in [_named(event) for event in parse(payload)]:
            if isinstance(event, Cleared):
                self._clear(pod)
                continue
            place = Place(pod, (event.medium or "gpu").lower(), event.group_idx)
            if isinstance(event, Removed):
                self._remove(names, place)
            elif self._is_indexed(event, place):
                self._store(event, names, parent, place, model)

    def score(
        self, tokens: Sequence[int], model: str, extra_keys: ExtraKeys | None = None
    ) -> dict[str, float]:
        """Return how much of a prompt each pod has: the weights of its blocks up to a hole."""
        scores: dict[str, float] = {}
        pods: set[str] | None = None
        root = root_key(model, self._seed)
        for key in block_keys(tokens, self._block_tokens, root, extra_keys):
            weights = self._best_weights(key)
            pods = set(weights) if pods is None else pods & set(weights)
            for pod in pods:
                scores[pod] = scores.get(pod, 0.0) + weights[pod]
        return scores

    def _best_weights(self, key: int) -> dict[str, float]:
        weights: dict[str, float] = {}
        for place in self._places.get(key, ()):
            weight = self._weights.get(place.tier, UNKNOWN_WEIGHT)
            weights[place.pod] = max(weight, weights.get(place.pod, weight))
        return weights

    def _store(
        self, event: Stored, names: list[int], parent: int | None, place: Place, model: str
    ) -> None:
        if parent is not None and parent not in self._keys:
            return
        root = root_key(event.lora_name or model, self._seed)
        before = root if parent is None else self._keys[parent][-1]
        keys = block_keys(event.token_ids, self._block_tokens, before, event.extra_keys)
        if keys:
            self._learn(names, keys)
        elif not event.token_ids:
            keys = [self._keys[name][-1] for name in names if name in self._keys]
        for key in keys:
            self._places.setdefault(key, set()).add(place)
        if keys:
            self._num_stored.update((name, place) for name in names)

    def _learn(self, names: list[int], keys: list[int]) -> None:
        keys_of: dict[int, list[int]] = {}
        for at_name, at_key in _pairs(len(names), len(keys)):
            keys_of.setdefault(names[at_name], []).append(keys[at_key])
        self._keys.update(keys_of)

    def _is_indexed(self, event: Stored, place: Place) -> bool:
        if place.group is None:
            return True
        if event.kv_cache_spec_kind is not None:
            self._kinds[place.pod, place.group] = event.kv_cache_spec_kind
        if self._kinds.get((place.pod, place.group)) not in INDEXED_KINDS:
            return False
        num_tokens = len(event.block_hashes) * event.block_size
        return not event.token_ids or len(event.token_ids) == num_tokens

    def _remove(self, names: list[int], place: Place) -> None:
        for name in names:
            self._num_stored[name, place] -= 1
            if self._num_stored[name, place] <= 0:
                del self._num_stored[name, place]
                self._evict(name, place)

    def _evict(self, name: int, place: Place) -> None:
        keys = self._keys.get(name, [])
        for key in keys:
            self._places.get(key, set()).discard(place)
        if not any(self._places.get(key) for key in keys):
            self._keys.pop(name, None)

    def _clear(self, pod: str) -> None:
        for key, places in self._places.items():
            self._places[key] = {place for place in places if place.pod != pod}
        for name, place in list(self._num_stored):
            if place.pod == pod:
                del self._num_stored[name, place]


def _named(event: Event) -> tuple[Event, list[int], int | None]:
    """Return an event with the names of its blocks and of their parent, as llm-d reads names."""
    if isinstance(event, Cleared):
        return event, [], None
    parent = event.parent_block_hash if isinstance(event, Stored) else None
    names = [_name(value) for value in event.block_hashes]
    return event, names, None if parent is None else _name(parent)


def _name(value: int | bytes) -> int:
    if isinstance(value, bytes):
        return int.from_bytes(value[-8:], "big")
    if value < _MIN_NAME:
        msg = f"the name {value} has fewer than 8 bytes"
        raise RefusedError(msg)
    return value


def _pairs(num_left: int, num_right: int) -> Iterator[tuple[int, int]]:
    """Pair the items of two lists that cover the same tokens, one of them more finely."""
    if num_left and num_right:
        most = max(num_left, num_right)
        for at in range(most):
            yield at * num_left // most, at * num_right // most


def _texts_of(extra_keys: ExtraKeys, num_keys: int) -> list[list[str]]:
    """Return by key what llm-d reads of extra keys: texts, or the first item of a pair."""
    texts: list[list[str]] = [[] for _ in range(num_keys)]
    for at_block, at_key in _pairs(len(extra_keys), num_keys):
        for item in extra_keys[at_block] or ():
            first = item[0] if isinstance(item, list | tuple) else item
            if isinstance(first, str):
                texts[at_key].append(first)
    return texts


def _hash(parent: int, tokens: Sequence[int] | None, extra: Any) -> int:
    return _fnv64a(_cbor([parent, tokens, extra]))


def _fnv64a(data: bytes) -> int:
    value = _FNV_OFFSET
    for byte in data:
        value = (value ^ byte) * _FNV_PRIME & _U64
    return value


def _cbor(value: Any) -> bytes:
    """Encode a value in CBOR's canonical form."""
    match value:
        case None:
            return b"\xf6"
        case int():
            return _cbor_head(0, value)
        case str():
            return _cbor_head(3, len(value.encode())) + value.encode()
        case dict():
            items = [_cbor(name) + _cbor(item) for name, item in value.items()]
            return _cbor_head(5, len(items)) + b"".join(items)
        case _:
            return _cbor_head(4, len(value)) + b"".join(map(_cbor, value))


def _cbor_head(kind: int, number: int) -> bytes:
    """Encode the kind of an item, and its value or length in as few bytes as will do."""
    if number < 24:
        return bytes([kind << 5 | number])
    power = next(power for power in range(4) if number < 1 << (8 << power))
    return bytes([kind << 5 | 24 + power]) + number.to_bytes(1 << power, "big")
