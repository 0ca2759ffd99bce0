"""Nobody is given the stored pages of another salt, extra key or adapter; all find their own."""

import random
import shutil

import pytest
from engine_steps import wait_until_restored, wait_until_stored
from sglang_process import flexkv

PROMPT = random.Random(7).choices(range(400), k=400)
ASKERS = [
    {},
    {"cache_salt": "one"},
    {"cache_salt": "two"},
    {"extra_key": "one"},
    {"extra_key": "two"},
    {"extra_key": "one", "cache_salt": "two"},
    {"lora_path": "one"},
    {"lora_path": "two"},
    {"lora_path": "two", "cache_salt": "one"},
]


@pytest.fixture
def adapters(model):
    return {name: model(f"lora-{number}") for number, name in enumerate(("one", "two"), 1)}


@pytest.fixture
def start(start_engine, model, tmp_path, adapters):
    """Start engines on one directory, each after the end of the one before."""

    def start(page_tokens, adapters=adapters):
        return start_engine(
            model("oracle"),
            flexkv(tmp_path / "ssd", promotion_timeout_s=60),  # pages of one token are many
            page_size=page_tokens,
            enable_lora=True,
            lora_paths={name: str(path) for name, path in adapters.items()},
            lora_backend="torch_native",
        )

    return start


@pytest.mark.parametrize(("page_tokens", "num_pages"), [(1, 120), (64, 6)])
def test_nobody_is_given_the_pages_of_another_and_all_find_their_own(start, page_tokens, num_pages):
    # SGLang 0.5.20 does not say what comes before the 129th page of a prompt.
    prompt = PROMPT[: page_tokens * num_pages + 1]
    engine = start(page_tokens)
    cold = []
    for asker in ASKERS:
        engine.flush()  # what SGLang keeps by itself; the storage has the pages of all before
        cold.append(engine.complete(prompt, 4, **asker))
        assert (asker, cold[-1].num_cached_tokens) == (asker, 0)
        wait_until_stored(engine, prompt, page_tokens=page_tokens, **asker)
    answers = [answer.tokens for answer in cold]
    assert len({*map(tuple, (answers[0], answers[6], answers[7]))}) == 3

    engine = start(page_tokens)
    wait_until_restored(engine)
    for asker, expected in zip(ASKERS, answers, strict=True):
        again = engine.complete(prompt, 4, **asker)
        assert (asker, again.num_from_storage) == (asker, page_tokens * num_pages)
        assert (asker, again.tokens) == (asker, expected)


def test_a_name_that_is_loaded_again_finds_nothing_of_what_it_meant_before(start, adapters):
    engine = start(64)
    answers = []
    for path in adapters.values():
        engine.load_adapter("three", path)
        answers.append(engine.complete(PROMPT, 4, lora_path="three"))
        wait_until_stored(engine, PROMPT, lora_path="three")
        engine.unload_adapter("three")
        engine.flush()
    assert [answer.num_cached_tokens for answer in answers] == [0, 0]
    assert answers[0].tokens != answers[1].tokens

    engine = start(64)
    wait_until_restored(engine)
    engine.load_adapter("three", adapters["one"])
    again = engine.complete(PROMPT, 4, lora_path="three")
    assert (again.num_cached_tokens, again.tokens) == (0, answers[0].tokens)


def test_an_adapter_is_found_by_what_it_holds_whichever_others_there_are(start, adapters, tmp_path):
    changing = tmp_path / "changing"
    shutil.copytree(adapters["one"], changing)
    askers = [{}, {"lora_path": "changing"}]
    engine = start(64, {"changing": changing})
    tokens = [engine.complete(PROMPT, 4, **asker).tokens for asker in askers]
    for asker in askers:
        wait_until_stored(engine, PROMPT, page_tokens=64, **asker)

    engine = start(64, {"changing": changing, "two": adapters["two"]})
    wait_until_restored(engine)
    again = [engine.complete(PROMPT, 4, **asker) for asker in askers]
    assert [answer.num_from_storage for answer in again] == [384, 384]
    assert [answer.tokens for answer in again] == tokens
    expected = engine.complete(PROMPT, 4, lora_path="two").tokens

    shutil.copytree(adapters["two"], changing, dirs_exist_ok=True)
    engine = start(64, {"changing": changing})
    wait_until_restored(engine)
    assert engine.complete(PROMPT, 4).num_from_storage == 384
    other = engine.complete(PROMPT, 4, lora_path="changing")
    assert (other.num_cached_tokens, other.tokens) == (0, expected)
    assert expected != tokens[1]
