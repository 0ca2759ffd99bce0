"""SGLang's configuration as the cache sees it: the only place that asks SGLang for it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexkv_core.env import hub_cache_folder

if TYPE_CHECKING:
    from sglang.srt.configs.model_config import ModelConfig

__all__ = [
    "EngineSettings",
    "hub_cache_of",
    "is_one_rank",
    "keeps_released_weights",
    "read_settings",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What decides which KV an engine computes, with SGLang's own values."""

    version: str
    """Of SGLang."""

    model: str
    revision: str | None
    hub_cache: str | None
    """Where SGLang downloads models to, if the user said so."""

    load_format: str
    """SGLang's, or "weight_cache" where another process has loaded the weights before."""

    runs_code: bool
    """Whether code of the model's own may run."""

    implementation: str
    """Whose model code runs: "auto" and "sglang" are SGLang's own."""

    dtype: str
    quantization: str
    kv_scales_path: str | None
    overrides: Mapping[str, Any]
    """What the user changed of the model's configuration."""

    context_length: int
    rope: str
    """The model's RoPE parameters as text."""

    num_layers: int
    num_kv_heads: int
    engine_index: int
    """Which of the engines that one command has started; 0 before 0.5.23, which does not say."""

    num_nodes: int
    tp_size: int
    """Ranks of one stage, over all nodes; with data-parallel attention several engines' to us."""

    is_multimodal: bool
    needs_every_token: str
    """Why a request may need all of its tokens computed without saying so; empty for none."""

    speculative_algorithm: str
    draft_model: str | None
    draft_revision: str | None
    draft_adapter: str | None
    """Folder of an adapter that only drafts are made with; no request is keyed by it."""

    adapters: Mapping[str, str]
    """Folders of the LoRA adapters that were named at the start, by the ids that SGLang gives them.

    An adapter that is loaded later, or again after it was unloaded, gets a random id: what is
    stored of it is never found again.
    """


def read_settings() -> EngineSettings:
    """Read the settings of the engine that this process belongs to, as they are in effect."""
    import sglang  # noqa: PLC0415 only in an engine

    arguments = _resolved_arguments()
    model = _model_config()
    text_config = model.hf_text_config
    return EngineSettings(
        version=sglang.__version__,
        model=model.model_path,
        revision=model.revision,
        hub_cache=arguments("download_dir"),
        load_format=_load_format(arguments),
        runs_code=bool(arguments("trust_remote_code")),
        implementation=str(arguments("model_impl")),
        dtype=str(model.dtype),
        quantization=model.quantization or "",
        kv_scales_path=arguments("quantization_param_path"),
        overrides=json.loads(arguments("json_model_override_args") or "{}"),
        context_length=model.context_len,
        rope=str(
            getattr(text_config, "rope_parameters", None)
            or getattr(text_config, "rope_scaling", None)
        ),
        num_layers=model.num_hidden_layers,
        num_kv_heads=model.get_total_num_kv_heads(),
        engine_index=_engine_index(),
        num_nodes=arguments("nnodes"),
        tp_size=arguments("tp_size"),
        is_multimodal=bool(model.is_multimodal),
        needs_every_token=_needs_every_token(arguments, is_generation=model.is_generation),
        speculative_algorithm=arguments("speculative_algorithm") or "",
        draft_model=arguments("speculative_draft_model_path"),
        draft_revision=arguments("speculative_draft_model_revision"),
        draft_adapter=arguments("uno_lora_path"),
        adapters={named.lora_id: named.lora_path for named in arguments("lora_paths") or ()},
    )


def hub_cache_of(settings: EngineSettings) -> Path:
    """Return where SGLang downloads models and adapters to."""
    return hub_cache_folder() if settings.hub_cache is None else Path(settings.hub_cache)


def keeps_released_weights() -> bool:
    """Tell whether weights that SGLang takes off the GPU come back as they were."""
    arguments = _resolved_arguments()
    return not arguments("enable_memory_saver") or bool(arguments("enable_weights_cpu_backup"))


def is_one_rank() -> bool:
    """Tell whether this process alone computes what its engine, or its replica of one, serves."""
    arguments = _resolved_arguments()
    return (arguments("tp_size"), arguments("pp_size")) == (1, 1)


def _load_format(arguments: Callable[[str], Any]) -> str:
    is_cached = arguments("weight_cache_mode") != "off"
    return "weight_cache" if is_cached else str(arguments("load_format"))


def _needs_every_token(arguments: Callable[[str], Any], *, is_generation: bool) -> str:
    """Name what needs every token; for log probabilities SGLang itself shortens prefix hits."""
    if not is_generation:
        return "it serves embeddings or scores, some of which are made of every token"
    if arguments("dllm_algorithm"):
        return "its model computes the KV of a token from later ones, too"
    for name in ("enable_return_routed_experts", "enable_return_indexer_topk"):
        if arguments(name):
            return f"what {name} returns is there for computed tokens only"
    return ""


def _resolved_arguments() -> Callable[[str], Any]:
    """Return a function from the name of a server argument to its value in effect."""
    from sglang.srt.runtime_context import get_server_args  # noqa: PLC0415 only in an engine

    server_args = get_server_args()
    try:
        from sglang.srt.arg_groups.overrides import resolution_result  # noqa: PLC0415 from 0.5.20
    except ImportError:
        return lambda name: getattr(server_args, name)
    return lambda name: resolution_result(server_args, name)


def _model_config() -> "ModelConfig":
    from sglang.srt import runtime_context  # noqa: PLC0415 only in an engine

    if hasattr(runtime_context, "process_model_config"):  # from 0.5.20
        return runtime_context.process_model_config()
    return runtime_context.get_server_args().get_model_config()


def _engine_index() -> int:
    from sglang.srt import runtime_context  # noqa: PLC0415 only in an engine

    if not hasattr(runtime_context, "get_parallel"):
        return 0
    return getattr(runtime_context.get_parallel(), "dp_rank", None) or 0
