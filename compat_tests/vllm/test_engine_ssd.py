"""KV on SSD outlives the engine: what an earlier one saved is loaded, and nothing else is.

Three engines, one after the other, on one directory: the first one saves, the second one finds
damage and has its weights changed in place, the third one has the old weights again. Two more have
weights with a name.
"""

from typing import NamedTuple

import pytest
from engine_checks import assert_nothing_leaked, counts
from engine_process import Ask, random_tokens
from ssd_engines import Served, connector_on, flip_byte, keys_of, ready_keys, serve

NUM_PAGES = 4
HIT_TOKENS = NUM_PAGES * 128
INTACT, DAMAGED, TRUSTED = PROMPTS = [random_tokens(seed, 600) for seed in (1, 2, 3)]
FRESH, LATE = (random_tokens(seed, 600) for seed in (4, 5))
BAD_BLOCK = 2
EVENTS = {"enable_kv_cache_events": True, "publisher": "null"}
SOURCES = "vllm:prompt_tokens_cached_by_source_total{source=%s}"
FACTOR = 1.5


class Saved(NamedTuple):
    """What the first engine left."""

    intact: Served
    damaged: Served
    trusted: Served
    keys: set[str]
    events: dict[str, int]
    is_busy: bool


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("ssd")


@pytest.fixture(scope="module")
def start(start_engine, directory):
    """Return a function that starts an engine on the directory and lets it do what it has to."""

    def start(**options):
        connector = connector_on(directory, **options)
        engine = start_engine("oracle", connector=connector, kv_events_config=EVENTS)
        engine.run()
        return engine

    return start


@pytest.fixture(scope="module")
def saved(start, directory):
    engine = start()
    served = [serve(engine, prompt) for prompt in PROMPTS]
    keys, events = ready_keys(engine), engine.connector("event_counts")
    saved = Saved(*served, keys, events, engine.state()["busy"])
    end(engine)
    flip_byte(directory, keys_of(DAMAGED)[BAD_BLOCK])
    flip_byte(directory, keys_of(TRUSTED)[BAD_BLOCK])
    return saved


@pytest.fixture(scope="module")
def second(start, saved):
    return start()


@pytest.fixture(scope="module")
def third(start, changed):
    return start()


def end(engine):
    engine.kill()
    engine.close()


def test_an_engine_copies_all_that_it_computed_to_ssd_before_it_idles(saved):
    assert [served.num_cached_tokens for served in saved[:3]] == [0, 0, 0]
    assert saved.keys == {key for prompt in PROMPTS for key in keys_of(prompt)}
    assert not saved.is_busy


def test_blocks_are_announced_in_each_tier(saved):
    num_blocks = len(PROMPTS) * NUM_PAGES
    assert saved.events["BlockStored CPU"] == num_blocks
    assert saved.events["BlockStored STORAGE"] == num_blocks


def test_a_new_engine_finds_them_without_being_asked(saved, second):
    assert ready_keys(second) == saved.keys
    assert counts(second)["restored_blocks"] == len(saved.keys)
    assert_nothing_leaked(second)


def test_it_loads_the_bytes_that_the_killed_one_had_computed(saved, second):
    before = counts(second)
    served = serve(second, INTACT)
    assert served.num_cached_tokens == HIT_TOKENS
    assert served.pages == saved.intact.pages
    assert served.tokens == saved.intact.tokens
    assert counts(second)["ssd_load_tokens"] - before["ssd_load_tokens"] == HIT_TOKENS
    assert second.metrics()[SOURCES % "disk"] == HIT_TOKENS
    assert second.metrics()[SOURCES % "host"] == 0


def test_what_is_in_host_memory_by_then_is_no_hit_on_ssd(second):
    on_ssd, in_host = (second.metrics()[SOURCES % source] for source in ("disk", "host"))
    assert serve(second, INTACT).num_cached_tokens == HIT_TOKENS
    assert second.metrics()[SOURCES % "disk"] == on_ssd
    assert second.metrics()[SOURCES % "host"] == in_host + HIT_TOKENS


def test_a_flipped_byte_costs_its_block_and_those_behind_it(saved, second):
    served = serve(second, DAMAGED)
    assert counts(second)["ssd_corrupt_blocks"] == 1
    assert served.num_cached_tokens == BAD_BLOCK * 128
    assert served.loaded_pages == saved.damaged.pages[:BAD_BLOCK]
    assert served.tokens == saved.damaged.tokens


def test_a_corrupt_block_is_computed_again_and_goes_back_to_ssd(second):
    assert set(keys_of(DAMAGED)) <= ready_keys(second)


@pytest.fixture(scope="module")
def changed(second):
    """Return what a prompt was with the old weights, and twice what it is with the new ones."""
    old = serve(second, INTACT)
    change_weights(second)
    new, again = serve(second, INTACT), serve(second, INTACT)
    serve(second, LATE)
    assert set(keys_of(LATE)) <= ready_keys(second)
    assert_nothing_leaked(second)
    end(second)
    return old, new, again


def change_weights(engine):
    """Change the weights in place while old KV of `FRESH` is on its way to SSD."""
    engine.worker_connectors("break_disk", writes="hang")
    engine.add(Ask(prompt=FRESH))
    while not engine.step():
        pass
    engine.step(2)
    assert engine.connector("audit")["num_in_flight"] == 1
    engine.scale_keys(FACTOR)
    engine.forget_all()
    engine.worker_connectors("break_disk")
    engine.run()


def test_after_a_reset_nothing_of_the_old_weights_is_used(changed):
    old, new, again = changed
    assert new.num_cached_tokens == 0
    assert again.num_cached_tokens == HIT_TOKENS
    assert again.pages == new.pages
    assert not set(new.pages) & set(old.pages)


def test_an_engine_with_the_old_weights_finds_what_they_have_computed(saved, third):
    served = serve(third, INTACT)
    assert served.num_cached_tokens == HIT_TOKENS
    assert served.pages == saved.intact.pages
    assert served.tokens == saved.intact.tokens


def test_an_engine_with_the_old_weights_finds_nothing_of_the_changed_ones(third):
    assert serve(third, LATE).num_cached_tokens == 0


def test_without_checksums_the_flipped_byte_would_show_in_the_page(saved, third):
    third.worker_connectors("trust_disk")
    served = serve(third, TRUSTED)
    assert served.num_cached_tokens == HIT_TOKENS
    equal = [page == true for page, true in zip(served.pages, saved.trusted.pages, strict=True)]
    assert equal == [block != BAD_BLOCK for block in range(NUM_PAGES)]


def test_weights_with_a_name_keep_what_was_computed_since_they_were_changed(saved, start):
    engine = start(weight_version="of the day")
    old = serve(engine, INTACT)
    change_weights(engine)
    new = serve(engine, FRESH)
    end(engine)
    engine = start(weight_version="of the day")
    engine.scale_keys(FACTOR)

    forgotten, found = serve(engine, INTACT), serve(engine, FRESH)

    assert old.num_cached_tokens == new.num_cached_tokens == forgotten.num_cached_tokens == 0
    assert not set(forgotten.pages) & set(old.pages)
    assert found.num_cached_tokens == HIT_TOKENS
    assert (found.pages, found.tokens) == (new.pages, new.tokens)
