"""What a rank opens, and what it gives back."""

from types import SimpleNamespace

import pytest

from flexkv_connectors.session.rank_share import RankShare
from flexkv_core.block.layout import BlockFormat, Column
from flexkv_core.config import parse_config
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.identity.origin import Origin
from flexkv_core.testing.geometry import make_pages
from flexkv_core.testing.namespaces import make_namespace

ORIGIN = Origin({}, lambda _: make_namespace())
IN_HOST_MEMORY = [SimpleNamespace(is_cuda=False)]


@pytest.fixture
def open_share(tmp_path):
    """Return a function that opens a rank's share; all are closed in the end."""
    memory, pages = make_pages("LBHNC", L=1, B=4, H=1, N=16, C=256)
    fmt = BlockFormat(num_heads=1, num_layers=1, block_tokens=16, token_bytes=256, cell_heads=1)
    shares = []

    def run(*, is_owner=True, ssd_gb=1.0, origin=None):
        deployment = SimpleNamespace(
            cache=parse_config({"ssd_cache_gb": 1, "ssd_cache_dir": str(tmp_path)}),
            rank=0,
            is_owner=is_owner,
            ssd_quota_bytes=None if ssd_gb is None else int(ssd_gb * 2**30),
            columns=[Column(first_head=0, num_heads=1, first_layer=0, num_layers=1)],
            block_format=fmt,
            engine_id="engine",
        )
        pool = HostPool.create(4, fmt.block_bytes)
        shares.append(RankShare(deployment, IN_HOST_MEMORY, pages, pool, origin))
        return shares[-1]

    yield run
    for share in shares:
        share.close()
    assert memory.size


def test_an_owner_has_a_share_of_the_ssd_tier(open_share):
    assert open_share(origin=ORIGIN).ssd is not None


@pytest.mark.parametrize(
    "lacks", [{"origin": None}, {"is_owner": False}, {"ssd_gb": None}], ids=str
)
def test_without_a_tier_or_of_another_s_pool_there_is_none(open_share, lacks):
    assert open_share(**({"origin": ORIGIN} | lacks)).ssd is None


def test_copies_in_host_memory_have_no_bound(open_share):
    share = open_share()
    assert share.save_places is None
    assert share.is_idle


def test_files_that_a_stuck_copy_may_still_write_stay_open(open_share, monkeypatch):
    share = open_share(origin=ORIGIN)
    closed = []
    monkeypatch.setattr(share.ssd, "close", lambda: closed.append("ssd"))
    for is_drained in (False, True):
        monkeypatch.setattr(share.worker, "shutdown", lambda limit_s, told=is_drained: told)
        share.close()
        assert closed == ["ssd"] * is_drained
    monkeypatch.undo()
