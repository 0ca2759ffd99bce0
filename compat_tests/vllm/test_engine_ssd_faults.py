"""A disk that hangs, fails or goes away, and more on it than host memory takes: serving goes on.

One engine saves all prompts. Another one with a small host tier has them on SSD only; each test
asks it for prompts of its own.
"""

import shutil

import pytest
from engine_checks import PAGE_BYTES, assert_nothing_leaked, counts
from engine_process import Ask, random_tokens
from ssd_engines import connector_on, keys_of, ready_keys, serve

NUM_BLOCKS = 4
HIT_TOKENS = NUM_BLOCKS * 128
SLOT_BYTES = PAGE_BYTES + 4096
HOST_BLOCKS = 16
LONG_TOKENS = 2 * HOST_BLOCKS * 128


def prompts(first_seed, count):
    return [random_tokens(seed, 600) for seed in range(first_seed, first_seed + count)]


SHARED, KEPT = prompts(40, 2)
HANGING = prompts(50, 4)
UNREADABLE = prompts(60, 5)
UNSAVED = prompts(70, 4)
REMOVED = prompts(80, 2)
LONG = [random_tokens(seed, LONG_TOKENS - 40) for seed in (90, 91)]
SAVED = [SHARED, KEPT, *HANGING, *UNREADABLE, *REMOVED, *LONG]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("disk") / "ssd"


@pytest.fixture(scope="module")
def truth(start_engine, directory):
    """Let an engine compute and save; return a function from a prompt to what it is."""
    engine = start_engine("oracle", connector=connector_on(directory))
    served = [serve(engine, prompt) for prompt in SAVED]
    engine.kill()
    engine.close()
    return lambda prompt: served[SAVED.index(prompt)]


@pytest.fixture(scope="module")
def engine(start_engine, directory, truth):
    small = connector_on(directory, cpu_cache_gb=HOST_BLOCKS * PAGE_BYTES / 2**30)
    engine = start_engine("oracle", connector=small)
    engine.run()
    assert {key for prompt in SAVED for key in keys_of(prompt)} == ready_keys(engine)
    yield engine
    assert_nothing_leaked(engine)


@pytest.fixture(autouse=True)
def mended(engine):
    """Let no test suffer from what another one has broken."""
    yield
    engine.worker_connectors("break_disk")
    engine.connector("let_retry")


@pytest.fixture
def growth(engine):
    """Return a function that tells by how much a metric has grown since the test began."""
    before = counts(engine)
    return lambda name: counts(engine).get(name, 0) - before.get(name, 0)


def is_off(engine):
    return counts(engine)["ssd_off"] == 1


def test_many_requests_with_one_prefix_read_it_once(engine, truth, growth):
    asks = [Ask(prompt=SHARED + random_tokens(seed, 60)) for seed in range(100, 108)]
    completions = engine.complete(*asks)
    assert [completion.num_cached_tokens for completion in completions] == [HIT_TOKENS] * 8
    assert growth("promoted_blocks") == NUM_BLOCKS
    assert growth("ssd_read_bytes") == NUM_BLOCKS * SLOT_BYTES
    assert growth("ssd_load_tokens") == 8 * HIT_TOKENS
    assert engine.cached_pages(asks[0].prompt)[:NUM_BLOCKS] == truth(SHARED).pages
    engine.forget()


def test_prompts_longer_than_host_memory_get_what_fits_and_are_served(engine, truth, growth):
    completions = engine.complete(*(Ask(prompt=prompt) for prompt in LONG))
    assert [len(completion.tokens) for completion in completions] == [24, 24]
    assert growth("promotion_timeouts") == 0
    num_loaded = [completion.num_cached_tokens // 128 for completion in completions]
    assert sum(num_loaded) == growth("promoted_blocks") >= HOST_BLOCKS // 2
    for prompt, num_pages in zip(LONG, num_loaded, strict=True):
        assert engine.cached_pages(prompt)[:num_pages] == truth(prompt).pages[:num_pages]
    engine.forget()


def test_reads_that_hang_cost_their_deadline_and_keep_nobody_stepping(engine, truth, growth):
    engine.connector("limit_waits", request_s=0.2, idle_s=2.0)
    engine.worker_connectors("break_disk", reads="hang")
    waited, *others = HANGING

    served = serve(engine, waited)

    assert served.num_cached_tokens == 0
    assert served.tokens == truth(waited).tokens
    assert growth("promotion_timeouts") == 1
    assert not engine.state()["busy"]
    assert engine.connector("audit")["num_in_flight"] > 0

    served = serve(engine, others[0])

    assert served.tokens == truth(others[0]).tokens
    assert is_off(engine)
    assert growth("promotion_timeouts") == 1, "nobody waits for a disk that does not answer"

    engine.worker_connectors("break_disk")
    engine.connector("limit_waits", request_s=60.0, idle_s=30.0)
    serve(engine, others[1])

    assert not is_off(engine)
    assert serve(engine, others[2]).num_cached_tokens == HIT_TOKENS
    assert_nothing_leaked(engine)


def test_reads_that_fail_switch_the_tier_off_until_they_work_again(engine, truth, growth):
    *failing, left_alone, last = UNREADABLE
    engine.worker_connectors("break_disk", reads="fail")
    for prompt in failing:
        assert not is_off(engine)
        served = serve(engine, prompt)
        assert (served.num_cached_tokens, served.tokens) == (0, truth(prompt).tokens)
    assert is_off(engine)
    num_errors = growth("ssd_io_errors")
    assert num_errors >= len(failing) == 3

    served = serve(engine, left_alone)

    assert (served.num_cached_tokens, served.tokens) == (0, truth(left_alone).tokens)
    assert growth("ssd_io_errors") == num_errors, "it is left alone"

    engine.worker_connectors("break_disk")
    engine.connector("let_retry")

    served = serve(engine, last)

    assert (served.num_cached_tokens, served.pages) == (HIT_TOKENS, truth(last).pages)
    assert not is_off(engine)


def test_writes_that_fail_switch_the_tier_off_until_they_work_again(engine, growth):
    *failing, last = UNSAVED
    engine.worker_connectors("break_disk", writes="fail")
    assert not is_off(engine)
    cold = [serve(engine, prompt) for prompt in failing]
    assert is_off(engine)
    num_errors = growth("ssd_io_errors")
    assert num_errors > 0

    hits = [serve(engine, prompt) for prompt in failing]

    assert [hit.num_cached_tokens for hit in hits] == [HIT_TOKENS] * 3
    assert [hit.tokens for hit in hits] == [served.tokens for served in cold]
    assert growth("ssd_io_errors") == num_errors, "it is left alone"
    assert not {key for prompt in failing for key in keys_of(prompt)} & ready_keys(engine)

    engine.worker_connectors("break_disk")
    engine.connector("let_retry")
    serve(engine, last)

    assert not is_off(engine)
    assert set(keys_of(last)) <= ready_keys(engine)


def test_a_directory_that_is_removed_is_a_miss_and_is_made_again(engine, directory, truth, growth):
    shutil.rmtree(directory)
    for prompt in REMOVED:
        served = serve(engine, prompt)
        assert (served.num_cached_tokens, served.tokens) == (0, truth(prompt).tokens)
    assert growth("ssd_io_errors") == growth("ssd_corrupt_blocks") == 0
    assert {key for prompt in REMOVED for key in keys_of(prompt)} <= ready_keys(engine)
    assert list(directory.glob("*/*/*.slab"))
