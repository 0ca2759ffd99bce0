"""Models and layouts whose KV is moved."""

from typing import TYPE_CHECKING, NamedTuple

from benchmarks.gpu.machine import on_device
from flexkv_core.block.layout import BlockFormat

if TYPE_CHECKING:
    import torch


class Model(NamedTuple):
    """One rank's KV of a model."""

    name: str
    num_layers: int
    num_heads: int
    token_bytes: int
    """Of one token and head: K then V, or the latent."""


LATENT = Model("DeepSeek MLA", 61, 1, 1152)
MODELS = (
    Model("Llama 8B", 32, 8, 512),
    Model("Llama 70B, TP 8", 80, 1, 512),
    LATENT,
    Model("Qwen 30B-A3B", 48, 4, 512),
)
LAYOUTS = ("LBNHC", "LBHNC", "BLHNC", "LPBNHC", "BLPHNC")
"""vLLM's: token-major, head-major, all layers of a page in one piece; SGLang's token slots and
TensorRT-LLM's blocks, in which P says that K and V are apart."""


def layouts_of(model: Model) -> tuple[str, ...]:
    """Return the layouts that its KV may have: a latent has no K and V to keep apart."""
    return LAYOUTS if model is not LATENT else LAYOUTS[:3]


def make_slabs(model: Model, axes: str, num_pages: int, page_tokens: int) -> "list[torch.Tensor]":
    """Return an engine's pages, one `[B, H, N, C]` of random bytes for each layer and plane."""
    planes = 2 if "P" in axes else 1
    sizes = {
        "L": model.num_layers,
        "P": planes,
        "B": num_pages,
        "H": model.num_heads,
        "N": page_tokens,
        "C": model.token_bytes // planes,
    }
    num_bytes = num_pages * page_tokens * model.num_layers * model.num_heads * model.token_bytes
    pool = on_device(num_bytes).view([sizes[axis] for axis in axes])
    slabs_first = [axes.index(axis) for axis in "LPBHNC" if axis in axes]
    return list(pool.permute(slabs_first).flatten(0, planes - 1).unbind())


def block_format(model: Model, block_tokens: int) -> BlockFormat:
    """Return how a block of the model is stored."""
    return BlockFormat(
        num_heads=model.num_heads,
        num_layers=model.num_layers,
        block_tokens=block_tokens,
        token_bytes=model.token_bytes,
        cell_heads=1,
    )
