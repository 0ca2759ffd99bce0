"""Tiny random-weight models and their tokenizer, built without a network: `models.py NAME FOLDER`.

Every model is built once per folder, always with the same weights, in a second or two. The
initialisation is wider than usual: with the default one a random model repeats a single token, and
a comparison of outputs passes on garbage.

    oracle   Llama, float32: cold runs, local hits and external hits give equal tokens
    demo     Qwen3, bfloat16, 31 M parameters: big enough that a hit is visibly faster
    mla      DeepSeek-V2, float32: one latent head instead of keys and values
    hybrid   Gemma 3, bfloat16: two layers of three see a sliding window only
    state    LFM2, float32: two layers of three keep a state instead of KV
    sinks    GPT-OSS, float32: every other layer sees a sliding window; experts
    window   Mellum, float32: the same, and SGLang keeps the window in a pool of its own
    lora-1, lora-2   adapters for `oracle`
    mtp      ERNIE 4.5, float32: a layer of its own predicts the token after the next
    narrow   as `oracle`, with one KV head: a draft model whose KV has another shape
    eagle, medusa    what drafts for `oracle` from its hidden states
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))

from companions import DRAFTERS, LORAS, make_drafter, make_lora

MAX_POSITIONS = 8192
BOS, USER, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCES = (
    "The cache keeps what the engine would otherwise compute again.",
    "A block is a run of consecutive tokens, and its key is chained to the blocks before it.",
    "Please summarise the following document in three short sentences, then list open questions.",
    "user: how many pages does the report have? assistant: it has 0123456789 pages.",
    "def match(request_id, keys): return the longest ready prefix, or None on a miss",
)


def build(name: str, folder: Path) -> Path:
    """Return the folder of model `name` inside `folder`; builds it if it is not there yet."""
    target = folder / name
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-") as unfinished:
            _write(name, folder, Path(unfinished) / name)
            _publish(Path(unfinished) / name, target)
    return target


def _write(name: str, folder: Path, path: Path) -> None:
    if name in LORAS:
        make_lora(path, build("oracle", folder), LORAS[name])
    elif name in DRAFTERS:
        make_drafter(path, build("oracle", folder), name)
    else:
        tokenizer = make_tokenizer()
        tokenizer.save_pretrained(path)
        _save_model(path, *_MODELS[name](len(tokenizer)), tokenizer.eos_token_id)
    if name == "mtp":
        _add_prediction_layer(path / "model.safetensors")


def _publish(path: Path, target: Path) -> None:
    """Rename, so that whoever sees `target` sees all of it; somebody else may have been first."""
    try:
        path.rename(target)
    except OSError:
        if not target.exists():
            raise


def make_tokenizer() -> Any:
    """Train a byte-level BPE tokenizer of about 400 tokens with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=[BOS, USER, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 20, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=BOS, model_max_length=MAX_POSITIONS
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def _save_model(path: Path, config: Any, dtype: str, eos_token_id: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    for name, weights in model.named_parameters():
        if "sinks" in name or ".experts." in name:  # which transformers leaves as they come
            torch.nn.init.normal_(weights, 0, config.initializer_range)
    model.generation_config.eos_token_id = eos_token_id
    model.save_pretrained(path)


def _add_prediction_layer(weights: Path) -> None:
    """Add what transformers leaves out: a copy of the first layer, and what leads into it."""
    import torch
    from safetensors.torch import load_file, save_file

    known, first = load_file(weights), "model.layers.0."
    hidden = known[f"{first}input_layernorm.weight"].shape[0]
    generator = torch.Generator().manual_seed(0)
    added = {
        name.replace(first, "model.mtp_block.0."): weight.clone()
        for name, weight in known.items()
        if name.startswith(first)
    }
    added |= {f"model.mtp_{kind}_norm.0.weight": torch.ones(hidden) for kind in ("emb", "hidden")}
    added["model.mtp_linear_proj.0.weight"] = torch.randn(hidden, 2 * hidden, generator=generator)
    save_file(known | added, weights, metadata={"format": "pt"})


def _mtp(vocab_size: int) -> tuple[Any, str]:
    from transformers import Ernie4_5_MoeConfig

    num_layers = 3
    config = Ernie4_5_MoeConfig(
        vocab_size=max(vocab_size, 4096),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=num_layers,
        num_nextn_predict_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        moe_num_experts=4,
        moe_layer_start_index=num_layers,  # behind the last: all are dense
        moe_layer_end_index=num_layers,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.12,
        tie_word_embeddings=False,
    )
    return config, "float32"


def _narrow(vocab_size: int) -> tuple[Any, str]:
    config, dtype = _oracle(vocab_size)
    config.num_key_value_heads = 1
    return config, dtype


def _oracle(vocab_size: int) -> tuple[Any, str]:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=max(vocab_size, 4096),
        hidden_size=384,
        intermediate_size=768,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.12,
        tie_word_embeddings=False,
    )
    return config, "float32"


def _demo(vocab_size: int) -> tuple[Any, str]:
    from transformers import Qwen3Config

    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.05,
        tie_word_embeddings=False,
    )
    return config, "bfloat16"


def _mla(vocab_size: int) -> tuple[Any, str]:
    from transformers import DeepseekV2Config

    config = DeepseekV2Config(
        vocab_size=max(vocab_size, 4096),
        hidden_size=256,
        intermediate_size=512,
        moe_intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        kv_lora_rank=512,
        q_lora_rank=None,
        qk_rope_head_dim=64,
        qk_nope_head_dim=128,
        v_head_dim=128,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        first_k_dense_replace=3,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.1,
        tie_word_embeddings=False,
    )
    return config, "float32"


def _hybrid(vocab_size: int) -> tuple[Any, str]:
    from transformers import Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        sliding_window=256,
        query_pre_attn_scalar=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.02,
    )
    return config, "bfloat16"


def _state(vocab_size: int) -> tuple[Any, str]:
    from transformers import Lfm2Config

    config = Lfm2Config(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        layer_types=["conv", "full_attention", "conv"],
        num_attention_heads=4,
        num_key_value_heads=2,
        conv_dim=256,  # vLLM asks for what transformers does not know
        conv_dim_out=256,
        block_dim=256,
        block_multiple_of=64,
        block_ffn_dim_multiplier=1.0,
        block_auto_adjust_ff_dim=False,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.12,
    )
    return config, "float32"


def _sinks(vocab_size: int) -> tuple[Any, str]:
    from transformers import GptOssConfig

    config = GptOssConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.12,
        tie_word_embeddings=False,
    )
    return config, "float32"


def _window(vocab_size: int) -> tuple[Any, str]:
    from transformers import MellumConfig

    config = MellumConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        mlp_layer_types=["dense"] * 3,
        sliding_window=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.12,
    )
    return config, "float32"


_MODELS: dict[str, Callable[[int], tuple[Any, str]]] = {
    "oracle": _oracle,
    "demo": _demo,
    "mla": _mla,
    "hybrid": _hybrid,
    "state": _state,
    "sinks": _sinks,
    "window": _window,
    "mtp": _mtp,
    "narrow": _narrow,
}


def main() -> None:
    """Build one model and print its folder."""
    parser = argparse.ArgumentParser(description="Build a tiny random-weight model.")
    parser.add_argument("name", choices=(*_MODELS, *LORAS, *DRAFTERS))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    print(build(arguments.name, arguments.folder))


if __name__ == "__main__":
    main()
