"""One thing changed between two starts: nothing of the earlier engine is found, or all of it."""

import shutil

import pytest
from engine_checks import counts
from engine_process import EngineProcess, random_tokens
from ssd_engines import connector_on, ready_keys, serve

PROMPT = random_tokens(1, 600)
HIT_TOKENS = 512
OPTIONS = {
    "block_tokens": {"block_tokens": 256},
    "namespace": {"namespace": "of somebody else"},
}
"""Of the cache; `test_identity.py` goes through all of them without an engine."""

ARGUMENTS = {
    "dtype": {"dtype": "bfloat16"},
    "KV dtype": {"kv_cache_dtype": "fp8"},
    "normalisation": {"hf_overrides": {"rms_norm_eps": 1e-3}},
    "RoPE": {"hf_overrides": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}},
}
"""Of the engine."""


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    """Return a folder of weights that a test may change."""
    return shutil.copytree(model("oracle"), tmp_path_factory.mktemp("model") / "oracle")


@pytest.fixture(scope="module")
def start(weights, tmp_path_factory):
    """Return a function that starts an engine on these weights and one directory."""
    directory = tmp_path_factory.mktemp("ssd")

    def start(options=(), **engine_args):
        connector = connector_on(directory, **dict(options))
        folder = tmp_path_factory.mktemp("engine")
        engine = EngineProcess(weights, folder, connector=connector, **engine_args)
        engine.run()
        return engine

    return start


@pytest.fixture(scope="module")
def written(start):
    """Let an engine save the prompt to SSD, and kill it."""
    engine = start()
    served = serve(engine, PROMPT)
    assert len(ready_keys(engine)) == HIT_TOKENS // 128
    engine.kill()
    engine.close()
    return served


@pytest.fixture
def other_weights(weights):
    """Change every weight a little, at the same path and in files of the same size."""
    from safetensors.torch import load_file, save_file

    path = weights / "model.safetensors"
    original = path.read_bytes()
    others = {name: tensor * 1.01 for name, tensor in load_file(path).items()}
    save_file(others, path, metadata={"format": "pt"})
    num_bytes = path.stat().st_size
    yield
    path.write_bytes(original)
    assert num_bytes == len(original)


def assert_finds_nothing(engine):
    """Check that an engine finds nothing on SSD, though it has such a tier and fills it."""
    served = serve(engine, PROMPT)
    own = ready_keys(engine)
    restored = counts(engine)["restored_blocks"]
    engine.kill()
    engine.close()
    assert (served.num_cached_tokens, restored) == (0, 0)
    assert own


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_another_option_finds_nothing(written, start, options):
    assert_finds_nothing(start(options))


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
def test_another_engine_argument_finds_nothing(written, start, arguments):
    assert_finds_nothing(start(**arguments))


def test_other_weights_at_the_same_path_find_nothing(written, start, other_weights):
    assert_finds_nothing(start())


def test_settings_that_change_no_byte_find_everything(written, start):
    options = {"cpu_cache_gb": 0.1, "eviction_policy": "s3fifo", "load_async": False}
    engine = start(options, max_model_len=2048, max_num_batched_tokens=2048)
    assert_finds_everything(engine, written)


def test_the_same_engine_finds_everything(written, start):
    assert_finds_everything(start(), written)


def assert_finds_everything(engine, written):
    served = serve(engine, PROMPT)
    engine.kill()
    engine.close()
    assert served.num_cached_tokens == HIT_TOKENS
    assert served.loaded_pages == written.pages
    assert served.tokens == written.tokens
