"""What a rank opens, how much memory it takes, and what it gives back."""

from types import SimpleNamespace

import pytest

from flexkv_connectors.session import worker
from flexkv_connectors.session.orders import Load
from flexkv_connectors.session.worker import WorkerSession, host_budget_bytes
from flexkv_core.block.layout import BlockFormat, Column
from flexkv_core.config import parse_config
from flexkv_core.errors import ConfigError
from flexkv_core.identity.origin import Origin
from flexkv_core.plan import EnginePages, HostSlots, TransferPlan
from flexkv_core.testing.geometry import make_pages
from flexkv_core.testing.namespaces import make_namespace

ORIGIN = Origin({}, lambda _: make_namespace())
IN_HOST_MEMORY = [SimpleNamespace(is_cuda=False)]


GIB = 2**30


@pytest.fixture(autouse=True)
def free_memory(monkeypatch):
    """8 GiB for whoever asks for nothing, and no more than 8 for whoever asks."""

    def check(asked):
        if asked > 8 * GIB:
            raise ConfigError("too much")

    monkeypatch.setattr(worker, "default_cache_bytes", lambda num_engines: 8 * GIB // num_engines)
    monkeypatch.setattr(worker, "check_host_bytes", check)


@pytest.fixture
def open_session(tmp_path):
    """Return a function that opens a rank's session; all are shut down in the end."""
    memory, pages = make_pages("LBHNC", L=1, B=8, H=1, N=16, C=256)
    fmt = BlockFormat(num_heads=1, num_layers=1, block_tokens=32, token_bytes=256, cell_heads=1)
    sessions = []

    def run(*, is_owner=True, ssd_gb=1.0, origin=None, page_tokens=16):
        deployment = SimpleNamespace(
            cache=parse_config(
                {"cpu_cache_gb": 1e-4, "ssd_cache_gb": 1, "ssd_cache_dir": str(tmp_path)}
            ),
            rank=0 if is_owner else 1,
            is_owner=is_owner,
            num_local_owners=1,
            ssd_quota_bytes=None if ssd_gb is None else int(ssd_gb * 2**30),
            columns=[Column(first_head=0, num_heads=1, first_layer=0, num_layers=1)],
            block_format=fmt,
            page_tokens=page_tokens,
            pages_per_block=32 // page_tokens,
            engine_id="engine",
        )
        sessions.append(WorkerSession(deployment, origin))
        sessions[-1].open(IN_HOST_MEMORY, pages)
        return sessions[-1]

    yield run
    for session in sessions:
        session.shutdown()
    assert memory.size


def test_an_owner_has_a_share_of_the_ssd_tier(open_session):
    assert open_session(origin=ORIGIN).ssd is not None


@pytest.mark.parametrize(
    "lacks", [{"origin": None}, {"is_owner": False}, {"ssd_gb": None}], ids=str
)
def test_without_a_tier_or_of_another_s_pool_there_is_none(open_session, lacks):
    assert open_session(**({"origin": ORIGIN} | lacks)).ssd is None


def test_copies_in_host_memory_have_no_bound(open_session):
    session = open_session()
    assert session.take_report().staging is None
    assert session.is_idle


def test_an_owner_reports_its_pool_once(open_session):
    session = open_session()
    assert session.take_report().pool == session.pool.address
    assert session.take_report().pool is None


def test_a_replica_maps_the_pool_of_its_owner_and_reports_that_once(open_session):
    owner, replica = open_session(), open_session(is_owner=False)
    assert replica.take_report().pool is None
    for _ in range(2):
        replica.attach(owner.pool.address)
    report = replica.take_report()
    assert (report.rank, report.attached, report.pool) == (1, True, None)
    assert not replica.take_report().attached


def test_a_replica_without_a_pool_refuses_loads_and_is_idle(open_session):
    replica = open_session(is_owner=False)
    replica.load([load_of([0, 1])])
    [ended] = replica.collect()
    assert (ended.num_good_pages, bool(ended.failure)) == (0, True)
    assert replica.is_idle
    assert len(replica.take_report().results) == 1


def load_of(pages, first_page=0, num_blocks=1, job=1):
    """Return a load of host slots from 0 on."""
    slots = HostSlots(b"".join(slot.to_bytes(8, "little") for slot in range(num_blocks)))
    plan = TransferPlan(
        job_id=job, source=slots, target=EnginePages(pages, first_page), num_blocks=num_blocks
    )
    return Load("request", pages, plan)


def test_the_pages_of_an_ended_load_are_counted_from_its_first(open_session):
    session = open_session()
    session.load([load_of([5, 6, 7], first_page=1, num_blocks=2), Load("other", [], None)])
    ended = {
        ended.load.request_id: (ended.num_good_pages, ended.failure) for ended in session.collect()
    }
    assert ended == {"request": (3, ""), "other": (0, "")}
    assert session.collect() == []


def test_of_a_load_that_cannot_be_executed_no_page_is_good(open_session):
    session = open_session()
    session.load([load_of([99, 100])])
    [ended] = session.collect()
    assert ended.num_good_pages == 0
    assert "99" in ended.failure


def test_page_ids_of_an_engine_whose_kernels_use_smaller_pages_are_translated(
    open_session, monkeypatch
):
    """Its pages have 32 tokens, and its tensors rows of 16."""
    session = open_session(page_tokens=32)
    seen = []
    monkeypatch.setattr(session.worker, "submit", seen.append)
    session.load([load_of([3])])
    [[plan]] = seen
    assert plan.target == EnginePages([6, 7], 0)


def test_the_copies_of_a_step_reach_the_lane_together(open_session, monkeypatch):
    session = open_session()
    given = []
    monkeypatch.setattr(session._lane, "submit_all", given.append)
    session.load([load_of([3], job=1), load_of([4], job=2)])
    session.submit([load_of([3], job=3).plan, load_of([4], job=4).plan])
    assert [[plan.job_id for plan in plans] for plans in given] == [[1, 2], [3, 4]]


def test_files_that_a_stuck_copy_may_still_write_stay_open(open_session, monkeypatch):
    session = open_session(origin=ORIGIN)
    closed = []
    monkeypatch.setattr(session.ssd, "close", lambda: closed.append("ssd"))
    for is_drained in (False, True):
        monkeypatch.setattr(session.worker, "shutdown", lambda limit_s, answer=is_drained: answer)
        session.shutdown()
        assert closed == ["ssd"] * is_drained
    monkeypatch.undo()


def deployment(options, num_engines=1, num_local_owners=1):
    """Return what the budget depends on."""
    return SimpleNamespace(
        cache=parse_config(options), num_engines=num_engines, num_local_owners=num_local_owners
    )


@pytest.mark.parametrize("num_engines", [1, 4])
def test_what_is_asked_for_is_for_each_engine(num_engines):
    assert host_budget_bytes(deployment({"cpu_cache_gb": 8}, num_engines)) == 8 * GIB


def test_the_ranks_of_an_engine_share_what_is_asked_for():
    assert host_budget_bytes(deployment({"cpu_cache_gb": 8}, num_local_owners=4)) == 2 * GIB


def test_what_an_engine_asks_for_is_checked_before_its_ranks_share_it():
    with pytest.raises(ConfigError):
        host_budget_bytes(deployment({"cpu_cache_gb": 9}, num_engines=4, num_local_owners=4))


def test_engines_that_know_of_each_other_share_what_is_free_when_nothing_is_asked_for():
    assert host_budget_bytes(deployment({}, num_engines=2, num_local_owners=4)) == GIB
