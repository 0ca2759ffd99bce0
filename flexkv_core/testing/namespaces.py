"""A namespace to store blocks in, where it does not matter which."""

import msgspec

from flexkv_core.block.namespace import Namespace

__all__ = ["make_namespace"]

_NAMESPACE = Namespace(
    model="model",
    weight_version="",
    weight_quantization="",
    kv_cache_dtype="bfloat16",
    kv_scales="",
    overrides="",
    num_layers=4,
    num_kv_heads=2,
    key_head_size=64,
    value_head_size=64,
    draft_model="",
    num_draft_layers=0,
    block_tokens=16,
    block_format="cells",
    block_format_version=1,
    cell_heads=1,
    cell_layers=4,
    user="",
)


def make_namespace(**changes: str | int) -> Namespace:
    """Return the namespace of a small model, with `changes` to its fields."""
    return msgspec.structs.replace(_NAMESPACE, **changes)
