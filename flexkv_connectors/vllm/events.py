"""Cache events in vLLM's own form: its scheduler publishes them with those of its device."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from flexkv_connectors.announcer import (
    Announcement,
    BlockPages,
    PageKind,
    PagesRemoved,
    PagesStored,
    pack_tokens,
)

if TYPE_CHECKING:
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.v1.request import Request

__all__ = ["events_of", "kind_of", "pages_of"]

_MEDIUM = {"host": "CPU", "ssd": "STORAGE"}
"""vLLM's own names; Dynamo drops events with the medium "SSD"."""


def kind_of(request: "Request", page_tokens: int) -> PageKind:
    """Return what all pages of `request` have in common."""
    lora = request.lora_request
    return PageKind(page_tokens, lora and lora.adapter_id, lora and lora.name)


def pages_of(
    request: "Request", kind: PageKind, tokens: range, hash_tokens: int
) -> BlockPages | None:
    """Return what vLLM itself would tell of some tokens of `request`, whole pages.

    Args:
        request: vLLM's.
        kind: Of its pages.
        tokens: Where the pages begin and end.
        hash_tokens: One hash of `request` is of the tokens up to a multiple of this.

    Returns:
        None if vLLM has not named them all.
    """
    from vllm.v1.core.kv_cache_utils import (  # noqa: PLC0415 only where events are on
        maybe_convert_block_hash,
    )

    hashes, page_tokens = request.block_hashes, kind.page_tokens
    if len(hashes) * hash_tokens < tokens.stop:
        return None
    pages = [range(start, start + page_tokens) for start in tokens[::page_tokens]]
    before = hashes[tokens.start // hash_tokens - 1] if tokens.start else None
    return BlockPages(
        names=tuple(
            maybe_convert_block_hash(hashes[page.stop // hash_tokens - 1]) for page in pages
        ),
        parent=before and maybe_convert_block_hash(before),
        packed_tokens=pack_tokens(request.all_token_ids[tokens.start : tokens.stop]),
        kind=kind,
        extra_keys=_extra_keys(request, pages),
    )


def events_of(announcements: Iterable[Announcement]) -> "Iterator[KVCacheEvent]":
    """Say `announcements` as vLLM would."""
    for said in announcements:
        yield _stored(said) if isinstance(said, PagesStored) else _removed(said)


def _stored(said: PagesStored) -> "KVCacheEvent":
    from vllm.distributed import kv_events  # noqa: PLC0415 only where events are on

    kind = said.blocks[0].kind
    has_extra_keys = any(block.extra_keys for block in said.blocks)
    return kv_events.BlockStored(
        block_hashes=_names(said.blocks),
        parent_block_hash=said.blocks[0].parent,
        token_ids=[*chain.from_iterable(block.token_ids for block in said.blocks)],
        block_size=kind.page_tokens,
        lora_id=kind.lora_id,
        medium=_MEDIUM[said.tier],
        lora_name=kind.lora_name,
        extra_keys=[*_all_extra_keys(said.blocks)] if has_extra_keys else None,
        **_group_fields(kind),
    )


def _removed(said: PagesRemoved) -> "KVCacheEvent":
    from vllm.distributed import kv_events  # noqa: PLC0415 only where events are on

    group = said.blocks[0].kind.group
    return kv_events.BlockRemoved(
        block_hashes=_names(said.blocks),
        medium=_MEDIUM[said.tier],
        group_idx=None if group is None else group[0],
    )


def _names(blocks: Iterable[BlockPages]) -> list[int | bytes]:
    return [*chain.from_iterable(block.names for block in blocks)]


def _extra_keys(
    request: "Request", pages: Iterable[range]
) -> tuple[tuple[Any, ...] | None, ...] | None:
    """Return what enters the names of `pages` beside tokens, as vLLM's own events say it."""
    from vllm.v1.core import kv_cache_utils  # noqa: PLC0415 only where events are on

    keys = [
        kv_cache_utils.generate_block_hash_extra_keys(request, page.start, page.stop, 0)[0]
        for page in pages
    ]
    if not any(keys):
        return None
    # Before 0.31 they are as events say them.
    untagged = getattr(kv_cache_utils, "to_event_extra_keys", list)
    return tuple(untagged(keys))


def _all_extra_keys(blocks: Iterable[BlockPages]) -> Iterator[tuple[Any, ...] | None]:
    for block in blocks:
        yield from block.extra_keys or [None] * len(block.names)


def _group_fields(kind: PageKind) -> dict[str, Any]:
    """Return what an event says of a cache group, where an engine has more than one."""
    names = ("group_idx", "kv_cache_spec_kind", "kv_cache_spec_sliding_window")
    return dict(zip(names, kind.group or (None, None, None), strict=True))
