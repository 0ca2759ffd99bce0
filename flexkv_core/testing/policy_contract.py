"""The contract of `EvictionPolicy` as a test class: inherit it and say how to make a policy.

class TestMyPolicy(EvictionPolicyContract):
    @pytest.fixture
    def policy(self):
        return MyPolicy(CAPACITY_BLOCKS)
"""

from abc import ABC, abstractmethod

import pytest

from flexkv_core.control.eviction.base import EvictionPolicy

__all__ = ["CAPACITY_BLOCKS", "EvictionPolicyContract", "PolicyItem", "take_all"]

CAPACITY_BLOCKS = 1000


class PolicyItem:
    """A run of blocks as a policy sees it, that counts how often it is looked at."""

    num_looks = 0

    def __init__(
        self, name: str, last_use: int = 0, num_uses: int = 0, num_blocks: int = 1
    ) -> None:
        self.first_key = name.encode()
        self.num_uses = num_uses
        self.num_blocks = num_blocks
        self._last_use = last_use

    def __repr__(self) -> str:
        return self.first_key.decode()

    @property
    def last_use(self) -> int:
        """Clock of the last use."""
        type(self).num_looks += 1
        return self._last_use

    @last_use.setter
    def last_use(self, clock: int) -> None:
        self._last_use = clock

    def use(self, clock: int) -> None:
        """Do what the index does at a use."""
        self.last_use = clock
        self.num_uses += 1


def take_all(policy: EvictionPolicy[PolicyItem]) -> list[PolicyItem]:
    """Evict everything that is ordered, in order."""
    taken = []
    while (item := policy.take()) is not None:
        policy.record_eviction(item, item.num_blocks)
        policy.discard(item)
        taken.append(item)
    return taken


class EvictionPolicyContract(ABC):
    """What every eviction policy promises."""

    @pytest.fixture
    @abstractmethod
    def policy(self) -> EvictionPolicy[PolicyItem]:
        """Make an empty policy for a tier of `CAPACITY_BLOCKS`."""

    def test_an_empty_policy_gives_nothing(self, policy: EvictionPolicy[PolicyItem]) -> None:
        """None, and no exception."""
        assert policy.take() is None

    def test_every_item_is_taken_once(self, policy: EvictionPolicy[PolicyItem]) -> None:
        """However often it was added, and however much it was used."""
        items = [PolicyItem(str(number), number, number % 5) for number in range(50)]
        for item in [*items, *items]:
            policy.add(item)
        assert sorted(map(repr, take_all(policy))) == sorted(map(repr, items))

    def test_items_of_one_age_are_not_compared(self, policy: EvictionPolicy[PolicyItem]) -> None:
        """They have no order of their own."""
        items = [PolicyItem(str(number), last_use=7) for number in range(10)]
        for item in items:
            policy.add(item)
        assert set(take_all(policy)) == set(items)

    def test_a_taken_item_is_not_ordered(self, policy: EvictionPolicy[PolicyItem]) -> None:
        """Until it is added or restored."""
        item = PolicyItem("a")
        policy.add(item)
        assert item in policy
        assert policy.take() is item
        assert item not in policy

    def test_a_taken_item_may_be_added_again(self, policy: EvictionPolicy[PolicyItem]) -> None:
        """It was pinned when it was taken, and is no longer."""
        item = PolicyItem("a")
        policy.add(item)
        policy.take()
        policy.add(item)
        assert take_all(policy) == [item]

    def test_a_restored_item_is_taken_next(self, policy: EvictionPolicy[PolicyItem]) -> None:
        """Its tail was evicted, and the rest is still the worst there is."""
        for number in range(10):
            policy.add(PolicyItem(str(number), last_use=3))
        for _ in range(4):
            item = policy.take()
            assert item is not None
            policy.restore(item)
            assert policy.take() is item

    def test_a_discarded_item_is_not_taken(self, policy: EvictionPolicy[PolicyItem]) -> None:
        """Nor does it disturb the others."""
        items = [PolicyItem(str(number), number) for number in range(300)]
        for item in items:
            policy.add(item)
        for item in items[10:]:
            policy.discard(item)
        assert items[10] not in policy
        assert set(take_all(policy)) == set(items[:10])

    def test_a_discarded_item_may_be_added_again(self, policy: EvictionPolicy[PolicyItem]) -> None:
        """As a new one."""
        item = PolicyItem("a")
        policy.add(item)
        policy.discard(item)
        item.use(9)
        policy.add(item)
        assert take_all(policy) == [item]

    def test_an_unknown_item_is_discarded_in_silence(
        self, policy: EvictionPolicy[PolicyItem]
    ) -> None:
        """What was dropped before it could be evicted was never added."""
        policy.discard(PolicyItem("never seen"))
        assert policy.take() is None

    def test_an_item_in_heavy_use_can_still_be_taken(
        self, policy: EvictionPolicy[PolicyItem]
    ) -> None:
        """At once: uses are not counted down one by one without end."""
        item = PolicyItem("a")
        policy.add(item)
        for clock in range(1, 10_000):
            item.use(clock)
        assert policy.take() is item

    def test_taking_looks_at_few_items(self, policy: EvictionPolicy[PolicyItem]) -> None:
        """Evicting some of very many leaves costs what is evicted."""
        for number in range(5_000):
            policy.add(PolicyItem(str(number), number))
        PolicyItem.num_looks, num_taken = 0, 10
        for _ in range(num_taken):
            policy.take()
        assert PolicyItem.num_looks <= 2 * num_taken
