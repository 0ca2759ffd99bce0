"""What SGLang's stored KV is: the origin of its blocks, equal to vLLM's for the same model.

Fields and names of `overrides` are those of `flexkv_connectors.vllm.identity`; what only SGLang has
gets a name of its own, so that it keeps engines apart.
"""

from collections.abc import Mapping

from flexkv_connectors.sglang.deployment import HostPoolDeployment
from flexkv_connectors.sglang.settings import EngineSettings, hub_cache_of
from flexkv_core.block.cells import BLOCK_FORMAT_VERSION
from flexkv_core.block.namespace import Namespace, canonical_dtype, settings_digest
from flexkv_core.config import CacheConfig
from flexkv_core.identity.checkpoint import Checkpoint
from flexkv_core.identity.origin import Origin, source_of, why_not_read

__all__ = ["namespace_of", "origin_of", "why_no_identity"]

_OWN_CODE = frozenset({"auto", "sglang"})


def why_no_identity(settings: EngineSettings, weight_version: str) -> str | None:
    """Name what keeps blocks from being recognised after a restart, if anything does."""
    return None if weight_version else why_not_read(settings.load_format)


def origin_of(settings: EngineSettings, deployment: HostPoolDeployment) -> Origin:
    """Describe the blocks of an engine; every rank comes to the same answer.

    Raises:
        ConfigError: A setting has no form that could be compared.
    """
    return Origin(
        _sources(settings, deployment.rank.cache),
        lambda found: namespace_of(settings, deployment, found),
    )


def namespace_of(
    settings: EngineSettings, deployment: HostPoolDeployment, identities: Mapping[str, str]
) -> Namespace:
    """Return the namespace of blocks whose `Origin.sources` have `identities`.

    Raises:
        ConfigError: A setting has no form that could be compared.
    """
    dtype = canonical_dtype(deployment.dtype)
    return Namespace(
        model=identities["model"],
        weight_version=deployment.rank.cache.weight_version,
        weight_quantization=settings.quantization,
        kv_cache_dtype=dtype,
        kv_scales=identities.get("kv_scales", ""),
        overrides=settings_digest(_overrides(settings, dtype, identities)),
        num_layers=settings.num_layers,
        num_kv_heads=deployment.total_heads,
        key_head_size=deployment.key_head_size,
        value_head_size=deployment.value_head_size,
        draft_model=identities.get("draft", ""),
        num_draft_layers=deployment.num_draft_layers,
        block_tokens=deployment.pages.page_tokens,
        block_format=deployment.block_format_name,
        block_format_version=BLOCK_FORMAT_VERSION,
        cell_heads=deployment.cell_heads,
        cell_layers=deployment.cell_layers,
        user=deployment.rank.cache.namespace,
    )


def _sources(settings: EngineSettings, cache: CacheConfig) -> dict[str, Checkpoint]:
    """Return where everything is read from that decides what KV is, by its role."""
    hub_cache = hub_cache_of(settings)
    load_format = settings.load_format

    def weights_of(model: str, revision: str | None) -> Checkpoint:
        return source_of(
            model,
            revision,
            hub_cache=hub_cache,
            load_format=load_format,
            runs_code=settings.runs_code,
            cache=cache,
        )

    sources = {"model": weights_of(settings.model, settings.revision)}
    if settings.speculative_algorithm and settings.draft_model:
        sources["draft"] = weights_of(settings.draft_model, settings.draft_revision)
    if settings.kv_scales_path is not None:
        sources["kv_scales"] = Checkpoint(model=settings.kv_scales_path, hub_cache=hub_cache)
    if settings.draft_adapter:
        sources["draft_adapter"] = Checkpoint(model=settings.draft_adapter, hub_cache=hub_cache)
    return sources


def _overrides(
    settings: EngineSettings, kv_dtype: str, identities: Mapping[str, str]
) -> dict[str, object]:
    """Collect what differs from the model as its checkpoint describes it; empty for nothing."""
    dtype = canonical_dtype(settings.dtype)
    is_own = settings.implementation in _OWN_CODE
    draft_adapter = identities.get("draft_adapter")
    found = {
        "adapters": {f"\0{settings.draft_adapter}": draft_adapter} if draft_adapter else {},
        "code": {} if is_own else {"implementation": settings.implementation},
        "compute_dtype": "" if dtype == kv_dtype else dtype,
        "draft": settings.speculative_algorithm and [settings.speculative_algorithm, ""],
        "hf_overrides": dict(settings.overrides),
        "load_format": "" if settings.load_format == "auto" else settings.load_format,
        "max_model_len": settings.context_length if "longrope" in settings.rope else 0,
        # Whether engines scale and round alike when they quantise KV was not looked into.
        "quantised_by": "sglang" if kv_dtype.startswith("fp8") else "",
    }
    return {name: value for name, value in found.items() if value}
