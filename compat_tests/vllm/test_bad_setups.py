"""Set-ups that cannot work, and models that are not cached: the user is told once, in one sentence.

What cannot be used keeps the engine from starting. What cannot be cached is served all the same.
Connectors are made in this process by vLLM's own factory from a real configuration; two real
engines and one server show what a user gets to see.
"""

import copy
import logging
import re
from functools import partial

import pytest
from engine_process import Ask, random_tokens
from http_server import HttpServer, ServerFailure

from flexkv_core.errors import ConfigError, LayoutError, UnsupportedEngineError

FLEXKV = {"kv_connector": "flexkv"}
ROLES = ("SCHEDULER", "WORKER")


def assert_one_sentence(text):
    assert "\n" not in text
    assert ". " not in text
    assert len(text) < 300


@pytest.fixture(scope="module")
def base(model):
    from simulated_shape import base_config

    return base_config(model("oracle"), {"kv_connector": "flexkv-session"})


@pytest.fixture
def connect(base):
    """Return a function that makes a connector as vLLM does, after `change` of its settings."""
    from simulated_shape import Shape, config_for, kv_cache_config
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorRole

    def connect(role="SCHEDULER", change=lambda config, cache: None, **options):
        config, cache = config_for(base, Shape(), 0), kv_cache_config(Shape(), 0)
        config.kv_transfer_config.kv_connector_extra_config = {"cpu_cache_gb": 1e-3} | options
        change(config, cache)
        return KVConnectorFactory.create_connector(config, KVConnectorRole[role], cache)

    return connect


@pytest.fixture
def said():
    """Collect what our loggers say from WARNING on."""
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("flexkv_connectors")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


BAD_OPTIONS = {
    "a misspelt option": (
        {"cpu_cache_bg": 1},
        "unknown option cpu_cache_bg: did you mean cpu_cache_gb?",
    ),
    "an option of another product": (
        {"enable_gds": True},
        "enable_gds is True, but this version moves nothing between GPU and SSD directly",
    ),
    "half an SSD tier": (
        {"ssd_cache_gb": 100},
        "ssd_cache_gb is set without ssd_cache_dir: set both, or neither",
    ),
    "a degree that this engine exceeds": (
        {"max_tp": 3},
        "max_tp is 3, but 2 KV heads cannot be spread over so many ranks",
    ),
    "a size that is no number": (
        {"cpu_cache_gb": "much"},
        "cpu_cache_gb is 'much': expected a size",
    ),
    "a size beyond any machine": ({"cpu_cache_gb": 1e9}, "expected a size in GiB above 0"),
    "no size at all": ({"cpu_cache_gb": 0}, "expected a size in GiB above 0"),
    "an unknown policy": ({"eviction_policy": "fifo"}, "expected 'lru' or 's3fifo'"),
    "a switch that is neither on nor off": ({"load_async": "maybe"}, "expected true or false"),
    "blocks that are not whole pages": (
        {"block_tokens": 6},
        "block_tokens is 6, but vLLM's block is 4 tokens here: set block_tokens to a multiple of 4",
    ),
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("options", "sentence"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_an_option_that_cannot_be_used_is_refused_by_both_sides(
    connect, said, role, options, sentence
):
    with pytest.raises(ConfigError) as refusal:
        connect(role, **options)
    assert sentence in str(refusal.value)
    assert_one_sentence(str(refusal.value))
    assert said == [f"connector.refused: {refusal.value}"]


def test_an_unknown_variable_is_refused_by_its_own_name(connect, monkeypatch):
    monkeypatch.setenv("FLEXKV_CPU_CACHE_BG", "1")
    with pytest.raises(
        ConfigError, match=r"FLEXKV_CPU_CACHE_BG: did you mean FLEXKV_CPU_CACHE_GB\?"
    ):
        connect()


def test_more_memory_than_there_is_is_refused_before_any_is_taken(connect, said):
    with pytest.raises(
        ConfigError, match=r"asks for 60000\.0 GiB, but only .* GiB are free"
    ) as refusal:
        connect("WORKER", cpu_cache_gb=60_000)
    assert_one_sentence(str(refusal.value))
    assert len(said) == 1


def test_a_host_tier_without_room_for_one_block_is_refused(connect, said):
    worker = connect("WORKER", cpu_cache_gb=1e-7)
    with pytest.raises(
        ConfigError, match=r"107 bytes on this rank, but one block takes 4096"
    ) as refusal:
        worker.register_kv_caches(small_caches())
    assert_one_sentence(str(refusal.value))
    assert said == [f"connector.refused: {refusal.value}"]


def test_tensors_of_an_unknown_layout_are_refused(connect, said):
    worker = connect("WORKER")
    sideways = {name: tensor.transpose(2, 3) for name, tensor in small_caches().items()}
    with pytest.raises(LayoutError, match="this layout is not known") as refusal:
        worker.register_kv_caches(sideways)
    assert said == [f"connector.refused: {refusal.value}"]


def small_caches():
    """Return the tensors of the harness's two layers: 8 blocks, 2 heads, 4 tokens, 2 + 2 floats."""
    import torch

    return {f"model.layers.{layer}.self_attn.attn": torch.zeros(8, 2, 4, 4) for layer in (0, 1)}


@pytest.mark.parametrize("version", ["0.27.1", "0.34.0", "1.0.0+cpu", "dev"])
def test_a_version_that_was_never_checked_is_refused(connect, said, monkeypatch, version):
    import vllm

    monkeypatch.setattr(vllm, "__version__", version)
    with pytest.raises(
        UnsupportedEngineError, match=re.escape(f"vllm {version} is installed")
    ) as refusal:
        connect()
    assert "0.28 up to, but not including, 0.34" in str(refusal.value)
    assert_one_sentence(str(refusal.value))
    assert len(said) == 1


@pytest.mark.parametrize("version", ["0.28.0", "0.33.2", "0.32.0+cpu"])
def test_a_version_that_was_checked_is_accepted(connect, monkeypatch, version):
    import vllm

    monkeypatch.setattr(vllm, "__version__", version)
    connect()


@pytest.fixture
def registry(monkeypatch):
    """vLLM's connectors by name, as they are before any plug-in."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    own = {name: load for name, load in KVConnectorFactory._registry.items() if name != "flexkv"}
    monkeypatch.setattr(KVConnectorFactory, "_registry", own)
    return own


def by_vllms_own_means(registry):
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    KVConnectorFactory.register_connector("flexkv", "not_installed", "Stranger")


def by_hand(registry):
    registry["flexkv"] = partial(dict)


@pytest.mark.parametrize(
    ("take", "owner"), [(by_vllms_own_means, "not_installed"), (by_hand, "functools")]
)
def test_a_name_that_another_plug_in_has_taken_is_said_once_with_a_way_out(
    registry, said, take, owner
):
    from vllm.config import KVTransferConfig
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    from flexkv_connectors.vllm import register

    take(registry)
    strangers = registry["flexkv"]
    register()

    (sentence,) = said
    assert sentence.startswith(f'connector.name_taken: "flexkv" is {owner}: ')
    assert_one_sentence(sentence)
    assert registry["flexkv"] is strangers
    way_out = dict(re.findall(r'"(kv_connector\w*)": "(.+?)"', sentence))
    chosen = KVConnectorFactory.get_connector_class(KVTransferConfig(kv_role="kv_both", **way_out))
    assert chosen.__module__ == "flexkv_connectors.vllm.by_device"


def test_vllms_own_connector_of_flexkv_keeps_its_name(registry, said):
    from flexkv_connectors.vllm import register

    theirs = registry["FlexKVConnectorV1"]
    register()
    assert registry["FlexKVConnectorV1"] is theirs
    assert registry["flexkv"] is not theirs
    assert said == []


def test_registering_twice_is_fine(registry, said):
    from flexkv_connectors.vllm import register

    register()
    ours = registry["flexkv"]
    register()
    assert registry["flexkv"] is ours
    assert said == []


def on_a_gpu(config, cache):
    from fakes import device_config

    config.device_config = device_config("cuda")


def on_another_device(config, cache):
    from fakes import device_config

    config.device_config = device_config("xpu")


def with_decode_context_parallelism(config, cache):
    config.parallel_config.decode_context_parallel_size = 2


def with_prefill_context_parallelism(config, cache):
    config.parallel_config.prefill_context_parallel_size = 2


def with_scales_from_the_first_batch(config, cache):
    config.cache_config.calculate_kv_scales = True


def with_overrides_in_code(config, cache):
    config.model_config = copy.copy(config.model_config)
    config.model_config.hf_overrides = lambda hf_config: hf_config


def with_two_groups(config, cache):
    cache.kv_cache_groups = cache.kv_cache_groups * 2


def without_attention(config, cache):
    cache.kv_cache_groups = []


UNCACHED = {
    on_a_gpu: "its KV is on a GPU, where FlexKV has never run: set enable_gpu to true to try it",
    on_another_device: "its KV is in xpu memory, and there is no lane to it",
    with_decode_context_parallelism: "decode context parallelism spreads a block over ranks",
    with_prefill_context_parallelism: "prefill context parallelism spreads a block over ranks",
    with_scales_from_the_first_batch: "its KV scales are computed at run time",
    with_overrides_in_code: "its model overrides are a function",
    with_two_groups: "the model mixes 2 cache groups (FullAttentionSpec)",
    without_attention: "the model mixes 0 cache groups (none)",
}


@pytest.mark.parametrize(
    ("change", "reason"), UNCACHED.items(), ids=[change.__name__ for change in UNCACHED]
)
def test_what_cannot_be_cached_is_said_once_for_all_ranks(connect, said, change, reason):
    from vllm.v1.outputs import KVConnectorOutput

    scheduler, *workers = (connect(role, change) for role in ("SCHEDULER", "WORKER", "WORKER"))
    for worker in workers:
        worker.register_kv_caches({})
        report = worker.build_connector_worker_meta()
        scheduler.update_connector_output(KVConnectorOutput(kv_connector_worker_meta=report))
    (sentence,) = said
    assert sentence.startswith(f"connector.off: serving without KV caching, because {reason}")
    assert_one_sentence(sentence)


def test_amd_gpus_go_by_the_name_of_cuda_and_are_not_cached(connect, said, monkeypatch):
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "is_rocm", lambda platform: True)
    connect("SCHEDULER", on_a_gpu, enable_gpu=True)
    (sentence,) = said
    assert "its KV is in rocm memory, and there is no lane to it" in sentence


@pytest.mark.parametrize("load_async", [True, False])
def test_what_cannot_be_cached_is_served(base, load_async):
    import copy

    from scheduler_harness import SimulatedEngine
    from simulated_shape import Shape

    on_gpu = copy.copy(base)
    on_a_gpu(on_gpu, None)
    engine = SimulatedEngine(on_gpu, Shape(load_async=load_async))
    prompt = list(range(43))
    for _ in range(2):
        request = engine.add(prompt, 4)
        engine.drain()
        assert engine.endings[request].reason == "length"
        assert engine.reset(running=False, connector=True)
    assert engine.events["external tokens"] == 0
    counts = engine.scheduler.connector.get_kv_connector_stats()
    engine.close()
    assert counts.data == {"switched_off": 1.0}


ASKS = [Ask(prompt=random_tokens(seed, length)) for seed, length in ((31, 900), (32, 300))]


def test_a_hybrid_model_gives_the_tokens_of_an_engine_without_a_connector(start_engine):
    tokens, logs = [], []
    for connector in (FLEXKV, None):
        engine = start_engine("hybrid", connector=connector)
        completions = engine.complete_each(ASKS * 2)
        engine.close()
        tokens.append([completion.tokens for completion in completions])
        logs.append(engine.log.read_text())
    assert tokens[0] == tokens[1]
    assert all(len(set(answer)) > 8 for answer in tokens[0])
    assert (
        logs[0].count("connector.off: serving without KV caching, because the model mixes 3") == 1
    )


def test_a_server_with_a_bad_option_ends_and_says_why_in_one_line(model, tmp_path):
    options = {"cpu_cache_bg": 1}
    with pytest.raises(ServerFailure, match="no server"):
        HttpServer(model("oracle"), tmp_path, FLEXKV | {"kv_connector_extra_config": options})
    lines = (tmp_path / "server.log").read_text().splitlines()
    ours = [line for line in lines if "connector.refused" in line]
    assert len(ours) == 1
    assert ours[0].endswith(
        "connector.refused: unknown option cpu_cache_bg: did you mean cpu_cache_gb?"
    )
