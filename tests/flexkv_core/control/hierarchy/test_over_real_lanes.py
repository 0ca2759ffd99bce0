"""What the tiers decide over real lanes: busy, closed, unheard and failed are four states."""

import threading
from types import SimpleNamespace

import pytest
from rig import chain

from flexkv_core.control.hierarchy.lower_tier import LowerTier
from flexkv_core.control.manager import CacheManager, TierSpec
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.transfer import tier_lane
from flexkv_core.data.transfer.tier_lane import TierLane
from flexkv_core.metrics import Counters
from flexkv_core.plan import EnginePages, Status, StoredBlocks, TierReport, TransferResult
from flexkv_core.testing.doubles import DictTier, ManualClock, SlowTier, TierWrapper

SLOT_BYTES = 4096
BLOCK_BYTES = 8 << 20
"""What the hierarchy takes a block for: four of them are one plan to write."""

HOST_BLOCKS = 64
WAIT_S = 30
STEP_S = 0.25
RETRY_S = 30
SILENCE_S = 60


class Moody(TierWrapper):
    """Raises, or takes its time, as a test says."""

    def __init__(self, inner, clock):
        super().__init__(inner)
        self.clock, self.block_s, self.num_raising = clock, 0.0, 0

    def read(self, blocks, deadline_s):
        self._suffer(blocks)
        return super().read(blocks, deadline_s)

    def write(self, blocks, deadline_s):
        self._suffer(blocks)
        return super().write(blocks, deadline_s)

    def _suffer(self, blocks):
        self.clock.advance(self.block_s * len(blocks))
        if self.num_raising:
            self.num_raising -= 1
            raise MemoryError


class Engine:
    """A scheduler and one worker, whose tier is a dict behind a gate that is open at first."""

    def __init__(self, *, timeout_s=10.0, max_waiting_calls=1024):
        self.clock, self.counters = ManualClock(), Counters()
        self.counts = dict[str, float]()
        specs = [TierSpec("host", HOST_BLOCKS), TierSpec("dict", 1024, addressed_by="key")]
        self.manager = CacheManager(specs, recorder=self.counters)
        self.tier = LowerTier(
            self.manager,
            "dict",
            owners=(0,),
            block_bytes=BLOCK_BYTES,
            timeout_s=timeout_s,
            recorder=self.counters,
        )
        self.tier.handle_report(
            TierReport(tier="dict", rank=0, capacity_blocks=1024, is_recovered=True)
        )
        self.host = HostPool.create(HOST_BLOCKS, SLOT_BYTES)
        self.moody = Moody(DictTier(self.host.memory), self.clock)
        self.disk = SlowTier(self.moody, threading.Event())
        self.disk.gate.set()
        self.loads, self.saves = (
            TierLane(
                0,
                self.disk,
                self.host.memory,
                num_threads=1,
                max_waiting_calls=max_waiting_calls,
                clock=self.clock,
            )
            for _ in range(2)
        )

    def close(self):
        self.disk.gate.set()
        for lane in (self.loads, self.saves):
            lane.close()
            lane.drain(WAIT_S)
        self.host.close()

    def save(self, keys):
        """Compute a chain, save it to host memory, and offer it to the tier."""
        reservation = self.manager.reserve("saver", keys)
        plan = self.manager.plan_put(reservation, EnginePages(list(range(len(keys)))))
        result = TransferResult(
            job_id=plan.job_id, rank=0, status=Status.OK, num_blocks=plan.num_blocks
        )
        self.manager.complete(result)
        num_wanted = self.tier.demoter.admit(keys, 0, 0)
        self.tier.demoter.offer(keys[0].hex(), keys, num_wanted)

    def hear(self):
        """Take in what the lanes report."""
        for result in self.loads.poll() + self.saves.poll():
            self.tier.conclude(self.manager.complete(result), self.clock())

    def step(self, seconds=STEP_S):
        """Take in reports, and give orders; the step lasts so long."""
        self.hear()
        for plan in self.tier.take_orders(self.clock()).plans:
            is_load = isinstance(plan.source, StoredBlocks)
            (self.loads if is_load else self.saves).submit(plan)
        self.clock.advance(seconds)

    def finish(self):
        """Step until all that waits is copied, one plan's time after the other."""
        for _ in range(1000):
            self.step()
            assert self.loads.drain(WAIT_S)
            assert self.saves.drain(WAIT_S)
            self.hear()
            if not (self.tier.has_work or self.manager.num_in_flight):
                return
        pytest.fail("waits for ever")

    def num_ready(self, keys, tier="dict"):
        return self.manager.lookup(keys, tier=tier).num_ready

    def put_below(self, keys):
        """Let the tier alone hold a chain."""
        self.save(keys)
        self.finish()
        self.manager.drop_from(keys[:1], tier="host")

    def count(self, name):
        for counted, value in self.counters.drain().items():
            self.counts[counted] = self.counts.get(counted, 0) + value
        return self.counts.get(name, 0)


@pytest.fixture(autouse=True)
def one_block_a_call(monkeypatch):
    monkeypatch.setattr(tier_lane, "_CALL_BYTES", SLOT_BYTES)


@pytest.fixture(autouse=True)
def raised(monkeypatch):
    """What has ended a thread, which Python says on stderr."""
    raised = []
    monkeypatch.setattr(threading, "excepthook", lambda args: raised.append(args.exc_type))
    before = threading.enumerate()
    yield raised
    for thread in set(threading.enumerate()).difference(before):
        thread.join(WAIT_S)  # what ends one last says so to the hook above


@pytest.fixture
def start():
    engines = []

    def start(**options):
        engines.append(Engine(**options))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


@pytest.fixture
def engine(start):
    return start()


def words(caplog):
    """Return the first words of what was logged, and the states that were named."""
    return [record.getMessage().split(":")[0] for record in caplog.records]


class TestBusy:
    @pytest.fixture
    def engine(self, start):
        """An engine whose lanes let two calls wait, and a disk that holds back the first."""
        engine = start(max_waiting_calls=2)
        engine.disk.gate.clear()
        return engine

    def test_a_full_queue_is_no_failure_and_everything_is_copied_in_the_end(self, engine):
        chains = [chain(number, 4) for number in range(12)]
        for keys in chains:
            engine.save(keys)
        for _ in range(8):
            engine.step()
        assert not engine.tier.is_off
        engine.disk.gate.set()
        engine.finish()
        assert [engine.num_ready(keys) for keys in chains] == [4] * 12
        assert engine.count("demotion_skipped_blocks") == 0
        assert engine.count("ssd_busy_blocks") > 0

    def test_no_more_is_offered_than_was_taken(self, engine):
        """Or every step would make plans that are all refused."""
        for number in range(12):
            engine.save(chain(number, 4))
        for _ in range(3):
            engine.step()
        before = engine.count("ssd_busy_blocks")
        for _ in range(10):
            engine.step()
        assert engine.count("ssd_busy_blocks") == before

    def test_it_is_said_once(self, engine, caplog):
        caplog.set_level("INFO", "flexkv_core.control.hierarchy")
        for number in range(12):
            engine.save(chain(number, 4))
        for _ in range(5):
            engine.step()
        assert words(caplog) == ["tier.busy"]

    def test_a_request_whose_reads_find_a_full_queue_waits_no_longer(self, start):
        engine = start(max_waiting_calls=1)
        chains = [chain(number, 4) for number in range(3)]
        for keys in chains:
            engine.put_below(keys)
        engine.disk.gate.clear()
        waits = [
            engine.tier.promoter.must_wait(str(n), k, engine.clock(), 1.0)
            for n, k in enumerate(chains)
        ]
        engine.step()
        engine.hear()
        assert waits == [True] * 3
        assert not engine.tier.promoter.must_wait("2", chains[2], engine.clock(), 1.0)
        assert not engine.tier.is_off
        assert engine.num_ready(chains[2]) == 4, "what was not read is still there"


class TestFailed:
    def test_one_unexpected_error_costs_one_copy(self, engine, raised):
        first, second = chain("first", 1), chain("second", 4)
        engine.moody.num_raising = 1
        engine.save(first)
        engine.finish()
        engine.save(second)
        engine.finish()
        assert (engine.num_ready(first), engine.num_ready(second)) == (0, 4)
        assert engine.count("demotion_skipped_blocks") == 1
        assert not engine.tier.is_off

    def test_errors_again_and_again_switch_off_until_a_trial_succeeds(self, engine, caplog):
        engine.moody.num_raising = 3
        for number in range(3):
            engine.save(chain(number, 1))
            engine.finish()
        assert engine.tier.is_off
        assert engine.count("ssd_failed") == 1
        engine.clock.advance(RETRY_S)
        engine.save(chain("trial", 1))
        engine.finish()
        assert not engine.tier.is_off
        assert words(caplog) == ["tier.off state=failed", "tier.on"]


class TestClosed:
    @pytest.fixture
    def no_threads(self, monkeypatch):
        """Let the system have no more threads."""

        def refuse(_):
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(tier_lane, "threading", SimpleNamespace(**vars(threading)))
        thread = type("NoThread", (threading.Thread,), {"start": refuse})
        monkeypatch.setattr(tier_lane.threading, "Thread", thread)

    def test_a_lane_that_lost_its_thread_is_closed_for_good(self, engine, no_threads, caplog):
        engine.moody.num_raising = 1
        for number in range(3):
            engine.save(chain(number, 1))
            engine.finish()
            engine.clock.advance(RETRY_S)
        assert engine.tier.is_off
        assert (engine.count("ssd_closed"), engine.count("ssd_failed")) == (1, 0)
        assert words(caplog) == ["tier.closed", "tier.off state=closed"]

    def test_only_that_direction_is_closed(self, engine, no_threads):
        keys = chain("kept", 4)
        engine.put_below(keys)
        engine.moody.num_raising = 1
        engine.save(chain("lost", 1))
        engine.finish()
        engine.save(chain("refused", 1))
        engine.finish()
        assert engine.tier.demoter.is_off
        assert engine.tier.promoter.must_wait("request", keys, engine.clock(), 1.0)


class TestUnheard:
    @pytest.fixture
    def engine(self, start):
        """An engine that has given a hanging disk a chain to write, and one to read."""
        engine = start()
        self.keys = chain("below", 4)
        engine.put_below(self.keys)
        while engine.disk.entered.acquire(blocking=False):
            pass
        engine.disk.gate.clear()
        engine.save(chain("stuck", 4))
        assert engine.tier.promoter.must_wait("first", self.keys, engine.clock(), 1.0)
        engine.step()
        for _ in ("read", "write"):  # a call that has not begun by its deadline never does
            assert engine.disk.entered.acquire(timeout=WAIT_S)
        return engine

    def ask(self, engine):
        """Let a request arrive that would wait for the disk."""
        other = chain("below", 8)
        return engine.tier.promoter.must_wait("next", other, engine.clock(), 1.0)

    def test_an_engine_that_steps_and_hears_nothing_leaves_the_tier_alone(self, engine, caplog):
        for _ in range(int(SILENCE_S / STEP_S) + 2):
            engine.step()
        assert engine.tier.demoter.is_off
        assert not self.ask(engine)
        assert engine.tier.promoter.is_off
        assert engine.count("ssd_unheard") == 2
        assert words(caplog) == ["tier.off state=unheard"] * 2

    def test_an_engine_that_did_not_step_has_heard_nothing(self, engine):
        engine.clock.advance(10 * SILENCE_S)
        self.ask(engine)
        engine.step()
        engine.step()
        assert not engine.tier.is_off
        engine.disk.gate.set()
        engine.finish()
        assert engine.count("ssd_unheard") == 0

    def test_many_pauses_are_no_silence_either(self, engine):
        for _ in range(20):
            engine.step(10 * SILENCE_S)
        assert not engine.tier.demoter.is_off

    def test_an_answer_switches_it_on(self, engine):
        for _ in range(int(SILENCE_S / STEP_S) + 2):
            engine.step()
        engine.disk.gate.set()
        engine.finish()
        assert not engine.tier.demoter.is_off


class TestDeadline:
    def test_what_has_come_by_then_is_given(self, engine):
        """The disk reads a block in 0.2 s, the engine computes one in 0.25 s."""
        keys = chain("slow", 16)
        engine.put_below(keys)
        engine.moody.block_s = 0.2
        assert engine.tier.promoter.must_wait("request", keys, engine.clock(), 0.25)
        engine.step(0)
        assert engine.loads.drain(WAIT_S)
        engine.hear()
        assert 0 < engine.num_ready(keys, "host") < 16
        assert not engine.tier.promoter.must_wait("request", keys, engine.clock(), 0.25)
        assert engine.num_ready(keys) == 16, "what was only late stays"
