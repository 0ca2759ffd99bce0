"""Adapters change KV without changing tokens: what they share is decided by what was loaded.

One adapter fits into the workers, so every other one drives it out and it is loaded again.
"""

import hashlib
import shutil
import time
from pathlib import Path

import pytest
from engine_checks import NO_LOAD
from engine_process import Ask, EngineProcess, random_tokens
from ssd_engines import connector_on, ready_keys

PROMPT = random_tokens(21, 700)
HIT_TOKENS = 640
LORA = {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 1, "max_lora_rank": 8}
HUB_ID = "someone/adapter"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the home folder of the engines."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def start(model, folder, tmp_path_factory):
    """Return a function that starts an engine on the same SSD directory."""
    directory = tmp_path_factory.mktemp("ssd")
    env = {"HOME": str(folder), "HF_HUB_CACHE": str(folder / "hub")}

    def start():
        cwd = tmp_path_factory.mktemp("engine")
        connector = connector_on(directory)
        return EngineProcess(model("oracle"), cwd, connector=connector, env=env, **LORA)

    return start


@pytest.fixture(scope="module")
def engine(start):
    engine = start()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def adapters(model):
    return [str(model(name)) for name in ("lora-1", "lora-2")]


def ask(engine, lora, prompt=PROMPT, **more):
    """Serve a prompt by itself once the engine knows all adapters that it has been told of."""
    (completion,) = engine.complete(Ask(prompt=prompt, lora=lora, **more))
    deadline = time.monotonic() + 60.0
    while engine.connector("identifies_adapters"):
        assert time.monotonic() < deadline, "the adapter is never known"
        time.sleep(0.01)
    return completion


def introduce(engine, lora):
    """Let the engine learn an adapter, with a prompt too short to be kept."""
    ask(engine, lora, PROMPT[:5])


@pytest.fixture(scope="module")
def truth(engine, adapters):
    """What the base model and each adapter answer by themselves; all of it is kept."""
    for lora in adapters:
        introduce(engine, lora)
    return [ask(engine, lora) for lora in (None, *adapters)]


@pytest.fixture
def adapter(adapters, tmp_path):
    """Return a copy of the first adapter, to be overwritten."""
    return Path(shutil.copytree(adapters[0], tmp_path / "adapter"))


def overwrite(adapter, adapters):
    """Put the second adapter where a copy of the first lies: the same sizes, the same names."""
    shutil.copytree(adapters[1], adapter, dirs_exist_ok=True)


def test_nobody_hits_the_prefix_of_another_adapter_or_of_the_base(truth):
    assert [completion.num_cached_tokens for completion in truth] == [0, 0, 0]


def test_adapters_really_change_the_answer(truth):
    assert len({tuple(completion.tokens[:4]) for completion in truth}) == 3


def test_everybody_hits_their_own_and_answers_as_before(engine, adapters, truth):
    engine.forget()
    again = [ask(engine, lora) for lora in (None, *adapters)]

    assert [completion.num_cached_tokens for completion in again] == [HIT_TOKENS] * 3
    assert [completion.tokens for completion in again] == [c.tokens for c in truth]


def assert_hits(engine, lora, completion):
    """Check that an adapter hits what was saved under another path."""
    introduce(engine, lora)
    engine.forget()
    again = ask(engine, lora)
    assert (again.num_cached_tokens, again.tokens) == (HIT_TOKENS, completion.tokens)


def test_a_copy_of_an_adapter_hits_what_the_original_saved(engine, adapter, truth):
    assert_hits(engine, str(adapter), truth[1])


def test_an_adapter_in_the_home_folder_is_found(engine, adapters, folder, truth):
    shutil.copytree(adapters[0], folder / "mine")
    assert_hits(engine, "~/mine", truth[1])


def test_an_adapter_from_the_hub_is_found(engine, adapters, folder, truth):
    repository = folder / "hub" / f"models--{HUB_ID.replace('/', '--')}"
    commit = "1" * 40
    for name in ("blobs", "refs", f"snapshots/{commit}"):
        (repository / name).mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for path in Path(adapters[0]).iterdir():
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        (repository / "snapshots" / commit / path.name).symlink_to(blob)
    assert_hits(engine, HUB_ID, truth[1])


def test_what_is_loaded_counts_and_not_what_lies_there_at_the_first_request(
    engine, adapter, adapters, truth
):
    engine.load_adapter(str(adapter))
    overwrite(adapter, adapters)
    engine.forget()
    completion = ask(engine, str(adapter))
    assert (completion.num_cached_tokens, completion.tokens) == (0, truth[1].tokens)


def test_nobody_finds_what_an_adapter_computed_whose_files_are_others(engine, adapter, adapters):
    prompt = random_tokens(22, 700)
    engine.load_adapter(str(adapter))
    overwrite(adapter, adapters)
    num_keys = len(ready_keys(engine, "host"))
    wrong = ask(engine, str(adapter), prompt)
    assert len(ready_keys(engine, "host")) == num_keys

    engine.forget()
    right = ask(engine, adapters[1], prompt)
    assert right.num_cached_tokens == 0
    assert right.tokens != wrong.tokens


def test_an_adapter_that_is_loaded_again_after_it_was_overwritten_finds_nothing(
    engine, adapter, adapters, truth
):
    assert_hits(engine, str(adapter), truth[1])
    ask(engine, adapters[1])
    overwrite(adapter, adapters)
    engine.forget()
    again = ask(engine, str(adapter))
    assert (again.num_cached_tokens, again.tokens) == (0, truth[2].tokens)


def test_an_adapter_that_is_loaded_in_place_is_what_lies_there_then(
    engine, adapter, adapters, truth
):
    assert_hits(engine, str(adapter), truth[1])
    overwrite(adapter, adapters)
    engine.load_adapter(str(adapter), in_place=True)
    assert_hits(engine, str(adapter), truth[2])


def test_an_adapter_that_is_removed_and_loaded_is_what_lies_there_then(
    engine, adapter, adapters, truth
):
    assert_hits(engine, str(adapter), truth[1])
    overwrite(adapter, adapters)
    engine.remove_adapter(str(adapter))
    engine.load_adapter(str(adapter))
    assert_hits(engine, str(adapter), truth[2])


def test_what_vllm_itself_keeps_of_the_adapter_before_is_not_saved_under_the_one_after(
    engine, adapter, adapters
):
    prompt = random_tokens(23, 700)
    introduce(engine, str(adapter))
    ask(engine, str(adapter), prompt[:400])
    overwrite(adapter, adapters)
    engine.load_adapter(str(adapter), in_place=True)
    introduce(engine, str(adapter))
    assert ask(engine, str(adapter), prompt).num_cached_tokens, "vLLM keeps it by name"

    engine.forget()
    found = ask(engine, adapters[1], prompt)
    engine.forget()
    computed = ask(engine, adapters[1], prompt, kv_transfer_params=NO_LOAD)
    assert found.tokens == computed.tokens
    assert found.num_cached_tokens == 0


def test_another_engine_finds_on_ssd_what_a_copy_of_the_adapter_saved(
    engine, start, adapter, truth
):
    engine.run()
    engine.kill()
    engine.close()
    other = start()
    try:
        assert_hits(other, str(adapter), truth[1])
    finally:
        other.close()
