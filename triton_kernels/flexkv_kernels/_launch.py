"""What gather and scatter share: the checks before a kernel runs, and its grid."""

from collections.abc import Callable

import torch
import triton
from triton import knobs

__all__ = ["as_words", "check", "launch"]

TILE_WORDS = 1024
"""Words of one load: the tile at which Triton's interpreter was found exact. Not tuned on a GPU."""

PROGRAMS_ON_CPU = 3
"""Under the interpreter: more than one, so that the persistent loop is walked in strides."""

WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


def check(pages: torch.Tensor, page_ids: torch.Tensor, cells: torch.Tensor) -> None:
    """Raise unless the three tensors have the promised geometry.

    Raises:
        ValueError: a shape, stride, dtype or device that the kernels cannot serve.
        IndexError: a page id outside `pages`.
    """
    if (pages.dim(), page_ids.dim(), cells.dim()) != (5, 2, 5):
        dims = f"{pages.dim()}, {page_ids.dim()} and {cells.dim()}"
        msg = f"pages, page_ids and cells have {dims} dimensions, expected 5, 2 and 5"
        raise ValueError(msg)
    num_layers, num_pages, num_heads, page_tokens, content = pages.shape
    num_blocks, block_pages = page_ids.shape
    expected = (num_blocks, num_heads, num_layers, block_pages * page_tokens, content)
    if tuple(cells.shape) != expected:
        msg = f"cells have shape {tuple(cells.shape)}, expected {expected}: [block, H, L, N, C]"
        raise ValueError(msg)
    if pages.dtype != cells.dtype or pages.device != cells.device:
        sides = f"{pages.dtype} on {pages.device} and {cells.dtype} on {cells.device}"
        msg = f"pages and cells are {sides}, expected one dtype on one device"
        raise ValueError(msg)
    if pages.stride(-1) != 1 or cells.stride(-1) != 1:
        strides = f"{pages.stride(-1)} and {cells.stride(-1)}"
        msg = f"the content of a token has stride {strides} in pages and cells, expected 1 and 1"
        raise ValueError(msg)
    _check_ids(page_ids, num_pages)


def as_words(pages: torch.Tensor, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """View both tensors as the widest unsigned or signed integers that fit both; no copy.

    Integers move bit patterns: a float's NaN payload would not survive every path.
    """
    word = next(size for size in WORDS if _fits(pages, size) and _fits(cells, size))
    return pages.view(WORDS[word]), cells.view(WORDS[word])


def launch(
    kernel: Callable[..., None], pages: torch.Tensor, page_ids: torch.Tensor, cells: torch.Tensor
) -> None:
    """Run `kernel` over every (block, page, head, layer) on the current stream.

    Raises:
        ValueError: the tensors are in CPU memory and Triton's interpreter is off.
    """
    if not pages.is_cuda and not knobs.runtime.interpret:
        msg = f"tensors on {pages.device}: use a CUDA device, or set TRITON_INTERPRET=1 for tests"
        raise ValueError(msg)
    pages, cells = as_words(pages, cells)
    num_layers, _, num_heads, page_tokens, token_words = pages.shape
    num_jobs = page_ids.numel() * num_heads * num_layers
    if not num_jobs * page_tokens * token_words:
        return
    with torch.cuda.device_of(pages):
        kernel[(min(num_jobs, _num_programs(pages.device)),)](
            pages,
            page_ids.to(pages.device),
            cells,
            num_jobs,
            num_layers,
            num_heads,
            page_ids.shape[1],
            page_tokens,
            token_words,
            *pages.stride()[:4],
            *cells.stride()[:4],
            tile=min(TILE_WORDS, triton.next_power_of_2(page_tokens * token_words)),
        )


def _check_ids(page_ids: torch.Tensor, num_pages: int) -> None:
    """Raise unless `page_ids` lie in CPU memory and inside a pool of `num_pages`."""
    if page_ids.dtype != torch.int64 or page_ids.is_cuda:
        msg = f"page ids are {page_ids.dtype} on {page_ids.device}, expected torch.int64 on cpu"
        raise ValueError(msg)
    if page_ids.numel() and not 0 <= int(page_ids.min()) <= int(page_ids.max()) < num_pages:
        ids = f"{int(page_ids.min())} to {int(page_ids.max())}"
        msg = f"page ids {ids} do not lie in [0, {num_pages}): they belong to another pool"
        raise IndexError(msg)


def _fits(tensor: torch.Tensor, word_bytes: int) -> bool:
    """Whether every row of `tensor` starts and ends on a multiple of `word_bytes`."""
    sizes = (*tensor.stride()[:-1], tensor.shape[-1])
    places = (tensor.data_ptr(), *(size * tensor.element_size() for size in sizes))
    return tensor.element_size() <= word_bytes and all(place % word_bytes == 0 for place in places)


def _num_programs(device: torch.device) -> int:
    """Return how many persistent programs share the jobs: one per multiprocessor."""
    if device.type != "cuda":
        return PROGRAMS_ON_CPU
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
