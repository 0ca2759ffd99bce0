"""Isolation between requests, and every way in which a request or the cache may end.

Sleep on a CPU frees no memory (vLLM ignores that part and says so); that requests are aborted, all
caches are reset and serving goes on afterwards is the scheduler's part, and real here.
"""

import msgspec
import pytest
from engine_checks import (
    NO_LOAD,
    NO_SAVE,
    SABOTAGED,
    assert_nothing_leaked,
    break_copies,
    counts,
    external_hit_tokens,
)
from engine_process import Ask, random_tokens
from failed_copies import FailedCopies

PROMPT = random_tokens(1, 700)
ASK = Ask(prompt=PROMPT)
HIT_TOKENS = 640


@pytest.fixture(scope="module")
def policy():
    return "fail"


@pytest.fixture(scope="module")
def engine(start_engine):
    options = {"kv_connector_extra_config": {"cpu_cache_gb": 0.1}}
    return start_engine(
        "oracle",
        connector=SABOTAGED | options,
        max_num_batched_tokens=300,
        max_num_seqs=4,
        enable_prompt_embeds=True,
    )


@pytest.fixture(scope="module")
def cold(engine):
    (completion,) = engine.complete(ASK)
    return completion


@pytest.fixture(autouse=True)
def clean(engine, cold):
    engine.forget_all()
    yield
    break_copies(engine)
    engine.run()
    assert_nothing_leaked(engine)


def with_switches(switches, ask=ASK):
    return msgspec.structs.replace(ask, kv_transfer_params=switches)


def with_salt(salt):
    return msgspec.structs.replace(ASK, salt=salt)


def hit_tokens(engine, ask=ASK):
    """Return the tokens that `ask` finds in host memory; leaves the caches as they were."""
    engine.forget()
    switches = (ask.kv_transfer_params or {}).get("flexkv", {}) | {"save": False}
    probe = msgspec.structs.replace(ask, max_tokens=1, kv_transfer_params={"flexkv": switches})
    (completion,) = engine.complete(probe)
    engine.forget()
    return completion.num_cached_tokens


def test_a_salt_hits_its_own_blocks_and_nobody_elses(engine, cold):
    engine.complete(with_salt("tenant"))

    assert hit_tokens(engine, with_salt("tenant")) == HIT_TOKENS
    assert hit_tokens(engine, with_salt("other")) == 0
    assert hit_tokens(engine) == 0
    (again,) = engine.complete(with_salt("tenant"))
    assert cold.tokens == again.tokens


def test_a_namespace_of_a_request_keeps_its_blocks_apart_both_ways(engine, cold):
    mine = with_switches({"flexkv": {"namespace": "mine"}})
    engine.complete(mine)

    assert hit_tokens(engine) == 0
    assert hit_tokens(engine, mine) == HIT_TOKENS
    engine.complete(ASK)
    assert hit_tokens(engine) == HIT_TOKENS
    assert hit_tokens(engine, with_switches({"flexkv": {"namespace": "theirs"}})) == 0
    assert cold.tokens == engine.complete(mine)[0].tokens


def test_a_request_that_wants_no_load_is_computed_and_may_still_be_saved(engine, cold):
    (saved,) = engine.complete(with_switches(NO_LOAD))
    engine.forget()
    (computed,) = engine.complete(with_switches(NO_LOAD))

    assert (saved.num_cached_tokens, computed.num_cached_tokens) == (0, 0)
    assert cold.tokens == computed.tokens
    assert hit_tokens(engine) == HIT_TOKENS


def test_a_request_that_wants_no_save_is_not_saved_and_may_still_hit(engine, cold):
    engine.complete(with_switches(NO_SAVE))
    assert hit_tokens(engine) == 0

    engine.complete(ASK)
    engine.forget()
    (loaded,) = engine.complete(with_switches(NO_SAVE))

    assert loaded.num_cached_tokens == HIT_TOKENS
    assert cold.tokens == loaded.tokens


@pytest.mark.parametrize(
    "ours", [{"lod": False}, {"load": "no"}, {"namespace": 5}, 5, None, [], "save"], ids=str
)
def test_switches_that_cannot_be_read_keep_the_request_out_of_the_cache(engine, cold, ours):
    (first,) = engine.complete(with_switches({"flexkv": ours}))
    assert hit_tokens(engine) == 0
    engine.complete(ASK)
    engine.forget()
    (second,) = engine.complete(with_switches({"flexkv": ours}))

    assert second.num_cached_tokens == 0
    assert cold.tokens == first.tokens == second.tokens


def test_the_engines_own_cache_knows_salts_and_no_namespaces(engine):
    engine.complete(with_switches({"flexkv": {"namespace": "mine"}}))
    (other_namespace,) = engine.complete(with_switches({"flexkv": {"namespace": "theirs"}}))
    engine.complete(with_salt("mine"))
    (other_salt,) = engine.complete(with_salt("theirs"))

    assert other_namespace.num_cached_tokens > 0
    assert other_salt.num_cached_tokens == 0


def nested(depth):
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize(
    "ours",
    ["\x1b[2J" * 1_000_000, {"x" * 1_000_000: 1}, {"load": nested(300)}, {"\ud800": 1}],
    ids=["a huge text", "a huge name", "depth", "half a letter"],
)
def test_hostile_switches_cost_nobody_else_the_cache(engine, ours):
    engine.complete(ASK)
    engine.complete(with_switches({"flexkv": ours}))

    assert hit_tokens(engine) == HIT_TOKENS


def test_switches_of_other_connectors_change_nothing(engine):
    other = with_switches({"do_remote_decode": False, "somebody": {"load": False}})
    engine.complete(other)
    engine.forget()

    assert engine.complete(other)[0].num_cached_tokens == HIT_TOKENS


def test_prompt_embeddings_are_neither_loaded_nor_saved(engine):
    """Their token ids are all zero: as keys they would be equal for every prompt."""
    one, other = (Ask(prompt=[seed] * 700, prompt_embeds=1.0) for seed in (1, 2))
    before = counts(engine)["save_tokens"]
    cold = engine.complete_each([one, other])
    engine.forget()
    again = engine.complete_each([other, one])

    assert cold[0].tokens != cold[1].tokens
    assert [c.tokens for c in cold] == [c.tokens for c in reversed(again)]
    assert {0} == {c.num_cached_tokens for c in cold + again}
    assert counts(engine)["save_tokens"] - before == 0


def test_after_a_reset_nothing_is_hit_and_saving_goes_on(engine, cold):
    engine.complete(ASK)
    engine.forget_all()
    assert engine.connector("audit")["num_used_blocks"] == 0

    (miss,) = engine.complete(ASK)

    assert miss.num_cached_tokens == 0
    assert cold.tokens == miss.tokens
    assert hit_tokens(engine) == HIT_TOKENS


@pytest.mark.parametrize("num_steps", [1, 10], ids=["in its prefill", "while it generates"])
def test_a_request_that_ran_at_a_reset_is_not_saved(engine, cold, num_steps):
    """The weights may be others from then on."""
    running = engine.add(msgspec.structs.replace(ASK, max_tokens=80))  # a block more
    engine.step(num_steps)
    assert engine.connector("audit")["num_used_blocks"] > 0
    engine.connector("reset_cache")
    waiting = engine.add(with_salt("later"))

    finished = engine.run()

    assert cold.tokens == finished[running].tokens[:24] == finished[waiting].tokens
    assert hit_tokens(engine) == 0
    assert hit_tokens(engine, with_salt("later")) == HIT_TOKENS


def test_who_hits_pages_of_before_a_reset_in_the_engine_itself_is_not_saved(engine, cold):
    """The engine cannot reset its own pages while a request runs, and serves them from then on."""
    engine.complete(ASK)
    engine.add(Ask(prompt=random_tokens(7, 300), max_tokens=80))
    engine.step(3)
    assert not engine.reset_all(), "a request runs"
    (local,) = engine.complete(ASK)
    assert local.num_cached_tokens == HIT_TOKENS
    assert hit_tokens(engine) == 0
    engine.complete(ASK)
    assert hit_tokens(engine) == HIT_TOKENS, "what is computed anew is saved"


def test_a_block_is_hit_and_saved_again_only_when_its_save_has_ended(engine):
    """Of an aligned prompt the engine computes the last block again, unless we have it."""
    aligned = Ask(prompt=PROMPT[:512])
    break_copies(engine, saves="hold")
    before = external_hit_tokens(engine)
    served = [engine.add(aligned)]
    while served[-1] not in engine.step():
        pass
    served.append(engine.add(aligned))
    while served[-1] not in engine.step():
        pass
    engine.step(2)
    assert engine.state()["busy"], "nobody would hear of the save's end"
    held = engine.connector("audit")
    assert external_hit_tokens(engine) == before
    break_copies(engine)
    engine.run()

    engine.complete(aligned)

    assert (held["num_in_flight"], held["num_used_blocks"]) == (2, 4)
    assert external_hit_tokens(engine) - before == 128


def test_a_save_in_flight_at_a_reset_does_not_become_findable(engine):
    break_copies(engine, saves="hold")
    engine.add(ASK)
    engine.step(4)
    assert engine.connector("audit")["num_in_flight"] > 0
    engine.connector("reset_cache")
    break_copies(engine)
    engine.run()

    assert engine.connector("audit")["num_used_blocks"] == 0
    assert hit_tokens(engine) == 0


def test_a_load_in_flight_at_a_reset_still_gets_the_right_bytes(engine, cold):
    engine.complete(ASK)
    engine.forget()
    loading = hold_a_load(engine)
    engine.connector("reset_cache")
    others = engine.add(Ask(prompt=random_tokens(2, 700)))  # would like the slots
    while others not in engine.step():
        pass
    break_copies(engine)

    assert cold.tokens == engine.run()[loading].tokens


def hold_a_load(engine):
    """Return a request whose load has begun and does not end."""
    break_copies(engine, loads="hold")
    request_id = engine.add(ASK)
    engine.step(2)
    assert engine.state()["requests"][request_id] == "WAITING_FOR_REMOTE_KVS"
    return request_id


def test_other_requests_are_served_while_one_waits_for_its_load(engine, cold):
    engine.complete(ASK)
    engine.forget()
    loading = hold_a_load(engine)
    others = engine.add(with_switches(NO_LOAD, Ask(prompt=random_tokens(3, 700))))
    while others not in engine.step():
        pass
    assert engine.state()["requests"][loading] == "WAITING_FOR_REMOTE_KVS"
    break_copies(engine)

    finished = engine.run()

    assert finished[loading].num_cached_tokens == HIT_TOKENS
    assert cold.tokens == finished[loading].tokens


def test_pages_of_an_aborted_request_stay_its_own_until_its_load_has_ended(engine, cold):
    engine.complete(ASK)
    engine.forget()
    num_free = engine.state()["num_free_blocks"]
    loading = hold_a_load(engine)
    engine.abort(loading)
    engine.step(3)
    still_held = num_free - engine.state()["num_free_blocks"]
    break_copies(engine)
    engine.run()

    assert still_held == HIT_TOKENS // 128
    assert num_free == engine.state()["num_free_blocks"]
    (again,) = engine.complete(ASK)
    assert (HIT_TOKENS, cold.tokens) == (again.num_cached_tokens, again.tokens)


def test_a_request_that_is_aborted_before_its_first_step_leaves_no_trace(engine):
    engine.abort(engine.add(ASK))
    engine.run()

    assert engine.connector("audit")["num_used_blocks"] == 0


def test_a_request_that_is_aborted_in_the_queue_leaves_no_trace(engine):
    engine.complete(ASK)
    engine.forget()
    running = [engine.add(Ask(prompt=random_tokens(4 + n, 200))) for n in range(4)]
    engine.step(4)
    queued = engine.add(ASK)
    engine.step()
    assert engine.state()["requests"][queued] == "WAITING"
    for request_id in [queued, *running]:
        engine.abort(request_id)
    engine.run()

    assert hit_tokens(engine) == HIT_TOKENS


@pytest.mark.parametrize(
    ("num_steps", "saved_tokens"), [(1, 256), (2, 512), (10, 640)], ids=["first", "second", "later"]
)
def test_what_an_aborted_request_has_computed_is_saved(engine, cold, num_steps, saved_tokens):
    request_id = engine.add(ASK)
    engine.step(num_steps)
    engine.abort(request_id)
    engine.run()
    engine.forget()

    (again,) = engine.complete(ASK)

    assert saved_tokens == again.num_cached_tokens
    assert cold.tokens == again.tokens


def test_after_sleep_nothing_is_hit_and_saving_goes_on(engine, cold):
    engine.complete(ASK)
    running = engine.add(ASK)
    engine.step(3)
    engine.sleep()
    engine.wake_up()
    engine.abort(running)  # sleep has done so, but an engine in this process is not told
    engine.run()
    assert engine.connector("audit")["num_used_blocks"] == 0

    (miss,) = engine.complete(ASK)

    assert (0, cold.tokens) == (miss.num_cached_tokens, miss.tokens)
    assert hit_tokens(engine) == HIT_TOKENS


class TestFailedCopies(FailedCopies):
    """Asynchronous loads, and a request fails with its load: vLLM's default."""
