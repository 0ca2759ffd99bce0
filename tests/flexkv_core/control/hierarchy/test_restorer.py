"""What earlier processes left is restored in steps that are bounded, however chains branch."""

import random

import pytest
from rig import Rig, chain

from flexkv_core.control.hierarchy import restorer
from flexkv_core.control.hierarchy.restorer import Restorer
from flexkv_core.control.index.node import Node
from flexkv_core.control.manager import CacheManager, TierSpec
from flexkv_core.metrics import Counters
from flexkv_core.plan import StoredKey, TierReport


class Work:
    """Counts the keys that are looked up or compared, and those that are copied by a split."""

    num_keys = 0


class CountedKey(bytes):
    """A key that counts how often it is visited."""

    __slots__ = ()

    def __hash__(self):
        Work.num_keys += 1
        return super().__hash__()

    def __eq__(self, other):
        Work.num_keys += 1
        return super().__eq__(other)

    def __ne__(self, other):
        return not self == other


@pytest.fixture
def work(monkeypatch):
    split = Node.split

    def counted(node, position):
        upper = split(node, position)
        Work.num_keys += len(upper.keys)
        return upper

    monkeypatch.setattr(Node, "split", counted)
    monkeypatch.setattr(Work, "num_keys", 0)
    return Work


def keys_of(name, num_blocks):
    return [CountedKey(key) for key in chain(name, num_blocks)]


def comb(num_teeth):
    """Return blocks, each with the one before: a chain, which another leaves after every block."""
    spine, teeth = keys_of("spine", num_teeth), keys_of("teeth", num_teeth)
    before = [None, *spine[:-1]]
    return [
        pair
        for at in range(num_teeth)
        for pair in ((spine[at], before[at]), (teeth[at], spine[at]))
    ]


def star(num_chains):
    """Return blocks that have none before them."""
    return [(key, None) for key in keys_of("star", num_chains)]


def one(num_blocks):
    """Return the blocks of one chain."""
    keys = keys_of("one", num_blocks)
    return list(zip(keys, [None, *keys[:-1]], strict=True))


def lost(num_blocks):
    """Return blocks whose beginning is missing."""
    return one(num_blocks + 1)[1:]


def random_tree(num_blocks):
    """Return blocks that follow any of those before them."""
    chosen = random.Random(1)
    keys = keys_of("tree", num_blocks)
    return [(key, chosen.choice([None, *keys[:at]][-50:])) for at, key in enumerate(keys)]


SHAPES = [comb, star, one, lost, random_tree]


class Restoration:
    """A tier, and a restorer that has been told of blocks."""

    def __init__(self, blocks, *, capacity_blocks=None):
        self.blocks = blocks
        self.counters = Counters()
        capacity_blocks = len(blocks) if capacity_blocks is None else capacity_blocks
        specs = [TierSpec("host", 50), TierSpec("ssd", capacity_blocks, addressed_by="key")]
        self.manager = CacheManager(specs, recorder=self.counters)
        self.restorer = Restorer(self.manager, "ssd", [0], self.counters)
        report = TierReport(
            tier="ssd",
            rank=0,
            capacity_blocks=capacity_blocks,
            recovered=[StoredKey(key, before) for key, before in blocks],
            is_recovered=True,
        )
        self.restorer.note(report)

    def steps(self):
        """Restore everything; yield what is useless after every step."""
        while not self.restorer.is_over:
            yield self.restorer.step()

    def chain_to(self, key):
        """Return the chain that ends in `key`, None if its beginning is missing."""
        before = dict(self.blocks)
        keys = [key]
        while before[keys[-1]] is not None:
            keys.append(before[keys[-1]])
            if keys[-1] not in before:
                return None
        return keys[::-1]


@pytest.mark.parametrize("shape", SHAPES)
def test_all_that_has_its_beginning_is_found(shape):
    restoration = Restoration(shape(300))
    useless = [key for step in restoration.steps() for key in step]
    whole = [keys for key, _ in restoration.blocks if (keys := restoration.chain_to(key))]
    for keys in whole:
        assert restoration.manager.lookup(keys, tier="ssd").num_ready == len(keys)
    assert len(useless) + len(whole) == len(restoration.blocks)
    assert restoration.counters.drain().get("restored_blocks", 0) == len(whole)
    restoration.manager.check_integrity()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("capacity_blocks", [7, 100])
def test_what_does_not_fit_is_useless_or_evicted(shape, capacity_blocks):
    restoration = Restoration(shape(300), capacity_blocks=capacity_blocks)
    gone = [key for step in restoration.steps() for key in step]
    gone += restoration.manager.take_gone("ssd")
    restoration.manager.check_integrity()
    assert len(gone) == len(set(gone))
    num_used = restoration.manager.num_used_blocks("ssd")
    assert num_used + len(gone) == len(restoration.blocks)
    assert num_used == (0 if shape is lost else capacity_blocks)


@pytest.mark.parametrize("shape", SHAPES)
def test_twice_the_blocks_are_twice_the_work_whatever_their_shape(shape, work):
    done = []
    for num_blocks in (500, 1000):
        restoration, work.num_keys = Restoration(shape(num_blocks)), 0
        for _ in restoration.steps():
            pass
        done.append(work.num_keys / num_blocks)
    assert done[1] <= 1.2 * done[0]
    assert done[1] < 40


@pytest.mark.parametrize("shape", SHAPES)
def test_no_step_does_more_than_others(shape, work):
    restoration, work.num_keys = Restoration(shape(6000)), 0
    most = 0
    for _ in restoration.steps():
        most, work.num_keys = max(most, work.num_keys), 0
    assert most < 6 * (2048 + 256), "a step's blocks and one run more, at a few visits each"


@pytest.mark.parametrize("seed", range(20))
def test_what_happens_between_the_steps_does_not_confuse_it(monkeypatch, seed):
    """Chains in host memory cut and continue the same nodes, and blocks are evicted and dropped."""
    monkeypatch.setattr("flexkv_core.control.hierarchy.restorer._BLOCKS_A_STEP", 1)
    monkeypatch.setattr("flexkv_core.control.hierarchy.found_chains._MAX_RUN_BLOCKS", 3)
    chosen = random.Random(seed)
    restoration = Restoration(random_tree(300), capacity_blocks=200)
    manager, gone = restoration.manager, []
    for useless in restoration.steps():
        keys = restoration.chain_to(chosen.choice(restoration.blocks)[0])
        keys = keys[: chosen.randint(1, len(keys))]
        manager.restore([*keys, *chain(f"other {keys[-1]}", 3)], tier="host")
        if chosen.random() < 0.1:
            manager.drop_from(keys, tier="ssd")
        if chosen.random() < 0.1:
            manager.resize(chosen.randint(1, 200), tier="ssd")
        gone += [*useless, *manager.take_gone("ssd")]
        manager.check_integrity()
    assert len(gone) == len(set(gone))
    assert manager.num_used_blocks("ssd") + len(gone) == len(restoration.blocks)
    for key, _ in restoration.blocks:
        keys = restoration.chain_to(key)
        num_ready = manager.lookup(keys, tier="ssd").num_ready
        assert set(gone).isdisjoint(keys[:num_ready])


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
