"""Facts about models that people serve, as data.

A model's facts are those values of its config.json that decide what it keeps, and those without
which vLLM does not build its class; all others are the defaults of its configuration class. Of
models that read pictures, too, it is the part that reads text. How their weights are quantised is
left out: the KV is bfloat16 all the same.
"""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["ARCHITECTURES", "SOURCES", "Architecture"]

CONFIGS, BRIDGE, CARDS, DEFAULTS = "configs", "bridge", "cards", "defaults"

SOURCES = {
    CONFIGS: "`aic-core/.../model_configs` of ai-dynamo/aiconfigurator at 095f58a",
    BRIDGE: "the unit tests of NVIDIA-NeMo/Megatron-Bridge at 067f987",
    CARDS: "the models' config.json as quoted in public repositories",
    DEFAULTS: "the defaults of the configuration classes of transformers 5.19",
}


@dataclass(frozen=True)
class Architecture:
    """What is known of a model."""

    source: str
    model_class: str
    token_bytes: int
    """What its layers keep for each token of the context, by the model's description."""

    facts: dict[str, Any] = field(repr=False)

    @property
    def config(self) -> dict[str, Any]:
        """Its config.json."""
        return {"architectures": [self.model_class], "dtype": "bfloat16", **self.facts}


def kv(layers: int, heads: int, size: int, value_size: int | None = None) -> int:
    """Return the bytes of keys and values."""
    return layers * heads * (size + (value_size or size)) * 2


def latent(layers: int, size: int = 512 + 64) -> int:
    """Return the bytes of MLA's latents."""
    return layers * size * 2


def indexer(layers: int, size: int = 128) -> int:
    """Return the bytes of keys of sparse attention: fp8, and a float32 scale."""
    return layers * (size + 4)


_LAYERS = {
    "S": "sliding_attention",
    "C": "conv",
    "A": "attention",
    "M": "mamba",
    "F": "full_attention",
    "L": "linear_attention",
}


def spelled(letters: str) -> list[str]:
    """Return the kinds of layers that `letters` stand for."""
    return [_LAYERS[letter] for letter in letters]


_SHAPE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)


def _config(model_type: str, shape: tuple[int, ...] = (), **more: Any) -> dict[str, Any]:
    """Return what of a config.json is not left to the defaults of its class."""
    return {"model_type": model_type, **dict(zip(_SHAPE, shape, strict=False)), **more}


_MLA = {"kv_lora_rank": 512, "qk_rope_head_dim": 64}

ARCHITECTURES = {
    "Qwen3-8B": Architecture(
        CONFIGS,
        "Qwen3ForCausalLM",
        kv(36, 8, 128),
        _config("qwen3", (4096, 36, 32, 8, 128), sliding_window=None),
    ),
    "Qwen3-235B-A22B": Architecture(
        CONFIGS,
        "Qwen3MoeForCausalLM",
        kv(94, 4, 128),
        _config("qwen3_moe", (4096, 94, 64, 4, 128), sliding_window=None),
    ),
    "Qwen3-Next-80B-A3B": Architecture(
        DEFAULTS, "Qwen3NextForCausalLM", kv(12, 2, 256), _config("qwen3_next")
    ),
    "Qwen3.5-27B": Architecture(
        CONFIGS,
        "Qwen3_5ForCausalLM",
        kv(16, 4, 256),
        _config(
            "qwen3_5_text",
            (5120, 64, 24, 4, 256),
            layer_types=spelled("LLLF" * 16),
            linear_num_value_heads=48,
            mamba_ssm_dtype="float32",
        ),
    ),
    "Qwen3.5-397B-A17B": Architecture(
        CONFIGS,
        "Qwen3_5MoeForCausalLM",
        kv(15, 2, 256),
        _config(
            "qwen3_5_moe_text",
            (4096, 60, 32, 2, 256),
            layer_types=spelled("LLLF" * 15),
            linear_num_value_heads=64,
            mamba_ssm_dtype="float32",
        ),
    ),
    "gpt-oss-120b": Architecture(
        CONFIGS,
        "GptOssForCausalLM",
        kv(18, 8, 64),
        _config(
            "gpt_oss", (2880, 36, 64, 8, 64), layer_types=spelled("SF" * 18), sliding_window=128
        ),
    ),
    "Gemma 3 27B": Architecture(
        BRIDGE,
        "Gemma3ForCausalLM",
        kv(10, 16, 128),
        _config("gemma3_text", (5376, 62, 32, 16, 128), sliding_window=1024),
    ),
    "Gemma 4 26B-A4B": Architecture(
        CONFIGS,
        "Gemma4ForCausalLM",
        kv(5, 2, 512),
        _config(
            "gemma4_text",
            (2816, 30, 16, 8, 256),
            attention_k_eq_v=True,
            layer_types=spelled("SSSSSF" * 5),
            moe_intermediate_size=704,
            num_global_key_value_heads=2,
            sliding_window=1024,
        ),
    ),
    "Gemma 4 31B": Architecture(
        CONFIGS,
        "Gemma4ForCausalLM",
        kv(10, 4, 512),
        _config(
            "gemma4_text",
            (5376, 60, 32, 16, 256),
            attention_k_eq_v=True,
            layer_types=spelled("SSSSSF" * 10),
            num_global_key_value_heads=4,
            sliding_window=1024,
        ),
    ),
    "Llama 3.1 70B": Architecture(
        CONFIGS, "LlamaForCausalLM", kv(80, 8, 128), _config("llama", (8192, 80, 64, 8))
    ),
    "Llama 4 Scout": Architecture(
        CONFIGS, "Llama4ForCausalLM", kv(12, 8, 128), _config("llama4_text", (5120, 48, 40, 8, 128))
    ),
    "Mixtral 8x7B": Architecture(
        CONFIGS,
        "MixtralForCausalLM",
        kv(32, 8, 128),
        _config("mixtral", (4096, 32, 32, 8), sliding_window=None),
    ),
    "Ministral 3 8B": Architecture(
        DEFAULTS, "Ministral3ForCausalLM", kv(34, 8, 128), _config("ministral3")
    ),
    "DeepSeek-V3": Architecture(
        CONFIGS,
        "DeepseekV3ForCausalLM",
        latent(61),
        _config("deepseek_v3", (7168, 61, 128, 128), first_k_dense_replace=3, **_MLA),
    ),
    "DeepSeek-V3.2": Architecture(
        CONFIGS,
        "DeepseekV32ForCausalLM",
        latent(61) + indexer(61),
        _config(
            "deepseek_v32",
            (7168, 61, 128, 128),
            first_k_dense_replace=3,
            index_head_dim=128,
            index_n_heads=64,
            index_topk=2048,
            **_MLA,
        ),
    ),
    "DeepSeek-V4-Flash": Architecture(
        CONFIGS,
        "DeepseekV4ForCausalLM",
        21 * (584 + 132) // 4 + 20 * 584 // 128,
        _config(
            "deepseek_v4",
            (4096, 43, 64, 1, 512),
            hc_eps=1e-06,
            hc_mult=4,
            hc_sinkhorn_iters=20,
            hidden_act="silu",
            index_head_dim=128,
            index_n_heads=64,
            index_topk=512,
            moe_intermediate_size=2048,
            n_routed_experts=256,
            n_shared_experts=1,
            norm_topk_prob=True,
            num_experts_per_tok=6,
            num_hash_layers=3,
            o_groups=8,
            o_lora_rank=1024,
            q_lora_rank=1024,
            qk_rope_head_dim=64,
            rms_norm_eps=1e-06,
            sliding_window=128,
            swiglu_limit=10.0,
            vocab_size=129280,
            compress_rope_theta=160000,
            compress_ratios=[0, 0, *[4, 128] * 20, 4, 0],
        ),
    ),
    "GLM-4": Architecture(DEFAULTS, "Glm4ForCausalLM", kv(40, 2, 128), _config("glm4")),
    "GLM-4.5": Architecture(
        BRIDGE,
        "Glm4MoeForCausalLM",
        kv(92, 8, 128),
        _config("glm4_moe", (5120, 92, 96, 8, 128), first_k_dense_replace=3),
    ),
    "GLM-5": Architecture(
        CONFIGS,
        "GlmMoeDsaForCausalLM",
        latent(78) + indexer(78),
        _config("glm_moe_dsa", (6144, 78, 64, 64, 64), first_k_dense_replace=3, **_MLA),
    ),
    "Kimi K2": Architecture(
        CONFIGS,
        "DeepseekV3ForCausalLM",
        latent(61),
        _config("kimi_k2", (7168, 61, 64, 64), first_k_dense_replace=1, **_MLA),
    ),
    "Kimi K3": Architecture(
        CONFIGS,
        "KimiLinearForCausalLM",
        latent(24),
        _config(
            "kimi_linear",
            (7168, 93, 96, 96),
            first_k_dense_replace=1,
            linear_attn_config={
                "full_attn_layers": [*range(4, 93, 4), 93],
                "gate_lower_bound": -5.0,
                "head_dim": 128,
                "kda_layers": [layer for layer in range(1, 93) if layer % 4],
                "num_heads": 96,
                "short_conv_kernel_size": 4,
                "use_full_rank_gate": True,
            },
            mla_use_nope=True,
            moe_intermediate_size=3072,
            qk_nope_head_dim=128,
            v_head_dim=128,
            **_MLA,
        ),
    ),
    "MiniMax-M2.5": Architecture(
        CONFIGS,
        "MiniMaxM2ForCausalLM",
        kv(62, 8, 128),
        _config("minimax_m2", (3072, 62, 48, 8, 128), rotary_dim=64, scoring_func="sigmoid"),
    ),
    "MiniMax-M3": Architecture(
        CONFIGS,
        "MiniMaxM3SparseForCausalLM",
        kv(60, 4, 128) + 57 * 128 * 2,
        _config(
            "minimax_m3_vl",
            text_config=_config("minimax_m3_text", (6144, 60, 64, 4, 128), first_k_dense_replace=3),
        ),
    ),
    "MiMo-V2-Flash": Architecture(
        CONFIGS,
        "MiMoV2FlashForCausalLM",
        kv(9, 4, 192, 128),
        _config(
            "mimo_v2_flash",
            (4096, 48, 64, 4, 192),
            sliding_window=128,
            sliding_window_size=128,
            swa_num_attention_heads=64,
            swa_num_key_value_heads=8,
            swa_head_dim=192,
            swa_v_head_dim=128,
            hybrid_layer_pattern=[0, *[1] * 4, *[0, *[1] * 5] * 7, 0],
            layernorm_epsilon=1e-05,
        ),
    ),
    "Nemotron 3 Nano": Architecture(
        CONFIGS,
        "NemotronHForCausalLM",
        kv(6, 2, 128),
        _config(
            "nemotron_h",
            (2688, 52, 32, 2, 128),
            hybrid_override_pattern="MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
            mamba_num_heads=64,
            sliding_window=None,
        ),
    ),
    "Nemotron 3 Ultra": Architecture(
        CONFIGS,
        "NemotronHForCausalLM",
        kv(12, 2, 128),
        _config(
            "nemotron_h",
            (8192, 108, 64, 2, 128),
            hybrid_override_pattern="MEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEM*EMEMEM*EMEMEMEM*EMEME"
            "MEM*EMEMEM*EMEMEMEM*EMEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
            mamba_num_heads=256,
            sliding_window=None,
        ),
    ),
    "Granite 4.0 H Tiny": Architecture(
        CARDS,
        "GraniteMoeHybridForCausalLM",
        kv(4, 4, 128),
        _config(
            "granitemoehybrid",
            (1536, 40, 12, 4),
            mamba_d_state=128,
            mamba_n_heads=48,
            layer_types=spelled("MMMMMAMMMM" * 4),
        ),
    ),
    "LFM2.5 1.2B": Architecture(
        CARDS,
        "Lfm2ForCausalLM",
        kv(6, 8, 64),
        _config(
            "lfm2",
            (2048, 16, 32, 8),
            conv_dim=2048,
            block_dim=2048,
            layer_types=spelled("CCFCCFCCFCFCFCFC"),
        ),
    ),
    "Step 3.7 Flash": Architecture(
        CONFIGS,
        "Step3p5ForCausalLM",
        kv(12, 8, 128),
        _config(
            "step3p5",
            (4096, 45, 64, 8, 128),
            max_position_embeddings=65536,
            sliding_window=512,
            layer_types=spelled("FSSS" * 11 + "F"),
            first_k_dense_replace=3,
        ),
    ),
    "Hy3": Architecture(
        DEFAULTS,
        "HYV3ForCausalLM",
        kv(80, 8, 128),
        _config("hy_v3", first_k_dense_replace=1, expert_hidden_dim=1536, route_norm=True),
    ),
    "Phi-4": Architecture(
        CARDS, "Phi3ForCausalLM", kv(40, 10, 128), _config("phi3", (5120, 40, 40, 10))
    ),
    "Falcon-H1 0.5B": Architecture(
        BRIDGE,
        "FalconH1ForCausalLM",
        kv(36, 2, 64),
        _config(
            "falcon_h1", (1024, 36, 8, 2, 64), mamba_d_state=128, mamba_n_heads=24, mamba_d_ssm=1536
        ),
    ),
    "Olmo 3": Architecture(DEFAULTS, "Olmo3ForCausalLM", kv(8, 32, 128), _config("olmo3")),
}
