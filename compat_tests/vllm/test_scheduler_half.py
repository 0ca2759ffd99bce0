"""The scheduler half and what its workers tell it, without an engine."""

from hashlib import sha256

import pytest

from flexkv_connectors.common.deployment import PageShape
from flexkv_connectors.vllm.cpu_pages import PLAIN
from flexkv_connectors.vllm.deployment import Deployment
from flexkv_core.config import parse_config
from flexkv_core.metrics import Counters
from flexkv_core.plan import StoredKey, TierReport
from flexkv_core.tiers.host import PoolAddress

KEY = sha256(b"block").digest()


@pytest.fixture
def half(tmp_path):
    """The scheduler half of an engine of two ranks."""
    from flexkv_connectors.vllm.scheduler import SchedulerHalf

    deployment = Deployment(
        cache=parse_config({"ssd_cache_gb": 1, "ssd_cache_dir": str(tmp_path)}),
        rank=0,
        num_ranks=2,
        num_replicas=1,
        num_engines=1,
        num_nodes=1,
        page_shape=PageShape(num_heads=1, page_tokens=16, token_bytes=64),
        page_order=PLAIN,
        head_size=16,
        element_bytes=2,
        num_layers=2,
        first_layer=0,
        total_heads=2,
        cell_heads=1,
        block_tokens=64,
        step_tokens=2048,
        draft_blocks=0,
        publishes_events=False,
        engine_id="engine",
    )
    return SchedulerHalf(deployment, Counters(), uses_ssd=True)


def report_of(rank):
    """Return the first and only report of a rank that has found one block."""
    from flexkv_connectors.vllm.metadata import StepReport

    found = TierReport(
        tier="ssd",
        rank=rank,
        capacity_blocks=8,
        recovered=[StoredKey(KEY, None)],
        is_recovered=True,
    )
    return StepReport(pools={rank: PoolAddress(1, 1, 1, 1, 8, 64)}, tiers=[found])


def test_what_a_rank_has_found_counts_although_another_reports_later(half):
    half.digest(report_of(0))
    half.digest(report_of(1))
    half._ssd.take_orders(0.0)
    assert half.manager.look([KEY], tier="ssd").num_ready == 1
