from flexkv_connectors.vllm.replicas import ReplicaPools
from flexkv_core.data.tiers.host import PoolAddress


def address(num_slots: int) -> PoolAddress:
    return PoolAddress(1, 2, 3, 4, num_slots, 4096)


def test_the_number_of_slots_is_unknown_until_every_owner_has_a_pool():
    pools = ReplicaPools(owners=[0, 1], replicas=[])
    pools.note({0: address(10)}, [])
    assert pools.num_slots is None
    assert not pools.ready


def test_the_smallest_pool_decides():
    pools = ReplicaPools(owners=[0, 1], replicas=[])
    pools.note({0: address(10)}, [])
    pools.note({1: address(8)}, [])
    assert pools.num_slots == 8
    assert pools.ready


def test_pools_are_offered_until_every_replica_has_mapped_one():
    pools = ReplicaPools(owners=[0], replicas=[1, 2])
    pools.note({0: address(10)}, [])
    assert list(pools.waiting_pools) == [0]
    pools.note({}, [1])
    assert not pools.ready
    pools.note({}, [2])
    assert pools.ready
    assert pools.waiting_pools == {}
