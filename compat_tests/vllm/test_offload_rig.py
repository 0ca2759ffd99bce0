"""What the tests below vLLM's own offloading rest on: with a wait or a check less, tokens differ.

And what they are not run on elsewhere: a prefill in chunks, few pages, and clients that leave.
"""

import uuid
from pathlib import Path

import pytest
from engine_checks import NO_LOAD, PAGE_BYTES, PAGE_TOKENS
from engine_process import Ask, EngineProcess, random_tokens
from offload_engines import connector_on, hits_of, tokens_of

ENGINE_ID = uuid.uuid4().hex
NUM_PAGES = 16
PROMPTS = [random_tokens(seed, 1350) for seed in range(20, 25)]
HITS = [1350 // PAGE_TOKENS * PAGE_TOKENS] * len(PROMPTS)
CROWD = [random_tokens(seed, 500) for seed in range(40, 49)]


@pytest.fixture(scope="module")
def engine(model, tmp_path_factory):
    """Return an engine with pages for one of the prompts at a time, and rows for all.

    In the end it leaves nothing in shared memory.
    """
    rows_gb = 60 * PAGE_BYTES / 2**30
    connector = connector_on(
        tmp_path_factory.mktemp("ssd"), cpu_cache_gb=rows_gb, promotion_timeout_s=2
    )
    engine = EngineProcess(
        model("oracle"),
        tmp_path_factory.mktemp("engine"),
        connector | {"engine_id": ENGINE_ID},
        num_gpu_blocks_override=NUM_PAGES,
        max_model_len=1536,
        max_num_batched_tokens=256,
    )
    engine.connector("wait_open")
    yield engine
    engine.close()
    assert [*Path("/dev/shm").glob(f"*{ENGINE_ID}*")] == []


@pytest.fixture(scope="module")
def truth(engine):
    """Return the tokens that follow each prompt."""
    return tokens_of(alone(engine, kv_transfer_params=NO_LOAD))


@pytest.fixture(autouse=True)
def empty(engine, truth):
    """Begin and end each test with nothing in any tier, and nothing held."""
    engine.forget_all()
    yield
    engine.worker_connectors("wait_again")
    engine.run()
    assert set(engine.connector("audit").values()) == {0}


def alone(engine, **more):
    """Serve each prompt by itself, with nothing of it in the engine's own pages."""
    served = []
    for prompt in PROMPTS:
        engine.forget()
        served += engine.complete(Ask(prompt=prompt, **more))
    return served


def store_all(engine):
    """Have all prompts stored; each is computed in pages that the one before has just left."""
    engine.complete(*(Ask(prompt=prompt, max_tokens=1) for prompt in PROMPTS))


def test_what_was_stored_from_pages_that_were_used_again_at_once_gives_the_tokens(engine, truth):
    store_all(engine)
    served = alone(engine)
    assert hits_of(served) == HITS
    assert tokens_of(served) == truth


def test_if_pages_are_used_again_before_they_are_stored_other_tokens_follow(engine, truth):
    engine.worker_connectors("skip_wait", which="before pages are used again")
    store_all(engine)
    engine.worker_connectors("wait_again")
    served = alone(engine)
    assert hits_of(served) == HITS
    assert tokens_of(served) != truth


def test_if_a_load_is_not_waited_for_other_tokens_follow(engine, truth):
    store_all(engine)
    engine.worker_connectors("skip_wait", which="for a load")
    served = alone(engine)
    assert hits_of(served) == HITS
    assert tokens_of(served) != truth


def test_if_rows_are_exchanged_other_tokens_follow(engine, truth):
    store_all(engine)
    engine.connector("exchange_rows")
    served = alone(engine)
    assert hits_of(served) == HITS
    assert all(tokens != true for tokens, true in zip(tokens_of(served), truth, strict=True))


@pytest.mark.parametrize("disk", ["work", "hang", "fail"])
def test_a_crowd_of_which_some_leave_is_served_and_stored_as_computed(engine, disk):
    """Equal tokens prove nothing here: rounding depends on who shares a batch."""
    engine.complete(*(Ask(prompt=prompt, max_tokens=1) for prompt in CROWD))
    engine.forget()
    engine.connector("forget_rows")
    num_preempted = preemptions(engine)
    engine.connector("break_disk", reads=disk, writes=disk)
    staying = come_and_go(engine)
    engine.connector("break_disk")
    finished = engine.run()
    assert preemptions(engine) > num_preempted
    assert set(engine.connector("audit").values()) == {0}
    assert engine.state()["num_free_blocks"] == NUM_PAGES - 1, "all but vLLM's null block"
    stored = [restored(engine, prompt + finished[name].tokens) for name, prompt in staying.items()]
    assert sum(num_tokens for num_tokens, _ in stored) > 0
    assert max(difference for _, difference in stored) < 1e-3


def come_and_go(engine):
    """Let a request come every few steps, and every third one leave; return who stays."""
    there = {}
    for number, prompt in enumerate(CROWD):
        there[engine.add(Ask(prompt=prompt, max_tokens=200))] = prompt
        engine.step(4)
        if number % 3 == 2:
            leaves = list(there)[number - 3]
            engine.abort(leaves)
            del there[leaves]
    return there


def restored(engine, sequence):
    """Return how many tokens are restored, and by how much they differ from what is computed."""
    engine.forget()
    (served,) = engine.complete(Ask(prompt=sequence, max_tokens=1))
    engine.remember_pages(sequence)
    engine.forget()
    engine.complete(Ask(prompt=sequence, max_tokens=1, kv_transfer_params=NO_LOAD))
    return served.num_cached_tokens, max(engine.page_differences(sequence))


def preemptions(engine):
    return engine.metrics()["vllm:num_preemptions_total"]
