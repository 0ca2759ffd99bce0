"""Which of vLLM's models and modes can be cached; the rest is served without caching.

A reason is one clause for a person. It is not an error: the engine works, without our help.
"""

from typing import TYPE_CHECKING, Any

from flexkv_core.keys import MAX_NAME_LETTERS

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

__all__ = ["why_not_device", "why_not_group", "why_not_parallel", "why_not_request"]


def why_not_device(vllm_config: "VllmConfig", *, enable_gpu: bool) -> str | None:
    """Name the device whose memory is not touched, if the KV is on one.

    No GPU has run the lane to it yet. What has never been seen to keep its order on real streams
    hands out bytes only to who has asked for it.
    """
    from vllm.platforms import current_platform  # noqa: PLC0415 vLLM is loaded by its own processes

    # torch calls the devices of ROCm cuda, too; nobody has looked at its pages.
    device = "rocm" if current_platform.is_rocm() else vllm_config.device_config.device_type
    if device == "cpu" or (device == "cuda" and enable_gpu):
        return None
    if device == "cuda":
        return "its KV is on a GPU, where FlexKV has never run: set enable_gpu to true to try it"
    return f"its KV is in {device} memory, and there is no lane to it"


def why_not_parallel(vllm_config: "VllmConfig") -> str | None:
    """Name the parallel mode that splits one sequence's KV over ranks, if there is one."""
    parallel = vllm_config.parallel_config
    context_ranks = {
        "decode": parallel.decode_context_parallel_size,
        "prefill": getattr(parallel, "prefill_context_parallel_size", 1),
    }
    for name, size in context_ranks.items():
        if size > 1:
            return f"{name} context parallelism spreads a block over ranks"
    return None


def why_not_group(kv_cache_config: "KVCacheConfig") -> str | None:
    """Name what keeps this model's KV from being restored from blocks, if anything does."""
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        kinds = sorted({type(group.kv_cache_spec).__name__ for group in groups})
        return f"the model mixes {len(groups)} cache groups ({', '.join(kinds) or 'none'})"
    return _why_not_spec(groups[0].kv_cache_spec)


def _why_not_spec(spec: Any) -> str | None:  # noqa: ANN401 vLLM's KVCacheSpec, any subclass
    from vllm.v1.kv_cache_interface import (  # noqa: PLC0415 vLLM is loaded by its own processes
        FullAttentionSpec,
        MLAAttentionSpec,
    )

    if type(spec) not in (FullAttentionSpec, MLAAttentionSpec):
        return f"its cache is a {type(spec).__name__}, not full attention or MLA"
    if spec.sliding_window is not None or spec.attention_chunk_size is not None:
        return "its attention sees only a window of the sequence"
    states = getattr(spec, "tokens_per_state", 1), getattr(spec, "compress_ratio", 1)
    if states != (1, 1):
        return "several tokens share one cached state"
    return None


def why_not_request(request: Any) -> str | None:  # noqa: ANN401 vLLM's Request
    """Name what keeps this request's tokens from identifying its KV, if anything does."""
    if request.prompt_embeds is not None or getattr(request, "prompt_is_token_ids", None):
        return "its prompt holds embeddings"
    names = (request.cache_salt or "", *(item.identifier for item in request.mm_features))
    if max(map(len, names)) > MAX_NAME_LETTERS:
        return "its salt or the name of a medium is so long that hashing it would slow others"
    if getattr(request, "resumable", False):
        return "it is a streaming session whose tokens may be taken back"
    return None
