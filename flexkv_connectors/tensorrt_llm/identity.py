"""What TensorRT-LLM's stored KV is: the origin of its blocks, equal to the other engines'.

Fields and names of `overrides` are those of `flexkv_connectors.vllm.identity`.
"""

from collections.abc import Mapping

from flexkv_connectors.session.deployment import Deployment
from flexkv_connectors.tensorrt_llm.settings import EngineSettings
from flexkv_core.block.cells import BLOCK_FORMAT, BLOCK_FORMAT_VERSION
from flexkv_core.block.namespace import Namespace, settings_digest
from flexkv_core.env import hub_cache_folder
from flexkv_core.identity.origin import UNSEEN_S, Origin, source_of, why_not_read

__all__ = ["namespace_of", "origin_of", "why_no_identity"]


def why_no_identity(settings: EngineSettings, weight_version: str) -> str | None:
    """Name what keeps blocks from being recognised after a restart, if anything does."""
    return None if weight_version else why_not_read(settings.load_format)


def origin_of(settings: EngineSettings, deployment: Deployment) -> Origin:
    """Describe the blocks of an engine; every rank comes to the same answer.

    Raises:
        ConfigError: A setting has no form that could be compared.
    """
    model = source_of(
        settings.model,
        settings.revision,
        hub_cache=hub_cache_folder(),
        load_format=settings.load_format,
        runs_code=settings.runs_code,
        cache=deployment.cache,
    )
    return Origin(
        {"model": model},
        lambda found: namespace_of(settings, deployment, found),
        unseen_s=UNSEEN_S,
    )


def namespace_of(
    settings: EngineSettings, deployment: Deployment, identities: Mapping[str, str]
) -> Namespace:
    """Return the namespace of blocks whose `Origin.sources` have `identities`.

    Raises:
        ConfigError: A setting has no form that could be compared.
    """
    return Namespace(
        model=identities["model"],
        weight_version=deployment.cache.weight_version,
        weight_quantization=settings.quantization,
        kv_cache_dtype=settings.kv_dtype,
        kv_scales="",
        overrides=settings_digest(_overrides(settings)),
        num_layers=settings.num_layers,
        num_kv_heads=deployment.total_heads,
        key_head_size=settings.head_size,
        value_head_size=settings.head_size if settings.num_planes > 1 else 0,
        draft_model="",
        num_draft_layers=0,
        block_tokens=deployment.block_tokens,
        block_format=BLOCK_FORMAT,
        block_format_version=BLOCK_FORMAT_VERSION,
        cell_heads=deployment.cell_heads,
        cell_layers=settings.num_layers,
        user=deployment.cache.namespace,
    )


def _overrides(settings: EngineSettings) -> dict[str, object]:
    """Collect what differs from the model as its checkpoint describes it; empty for nothing."""
    rope = settings.config.get("rope_parameters") or settings.config.get("rope_scaling")
    found = {
        "compute_dtype": "" if settings.dtype == settings.kv_dtype else settings.dtype,
        "hf_overrides": dict(settings.overrides),
        "load_format": "" if settings.load_format == "auto" else settings.load_format,
        "max_model_len": settings.max_length if "longrope" in str(rope) else 0,
        # Whether engines scale and round alike when they quantise KV was not looked into.
        "quantised_by": "tensorrt_llm" if settings.kv_dtype.startswith("fp8") else "",
    }
    return {name: value for name, value in found.items() if value}
