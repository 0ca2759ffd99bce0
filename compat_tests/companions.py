"""What goes with a model of `models.py`: adapters, and what drafts from its hidden states."""

import json
from pathlib import Path
from typing import Any

LORAS = {"lora-1": 1, "lora-2": 2}
"""Their seeds."""


def make_lora(path: Path, base: Path, seed: int) -> Path:
    """Write a random rank-8 adapter of the attention of `base`, strong enough to change tokens."""
    import torch
    from safetensors.torch import save_file

    config = json.loads((base / "config.json").read_text())
    hidden, head = config["hidden_size"], config["head_dim"]
    rows = {"q_proj": config["num_attention_heads"] * head}
    rows |= dict.fromkeys(("k_proj", "v_proj"), config["num_key_value_heads"] * head)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for module, num_rows in rows.items():
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            weights[f"{name}.lora_A.weight"] = torch.randn(8, hidden, generator=generator) * 0.2
            weights[f"{name}.lora_B.weight"] = torch.randn(num_rows, 8, generator=generator) * 0.2
    path.mkdir(parents=True)
    save_file(weights, path / "adapter_model.safetensors")
    adapter = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": 8,
        "lora_alpha": 16,
        "bias": "none",
        "target_modules": sorted(rows),
    }
    (path / "adapter_config.json").write_text(json.dumps(adapter))
    return path


def make_drafter(path: Path, base: Path, kind: str) -> Path:
    """Write a random layer, or random heads, that draft tokens from the hidden states of `base`."""
    import torch
    from safetensors.torch import save_file

    config = json.loads((base / "config.json").read_text())
    config |= {"num_hidden_layers": 1}
    if kind == "medusa":
        config |= {"model_type": "medusa", "architectures": ["MedusaModel"], "num_heads": 2}
    shapes = DRAFTERS[kind](config)
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    path.mkdir(parents=True)
    save_file(weights, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return path


def _medusa(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    shapes = {f"blocks.{head}.layers.0.weight": (hidden, hidden) for head in range(2)}
    return shapes | {f"lm_heads.{head}.weight": (vocabulary, hidden) for head in range(2)}


def _eagle(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a decoder layer, and of what leads into it."""
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    of_queries, of_keys = (
        config[f"num_{kind}_heads"] * head for kind in ("attention", "key_value")
    )
    return {
        "fc.weight": (hidden, 2 * hidden),
        "layers.0.self_attn.q_proj.weight": (of_queries, hidden),
        "layers.0.self_attn.k_proj.weight": (of_keys, hidden),
        "layers.0.self_attn.v_proj.weight": (of_keys, hidden),
        "layers.0.self_attn.o_proj.weight": (hidden, of_queries),
        "layers.0.post_attention_layernorm.weight": (hidden,),
        "layers.0.mlp.gate_proj.weight": (inner, hidden),
        "layers.0.mlp.up_proj.weight": (inner, hidden),
        "layers.0.mlp.down_proj.weight": (hidden, inner),
    }


DRAFTERS = {"eagle": _eagle, "medusa": _medusa}
