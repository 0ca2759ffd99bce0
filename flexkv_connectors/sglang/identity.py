"""What SGLang's stored KV is: the namespace of its blocks, equal to vLLM's for the same model.

Fields and names of `overrides` are those of `flexkv_connectors.vllm.identity`; what only SGLang has
gets a name of its own, so that it keeps engines apart.
"""

from hashlib import sha256
from pathlib import Path

from flexkv_connectors.common.cells import BLOCK_FORMAT_VERSION
from flexkv_connectors.common.weights import FROM_THE_CHECKPOINT, has_version
from flexkv_connectors.sglang.deployment import Deployment
from flexkv_connectors.sglang.settings import EngineSettings
from flexkv_core.env import hub_cache_folder
from flexkv_core.errors import ConfigError
from flexkv_core.model_identity import identify_adapter, identify_model
from flexkv_core.namespace import Namespace, canonical_dtype, settings_digest

__all__ = ["namespace_of", "why_no_identity"]

_OWN_CODE = frozenset({"auto", "sglang"})


def why_no_identity(settings: EngineSettings, weight_version: str) -> str | None:
    """Name what keeps blocks from being recognised after a restart, if anything does."""
    if weight_version:
        return None
    if settings.load_format not in FROM_THE_CHECKPOINT:
        return f"load_format={settings.load_format} does not say which weights: set weight_version"
    if not has_version(settings.model, settings.revision, _hub_cache(settings)):
        return f"the commit of {settings.model} is not known: set --revision or weight_version"
    return None


def namespace_of(settings: EngineSettings, deployment: Deployment) -> Namespace:
    """Describe the blocks of an engine; every rank comes to the same answer.

    Raises:
        ConfigError: A setting has no form that could be compared, or the model cannot be read.

    Cost: `identify_model`: seconds for a large local model whose files are not in memory.
    """
    dtype = canonical_dtype(deployment.dtype)
    draft = settings.draft_model if settings.speculative_algorithm else None
    return Namespace(
        model=_identify(settings, settings.model, settings.revision),
        weight_version=deployment.cache.weight_version,
        weight_quantization=settings.quantization,
        kv_cache_dtype=dtype,
        kv_scales=_content_of(settings.kv_scales_path),
        overrides=settings_digest(_overrides(settings, dtype)),
        num_layers=settings.num_layers,
        num_kv_heads=deployment.total_heads,
        key_head_size=deployment.key_head_size,
        value_head_size=deployment.value_head_size,
        draft_model=_identify(settings, draft, settings.draft_revision) if draft else "",
        num_draft_layers=deployment.num_draft_layers,
        block_tokens=deployment.pages.page_tokens,
        block_format=deployment.block_format_name,
        block_format_version=BLOCK_FORMAT_VERSION,
        cell_heads=deployment.cell_heads,
        cell_layers=deployment.cell_layers,
        user=deployment.cache.namespace,
    )


def _overrides(settings: EngineSettings, kv_dtype: str) -> dict[str, object]:
    """Collect what differs from the model as its checkpoint describes it; empty for nothing."""
    dtype = canonical_dtype(settings.dtype)
    is_own = settings.implementation in _OWN_CODE
    found = {
        "adapters": {name: _adapter(path) for name, path in settings.adapters.items()},
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


def _adapter(folder: str) -> str:
    digest = identify_adapter(folder)
    if digest is None:
        msg = f"the LoRA at {folder} cannot be read: name a local folder in --lora-paths"
        raise ConfigError(msg)
    return digest.hex()


def _content_of(path: str | None) -> str:
    """Digest a file; "" for none."""
    try:
        return "" if path is None else sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        msg = f"the KV scales at {path} cannot be read: {error.strerror}"
        raise ConfigError(msg) from error


def _identify(settings: EngineSettings, model: str, revision: str | None) -> str:
    return identify_model(model, revision, hub_cache=_hub_cache(settings))


def _hub_cache(settings: EngineSettings) -> Path:
    return hub_cache_folder() if settings.hub_cache is None else Path(settings.hub_cache)
