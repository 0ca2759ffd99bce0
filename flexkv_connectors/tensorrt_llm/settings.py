"""Reads from TensorRT-LLM's arguments what decides which KV it computes and how it keeps it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from flexkv_core.block.namespace import canonical_dtype
from flexkv_core.env import hub_cache_folder
from flexkv_core.errors import ConfigError
from flexkv_core.identity.checkpoint import find_checkpoint

__all__ = ["EngineSettings", "read_settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """The settings of one engine that matter to a cache."""

    model: str
    revision: str | None
    load_format: str
    runs_code: bool
    """Whether code from the model's repository may run."""

    dtype: str
    kv_dtype: str
    quantization: str
    overrides: Mapping[str, Any]
    """Fields of the model's configuration that the user has changed."""

    config: Mapping[str, Any]
    """The language model's part of the checkpoint's config.json."""

    max_length: int
    tokens_per_block: int
    step_tokens: int
    """The most tokens that one step computes, over all requests."""

    degree: int
    """Tensor-parallel ranks that share the KV heads of a request."""

    num_nodes: int
    num_engines: int
    """Ranks of a node that schedule for themselves, under attention data parallelism; else 1."""

    unsupported: str
    """An option or a property of the model that cannot be served; "" for none."""

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return int(self.config["num_hidden_layers"])

    @property
    def is_mla(self) -> bool:
        """Whether a latent is kept in the place of K and V."""
        return bool(self.config.get("kv_lora_rank"))

    @property
    def num_planes(self) -> int:
        """Rows of a page in each layer: K and V, or a latent."""
        return 1 if self.is_mla else 2

    @property
    def num_kv_heads(self) -> int:
        """KV heads of the whole model; 1 for MLA."""
        if self.is_mla:
            return 1
        heads = self.config.get("num_key_value_heads") or self.config["num_attention_heads"]
        return int(heads)

    @property
    def head_size(self) -> int:
        """Elements of a head's K, which V has as well; of the latent for MLA."""
        config = self.config
        if self.is_mla:
            return int(config["kv_lora_rank"]) + int(config["qk_rope_head_dim"])
        return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])

    @property
    def element_bytes(self) -> int:
        """Size of one element of the KV."""
        return 1 if self.kv_dtype.startswith("fp8") else _SIZES[self.kv_dtype]


_NOT_PLAIN = (
    "disk_cache_size",
    "enable_kv_pool_rebalance",
    "host_cache_size",
    "max_attention_window",
    "sink_token_length",
)
"""Options of the KV cache under which a block is not a page of the pool by its number, or not all
of its tokens are kept: with a host cache of its own, blocks of the engine change their places."""

_CHANGES_KV = (
    "enable_sleep",
    "kv_cache_compression_config",
    "sleep_config",
    "sparse_attention_config",
)
"""Options of some versions under which a page may lack tokens, or be more than its KV, or go away.
An engine that sleeps may get other weights, as workers of Ray may, and no connector is told."""

_STEP_TOKENS = 8192
"""The engine's own default."""

_SIZES = {"float16": 2, "bfloat16": 2, "float32": 4}


def read_settings(arguments: Any) -> EngineSettings:  # noqa: ANN401 TorchLlmArgs
    """Read the settings of the engine that gave these arguments to its connector.

    Raises:
        ConfigError: The checkpoint's configuration is not on this machine, or the KV's dtype is
            none that we know.
    """
    model, revision = str(arguments.model), getattr(arguments, "revision", None)
    config = _read_json(model, revision, "config.json")
    text = config.get("text_config") or config
    quantization = _read_json(model, revision, "hf_quant_config.json").get("quantization", {})
    dtype = _own_or(arguments.dtype, _dtype_of(config) or _dtype_of(text))
    kv_cache = arguments.kv_cache_config
    ranks = int(arguments.tensor_parallel_size)
    num_nodes = -(-ranks // int(arguments.gpus_per_node or ranks))
    is_alone = bool(arguments.enable_attention_dp)
    overrides = getattr(arguments, "model_kwargs", None) or {}
    return EngineSettings(
        model=model,
        revision=revision,
        load_format=_load_format(arguments),
        runs_code=bool(getattr(arguments, "trust_remote_code", False)),
        dtype=canonical_dtype(dtype),
        kv_dtype=_kv_dtype(kv_cache.dtype, quantization.get("kv_cache_quant_algo") or dtype),
        quantization=str(quantization.get("quant_algo") or "").lower(),
        overrides=overrides,
        config=text,
        max_length=int(arguments.max_seq_len or 0),
        tokens_per_block=int(kv_cache.tokens_per_block),
        step_tokens=int(arguments.max_num_tokens or _STEP_TOKENS),
        degree=1 if is_alone else ranks,
        num_nodes=num_nodes,
        num_engines=-(-ranks // num_nodes) if is_alone else 1,
        unsupported=_unsupported(arguments) or _unsupported_model({**text, **overrides}),
    )


def _load_format(arguments: Any) -> str:  # noqa: ANN401 TorchLlmArgs
    """Name how weights are found; code of the user's own may take them from anywhere."""
    if getattr(arguments, "checkpoint_loader", None) is not None:
        return "checkpoint_loader"
    checkpoint_format = getattr(arguments, "checkpoint_format", None)
    if checkpoint_format not in (None, "HF"):
        return str(checkpoint_format)
    return str(getattr(arguments.load_format, "name", arguments.load_format)).lower()


def _dtype_of(config: Mapping[str, Any]) -> str:
    return str(config.get("torch_dtype") or config.get("dtype") or "")


def _own_or(option: object, default: str) -> str:
    return default if option in (None, "auto") else str(option)


def _kv_dtype(option: object, default: str) -> str:
    """Return what an element of KV is.

    Raises:
        ConfigError: It is packed in a way that only TensorRT-LLM knows.
    """
    dtype = canonical_dtype(_own_or(option, default))
    if dtype not in _SIZES and not dtype.startswith("fp8"):
        msg = (
            f"the KV cache's dtype is {dtype}, which FlexKV cannot keep: set "
            "kv_cache_config.dtype to auto or fp8"
        )
        raise ConfigError(msg)
    return dtype


def _unsupported(arguments: Any) -> str:  # noqa: ANN401 TorchLlmArgs
    """Name what keeps an engine's arguments from being served."""
    kv_cache = arguments.kv_cache_config
    cases = {
        "pipeline_parallel_size above 1": int(arguments.pipeline_parallel_size) > 1,
        "context_parallel_size above 1": int(arguments.context_parallel_size) > 1,
        "max_beam_width above 1": int(arguments.max_beam_width or 1) > 1,
        "speculative_config": arguments.speculative_config is not None,
        "orchestrator_type ray": getattr(arguments, "orchestrator_type", None) == "ray",
        **{name: bool(getattr(arguments, name, None)) for name in _CHANGES_KV},
        f"attn_backend {arguments.attn_backend}": arguments.attn_backend != "TRTLLM",
        **{f"kv_cache_config.{name}": bool(getattr(kv_cache, name, None)) for name in _NOT_PLAIN},
    }
    return next((name for name, applies in cases.items() if applies), "")


def _unsupported_model(config: Mapping[str, Any]) -> str:
    """Name what keeps a model's KV from being restored from blocks."""
    kinds = set(config.get("layer_types") or ()) - {"full_attention"}
    if kinds:
        return f"a model with {', '.join(sorted(kinds))}"
    if config.get("is_encoder_decoder"):
        return "an encoder-decoder model"
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        return "a model with a sliding window"
    return "a model with an index beside its KV" if config.get("index_head_dim") else ""


def _read_json(model: str, revision: str | None, name: str) -> dict[str, Any]:
    """Return one of the checkpoint's files; empty if it has none of that name.

    Raises:
        ConfigError: The checkpoint is not on this machine, or the file cannot be read.
    """
    folder = find_checkpoint(model, revision, hub_cache=hub_cache_folder())
    if folder is None:
        msg = (
            f"the configuration of {model} is not on this machine: give a local folder as model, "
            "or set HF_HUB_CACHE to where it was downloaded"
        )
        raise ConfigError(msg)
    path = folder / name
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any]) if path.exists() else {}
    except (OSError, msgspec.DecodeError) as error:
        msg = f"{path} cannot be read, so it is not known which KV this engine has: {error}"
        raise ConfigError(msg) from error
