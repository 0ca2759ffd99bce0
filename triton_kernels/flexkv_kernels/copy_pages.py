"""Pages of one layout into pages of another, bit for bit.

Gather, scatter and conversion are this one copy: stored blocks are a layout like any other
(`PageViews.of_blocks`), and which pages of them are meant is said by ids on that side, too.
"""

import math

import torch
import triton
from triton import knobs

from flexkv_kernels._jit.copy_pages import copy_pages_kernel
from flexkv_kernels.page_views import PageViews

__all__ = ["copy_pages", "copy_pages_torch"]

_TILE_WORDS = 1024
"""Words of one load: the tile at which Triton's interpreter was found exact. Not tuned on a GPU."""

_WARPS = 4
"""Of a program: 64 bytes a thread in flight. Not tuned on a GPU."""

_UNIT_BYTES = 16
"""The widest load of a thread; what is aligned to it is moved in such loads."""

_PROGRAMS_ON_CPU = 3
"""Under the interpreter: more than one, so that the persistent loop is walked in strides."""

_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


def copy_pages(
    source: PageViews, source_ids: torch.Tensor, target: PageViews, target_ids: torch.Tensor
) -> None:
    """Copy page `source_ids[i]` to page `target_ids[i]`, in every slab, on the current stream.

    Where one side's pages hold a multiple of the other's tokens, they are counted in pages of the
    other side: page 4 b + 1 is the second quarter of block b. So a run of pages inside of blocks
    is a range of ids.

    Args:
        source: On a CUDA device, or on the CPU under Triton's interpreter.
        source_ids: `[num_pages]` int64, CPU. Copied to the device; nothing is waited for.
        target: As many slabs and heads and the same content as `source`, on the same device.
        target_ids: As `source_ids`, every id at most once.

    Raises:
        ValueError: the two sides do not fit together, overlap, or name a target page twice.
        IndexError: an id does not exist. Nothing was written.
    """
    offsets = _offsets(source, source_ids, target, target_ids)
    if source.device.type != "cuda" and not knobs.runtime.interpret:
        msg = f"pages on {source.device}: use a CUDA device, or set TRITON_INTERPRET=1 for tests"
        raise ValueError(msg)
    if source_ids.numel():
        with torch.cuda.device_of(source.slabs[0]):
            _launch(source, offsets[0], target, offsets[1])


def copy_pages_torch(
    source: PageViews, source_ids: torch.Tensor, target: PageViews, target_ids: torch.Tensor
) -> None:
    """Do the same with torch indexing, on any device: the reference."""
    _offsets(source, source_ids, target, target_ids)
    tokens = min(source.page_tokens, target.page_tokens)
    from_ids, to_ids = (ids.to(source.device) for ids in (source_ids, target_ids))
    for from_slab, to_slab in zip(source.slabs, target.slabs, strict=True):
        from_parts, to_parts = (_parts(slab, tokens) for slab in (from_slab, to_slab))
        from_count, to_count = from_parts.shape[2], to_parts.shape[2]
        picked = from_parts[from_ids // from_count, :, from_ids % from_count]  # [page, H, n, C]
        to_parts[to_ids // to_count, :, to_ids % to_count] = picked


def _parts(slab: torch.Tensor, page_tokens: int) -> torch.Tensor:
    """View `[B, H, N, C]` as bytes `[B, H, parts, page_tokens, C]`."""
    return slab.view(torch.uint8).unflatten(2, (-1, page_tokens))


def _offsets(
    source: PageViews, source_ids: torch.Tensor, target: PageViews, target_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where the pages begin in a slab, in bytes, once everything is checked."""
    _require_equal_sides(source, target)
    expected = torch.int64, "cpu", (source_ids.numel(),)
    for ids in (source_ids, target_ids):
        if (ids.dtype, ids.device.type, ids.shape) != expected:
            msg = f"page ids are {tuple(ids.shape)} {ids.dtype} on {ids.device}, expected int64 on "
            msg += "cpu, one id for each page on both sides"
            raise ValueError(msg)
    if target_ids.unique().numel() != target_ids.numel():
        msg = f"a page is named twice in {target_ids.numel()} target ids, expected each once"
        raise ValueError(msg)
    tokens = min(source.page_tokens, target.page_tokens)
    return source.page_offsets(source_ids, tokens), target.page_offsets(target_ids, tokens)


def _require_equal_sides(source: PageViews, target: PageViews) -> None:
    """Raise ValueError unless a page of one side fits the other and they share no byte."""
    sides = [
        (len(side.slabs), side.num_heads, side.content_bytes, side.device)
        for side in (source, target)
    ]
    if sides[0] != sides[1]:
        msg = f"(slabs, heads, bytes of a token, device) are {sides[0]} and {sides[1]}, expected "
        msg += "the same on both sides"
        raise ValueError(msg)
    small, large = sorted((source.page_tokens, target.page_tokens))
    if not small or large % small:
        msg = f"pages of {source.page_tokens} and {target.page_tokens} tokens: expected a multiple"
        raise ValueError(msg)
    if target.overlaps_itself or target.overlaps(source):
        raise ValueError("target pages overlap one another or the source: expected memory apart")


def _launch(
    source: PageViews, source_pages: torch.Tensor, target: PageViews, target_pages: torch.Tensor
) -> None:
    """Run the kernel over every (page, head, slab)."""
    unit = math.gcd(source.alignment, target.alignment, _UNIT_BYTES)
    word = min(unit, max(_WORDS))
    tables = (_slab_offsets(source), source_pages, _slab_offsets(target), target_pages)
    sizes = [table.numel() for table in tables]
    on_device = _upload(torch.cat(tables) // unit, source.device).split(sizes)
    tokens = min(source.page_tokens, target.page_tokens)
    num_jobs = source_pages.numel() * source.num_heads * len(source.slabs)
    copy_pages_kernel[(min(num_jobs, _num_programs(source.device)),)](
        _words_at(source, word),
        on_device[0],
        on_device[1],
        _words_at(target, word),
        on_device[2],
        on_device[3],
        num_jobs,
        len(source.slabs),
        source.num_heads,
        tokens,
        source.content_bytes // unit,
        source.head_stride // unit,
        source.token_stride // unit,
        target.head_stride // unit,
        target.token_stride // unit,
        unit_words=unit // word,
        tile=min(_TILE_WORDS, triton.next_power_of_2(tokens * source.content_bytes // word)),
        num_warps=_WARPS,
    )


def _slab_offsets(side: PageViews) -> torch.Tensor:
    """Return the bytes from the first slab to each, negative where it lies below."""
    return torch.tensor(side.addresses, dtype=torch.int64) - side.addresses[0]


def _words_at(side: PageViews, word_bytes: int) -> torch.Tensor:
    """Return a tensor of words at the begin of the first slab: a base address with a type."""
    first = side.slabs[0][:1, :1, :1].view(torch.uint8).flatten()
    return first[: side.content_bytes].view(_WORDS[word_bytes])


def _upload(table: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a table to the device, in the order of the current stream, without waiting for it."""
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table


def _num_programs(device: torch.device) -> int:
    """Return how many persistent programs share the jobs: one per multiprocessor."""
    if device.type != "cuda":
        return _PROGRAMS_ON_CPU
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
