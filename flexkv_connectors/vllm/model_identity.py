"""What vLLM's stored KV is KV of: the model, from the settings vLLM really uses.

A setting that changes KV is in one of three places: in files whose content is identified (weights,
their scales for the KV cache, RoPE, the model's own code), in a field of `Namespace` of its own, or
among `Namespace.overrides`. Settings that choose between kernels of one computation
(attention backends, compilation, parallel degrees) are in none: engines with different ones share
blocks. The lists were read from vLLM's configurations @ 0.28 to 0.33.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flexkv_connectors.vllm.deployment import draft_of
from flexkv_core.block.namespace import Namespace, canonical_dtype, settings_digest
from flexkv_core.config import CacheConfig
from flexkv_core.env import hub_cache_folder
from flexkv_core.identity.checkpoint import Checkpoint
from flexkv_core.identity.origin import UNSEEN_S, Origin, source_of, why_not_read

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.config.load import LoadConfig

__all__ = ["describe_model", "origin_with", "why_unknown"]

_MEDIA_SETTINGS = (
    "media_io_kwargs",
    "mm_encoder_attn_dtype",
    "mm_processor_kwargs",
    "video_pruning_rate",
)
"""What changes the embeddings of a picture, but not the hash that stands for it in block keys."""


def why_unknown(vllm_config: "VllmConfig", cache: CacheConfig) -> str | None:
    """Name what keeps the model of this engine from being recognised after a restart, if anything.

    Returns:
        One clause for a person, with what to do about it if anything can be done.
    """
    reason = _why_not_draft(vllm_config)
    if reason is None and cache.media_ids_are_hashes:
        reason = _why_not_media(vllm_config)
    if reason is None and not cache.weight_version:
        reason = _why_not_weights(vllm_config)
    return reason


def origin_with(
    vllm_config: "VllmConfig",
    cache: CacheConfig,
    describe: Callable[[Mapping[str, str]], Namespace],
) -> Origin:
    """Return the origin of blocks whose namespace `describe` makes, from the identity of each file.

    Raises:
        ConfigError: A setting has no form that could be compared.
    """
    unseen_s = 0.0 if _starts_its_own_workers(vllm_config) else UNSEEN_S
    return Origin(_sources(vllm_config, cache), describe, unseen_s=unseen_s)


def describe_model(
    vllm_config: "VllmConfig", cache: CacheConfig, kv_dtype: str, identities: Mapping[str, str]
) -> Namespace:
    """Return the part of a namespace that says what the KV is KV of; no layout is in it yet.

    Args:
        vllm_config: The engine's.
        cache: Our options.
        kv_dtype: `canonical_dtype` of an element.
        identities: Of each of `Origin.sources`.

    Raises:
        ConfigError: A setting has no form that could be compared.
    """
    model, draft = vllm_config.model_config, draft_of(vllm_config)
    return Namespace(
        model=identities["model"],
        weight_version=cache.weight_version,
        weight_quantization=_quantization(model),
        kv_cache_dtype=kv_dtype,
        kv_scales="",  # fixed scales are in the checkpoint, vLLM has no other place for them
        overrides=settings_digest(_overrides(vllm_config, kv_dtype, identities)),
        num_layers=int(model.get_total_num_hidden_layers()),
        num_kv_heads=0,
        key_head_size=0,
        value_head_size=0,
        draft_model=identities.get("draft", ""),
        num_draft_layers=0 if draft is None else int(draft.get_total_num_hidden_layers()),
        block_tokens=0,
        block_format="",
        block_format_version=0,
        cell_heads=0,
        cell_layers=0,
        user=cache.namespace,
    )


def _sources(vllm_config: "VllmConfig", cache: CacheConfig) -> dict[str, Checkpoint]:
    """Return the files that decide what KV is computed, by their role."""
    model, draft, load = vllm_config.model_config, draft_of(vllm_config), vllm_config.load_config
    sources = {"model": _source(model, load, cache)}
    if draft is not None:
        draft_load = getattr(vllm_config.speculative_config, "draft_load_config", None)
        sources["draft"] = _source(draft, draft_load or load, cache)
    if _has_own_config(model, load):
        sources["config"] = Checkpoint(
            model=model.hf_config_path or model.model,
            revision=getattr(model, "_hf_config_revision", None) or _commit(model.revision),
            hub_cache=hub_cache_folder(),
            weights=False,
        )
    if scales := getattr(model.multimodal_config, "mm_encoder_fp8_scale_path", None):
        sources["encoder_scales"] = Checkpoint(model=scales, hub_cache=_hub_cache(load))
    return sources


def _source(model: "ModelConfig", load: "LoadConfig", cache: CacheConfig) -> Checkpoint:
    if model.model_weights:  # an object store, whose files vLLM never keeps on this machine
        return Checkpoint(model=model.model_weights, hub_cache=_hub_cache(load), weights=False)
    return source_of(
        model.model,
        _commit(model.revision),
        hub_cache=_hub_cache(load),
        load_format=str(load.load_format),
        runs_code=model.trust_remote_code,
        cache=cache,
    )


def _starts_its_own_workers(vllm_config: "VllmConfig") -> bool:
    """Return whether all processes of the engine are child processes of its first one."""
    parallel = vllm_config.parallel_config
    backends = parallel.distributed_executor_backend, parallel.data_parallel_backend
    return set(backends) <= {None, "mp", "uni"}


def _has_own_config(model: "ModelConfig", load: "LoadConfig") -> bool:
    """Return whether the configuration is read from elsewhere than the weights.

    vLLM downloads weights into `download_dir`, and what describes them into the hub's own cache.
    """
    if model.hf_config_path not in (None, model.model):
        return True
    return load.download_dir is not None and not Path(model.model).exists()


def _commit(revision: str | None) -> str | None:
    """Return the commit that a revision stands for, where this vLLM has resolved it."""
    return getattr(revision, "resolved", None) or revision


def _hub_cache(load: "LoadConfig") -> Path:
    """Return where vLLM has downloaded a model to."""
    return hub_cache_folder() if load.download_dir is None else Path(load.download_dir)


def _why_not_media(vllm_config: "VllmConfig") -> str | None:
    """Name what makes vLLM number the pictures of requests instead of hashing them."""
    media, cache = vllm_config.model_config.multimodal_config, vllm_config.cache_config
    if media is None or media.mm_processor_cache_gb > 0 or cache.enable_prefix_caching:
        return None
    return "vLLM numbers its pictures instead of hashing them: set --enable-prefix-caching"


def _why_not_draft(vllm_config: "VllmConfig") -> str | None:
    speculative = vllm_config.speculative_config
    if speculative is None or speculative.method != "custom_class":
        return None
    return "its draft model is code, which has no identity"


def _why_not_weights(vllm_config: "VllmConfig") -> str | None:
    """Name weights that cannot be told apart from other weights, if there are any."""
    draft_load = getattr(vllm_config.speculative_config, "draft_load_config", None)
    for load in (vllm_config.load_config, draft_load):
        if load is not None and (reason := why_not_read(str(load.load_format))):
            return reason
    for model in (vllm_config.model_config, draft_of(vllm_config)):
        if model is not None and model.model_weights:
            return f"the weights at {model.model_weights} have no version: set weight_version"
    return None


def _quantization(model: "ModelConfig") -> str:
    """Name the method, and what the user has changed of it, which is in no checkpoint."""
    method, arguments = model.quantization or "", model.quantization_config
    if not arguments:
        return method
    # As text: vLLM keeps values of torch in it, and writes each of them in one way only.
    return f"{method}:{settings_digest({'arguments': repr(arguments)})}"


def _overrides(
    vllm_config: "VllmConfig", kv_dtype: str, identities: Mapping[str, str]
) -> dict[str, object]:
    """Collect what differs from the model as its checkpoint describes it; empty for nothing."""
    model, load_format = vllm_config.model_config, vllm_config.load_config.load_format
    draft = draft_of(vllm_config)
    dtype = canonical_dtype(str(model.dtype))
    settings = {
        "code": _foreign_code(model),
        "compute_dtype": "" if dtype == kv_dtype else dtype,
        "config": identities.get("config", ""),
        "disable_sliding_window": model.disable_sliding_window,
        "draft": draft and [vllm_config.speculative_config.method, _quantization(draft)],
        "hf_overrides": model.hf_overrides,
        "load_format": "" if load_format == "auto" else load_format,
        "max_model_len": _length_in_rope(model),
        "encoder_scales": identities.get("encoder_scales", ""),
        "media": _media_settings(model),
    }
    return {name: value for name, value in settings.items() if value}


def _foreign_code(model: "ModelConfig") -> dict[str, object]:
    """Return which code runs the model where it is not vLLM's own for this architecture."""
    is_own = model.architecture in model.architectures
    settings = {
        "architecture": "" if is_own else model.architecture,
        "classes": model.model_class_overrides,
        "revision": model.code_revision,
    }
    return {name: value for name, value in settings.items() if value}


def _length_in_rope(model: "ModelConfig") -> int:
    """Return the length that vLLM chooses RoPE factors by, 0 for a model without a choice.

    Source: `Phi3LongRoPEScaledRotaryEmbedding` in vLLM @ 0.32.
    """
    rope = getattr(model.hf_text_config, "rope_parameters", None)
    return int(model.max_model_len) if "longrope" in str(rope) else 0


def _media_settings(model: "ModelConfig") -> dict[str, object]:
    """Return the settings that change what the model sees of the same picture."""
    media = model.multimodal_config
    settings = {name: getattr(media, name, None) for name in _MEDIA_SETTINGS}
    if settings["video_pruning_rate"]:
        settings["video_pruning_method"] = getattr(media, "video_pruning_method", None)
    return {name: value for name, value in settings.items() if value}
