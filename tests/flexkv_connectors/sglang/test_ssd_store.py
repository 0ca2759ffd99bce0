"""What all stores share: who waits for whom."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from store_rig import DirectRig, chain

from flexkv_core.errors import TierError
from flexkv_core.testing.doubles import SlowTier

KEYS = chain(0, 10)


@pytest.fixture
def hanging(tmp_path):
    """Yield a store that a load hangs in; it ends when the test does."""
    gate = threading.Event()
    gate.set()
    tiers = []

    def slow(tier):
        tiers.append(SlowTier(tier, gate))
        return tiers[0]

    rig = DirectRig(tmp_path, wrap=slow, load_limit_s=0.01)
    rig.store.save(KEYS, range(10))
    tiers[0].entered.acquire()
    gate.clear()
    with ThreadPoolExecutor(1) as thread:
        load = thread.submit(rig.store.load, KEYS, range(10))
        tiers[0].entered.acquire()
        yield rig.store
        gate.set()
        assert load.result() == 10
    rig.store.close()


def test_while_the_disk_hangs_it_is_still_said_what_is_there(hanging):
    assert hanging.find(KEYS) == 10
    assert hanging.save(KEYS, range(10)) == 10
    assert hanging.take_counts()["ssd_used_blocks"] == 10


def test_while_the_disk_hangs_nobody_waits_for_it_for_ever(hanging):
    with pytest.raises(TierError, match="a load of tier ssd does not end"):
        hanging.reset(keeps_name=True)
    with pytest.raises(TierError, match="a load of tier ssd does not end"):
        hanging.close()
    assert hanging.find(KEYS) == 10
