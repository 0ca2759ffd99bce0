"""A policy, a tier below host memory and all that is copied between the two, at work together.

The workers carry out every plan at once. What host memory keeps may then not depend on whether
there is a tier below it: copies of our own are no uses, and one request is one.
"""

import random

import pytest
from rig import PLAN_BLOCKS, Rig, chain

from flexkv_core.plan import EnginePages

CHAIN_BLOCKS = PLAN_BLOCKS + 8
"""More than one plan copies, so that a chain is pinned more than once on its way."""

HOST_CHAINS, SSD_CHAINS, HOT_CHAINS = 20, 240, 6
NUM_ROUNDS = 40


class Tiers:
    """Serves requests from host memory, with or without a tier below."""

    def __init__(self, policy, *, has_ssd):
        self.rig = Rig(
            host_blocks=HOST_CHAINS * CHAIN_BLOCKS,
            ssd_blocks=SSD_CHAINS * CHAIN_BLOCKS,
            policy=policy,
        )
        self.rig.recover()
        self.manager = self.rig.manager
        self.ssd = self.rig.tier if has_ssd else None
        self.num_served = 0

    def serve(self, name):
        """Serve a request for a chain; return how many of its blocks host memory had."""
        self.num_served += 1
        request, keys = f"request {self.num_served}", chain(name, CHAIN_BLOCKS)
        num_hit = self.rig.num_ready(keys)
        self.manager.note_use(keys)
        num_wanted = self.fetch(request, keys)
        self.load(request, keys)
        if self.rig.num_ready(keys) < len(keys):
            self.rig.save(keys)
        self.demote(request, keys, num_wanted)
        return num_hit

    def fetch(self, request, keys):
        if self.ssd is None:
            return 0
        num_wanted = self.ssd.demoter.admit(keys, 0, 0)
        while self.ssd.promoter.must_wait(request, keys, 0.0, 1.0):
            self.copy()
        self.ssd.promoter.forget(request)
        return num_wanted

    def load(self, request, keys):
        lease = self.manager.match(request, keys)
        if lease is not None:
            pages = EnginePages(list(range(lease.num_blocks)))
            plan = self.manager.plan_get(lease, pages, first_block=0, num_blocks=lease.num_blocks)
            self.rig.end(plan)

    def demote(self, request, keys, num_wanted):
        if self.ssd is not None:
            self.ssd.demoter.offer(request, keys, num_wanted)
            self.copy()

    def copy(self):
        for plan in self.ssd.take_orders(0.0).plans:
            self.rig.end(plan)
        self.manager.check_integrity()


def scan():
    """A hot set, used twice, then between more chains that never come back than fit."""
    yield from [("hot", at % HOT_CHAINS) for at in range(3 * HOT_CHAINS)]
    for at in range(NUM_ROUNDS):
        yield from (("hot", at % HOT_CHAINS), *(("cold", 4 * at + i) for i in range(4)))


def loop():
    """A hot set between chains that come back, too late for host memory and in time for SSD."""
    for at in range(NUM_ROUNDS):
        yield from (("hot", at % HOT_CHAINS), ("cold", 2 * at % 30), ("cold", (2 * at + 1) % 30))


def skewed():
    """Chains of every popularity."""
    rng = random.Random(1)
    for _ in range(3 * NUM_ROUNDS):
        yield "any", int(rng.paretovariate(0.6)) % 100


WORKLOADS = pytest.mark.parametrize(
    ("workload", "popular"), [(scan, ("hot", 0)), (loop, ("hot", 0)), (skewed, ("any", 1))]
)
POLICIES = pytest.mark.parametrize("policy", ["lru", "s3fifo"])


def hits(tiers, workload):
    return [tiers.serve(name) for name in workload()]


def hot_rate(tiers):
    """Return the share of the hot set that host memory had in the last rounds of a scan."""
    found = [
        num_hit for name, num_hit in zip(scan(), hits(tiers, scan), strict=True) if name[0] == "hot"
    ]
    return sum(found[-2 * HOT_CHAINS :]) / (2 * HOT_CHAINS * CHAIN_BLOCKS)


@POLICIES
@WORKLOADS
def test_host_memory_keeps_the_same_with_a_tier_below(policy, workload, popular):
    alone = hits(Tiers(policy, has_ssd=False), workload)
    above = Tiers(policy, has_ssd=True)
    assert hits(above, workload) == alone
    assert any(alone)
    assert above.rig.num_ready(chain(popular, CHAIN_BLOCKS), "ssd") == CHAIN_BLOCKS


@pytest.mark.parametrize("has_ssd", [False, True])
def test_a_hot_set_stays_where_the_policy_keeps_it(has_ssd):
    assert hot_rate(Tiers("s3fifo", has_ssd=has_ssd)) == 1.0


def test_a_hot_set_does_not_stay_where_copies_are_uses(monkeypatch):
    """The control: this rig would see it."""
    tiers = Tiers("s3fifo", has_ssd=True)
    match = tiers.manager.match

    def match_and_use(request_id, keys, **more):
        tiers.manager.note_use(keys)
        return match(request_id, keys, **more)

    monkeypatch.setattr(tiers.manager, "match", match_and_use)
    assert hot_rate(tiers) < 0.5
