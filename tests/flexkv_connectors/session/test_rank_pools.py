from flexkv_connectors.session.orders import RankReport
from flexkv_connectors.session.rank_pools import RankPools
from flexkv_core.data.tiers.host import PoolAddress


def opened(rank: int, num_slots: int) -> RankReport:
    return RankReport(rank=rank, pool=PoolAddress(1, 2, 3, 4, num_slots, 4096))


def attached(rank: int) -> RankReport:
    return RankReport(rank=rank, attached=True)


def test_the_number_of_slots_is_unknown_until_every_owner_has_a_pool():
    pools = RankPools(owners=[0, 1], borrowers=[])
    pools.note(opened(0, 10))
    assert pools.num_slots is None
    assert not pools.are_ready


def test_the_smallest_pool_decides():
    pools = RankPools(owners=[0, 1], borrowers=[])
    pools.note(opened(0, 10))
    pools.note(opened(1, 8))
    assert pools.num_slots == 8
    assert pools.are_ready


def test_pools_are_offered_until_every_replica_has_mapped_one():
    pools = RankPools(owners=[0], borrowers=[1, 2])
    pools.note(opened(0, 10))
    assert list(pools.to_attach) == [0]
    pools.note(attached(1))
    assert not pools.are_ready
    pools.note(attached(2))
    assert pools.are_ready
    assert pools.to_attach == {}
