"""Requests below vLLM's own offloading: weights changed under them, adapters, salts, switches."""

import shutil
from zlib import crc32

import pytest
from engine_checks import NO_LOAD, NO_SAVE
from engine_process import Ask, EngineProcess, random_tokens
from offload_engines import KEEPS_ROWS, connector_on

HIT_TOKENS = 512


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Return the folder of the SSD tier."""
    return tmp_path_factory.mktemp("ssd")


@pytest.fixture(scope="module")
def engine(model, directory, tmp_path_factory):
    """Return an engine that takes adapters; its LoRA folders may be changed."""
    engine = EngineProcess(
        model("oracle"),
        tmp_path_factory.mktemp("engine"),
        connector_on(directory),
        enable_lora=True,
        max_loras=2,
        max_lora_rank=8,
    )
    engine.connector("wait_open")
    yield engine
    engine.close()


@pytest.fixture
def prompt(request):
    """Return a prompt that no other test has."""
    return random_tokens(crc32(request.node.name.encode()), 600)


def hits(engine, prompt, **more):
    """Serve a prompt with nothing of it in the engine's own pages; return the tokens it skipped."""
    engine.forget()
    (served,) = engine.complete(Ask(prompt=prompt, **more))
    return served.num_cached_tokens


def test_what_one_request_computed_the_next_one_loads(engine, prompt):
    assert hits(engine, prompt) == 0
    assert hits(engine, prompt) == HIT_TOKENS


@pytest.mark.skipif(not KEEPS_ROWS, reason="this vLLM has no SSD tier")
def test_what_left_host_memory_is_loaded_from_disk(engine, prompt):
    hits(engine, prompt)
    engine.forget()
    engine.connector("forget_rows")
    assert hits(engine, prompt) == HIT_TOKENS


def test_a_request_may_keep_out_of_the_cache(engine, prompt):
    assert hits(engine, prompt, kv_transfer_params=NO_SAVE) == 0
    assert hits(engine, prompt) == 0
    assert hits(engine, prompt, kv_transfer_params=NO_LOAD) == 0


def test_a_request_with_a_namespace_is_neither_served_nor_kept(engine, prompt):
    own = {"flexkv": {"namespace": "mine"}}
    assert hits(engine, prompt, kv_transfer_params=own) == 0
    assert hits(engine, prompt, kv_transfer_params=own) == 0
    assert hits(engine, prompt) == 0


def test_a_salt_keeps_prompts_apart(engine, prompt):
    hits(engine, prompt, salt="one")
    assert hits(engine, prompt, salt="two") == 0
    assert hits(engine, prompt, salt="one") == HIT_TOKENS


def test_log_probabilities_of_a_prompt_are_computed(engine, prompt):
    hits(engine, prompt)
    assert hits(engine, prompt, of_the_request={"prompt_logprobs": 1}) == 0


def test_an_adapter_finds_its_own_blocks_alone(engine, prompt, model):
    lora = str(model("lora-1"))
    hits(engine, prompt, lora=lora)  # the first request of an adapter may come before its digest
    hits(engine, prompt, lora=lora)
    assert hits(engine, prompt, lora=lora) == HIT_TOKENS
    assert hits(engine, prompt) == 0
    assert hits(engine, prompt, lora=str(model("lora-2"))) == 0


def test_an_adapter_that_was_overwritten_finds_nothing(engine, prompt, model, tmp_path):
    path = tmp_path / "adapter"
    shutil.copytree(model("lora-1"), path)
    for _ in range(3):
        hits(engine, prompt, lora=str(path))
    assert hits(engine, prompt, lora=str(path)) == HIT_TOKENS
    shutil.copytree(model("lora-2"), path, dirs_exist_ok=True)
    engine.load_adapter(str(path), in_place=True)
    assert hits(engine, prompt, lora=str(path)) == 0


def test_what_runs_while_weights_change_is_not_kept(engine, prompt):
    """Behind this test there are only others that change the weights of the engine."""
    running = engine.add(Ask(prompt=prompt, max_tokens=40))
    engine.step(8)
    assert engine.state()["requests"] == {running: "RUNNING"}
    engine.scale_keys(1.5)
    engine.connector("reset_cache")
    engine.run()
    engine.forget()
    assert hits(engine, prompt) == 0
    assert hits(engine, prompt) == HIT_TOKENS, "computed with the weights of now"


def test_pages_of_former_weights_that_vllm_still_serves_are_not_kept(engine, prompt):
    """A reset leaves pages in the engine where requests run, and vLLM serves them from there."""
    hits(engine, prompt)
    running = engine.add(Ask(prompt=random_tokens(7, 300), max_tokens=40))
    engine.step(3)
    engine.scale_keys(1.2)
    assert not engine.reset_all(), "a request runs"
    (served,) = engine.complete(Ask(prompt=prompt))
    assert served.num_cached_tokens == HIT_TOKENS, "what vLLM serves is vLLM's"
    assert engine.state()["requests"] == {}, running
    assert hits(engine, prompt) == 0
    assert hits(engine, prompt) == HIT_TOKENS, "computed with the weights of now"
