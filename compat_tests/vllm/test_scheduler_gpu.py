"""The connector as on a GPU, against vLLM's real scheduler: copies run late, behind small rings.

The scripts are those of `test_scheduler_contract`; the simulated model notices every wrong byte.
"""

from collections import Counter

import pytest
from test_scheduler_contract import CONNECTOR, INTERESTING, play

from flexkv_connectors.vllm.prefill_speed import PrefillSpeed
from flexkv_core.data.transfer.gpu_lane import GpuLane
from flexkv_core.metrics import Counters

PROMPT = [token % 50 for token in range(7, 7 + 43)]
OPTIONS = {"enable_gpu": True}


@pytest.fixture(scope="module")
def bases(model):
    from simulated_gpu import with_gpu
    from simulated_shape import base_config

    return {name: with_gpu(base_config(model(name), CONNECTOR)) for name in ("oracle", "mla")}


@pytest.fixture
def gpus(monkeypatch):
    from simulated_gpu import SimulatedGpus

    return SimulatedGpus(monkeypatch)


@pytest.fixture
def counts(monkeypatch):
    """Sum what is counted; vLLM takes it away every step."""
    counts, add = Counter(), Counters.add

    def counted(counters, name, value=1):
        counts[name] += value
        add(counters, name, value)

    monkeypatch.setattr(Counters, "add", counted)
    return counts


@pytest.fixture
def engine(bases, gpus):
    from scheduler_harness import SimulatedEngine
    from simulated_shape import Shape

    engines = []

    def start(**shape):
        shape["options"] = OPTIONS | shape.get("options", {})
        engines.append(SimulatedEngine(bases["oracle"], Shape(**shape)))
        engines[-1].drain()
        return engines[-1]

    yield start
    for started in engines:
        started.close()


@pytest.fixture
def ssd(tmp_path, monkeypatch):
    """Return the options of an SSD tier that is worth waiting for, however fast the model is."""
    monkeypatch.setattr(PrefillSpeed, "seconds_for", lambda *_: None)
    return {"ssd_cache_gb": 0.01, "ssd_cache_dir": str(tmp_path), "promotion_timeout_s": 60}


def test_a_prompt_comes_back_from_the_host_tier(engine):
    engine = engine()
    engine.add(PROMPT, 8)
    engine.drain()
    assert engine.reset(running=False, connector=False)
    engine.add(PROMPT, 4)
    engine.drain()
    engine.check_idle()
    assert engine.events["external tokens"] == 40


def test_staging_is_sized_for_what_a_step_computes_or_as_asked(engine, gpus, monkeypatch):
    from flexkv_connectors.session import gpu_share

    seen = []
    monkeypatch.setattr(
        gpu_share, "staging_places", lambda *sizes: seen.append(sizes) or gpus.places
    )
    engine(max_batched_tokens=44, options={"gpu_staging_mb": 3})
    ((_, step_blocks, _, asked_bytes),) = seen
    assert (step_blocks, asked_bytes) == (6, 3 << 20)


def test_a_prompt_larger_than_the_ring_is_saved_over_several_steps(engine, gpus, counts):
    gpus.set_rings(save=1, load=1)
    engine = engine(max_batched_tokens=48)
    engine.add(PROMPT, 12)
    engine.drain()
    assert engine.reset(running=False, connector=False)
    engine.add(PROMPT, 4)
    engine.drain()
    engine.check_idle()
    assert engine.events["external tokens"] == 40
    assert counts["save_delayed_blocks"] > 0
    assert counts["save_failed_blocks"] == counts["save_busy_blocks"] == 0
    assert counts["save_no_room_blocks"] == 0


def test_what_a_request_leaves_unsaved_at_its_end_is_counted(engine, gpus, counts):
    gpus.set_rings(save=1, load=1)
    gpus.slowness = 1.0
    engine = engine(max_batched_tokens=48)
    engine.add(PROMPT, 1)
    engine.finish_requests()
    gpus.slowness = 0.1
    engine.drain()
    engine.check_idle()
    assert counts["save_no_room_blocks"] == 4


def test_a_fault_ends_a_load_only_after_its_last_write(engine, gpus, monkeypatch):
    from simulated_model import expected_output

    engine = engine()
    engine.add(PROMPT, 8)
    engine.drain()
    assert engine.reset(running=False, connector=False)
    monkeypatch.setattr(GpuLane, "poll", broken)
    gpus.slowness = 1.0
    loading = engine.add(PROMPT, 4)
    for _ in range(5):
        engine.schedule()
        engine.deliver()
    assert (engine.num_loads, engine.num_loads_ended) == (1, 0)
    gpus.slowness = 0.1
    engine.drain()
    assert engine.num_loads_ended == 1
    assert engine.endings[loading].tokens == expected_output(PROMPT, "/0", 4)


def broken(lane):
    raise RuntimeError("a bug of ours")


def test_a_prompt_comes_back_from_ssd_through_the_host_tier(engine, counts, ssd):
    engine = engine(options=ssd)
    for prompt in [PROMPT, *([first, *PROMPT] for first in range(10)), PROMPT]:
        engine.add(prompt, 4)
        engine.drain()
        assert engine.reset(running=False, connector=False)
    engine.check_idle()
    assert counts["ssd_load_tokens"] == engine.events["external tokens"] == 40


def test_a_sleep_amid_copies_costs_hits_and_nothing_else(engine, gpus):
    engine = engine()
    gpus.slowness = 1.0
    engine.add(PROMPT, 4)
    engine.finish_requests()
    engine.sleep()
    gpus.slowness = 0.1
    engine.drain()
    for num_tokens in (0, 40):
        engine.add(PROMPT, 4)
        engine.drain()
        assert engine.events["external tokens"] == num_tokens
        assert engine.reset(running=False, connector=False)
    engine.check_idle()


def test_a_rank_that_never_reports_makes_nothing_findable(engine, gpus, monkeypatch):
    from flexkv_connectors.vllm.report_timeout import ReportTimeout

    engine = engine(tensor_parallel=2)
    engine.scheduler.connector._scheduler._timeout = ReportTimeout(limit_s=0.0)
    monkeypatch.setattr(gpus.devices[1], "step", lambda: False)
    for _ in range(2):
        request = engine.add(PROMPT, 4)
        engine.drain()
        assert engine.endings[request].reason == "length"
        assert engine.reset(running=False, connector=False)
    assert engine.num_loads == 0


class GpuWeather:
    """What `play` sets for the lanes of a CPU, for devices; their copies do not fail."""

    def __init__(self, gpus):
        self._gpus = gpus
        self.counts = Counter()
        self.fail_loads = self.fail_saves = 0.0
        self.loads_at_once = False

    @property
    def rng(self):
        return self._gpus.rng

    @rng.setter
    def rng(self, rng):
        self._gpus.rng = rng
        self._gpus.set_rings(save=rng.choice([1, 2, 8]), load=rng.choice([1, 2]))

    @property
    def end_chance(self):
        return 1.0 - self._gpus.slowness

    @end_chance.setter
    def end_chance(self, chance):
        self._gpus.slowness = {1.0: 0.01, 0.5: 0.1, 0.2: 0.3}[chance]


def test_scripts_end_with_right_tokens_and_nothing_left_over(bases, gpus, counts):
    events = Counter()
    for seed in range(150):
        events += play(bases, GpuWeather(gpus), seed, load_async=True, options=OPTIONS).events
    missing = INTERESTING - set(events) - {"failed loads", "failed saves", "loads", "saves"}
    assert not missing - {"ended by error"}, f"these scripts prove nothing about {missing}"
    assert gpus.num_steps > 10_000
    assert counts["save_delayed_blocks"] > 1000
    assert counts["save_busy_blocks"] == 0, "more was under way than the ring holds"
    assert counts["save_failed_blocks"] == 0
    assert events["external tokens"] > 1000


def test_scripts_with_an_ssd_tier_end_with_right_tokens_and_nothing_left_over(
    bases, gpus, counts, ssd, tmp_path
):
    for seed in range(80):
        options = OPTIONS | ssd | {"ssd_cache_dir": str(tmp_path / str(seed))}
        play(bases, GpuWeather(gpus), seed, load_async=True, options=options)
    assert counts["ssd_load_tokens"] > 100
    assert counts["ssd_corrupt_blocks"] == 0
