"""The worker half of a rank on a GPU: what it pins, and how it ends."""

import pytest

from flexkv_core.data.tiers import pinning
from flexkv_core.errors import LayoutError, TierError

SLOTS_IN_A_PIECE = 3


@pytest.fixture
def gpus(monkeypatch):
    from simulated_gpu import SimulatedGpus

    return SimulatedGpus(monkeypatch)


@pytest.fixture
def rig(gpus, monkeypatch):
    from kv_cache_rig import Case, Rig

    monkeypatch.setattr(pinning, "_CHUNK_BYTES", SLOTS_IN_A_PIECE * 8192)
    return Rig(Case("bf16", "LBNHC"))


@pytest.fixture
def waits(gpus, rig, monkeypatch):
    """Collect how long the device is waited for; time passes only there."""
    (device,) = gpus.devices
    seen, wait_for = [], device.wait_for

    def noted(event, timeout_s):
        seen.append(timeout_s)
        return wait_for(event, timeout_s)

    monkeypatch.setattr(device, "wait_for", noted)
    return seen


def test_every_slot_is_pinned_in_pieces_of_whole_slots(gpus, rig):
    pool = rig.worker.session.pool
    sizes = set(gpus.cuda.pinned.values())
    assert sum(gpus.cuda.pinned.values()) == pool.num_slots * pool.slot_stride
    assert len(gpus.cuda.pinned) > 1
    assert all(size % pool.slot_stride == 0 for size in sizes)


def test_the_kernel_is_compiled_at_start_and_leaves_every_page_as_it_was(rig, gpus):
    assert gpus.num_pages_gathered > 0
    assert (rig.read() == rig.ramp).all()


def test_a_device_that_does_not_copy_is_refused_at_start(gpus, monkeypatch):
    from kv_cache_rig import Case, Rig
    from simulated_gpu import LateDevice

    monkeypatch.setattr(LateDevice, "step", lambda device: False)
    with pytest.raises(TierError, match="has not copied a page"):
        Rig(Case("bf16", "LBNHC"))


def test_shutdown_ends_what_is_under_way_and_gives_the_memory_back(gpus, rig, waits):
    expected = rig.ramp[:, [5, 2]].transpose(2, 0, 1, 3, 4).tobytes()
    slots = rig.worker.session.pool.buffer
    stride, size = rig.worker.session.pool.slot_stride, len(expected)
    rig.order_save([5, 2], slots=[3])
    rig.worker.session.shutdown()
    assert bytes(slots[3 * stride : 3 * stride + size]) == expected
    assert gpus.cuda.pinned == {}


def test_shutdown_leaves_a_stuck_device_its_memory_after_a_time(gpus, rig, waits, monkeypatch):
    rig.order_save([5, 2], slots=[3])
    pinned = dict(gpus.cuda.pinned)
    monkeypatch.setattr(gpus.devices[0], "step", lambda: False)
    rig.worker.session.shutdown()
    assert gpus.cuda.pinned == pinned
    assert sum(waits) <= 4.0, "vLLM kills who takes longer"


def test_pages_that_keep_k_and_v_apart_are_refused(rig):
    from dataclasses import replace

    from flexkv_connectors.session.gpu_share import GpuShare

    session = rig.worker.session
    apart = replace(session._pages, rest=session._pages)
    with pytest.raises(LayoutError, match="K and V lie apart"):
        GpuShare(session._deployment, session._layers, apart, session.pool)


def test_pages_of_fewer_layers_than_the_model_has_are_refused(rig):
    """Layers that share their KV count once."""
    from dataclasses import replace

    from flexkv_connectors.session.gpu_share import GpuShare

    session = rig.worker.session
    run, *_ = session._pages.runs
    fewer = replace(session._pages, runs=(replace(run, num_layers=1),))
    with pytest.raises(LayoutError, match="must be made from the same model and rank"):
        GpuShare(session._deployment, session._layers[:1], fewer, session.pool)
