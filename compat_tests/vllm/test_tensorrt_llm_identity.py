"""TensorRT-LLM's connector names the blocks of a model as vLLM's does, so they can share them.

Both read their engine's own arguments; TensorRT-LLM's are stood in for. No engine is started.
"""

from types import SimpleNamespace

import pytest

from flexkv_connectors.tensorrt_llm.deployment import translate
from flexkv_connectors.tensorrt_llm.identity import origin_of
from flexkv_connectors.tensorrt_llm.requests import chain_of
from flexkv_connectors.tensorrt_llm.settings import read_settings
from flexkv_core.config import parse_config


def origin(folder, ranks=1, rank=0, **options):
    """Return the origin of the blocks of an engine with these arguments of TensorRT-LLM."""
    arguments = SimpleNamespace(
        model=str(folder),
        dtype="bfloat16",
        load_format="auto",
        max_seq_len=512,
        max_num_tokens=512,
        attn_backend="TRTLLM",
        tensor_parallel_size=ranks,
        pipeline_parallel_size=1,
        context_parallel_size=1,
        gpus_per_node=8,
        max_beam_width=1,
        enable_attention_dp=False,
        speculative_config=None,
        kv_cache_config=SimpleNamespace(
            dtype="auto", tokens_per_block=32, max_attention_window=None
        ),
    )
    settings = read_settings(arguments)
    deployment = translate(settings, parse_config(options), rank)
    return origin_of(settings, deployment), deployment


@pytest.mark.parametrize("kind", ["demo", "mla"])
def test_both_engines_name_the_same_blocks(model, kind):
    from identity_rig import engine_config, find, identify

    folder = model(kind)
    ours, deployment = origin(folder, max_tp=1)
    assert find(ours, deployment.cache) == identify(
        engine_config(folder, dtype="bfloat16"), max_tp=1
    )


def test_a_rank_has_the_columns_of_a_rank_of_vllm(model):
    from identity_rig import at_rank, deployment_of, engine_config

    folder = model("demo")
    for rank in range(2):
        theirs = deployment_of(at_rank(engine_config(folder), rank, 2))
        _, ours = origin(folder, ranks=2, rank=rank)
        assert ours.columns == theirs.columns
        assert ours.block_format == theirs.block_format
        assert ours.owners == theirs.owners


def test_keys_are_equal_for_equal_prompts_and_salts():
    from flexkv_core.block.keys import KeyChain, salt_seed

    request = SimpleNamespace(cache_salt="tenant")
    chain = chain_of(request, 16)
    same = KeyChain(16, salt_seed("tenant"))
    for each in (chain, same):
        each.advance(range(40))
    assert chain.keys == same.keys
