"""What cannot be served is refused in one sentence: what was got, what to do."""

import importlib
import sys

import pytest
from engine_double import Engine, arguments_for

from compat_tests.contract.tensorrt_llm import GENERATIONS, forget_connector, stand_ins
from flexkv_connectors.tensorrt_llm.deployment import read_cache_config, translate
from flexkv_connectors.tensorrt_llm.settings import read_settings
from flexkv_core.errors import ConfigError, FlexKVError, UnsupportedEngineError


@pytest.fixture(autouse=True)
def options(monkeypatch):
    monkeypatch.setenv("FLEXKV_CPU_CACHE_GB", "0.01")


def one_sentence(refused):
    return "\n" not in str(refused.value) and len(str(refused.value)) < 300


def deployment_of(folder, ranks=1, rank=0, **changes):
    settings = read_settings(arguments_for(folder, ranks, **changes))
    return translate(settings, read_cache_config(), rank)


def test_without_the_engine_the_classes_say_what_to_install():
    forget_connector()
    with pytest.raises(UnsupportedEngineError, match=r"install tensorrt-llm 1\.1") as refused:
        importlib.import_module("flexkv_connectors.tensorrt_llm.connector")
    assert one_sentence(refused)


def test_an_error_within_the_engine_is_not_taken_for_its_absence(monkeypatch):
    forget_connector()
    modules = stand_ins(GENERATIONS[0])
    broken = modules.pop(GENERATIONS[0].module)
    assert broken
    monkeypatch.setitem(sys.modules, "tensorrt_llm", modules["tensorrt_llm"])

    def import_module(name):
        raise ModuleNotFoundError(name="cuda")

    from flexkv_connectors.tensorrt_llm import interface

    monkeypatch.setattr(interface.importlib, "import_module", import_module)
    with pytest.raises(ModuleNotFoundError) as refused:
        interface.connector_interface()
    assert refused.value.name == "cuda"
    forget_connector()


@pytest.mark.parametrize("version", ["0.21.0", "1.5.0"])
def test_a_version_that_nobody_has_read_is_refused(tmp_path, monkeypatch, version):
    import compat_tests.contract.tensorrt_llm as contract

    old = contract.Generation(version=version, module=GENERATIONS[0].module, commit="")
    monkeypatch.setitem(sys.modules[Engine.__module__].__dict__, "GENERATIONS", (old, old))
    with pytest.raises(UnsupportedEngineError, match=version) as refused:
        Engine(tmp_path)
    assert one_sentence(refused)


@pytest.mark.parametrize("given", [(), (object(),)], ids=["nothing", "an ExecutorConfig"])
def test_an_engine_that_does_not_say_what_it_serves_is_refused(given):
    forget_connector()
    sys.modules.update(stand_ins(GENERATIONS[0]))
    from flexkv_connectors.tensorrt_llm import FlexKVScheduler

    with pytest.raises(UnsupportedEngineError, match="install a newer one") as refused:
        FlexKVScheduler(*given)
    assert one_sentence(refused)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_beam_width": 2}, "max_beam_width"),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size"),
        ({"context_parallel_size": 2}, "context_parallel_size"),
        ({"speculative_config": object()}, "speculative_config"),
        ({"sparse_attention_config": object()}, "sparse_attention_config"),
        ({"kv_cache_compression_config": object()}, "kv_cache_compression_config"),
        ({"sleep_config": object()}, "sleep_config"),
        ({"enable_sleep": True}, "enable_sleep"),
        ({"kv_cache_config": {"enable_kv_pool_rebalance": True}}, "enable_kv_pool_rebalance"),
        ({"orchestrator_type": "ray"}, "orchestrator_type ray"),
        ({"attn_backend": "FLASHINFER"}, "attn_backend FLASHINFER"),
        ({"kv_cache_config": {"max_attention_window": [512]}}, "max_attention_window"),
        ({"kv_cache_config": {"host_cache_size": 1 << 30}}, "host_cache_size"),
        ({"kv_cache_config": {"sink_token_length": 4}}, "sink_token_length"),
        ({"config": {"is_encoder_decoder": True}}, "encoder-decoder"),
        ({"config": {"sliding_window": 512}}, "sliding window"),
        ({"model_kwargs": {"sliding_window": 512}}, "sliding window"),
        ({"config": {"layer_types": ["full_attention", "linear_attention"]}}, "linear_attention"),
        ({"config": {"index_head_dim": 64}}, "an index"),
        ({"kv_cache_config": {"dtype": "nvfp4"}}, "nvfp4"),
        ({"config": {"num_key_value_heads": 3}, "ranks": 2}, "3 KV heads"),
    ],
)
def test_a_deployment_that_cannot_be_served_is_named(tmp_path, change, named):
    with pytest.raises(ConfigError, match=named) as refused:
        deployment_of(tmp_path, **change)
    assert one_sentence(refused)


def test_what_some_versions_have_is_none_where_it_is_switched_off(tmp_path):
    deployment_of(tmp_path, enable_sleep=False, sleep_config=None, orchestrator_type="rpc")


def test_a_window_that_is_switched_off_is_none(tmp_path):
    deployment_of(tmp_path, config={"sliding_window": 512, "use_sliding_window": False})


def test_a_model_that_is_not_on_this_machine_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="some/model is not on this machine") as refused:
        deployment_of(tmp_path, model="some/model")
    assert one_sentence(refused)


def test_an_unknown_option_names_the_nearest(tmp_path, monkeypatch):
    monkeypatch.setenv("FLEXKV_CPU_CACHE", "4")
    with pytest.raises(ConfigError, match="FLEXKV_CPU_CACHE_GB"):
        Engine(tmp_path)


def test_a_block_that_is_not_whole_pages_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("FLEXKV_BLOCK_TOKENS", "6")
    with pytest.raises(ConfigError, match="TensorRT-LLM's block is 4 tokens"):
        deployment_of(tmp_path)


def test_every_refusal_is_logged_in_a_line_of_its_own(tmp_path, caplog):
    with pytest.raises(FlexKVError):
        Engine(tmp_path, max_beam_width=4)
    assert "connector.refused: FlexKV behind TensorRT-LLM does not serve max_beam" in caplog.text


def test_pages_on_a_gpu_are_served_without_caching_unless_asked_for(tmp_path, monkeypatch):
    engine = Engine(tmp_path)
    from flexkv_connectors.tensorrt_llm import connector

    monkeypatch.setattr(connector, "are_on_gpu", lambda slabs: True)
    engine.register()
    from engine_double import Request

    engine.run(Request(1, list(range(200))))
    engine.run(Request(2, list(range(200))))
    assert engine.offers == {1: 0, 2: 0}
    assert "set FLEXKV_ENABLE_GPU=true" in engine.workers[0]._barrier.reason
    engine.close()


@pytest.mark.parametrize(
    ("change", "heads", "size", "planes"),
    [
        ({}, 2, 8, 2),
        ({"config": {"head_dim": 16}}, 2, 16, 2),
        ({"config": {"num_key_value_heads": None}}, 4, 8, 2),
        ({"config": {"kv_lora_rank": 24, "qk_rope_head_dim": 8}}, 1, 32, 1),
        ({"config": {"text_config": {"num_hidden_layers": 2, "num_attention_heads": 1,
                                     "hidden_size": 64, "dtype": "bfloat16"}}}, 1, 64, 2),
    ],
)  # fmt: skip
def test_the_shape_of_a_page_comes_from_the_checkpoint(tmp_path, change, heads, size, planes):
    settings = read_settings(arguments_for(tmp_path, **change))
    shape = translate(settings, read_cache_config(), 0).page_shape
    assert shape == (heads, 4, planes * size * settings.element_bytes)


def test_the_dtype_of_a_composite_model_is_looked_for_outside_first(tmp_path):
    text = {"num_hidden_layers": 2, "num_attention_heads": 1, "hidden_size": 64}
    for inner in ({}, {"torch_dtype": "float16"}):
        arguments = arguments_for(
            tmp_path, config={"torch_dtype": "bfloat16", "text_config": text | inner}
        )
        assert read_settings(arguments).kv_dtype == "bfloat16"


def test_kv_in_eight_bits_comes_from_the_checkpoint_or_the_option(tmp_path):
    (tmp_path / "hf_quant_config.json").write_text(
        '{"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}'
    )
    assert read_settings(arguments_for(tmp_path)).kv_dtype == "fp8_e4m3"
    (tmp_path / "hf_quant_config.json").unlink()
    arguments = arguments_for(tmp_path, kv_cache_config={"dtype": "fp8"})
    assert read_settings(arguments).element_bytes == 1


def test_ranks_under_attention_data_parallelism_are_engines_of_their_own(tmp_path):
    deployment = deployment_of(tmp_path, ranks=4, rank=3, enable_attention_dp=True)
    assert (deployment.rank, deployment.num_ranks, deployment.num_engines) == (0, 1, 4)
    assert deployment.engine_id.endswith("-3")
    assert deployment.page_shape.num_heads == 2


def test_ranks_that_are_engines_share_the_memory_of_their_node_with_those_on_it(tmp_path):
    deployment = deployment_of(tmp_path, ranks=16, rank=9, enable_attention_dp=True)
    assert deployment.num_engines == 8
