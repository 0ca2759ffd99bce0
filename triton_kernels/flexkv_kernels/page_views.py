"""Pages of one layout, as tensors that share a shape: what a copy reads or writes."""

import math
from collections.abc import Iterable, Sequence

import torch

__all__ = ["PageViews"]


class PageViews:
    """The pages of one cache group in one layout.

    A slab is one layer's pages, `[B, H, N, C]`, or those of one plane of it where K and V are
    apart. Slabs come in model order, K before V. They may lie anywhere, each in an allocation of
    its own or all in one, but have one shape and the same strides; that of C is 1. What an axis
    order is called (NHD, HND, packed, token slots, cross-layer, blocks first) is in the strides.

    Bytes have no dtype here: bfloat16, fp8 and packed fp4 are copied alike.
    """

    def __init__(self, slabs: Sequence[torch.Tensor]) -> None:
        """View `slabs`, and keep them alive.

        Raises:
            ValueError: they are not one layout, or their content is not contiguous.
        """
        self.slabs = tuple(slabs)
        first = _require_one_layout(self.slabs)
        item = first.element_size()
        self.device = first.device
        self.num_pages, self.num_heads, self.page_tokens = first.shape[:3]
        self.content_bytes = first.shape[3] * item
        strides = [stride * item for stride in first.stride()[:3]]
        self.page_stride, self.head_stride, self.token_stride = strides
        self.addresses = tuple(slab.data_ptr() for slab in self.slabs)
        self.alignment = math.gcd(*self.addresses, self.content_bytes, *strides)
        self.spans = _merged(self.addresses, 1 + sum((n - 1) * step for n, step in self._axes))

    @classmethod
    def of_blocks(cls, blocks: torch.Tensor, num_planes: int = 1) -> "PageViews":
        """View stored blocks `[num_blocks, H, L, N, C]`, each as one page of N tokens.

        Args:
            blocks: Any strides but 1 for C.
            num_planes: Parts into which C is to be cut: 2 to copy from and to K and V apart.

        Raises:
            ValueError: C cannot be cut so.
        """
        if blocks.dim() != 5 or blocks.shape[-1] % num_planes:  # noqa: PLR2004 the axes named
            msg = f"blocks have shape {tuple(blocks.shape)}, expected [blocks, H, L, N, C], C in "
            msg += f"{num_planes} planes"
            raise ValueError(msg)
        layers = blocks.unbind(2)
        return cls([plane for layer in layers for plane in layer.chunk(num_planes, -1)])

    def page_offsets(self, page_ids: torch.Tensor, page_tokens: int) -> torch.Tensor:
        """Return the bytes from a slab's begin to each page `[num_ids]` of `page_tokens` tokens.

        Raises:
            IndexError: an id does not exist.
        """
        parts = self.page_tokens // page_tokens
        end = self.num_pages * parts
        if page_ids.numel() and not 0 <= int(page_ids.min()) <= int(page_ids.max()) < end:
            ids = f"{int(page_ids.min())} to {int(page_ids.max())}"
            msg = f"page ids {ids} do not lie in [0, {end}): they belong to another pool"
            raise IndexError(msg)
        part_stride = page_tokens * self.token_stride
        return page_ids // parts * self.page_stride + page_ids % parts * part_stride

    @property
    def overlaps_itself(self) -> bool:
        """Whether two tokens of a slab share bytes, or two slabs are one."""
        end = 1
        for size, stride in sorted(self._axes, key=lambda axis: axis[1]):
            if size > 1 and stride < end:
                return True
            end += (size - 1) * stride
        return len(set(self.addresses)) < len(self.addresses)

    def overlaps(self, other: "PageViews") -> bool:
        """Whether a slab lies, in part, within the reach of a slab of `other`."""
        return any(
            ours.start < theirs.stop and theirs.start < ours.stop
            for ours in self.spans
            for theirs in other.spans
        )

    @property
    def _axes(self) -> tuple[tuple[int, int], ...]:
        """Size and stride in bytes of each axis."""
        return (
            (self.num_pages, self.page_stride),
            (self.num_heads, self.head_stride),
            (self.page_tokens, self.token_stride),
            (self.content_bytes, 1),
        )


def _merged(addresses: Iterable[int], num_bytes: int) -> list[range]:
    """Return the stretches of memory that spans of `num_bytes` cover, in ascending order."""
    stretches: list[range] = []
    for address in sorted(addresses):
        last = stretches[-1] if stretches else range(0)
        if address < last.stop:
            stretches[-1] = range(last.start, address + num_bytes)
        else:
            stretches.append(range(address, address + num_bytes))
    return stretches


def _require_one_layout(slabs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the first slab; raise ValueError unless the others are like it."""
    if not slabs:
        raise ValueError("pages need at least one slab, got none")
    first = slabs[0]
    if first.dim() != 4 or first.stride(3) != 1 or not all(first.shape[1:]):  # noqa: PLR2004
        msg = f"a slab has shape {tuple(first.shape)} and strides {first.stride()}, expected "
        msg += "[B, H, N, C] with stride 1 for C"
        raise ValueError(msg)
    wanted = (first.shape, first.stride(), first.dtype, first.device)
    for slab in slabs:
        got = (slab.shape, slab.stride(), slab.dtype, slab.device)
        if got != wanted:
            msg = f"slabs differ: {got} and {wanted}, expected one shape, stride, dtype and device"
            raise ValueError(msg)
    return first
