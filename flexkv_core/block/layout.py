"""Geometry: the layout of an engine's pages in memory, and of our stored blocks.

Letters as in vLLM: L layer, B page (an engine's block), H KV head, N token in page, C content of
one token and head. The engine's side is described by addresses and byte strides (`PagePool`); the
stored side is always `[cells][H, L, N, C]`, head-major (`BlockFormat`), so that a rank of any
tensor-parallel degree owns whole, contiguous cells. No torch and no numpy here: dtypes are
strings and sizes are bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from flexkv_core.errors import LayoutError

__all__ = ["BlockFormat", "Column", "LayerRun", "PagePool", "layer_runs"]


@dataclass(frozen=True, slots=True)
class LayerRun:
    """Consecutive layers whose pages are one constant stride apart."""

    address: int
    """Address of layer 0 of the run, page 0, head 0, token 0."""

    num_layers: int
    layer_stride: int
    """Bytes from one layer of the run to the next; any value if `num_layers` is 1."""


def layer_runs(addresses: Sequence[int]) -> tuple[LayerRun, ...]:
    """Cut the addresses of layers, in model order, into runs of constant stride."""
    runs: list[LayerRun] = []
    for address in addresses:
        last = runs[-1] if runs else None
        if last is not None and last.num_layers == 1:
            runs[-1] = LayerRun(last.address, 2, address - last.address)
        elif last is not None and address == last.address + last.num_layers * last.layer_stride:
            runs[-1] = LayerRun(last.address, last.num_layers + 1, last.layer_stride)
        else:
            runs.append(LayerRun(address, 1, 0))
    return tuple(runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class PagePool:
    """One rank's KV pages, as the engine allocated them.

    All strides are bytes. The content of one token and head is `num_planes` runs of
    `plane_bytes`: one run if the engine packs K and V (or keeps one latent), two if K and V are
    separate planes. Planes are stored in order, K first.
    """

    runs: tuple[LayerRun, ...]
    """Covers the rank's layers in model order."""

    num_pages: int
    num_heads: int
    page_tokens: int
    num_planes: int
    plane_bytes: int
    page_stride: int
    head_stride: int
    token_stride: int
    plane_stride: int
    memory_start: int
    """First byte of the allocation that holds every page."""

    memory_bytes: int
    rest: "PagePool | None" = None
    """The rest of each token's content, if it has other strides; all else is the same."""

    def __post_init__(self) -> None:
        for run in self.runs:
            first, last = self._reach(run)
            if first < self.memory_start or last > self.memory_start + self.memory_bytes:
                msg = (
                    f"layers at {run.address:#x} reach bytes {first - self.memory_start} to "
                    f"{last - self.memory_start} of an allocation of {self.memory_bytes} bytes: "
                    "the strides do not fit the tensor, so this layout is not the one expected"
                )
                raise LayoutError(msg)

    @property
    def num_layers(self) -> int:
        """Layers over all runs."""
        return sum(run.num_layers for run in self.runs)

    @property
    def token_bytes(self) -> int:
        """Content of one token and head over its planes: C of the stored block."""
        own_bytes = self.num_planes * self.plane_bytes
        return own_bytes + (self.rest.token_bytes if self.rest else 0)

    @property
    def parts(self) -> "tuple[tuple[int, PagePool], ...]":
        """This pool and its `rest`, each with the offset of its bytes within a token's."""
        if self.rest is None:
            return ((0, self),)
        own_bytes = self.num_planes * self.plane_bytes
        return ((0, self), *((own_bytes + offset, part) for offset, part in self.rest.parts))

    def _reach(self, run: LayerRun) -> tuple[int, int]:
        """Return the half-open range of addresses that `run` can touch."""
        extents = (
            (run.num_layers, run.layer_stride),
            (self.num_pages, self.page_stride),
            (self.num_heads, self.head_stride),
            (self.page_tokens, self.token_stride),
            (self.num_planes, self.plane_stride),
        )
        steps = [(count - 1) * stride for count, stride in extents]
        first = run.address + sum(step for step in steps if step < 0)
        return first, run.address + sum(step for step in steps if step > 0) + self.plane_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFormat:
    """One rank's share of a stored block: `[num_heads, num_layers, block_tokens, token_bytes]`.

    Heads are outermost, so the share of a rank that owns half of the heads is half of the bytes,
    contiguous: it is cut into cells of `cell_heads` heads without moving anything.
    """

    num_heads: int
    num_layers: int
    block_tokens: int
    token_bytes: int
    cell_heads: int
    """Heads in one cell: divides `num_heads`."""

    def __post_init__(self) -> None:
        if self.num_heads % self.cell_heads:
            msg = (
                f"{self.num_heads} KV heads on a rank cannot be cut into cells of "
                f"{self.cell_heads}: expected a divisor"
            )
            raise LayoutError(msg)

    @property
    def num_cells(self) -> int:
        """Cells in this rank's share."""
        return self.num_heads // self.cell_heads

    @property
    def cell_bytes(self) -> int:
        """Size of one cell."""
        return self.cell_heads * self.num_layers * self.block_tokens * self.token_bytes

    @property
    def block_bytes(self) -> int:
        """Size of this rank's share of one block."""
        return self.num_cells * self.cell_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """The same cell of every block: which KV heads and layers of the whole model it holds."""

    first_head: int
    num_heads: int
    first_layer: int
    num_layers: int

    @property
    def name(self) -> str:
        """Return a name unique within the namespace, used as a folder name."""
        last_head = self.first_head + self.num_heads - 1
        last_layer = self.first_layer + self.num_layers - 1
        return f"heads-{self.first_head}-{last_head}.layers-{self.first_layer}-{last_layer}"
