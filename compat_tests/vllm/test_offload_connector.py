"""What the connector decides above vLLM's own offloading, without an engine."""

import uuid
from types import SimpleNamespace

import pytest
from engine_checks import NO_LOAD, NO_SAVE
from half_rig import PROMPT, know, lora, request_of, write_adapter
from offload_engines import KEEPS_ROWS, connector_on

FOUND = 128, True
"""What vLLM's offloading finds for each request of these tests."""

NOTHING = 0, False


@pytest.fixture
def connector_of(identity, config_of, tmp_path, monkeypatch):
    """Return a function to the scheduler's side of an engine, whose workers were served or not."""
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

    from flexkv_connectors.vllm.offloading import connector

    made = []

    def connector_of(*, workers_are_served=True):
        monkeypatch.setattr(connector, "is_there", lambda _engine_id: workers_are_served)
        options = connector_on(tmp_path / "ssd", cpu_cache_gb=0.01, ssd_cache_gb=0.1)
        config = identity.changed(
            config_of(enable_lora=True, max_lora_rank=8),
            "kv_transfer_config",
            kv_connector_extra_config=options["kv_connector_extra_config"],
            engine_id=uuid.uuid4().hex,
        )
        cache = identity.declared_cache(config)
        made.append(connector.FlexKVOffloadingConnector(config, KVConnectorRole.SCHEDULER, cache))
        return made[-1]

    yield connector_of
    for each in made:
        each.shutdown()


@pytest.fixture
def connector(connector_of, monkeypatch):
    """Return the scheduler's side of an engine, where vLLM finds `FOUND` for what it looks up."""

    def find(request, *_args, **_more):
        return NOTHING if request.skip_reading_prefix_cache else FOUND

    connector = connector_of()
    monkeypatch.setattr(connector.connector_scheduler, "get_num_new_matched_tokens", find)
    return connector


def test_where_the_workers_are_served_the_scheduler_is(connector_of):
    assert type(connector_of()).__name__ == "flexkv-offload"


def test_where_the_workers_were_refused_the_scheduler_serves_without_it(connector_of):
    connector = connector_of(workers_are_served=False)
    assert connector.get_num_new_matched_tokens(request_of(), 0) == NOTHING


def test_what_vllm_finds_is_the_answer(connector):
    request = request_of()
    connector.on_new_request(request)
    assert connector.get_num_new_matched_tokens(request, 0) == FOUND


def test_where_a_promotion_has_begun_there_is_no_answer_yet(connector, monkeypatch):
    """To promote, vLLM evicts from host memory: perhaps what it has just found there."""

    def find(*_args, **_more):
        connector._engine.offered.append(b"a block")
        return FOUND

    monkeypatch.setattr(connector.connector_scheduler, "get_num_new_matched_tokens", find)
    request = request_of()
    connector.on_new_request(request)
    assert connector.get_num_new_matched_tokens(request, 0) == (None, False)


def test_what_must_not_be_loaded_is_not_looked_up_and_the_request_is_as_before(connector):
    request = request_of()
    request.kv_transfer_params = NO_LOAD
    connector.on_new_request(request)
    assert connector.get_num_new_matched_tokens(request, 0) == NOTHING
    assert not request.skip_reading_prefix_cache


@pytest.mark.parametrize("hook", ["request_finished_all_groups", "request_finished"])
def test_nothing_is_kept_of_a_request_that_has_ended(connector, hook):
    """MultiConnector calls the second one where another child knows of one group only."""
    request = request_of()
    connector.on_new_request(request)
    getattr(connector, hook)(request, [])
    assert not connector._loadable


@pytest.mark.parametrize(("num_answered", "num_known"), [(0, 0), (1, 0), (5, 4)])
def test_the_token_that_was_sampled_last_is_not_stored(
    connector, monkeypatch, num_answered, num_known
):
    """It was never fed back. vLLM before 0.30 would store the page that it fills."""
    limits, scheduler = [], connector.connector_scheduler
    request = request_of()
    connector.on_new_request(request)
    request.append_output_token_ids([7] * num_answered)

    def finish(request):
        limits.append(scheduler._req_status[request.request_id].max_offload_tokens)
        return False, None

    monkeypatch.setattr(scheduler, "request_finished", finish)
    connector.request_finished_all_groups(request, ())
    assert limits == [len(PROMPT) + num_known]


@pytest.mark.parametrize(("num_hit", "in_pages"), [(64, False), (0, True)])
def test_what_hits_pages_of_before_a_reset_is_not_stored(connector, monkeypatch, num_hit, in_pages):
    """vLLM tells of whole pages only, and where it keeps states it may hit a part of one."""
    monkeypatch.setattr(type(connector), "_hits_within_pages", in_pages)
    pool = SimpleNamespace(cached_block_hash_to_block={"hash": "page"}, get_usage=lambda: 0.0)
    connector.bind_gpu_block_pool(pool)
    for is_reset in (False, True):
        request = request_of(request_id=f"reset: {is_reset}")
        connector.on_new_request(request)
        connector.get_num_new_matched_tokens(request, num_hit)
        assert may_be_stored(connector, request) is not is_reset
        connector.reset_cache()


@pytest.mark.skipif(not KEEPS_ROWS, reason="this vLLM has no tier")
def test_rows_of_a_doubtful_adapter_that_are_on_their_way_are_not_stored_below(
    connector, of_adapter, folder
):
    assert of_adapter.request_id in connector._engine.requests
    write_adapter(folder, b"WEIGHTS")
    connector.get_num_new_matched_tokens(of_adapter, 0)
    assert of_adapter.request_id not in connector._engine.requests


def of_a_state(tails):
    return SimpleNamespace(kv_connector_block_state=SimpleNamespace(boundary_state_offloads=tails))


def of_a_step(tails):
    return SimpleNamespace(partial_tail_offloads=tails)


@pytest.mark.parametrize("output_with", [of_a_state, of_a_step], ids=["since 0.29", "0.28"])
def test_what_is_kept_of_a_running_request_between_blocks_is_not_stored_if_it_is_barred(
    connector, monkeypatch, output_with
):
    monkeypatch.setattr(connector.connector_scheduler, "build_connector_meta", lambda _output: None)
    barred, free = request_of(request_id="barred"), request_of(request_id="free")
    barred.kv_transfer_params = NO_SAVE
    for request in (barred, free):
        connector.on_new_request(request)
    tails = {"barred": [(0, 1, 40)], "free": [(0, 2, 40)]}
    connector.build_connector_meta(output_with(tails))
    assert tails == {"free": [(0, 2, 40)]}


@pytest.mark.skipif(not KEEPS_ROWS, reason="this vLLM has no tier that counts")
def test_a_switch_that_cannot_be_read_is_counted(connector):
    (tier,) = connector.connector_scheduler.manager.secondary_tiers
    for name, switches in (("good", {"save": False}), ("bad", {"save": "perhaps"})):
        request = request_of(request_id=name)
        request.kv_transfer_params = {"flexkv": switches}
        connector.on_new_request(request)
        assert ("switches_refused" in str(tier.get_stats().data)) is (name == "bad")


def test_who_asks_for_a_namespace_is_told_once_what_to_ask_for(connector, caplog):
    for name in ("one", "two"):
        request = request_of(request_id=name)
        request.kv_transfer_params = {"flexkv": {"namespace": "mine"}}
        connector.on_new_request(request)
        assert connector.get_num_new_matched_tokens(request, 0) == NOTHING
        assert not may_be_stored(connector, request)
    assert caplog.text.count("set cache_salt") == 1


@pytest.fixture
def folder(tmp_path):
    """Return the folder of an adapter."""
    return write_adapter(tmp_path / "adapter", b"weights")


@pytest.fixture
def of_adapter(connector, folder):
    """Return a running request of an adapter that is known."""
    for name in ("first", "request"):
        request = request_of(lora(folder), request_id=name)
        connector.on_new_request(request)
        know(connector._requests._adapters)
    return request


def may_be_stored(connector, request):
    """Return whether vLLM's offloading stores anything of a request from now on."""
    status = connector.connector_scheduler._req_status[request.request_id]
    return status.max_offload_tokens != 0


def test_a_request_of_a_known_adapter_is_loaded_and_stored(connector, of_adapter):
    assert connector.get_num_new_matched_tokens(of_adapter, 0) == FOUND
    assert may_be_stored(connector, of_adapter)


def test_a_request_whose_adapter_changes_is_not_loaded_any_more(connector, of_adapter, folder):
    write_adapter(folder, b"WEIGHTS")
    assert connector.get_num_new_matched_tokens(of_adapter, 0) == NOTHING
    assert not may_be_stored(connector, of_adapter)


def test_a_request_whose_adapter_changes_while_it_runs_is_stored_no_further(
    connector, of_adapter, folder, monkeypatch
):
    monkeypatch.setattr(connector.connector_scheduler, "build_connector_meta", lambda _output: None)
    write_adapter(folder, b"WEIGHTS")
    connector.build_connector_meta(SimpleNamespace())
    assert not may_be_stored(connector, of_adapter)


def test_once_a_hook_has_failed_a_request_is_neither_loaded_nor_stored(connector, of_adapter):
    connector._barrier.switch_off("a test says so")
    assert connector.get_num_new_matched_tokens(of_adapter, 0) == NOTHING
    assert not may_be_stored(connector, of_adapter)
