"""Which of vLLM's models and modes can be cached; all others are served without caching.

A reason is one clause for a person. It is not an error: the engine works, without a cache.

Whether a block may be loaded, so that computing it is skipped, is decided apart from whether it may
be saved, for the model and for each request. vLLM checks the same, but not for every connector in
every version, so nothing here relies on it. `compat_tests/contract/gates.py` lists the checks of
vLLM that were read for this, and looks for new ones in later versions.
"""

from typing import TYPE_CHECKING, Any

from flexkv_core.block.keys import MAX_NAME_CHARACTERS

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig

__all__ = [
    "why_not_device",
    "why_not_draft",
    "why_not_group",
    "why_not_parallel",
    "why_not_request",
    "why_not_reuse",
    "why_not_settings",
    "why_not_skip",
    "window_of",
]

_WINDOWED = frozenset({"FullAttentionSpec", "ChunkedLocalAttentionSpec", "SlidingWindowSpec"})
_KEEP_WINDOWS = ": with --disable-hybrid-kv-cache-manager, layers with windows keep all tokens too"

_POOLED_FROM_THE_LAST = ("classify", "embed")
"""Pooling tasks that need one token's hidden state only, if `why_not_reuse` has no objection."""


def why_not_device(vllm_config: "VllmConfig", *, enable_gpu: bool) -> str | None:
    """Name the device, if its memory is not copied from or to.

    No GPU has run our lane yet. Until its order of copies was seen on real streams, it is used only
    where it was asked for.
    """
    from vllm.platforms import current_platform  # noqa: PLC0415 vLLM is loaded by its own processes

    # torch calls devices of ROCm "cuda", too, whose pages were never looked at.
    device = "rocm" if current_platform.is_rocm() else vllm_config.device_config.device_type
    if device == "cpu" and current_platform.get_cpu_architecture().name == "RISCV":
        return "vLLM cannot continue a prompt on a RISC-V CPU"
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


def why_not_reuse(vllm_config: "VllmConfig") -> str | None:
    """Name what keeps this engine from continuing after KV that it has not computed, if anything.

    vLLM's own prefix cache being off is no such reason: users switch it off, too.
    """
    return _why_not_outputs(vllm_config) or _why_not_model(vllm_config.model_config, vllm_config)


def _why_not_outputs(vllm_config: "VllmConfig") -> str | None:
    """Name an output that the engine promises for every token, if there is one."""
    from vllm import envs  # noqa: PLC0415 vLLM is loaded by its own processes

    # Before 0.31 this option belonged to the model's configuration.
    outputs = getattr(vllm_config, "aux_output_config", vllm_config.model_config)
    if outputs.enable_return_routed_experts:
        return "skipped tokens have no routed experts: unset enable_return_routed_experts"
    if envs.VLLM_BATCH_INVARIANT:
        return "results would depend on what was cached: unset VLLM_BATCH_INVARIANT"
    return None


def _why_not_model(model: "ModelConfig", vllm_config: "VllmConfig") -> str | None:
    """Name what keeps vLLM from continuing a prompt of this model, if anything."""
    if model.is_diffusion:
        return "it is a diffusion model, and tokens see those after them"
    is_on_cpu = vllm_config.device_config.device_type == "cpu"
    if is_on_cpu and model.use_mla and not vllm_config.cache_config.enable_prefix_caching:
        return "vLLM cannot continue a prompt of an MLA model on a CPU without AMX"
    if model.is_prefix_caching_supported:
        return None
    pooler = model.pooler_config
    if pooler is None or model.attn_type != "decoder":
        return "vLLM cannot continue a prompt of this model"
    kind = "STEP" if pooler.tok_pooling_type == "STEP" else pooler.seq_pooling_type
    return f"its {kind} pooling reads more than the last token"


def why_not_settings(vllm_config: "VllmConfig") -> str | None:
    """Name a setting that changes KV in a way that nothing can compare, if there is one."""
    if getattr(vllm_config.cache_config, "calculate_kv_scales", False):
        return "its KV scales are computed at run time"
    if callable(vllm_config.model_config.hf_overrides):
        return "its model overrides are a function, which has no identity"
    return None


def why_not_draft(vllm_config: "VllmConfig", draft: "ModelConfig") -> str | None:
    """Name how the KV of a draft model differs in shape from the model's, if it does."""
    model = vllm_config.model_config
    draft_shape, shape = map(_shape_of, (draft, model))
    if draft_shape == shape:
        return None
    return (
        f"its draft model keeps {draft_shape} a token and layer where the model keeps {shape}: "
        "choose a draft model that keeps the same, or none"
    )


def _shape_of(model: "ModelConfig") -> str:
    size = model.get_head_size()
    if model.use_mla:
        return f"a latent of {size}"
    return f"K and V of {model.get_total_num_kv_heads()} x {size}"


def why_not_group(kv_cache_config: "KVCacheConfig") -> str | None:
    """Name what keeps this model's KV from being restored from blocks, if anything does."""
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        kinds = sorted({type(group.kv_cache_spec).__name__ for group in groups})
        can_be_one = "FullAttentionSpec" in kinds and _WINDOWED.issuperset(kinds)
        advice = _KEEP_WINDOWS if can_be_one else ""
        return f"the model mixes {len(groups)} cache groups ({', '.join(kinds) or 'none'}){advice}"
    return _why_not_spec(groups[0].kv_cache_spec)


def _why_not_spec(spec: Any) -> str | None:  # noqa: ANN401 vLLM's KVCacheSpec, any subclass
    from vllm.v1.kv_cache_interface import (  # noqa: PLC0415 vLLM is loaded by its own processes
        FullAttentionSpec,
        MLAAttentionSpec,
        UniformTypeKVCacheSpecs,
    )

    if type(spec) is UniformTypeKVCacheSpecs:
        return "its layers keep KV of different shapes"
    if type(spec) not in (FullAttentionSpec, MLAAttentionSpec):
        return f"its cache is a {type(spec).__name__}, not full attention or MLA"
    if spec.non_causal:
        return "in its attention, tokens see those after them"
    states = getattr(spec, "tokens_per_state", 1), getattr(spec, "compress_ratio", 1)
    if states != (1, 1):
        return "several tokens share one cached state"
    return None


def window_of(kv_cache_config: "KVCacheConfig") -> int | None:
    """Return how many tokens the layers with windows see, if all tokens are kept for them, too.

    vLLM does that where its hybrid manager is off: all layers are one group then.
    """
    (group,) = kv_cache_config.kv_cache_groups
    spec: FullAttentionSpec = group.kv_cache_spec
    window: int | None = spec.sliding_window or spec.attention_chunk_size
    return window


def why_not_request(request: Any) -> str | None:  # noqa: ANN401 vLLM's Request
    """Name what keeps this request's tokens from identifying its KV, if anything does."""
    if request.prompt_embeds is not None or getattr(request, "prompt_is_token_ids", None):
        return "its prompt holds embeddings"
    names = (request.cache_salt or "", *(item.identifier for item in request.mm_features))
    if max(map(len, names)) > MAX_NAME_CHARACTERS:
        return "its salt or the name of a medium is so long that hashing it would slow others"
    if getattr(request, "resumable", False):
        return "it is a streaming session whose tokens may be taken back"
    return None


def why_not_skip(request: Any) -> str | None:  # noqa: ANN401 vLLM's Request
    """Name an output that this request asks for every token of its prompt, if there is one.

    Such a request may still be saved: other requests can load what it computes.
    """
    sampling, pooling = request.sampling_params, request.pooling_params
    if sampling is not None and any(
        getattr(sampling, name, None) is not None
        for name in ("prompt_logprobs", "prompt_logprob_token_ids")
    ):
        return "it asks for log probabilities of its prompt"
    if pooling is not None and pooling.task not in _POOLED_FROM_THE_LAST:
        return f"{pooling.task} reads every token"
    return "it is to read no cache" if request.skip_reading_prefix_cache else None
