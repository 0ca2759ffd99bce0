"""The connector under an engine that plays TensorRT-LLM's call order."""

from types import SimpleNamespace

import pytest
import torch
from engine_double import HEADS, LAYERS, PAGE, SIZE, Engine, Request, kv_of


@pytest.fixture(autouse=True)
def options(monkeypatch):
    """A small host tier; blocks of two pages."""
    monkeypatch.setenv("FLEXKV_CPU_CACHE_GB", "0.01")
    monkeypatch.setenv("FLEXKV_BLOCK_TOKENS", str(2 * PAGE))


@pytest.fixture
def start(tmp_path):
    """Start engines, and stop them afterwards."""
    engines = []

    def start(**settings):
        engines.append(Engine(tmp_path, **settings).register())
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def prompt(num_tokens, first=0):
    return list(range(first, first + num_tokens))


def test_a_second_request_loads_what_the_first_has_computed(start):
    engine = start()
    engine.run(Request(1, prompt(20)))
    engine.run(Request(2, prompt(20)))
    assert engine.offers == {1: 0, 2: 16}


def test_later_chunks_of_a_prompt_are_saved_too(start):
    engine = start(chunk=PAGE)
    engine.run(Request(1, prompt(33)))
    engine.run(Request(2, prompt(33)))
    assert engine.offers[2] == 32


def test_blocks_of_the_answer_are_saved_too(start):
    engine = start()
    first = engine.run(Request(1, prompt(6), num_new=12))
    engine.run(Request(2, [*first.tokens, 7]))
    assert engine.offers[2] == 16


def test_the_last_token_of_a_prompt_is_always_left_to_the_engine(start):
    engine = start()
    engine.run(Request(1, prompt(16)))
    engine.run(Request(2, prompt(16)))
    assert engine.offers[2] == 12


def test_only_what_the_engine_lacks_is_offered_and_loaded(start):
    """Its own hit may end within one of our blocks; `check` sees what else was written."""
    engine = start()
    engine.run(Request(1, prompt(24)))
    engine.run(Request(2, prompt(24), num_local=PAGE))
    assert engine.offers[2] == 24 - 2 * PAGE


def test_a_hit_of_the_engine_within_a_page_is_left_alone(start):
    """Partial reuse: the page belongs to somebody else in part."""
    engine = start()
    engine.run(Request(1, prompt(24)))
    engine.run(Request(2, prompt(24), num_local=PAGE + 1))
    assert engine.offers[2] == 0


def test_a_load_within_the_step_is_complete_before_its_forward_pass(start, monkeypatch):
    monkeypatch.setenv("FLEXKV_LOAD_ASYNC", "false")
    engine = start()
    engine.run(Request(1, prompt(20)))
    engine.run(Request(2, prompt(20)))
    assert engine.offers[2] == 16
    assert not engine.answered[0][1]


def test_what_a_load_within_the_step_left_behind_is_saved_with_the_next(start, monkeypatch):
    """The engine takes the loaded tokens off the position that it tells."""
    monkeypatch.setenv("FLEXKV_LOAD_ASYNC", "false")
    engine = start()
    engine.run(Request(1, prompt(20)))
    engine.run(Request(2, prompt(40)))
    engine.run(Request(3, prompt(40)))
    assert engine.offers[3] == 36


@pytest.mark.parametrize("change", [{"cache_salt": "tenant"}, {"lora_task_id": 3}])
def test_salt_and_lora_keep_blocks_apart(start, change):
    engine = start()
    engine.run(Request(1, prompt(20)))
    engine.run(Request(2, prompt(20), **change))
    engine.run(Request(3, prompt(20), **change))
    assert engine.offers == {1: 0, 2: 0, 3: 16}


@pytest.mark.parametrize(("length", "hit"), [(1024, 16), (1025, 0)])
def test_a_salt_that_is_costly_to_hash_is_not_cached(start, length, hit):
    engine = start()
    engine.run(Request(1, prompt(20), cache_salt="x" * length))
    engine.run(Request(2, prompt(20), cache_salt="x" * length))
    assert engine.offers[2] == hit


def test_the_same_tokens_behind_another_beginning_are_another_block(start):
    engine = start()
    engine.run(Request(1, prompt(8) + prompt(8, 50)))
    engine.run(Request(2, prompt(8, 90) + prompt(8, 50)))
    assert engine.offers[2] == 0


@pytest.mark.parametrize("name", ["multimodal_hashes", "py_multimodal_data"])
def test_requests_whose_tokens_say_too_little_are_left_alone(start, name):
    engine = start()
    for number in (1, 2):
        request = Request(number, prompt(20))
        setattr(request, name, [[1] * 8])
        engine.run(request)
    assert engine.offers[2] == 0


def test_a_token_that_no_key_can_be_made_of_costs_its_request_the_cache(start):
    engine = start()
    engine.run(Request(1, [*prompt(12), -1, *prompt(12)]))
    engine.run(Request(2, prompt(12)))
    assert engine.offers == {1: 0, 2: 0}


def test_the_second_cache_manager_is_served_too(tmp_path):
    """It describes the same memory by regions."""
    engine = Engine(tmp_path)
    pool = engine.pools[0]
    region = SimpleNamespace(
        size=pool[0].nbytes,
        buffers=[
            SimpleNamespace(layer_id=layer, role=role, expansion=1)
            for layer in range(LAYERS)
            for role in ("key", "value")
        ],
        as_tensor=lambda: pool.view(len(pool), -1).view(torch.uint8),
    )
    group = SimpleNamespace(
        layer_ids=range(LAYERS), window_size=None, regions=[region], replicated_regions=()
    )
    engine.workers[0].register_kv_cache_layout(SimpleNamespace(groups=[group]))
    engine.run(Request(1, prompt(20)))
    engine.run(Request(2, prompt(20)))
    assert engine.offers[2] == 16
    engine.close()


def test_many_requests_at_once_in_chunks(start):
    engine = start(chunk=6)
    requests = [Request(number, prompt(10 + number), num_new=5) for number in range(5)]
    engine.run(*requests)
    engine.run(*[Request(10 + number, prompt(30, number % 2)) for number in range(5)])
    assert [engine.offers[10 + number] for number in range(5)] == [8, 0, 8, 0, 8]


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_the_heads_or_hold_the_same(start, ranks):
    engine = start(ranks=ranks)
    engine.run(Request(1, prompt(20)))
    engine.run(Request(2, prompt(20)))
    assert engine.offers[2] == 16


def test_ranks_meet_only_while_something_is_under_way(start):
    engine = start(ranks=2)
    engine.run(Request(1, prompt(20), num_new=4))
    meetings = engine.ranks.num_gathers
    for _ in range(3):
        engine.iterate()
    engine.run(Request(2, prompt(3), num_new=2))
    assert engine.ranks.num_gathers == meetings


def test_a_request_that_is_aborted_before_its_load_has_ended_keeps_its_pages(start):
    engine = start()
    engine.run(Request(1, prompt(20)))
    hold = Held(engine)
    request = engine.submit(Request(2, prompt(20)))
    engine.iterate()
    engine.end(request)
    engine.iterate()
    assert engine.ending
    hold.let_go()
    engine.run()
    engine.scheduler._half.handle_reports()
    engine.scheduler._half.session.manager.check_integrity()
    assert engine.scheduler._half.session.manager.num_in_flight == 0


def test_a_request_whose_pages_were_taken_away_is_matched_anew(start):
    engine = start()
    engine.run(Request(1, prompt(20)))
    request = engine.submit(Request(2, prompt(24), num_new=20))
    for _ in range(4):
        engine.iterate()
    engine.scheduler.request_reset(request)
    engine._free(request)
    request.pages, request.phase = [], "new"
    request.num_told_pages = request.num_told_tokens = 0
    request.num_prompt = len(request.tokens)
    engine.answered[0][1].clear()
    engine.handed_in[0][1].clear()
    engine.run()
    assert engine.offers[2] == 24


def test_pages_that_were_taken_away_before_their_load_are_not_written_to(start):
    engine = start()
    engine.run(Request(1, prompt(20)))
    request = Request(2, prompt(20))
    engine._place(request)
    engine.scheduler.request_reset(request)
    assert engine.scheduler.build_connector_meta(engine._describe([])).loads == []


def test_a_forward_pass_that_did_not_take_place_saves_nothing(start):
    """Under attention data parallelism another rank can call a step off."""
    engine = start()
    request = engine.submit(Request(1, prompt(20)))
    engine._place(request)
    [worker] = engine.workers
    worker.bind_connector_meta(engine.scheduler.build_connector_meta(engine._describe([request])))
    worker.start_load_kv(None)
    engine.end(request)
    engine.run(Request(2, prompt(20)))
    assert engine.offers[2] == 0


def test_metadata_that_the_engine_shows_again_is_not_done_again(start):
    engine = start()
    engine.run(Request(1, prompt(20)))
    request = engine.submit(Request(2, prompt(20)))
    engine.iterate()
    [worker] = engine.workers
    before = engine.pools[0].clone()
    engine.pools[0].fill_(0)
    worker.start_load_kv(None)
    worker.wait_for_save(None)
    assert not engine.pools[0].any()
    engine.pools[0].copy_(before)
    engine.run()
    assert request.phase == "ended"


class Held:
    """Holds back loads on every rank until it is told to let go."""

    def __init__(self, engine):
        self.lanes = [worker._half.session.worker for worker in engine.workers]
        self.held = []
        for lane in self.lanes:
            lane.submit = lambda plans, lane=lane: self.held.append((lane, list(plans)))

    def let_go(self):
        for lane in self.lanes:
            del lane.submit
        for lane, plans in self.held:
            lane.submit(plans)


def test_heads_and_layers_are_stored_in_the_order_of_every_engine(start):
    """Cells of one head, layers, tokens, K then V: what vLLM and SGLang read."""
    engine = start()
    engine.run(Request(1, prompt(8)))
    [worker] = engine.workers
    pool = worker._half.session.pool
    slots = torch.frombuffer(pool.buffer, dtype=torch.float32)[: pool.num_slots * 1024]
    [stored] = [slot for slot in slots.view(pool.num_slots, -1) if slot.any()]
    stored = stored[: HEADS * LAYERS * 8 * 2 * SIZE].view(HEADS, LAYERS, 8, 2, SIZE)
    for position in range(8):
        kv = kv_of(prompt(position + 1), (None, None))
        assert torch.equal(stored[:, :, position], kv.permute(2, 0, 1, 3))
