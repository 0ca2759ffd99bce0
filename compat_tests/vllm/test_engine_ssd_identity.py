"""One thing changed between two starts: nothing of the earlier engine is found, or all of it."""

import json
import os
import shutil
from hashlib import sha256

import pytest
from engine_checks import counts
from engine_process import EngineProcess, random_tokens
from ssd_engines import connector_on, keys_of, ready_keys, serve

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

    def start(options=(), model=weights, kind="SsdGlassConnector", **engine_args):
        connector = connector_on(directory, **dict(options)) | {"kv_connector": kind}
        folder = tmp_path_factory.mktemp("engine")
        engine = EngineProcess(model, folder, connector=connector, **engine_args)
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
def other_embedding(weights):
    """Negate one row of the embedding in place, in a file that claims to be as old as it was."""
    path = weights / "model.safetensors"
    original, times = path.read_bytes(), path.stat()
    header_bytes = int.from_bytes(original[:8], "little")
    header = json.loads(original[8 : 8 + header_bytes])
    (embedding,) = (header[name] for name in header if name.endswith("embed_tokens.weight"))
    first, row_bytes = 8 + header_bytes + embedding["data_offsets"][0], 4 * embedding["shape"][1]
    row = range(first + PROMPT[0] * row_bytes, first + (PROMPT[0] + 1) * row_bytes)
    changed = bytearray(original)
    for sign in row[3::4]:
        changed[sign] ^= 0x80
    write_in_place(path, changed)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    yield
    write_in_place(path, original)


def write_in_place(path, content):
    with path.open("r+b") as file:
        file.write(content)


@pytest.fixture
def snapshot(weights, tmp_path):
    """Return a copy of the weights as the hub's client keeps them, with other files beside."""
    repository = tmp_path / "models--org--tiny"
    folder = repository / "snapshots" / sha256(b"commit").hexdigest()[:40]
    for each in (folder, repository / "blobs"):
        each.mkdir(parents=True)
    for path in weights.iterdir():
        blob = repository / "blobs" / sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        (folder / path.name).symlink_to(blob)
    (folder / "README.md").write_text("what no engine reads")
    return folder


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


def test_weights_with_one_other_row_at_the_same_path_find_nothing(written, start, other_embedding):
    assert_finds_nothing(start())


def test_a_copy_of_the_hub_finds_everything_until_it_is_edited(written, start, snapshot):
    assert_finds_everything(start(model=snapshot), written)
    config = snapshot / "config.json"  # through the link: its blob has another content from now on
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 2e-06'))
    assert_finds_nothing(start(model=snapshot))


def test_a_link_that_moves_while_the_engine_starts_leaves_nothing_behind(
    written, start, weights, tmp_path
):
    """What was read is not what the link names now, and the next engine reads that."""
    (tmp_path / "next").symlink_to(shutil.copytree(weights, tmp_path / "other"))
    current = tmp_path / "current"
    current.symlink_to(weights)
    assert_finds_everything(start(model=current), written)

    engine = start(model=current, kind="MovedModelConnector")
    served = serve(engine, PROMPT)
    found = ready_keys(engine)
    log = engine.log.read_text()
    engine.kill()
    engine.close()
    assert current.readlink() == tmp_path / "next"
    assert (served.num_cached_tokens, found) == (0, set())
    assert "identity.unknown" in log


def test_until_the_model_is_known_host_memory_serves_alone_and_ssd_has_it_all_afterwards(
    weights, tmp_path
):
    directory = tmp_path / "ssd"
    connector = connector_on(directory) | {"kv_connector": "SlowHasherConnector"}
    engine = EngineProcess(weights, tmp_path, connector=connector)
    serve(engine, PROMPT)
    assert serve(engine, PROMPT).num_cached_tokens == HIT_TOKENS
    assert ready_keys(engine) == set()
    assert not list(directory.rglob("*.slab"))

    engine.worker_connectors("let_hash")
    serve(engine, random_tokens(2, 200))
    assert set(keys_of(PROMPT)) <= ready_keys(engine)
    engine.kill()
    engine.close()


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
