"""What was found is restored a part at a time, while other things happen."""

import pytest
from rig import Rig, chain

from flexkv_core.control.hierarchy import restorer
from flexkv_core.plan import StoredKey, TierReport

TRUNK = chain("trunk", 3)
LEAVES = [chain(name, 1) for name in ("one", "two")]


@pytest.fixture
def one_chain_a_step(monkeypatch):
    monkeypatch.setattr(restorer, "_BLOCKS_A_STEP", 1)


@pytest.mark.usefixtures("one_chain_a_step")
def test_blocks_whose_trunk_has_left_meanwhile_are_of_no_use():
    """To restore the trunk with them would claim blocks that the tier has forgotten."""
    rig = Rig()
    found = [StoredKey(key, TRUNK[at - 1] if at else None) for at, key in enumerate(TRUNK)]
    found += [StoredKey(leaf, TRUNK[-1]) for (leaf,) in LEAVES]
    rig.tier.handle_report(
        TierReport(tier="ssd", rank=0, capacity_blocks=100, recovered=found, is_recovered=True)
    )
    rig.tier.take_orders(0.0)
    rig.manager.drop_from(TRUNK[:1], tier="ssd")
    gone = [key for _ in range(3) for key in rig.tier.take_orders(0.0).gone]
    assert rig.manager.num_used_blocks("ssd") == 0
    assert sorted(gone) == sorted([*TRUNK, *(leaf for (leaf,) in LEAVES)])
