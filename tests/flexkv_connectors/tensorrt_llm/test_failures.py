"""What goes wrong, and what the engine sees of it."""

import pytest
from engine_double import PAGE, Engine, Request

from flexkv_core.data.transfer.results import refused
from flexkv_core.errors import BrokenPromiseError, ConfigError, TierError
from flexkv_core.plan import HostSlots, Status


@pytest.fixture(autouse=True)
def options(monkeypatch):
    monkeypatch.setenv("FLEXKV_CPU_CACHE_GB", "0.01")
    monkeypatch.setenv("FLEXKV_BLOCK_TOKENS", str(2 * PAGE))


@pytest.fixture
def engine(tmp_path):
    """An engine of two ranks that has saved a prompt."""
    engine = Engine(tmp_path, ranks=2).register()
    engine.run(Request(1, prompt(20)))
    yield engine
    engine.close()


def prompt(num_tokens, first=0):
    return list(range(first, first + num_tokens))


def fail(engine, rank, *, loads):
    """Let every load, or every save, of one rank fail."""
    worker = engine.workers[rank]._half.session.worker
    submit = worker.submit

    def submit_or_fail(plans):
        for plan in plans:
            if isinstance(plan.source, HostSlots) is loads:
                worker._refused.append(refused(plan, rank, Status.ERROR, "planted"))
            else:
                submit([plan])

    worker.submit = submit_or_fail


def test_a_load_that_fails_stops_every_rank_and_is_never_reported_as_done(engine):
    fail(engine, 1, loads=True)
    engine.submit(Request(2, prompt(20)))
    stopped = []

    def ask(rank):
        with pytest.raises(BrokenPromiseError, match=r"rank 1 cannot fill .*: planted"):
            engine.workers[rank].get_finished([], [2])
        stopped.append(rank)

    engine._ask = lambda started: engine.ranks.run(ask)
    engine.iterate()
    assert sorted(stopped) == [0, 1]


def test_a_load_within_the_step_that_fails_stops_before_the_forward_pass(tmp_path, monkeypatch):
    monkeypatch.setenv("FLEXKV_LOAD_ASYNC", "false")
    engine = Engine(tmp_path).register()
    engine.run(Request(1, prompt(20)))
    fail(engine, 0, loads=True)
    computed = engine.num_computed_tokens
    engine.submit(Request(2, prompt(20)))
    with pytest.raises(BrokenPromiseError, match="requests \\[2\\] was promised"):
        engine.iterate()
    assert engine.num_computed_tokens == computed
    engine.close()


def test_a_save_that_fails_on_one_rank_is_a_miss_for_all(engine):
    fail(engine, 1, loads=False)
    engine.run(Request(2, prompt(20, 50)))
    engine.run(Request(3, prompt(20, 50)))
    assert engine.offers[3] == 0


def test_an_error_while_nothing_is_promised_costs_the_cache_and_not_the_engine(engine):
    def broken(*_):
        raise ZeroDivisionError

    engine.scheduler._half.match = broken
    engine.run(Request(2, prompt(20)))
    assert engine.offers[2] == 0
    assert "ZeroDivisionError" in engine.scheduler._barrier.reason


@pytest.mark.parametrize("method", ["take_ssd_orders", "plan_load"])
def test_an_error_between_an_offer_and_its_load_stops_the_engine(engine, method):
    def broken(*_):
        raise ZeroDivisionError

    setattr(engine.scheduler._half.session, method, broken)
    engine.submit(Request(2, prompt(20)))
    with pytest.raises(BrokenPromiseError, match="cannot be ordered"):
        engine.iterate()


def test_one_rank_that_breaks_switches_the_cache_off_for_all(engine):
    """It still takes part in the exchange: the other ranks would wait for it for ever."""

    def broken(*_):
        raise ZeroDivisionError

    engine.workers[1]._half.save = broken
    engine.run(Request(2, prompt(20, 50)))
    engine.run(Request(3, prompt(20)))
    assert engine.offers[3] == 0
    assert "ZeroDivisionError" in engine.scheduler._barrier.reason


def test_all_ranks_refuse_where_one_does(tmp_path):
    engine = Engine(tmp_path, ranks=2)
    engine.pools[1] = engine.pools[1][..., 1:]
    with pytest.raises(ConfigError, match="registered a pool"):
        engine.register()
    assert engine.ranks.num_gathers == 1


@pytest.mark.parametrize("method", ["open", "attach"])
@pytest.mark.parametrize("error", [MemoryError("planted"), TierError("host", "planted")])
def test_all_ranks_refuse_where_one_fails_to_begin(tmp_path, method, error):
    """Its device may be full, or its owner's pool on another node: the others would wait for it."""

    def broken(*_):
        raise error

    engine = Engine(tmp_path, ranks=4)
    setattr(engine.workers[1 if method == "attach" else 2]._half, method, broken)
    refusals = []

    def register(rank):
        with pytest.raises(ConfigError, match="planted"):
            engine.workers[rank].register_kv_caches(engine.pools[rank])
        refusals.append(rank)

    engine.ranks.run(register)
    assert sorted(refusals) == [0, 1, 2, 3]


def test_no_room_in_host_memory_is_no_error(tmp_path, monkeypatch):
    """Room for three blocks; the last of two requests takes them."""
    monkeypatch.setenv("FLEXKV_CPU_CACHE_GB", str(3 * 4096 / 2**30))
    engine = Engine(tmp_path).register()
    engine.run(Request(1, prompt(40)))
    engine.run(Request(2, prompt(20, 50)))
    engine.run(Request(3, prompt(20, 50)))
    assert engine.offers[3] == 16
    engine.close()
