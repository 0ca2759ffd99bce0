"""Every way in which vLLM lays out a KV cache, saved to the host tier and loaded back.

One rank's worker half over tensors that vLLM's own code has placed: see `kv_cache_rig`.
"""

from dataclasses import replace

import numpy as np
import pytest

from flexkv_core.errors import LayoutError
from flexkv_core.testing.instant_streams import use_instant_streams

LAYOUTS = ("LBHNC", "LBNHC", "LHBNC", "BLHNC", "BLNHC", "BHLNC")
FORMATS = (
    "small values",
    "fp8 as uint8",
    "fp8",
    "scales behind the values",
    "K and V in head slots",
    "padded pages",
    "aligned pages",
    "mla fp8",
)
WHOLE = [(spec, layout) for spec in ("bf16", "mla") for layout in LAYOUTS]
WHOLE += [(spec, layout) for spec in FORMATS for layout in ("LBNHC", "BLHNC")]
# vLLM splits its blocks for a kernel only where a block is one dense page.
SPLIT = [("bf16", layout, tokens) for layout in ("LBHNC", "LBNHC") for tokens in (4, 8)]
SPLIT += [("mla", layout, 4) for layout in ("LBHNC", "LBNHC", "LHBNC")]
CASES = [(*case, 16) for case in WHOLE] + SPLIT


@pytest.fixture(scope="module")
def caches():
    import kv_cache_rig

    return kv_cache_rig


@pytest.fixture(params=["cpu", "cuda"])
def device(request, monkeypatch):
    """Where the worker half believes the tensors to be: CUDA's streams then run at once."""
    if request.param == "cuda":
        from flexkv_kernels import copy_pages_torch
        from simulated_gpu import StagingSplit, pretend_gpus

        use_instant_streams(monkeypatch, copy_pages_torch)
        pretend_gpus(monkeypatch, lambda: StagingSplit(save=2, load=1))


@pytest.fixture(params=CASES, ids=str)
def rig(caches, device, request):
    rig = caches.Rig(caches.Case(*request.param))
    yield rig
    rig.worker.session.shutdown()


def test_no_layout_or_format_is_left_out(caches):
    assert set(LAYOUTS) == {layout.name for layout in caches.KVCacheLayout}
    assert set(FORMATS) | {"bf16", "mla"} == set(caches.SPECS)


def test_a_saved_block_holds_what_vllm_sees_head_by_head_and_layer_by_layer(rig):
    rig.save([5, 2, 7, 10], slots=[3, 1])
    by_head = rig.ramp.transpose(2, 0, 1, 3, 4)  # [H, L, B, N, C]
    assert by_head[:, :, [5, 2]].tobytes() == rig.slot(3)
    assert by_head[:, :, [7, 10]].tobytes() == rig.slot(1)


def test_a_loaded_page_is_what_was_saved_and_no_other_byte_is_touched(caches, rig):
    rig.save([5, 2, 7, 10], slots=[3, 1])
    rig.storage.fill_(caches.POISON)

    rig.load([3, 1], pages=[9, 4, 11], first_page=1)

    expected = np.full_like(rig.ramp, caches.POISON)
    expected[:, [9, 4, 11]] = rig.ramp[:, [2, 7, 10]]
    assert np.array_equal(expected, rig.read())
    with_padding = np.frombuffer(bytes(rig.storage), np.uint8)
    num_written = np.count_nonzero(expected != caches.POISON)
    assert num_written == np.count_nonzero(with_padding != caches.POISON)


def test_layers_that_share_one_tensor_are_stored_once(caches):
    spec = caches.SPECS["bf16"]
    tensors = caches.allocate(spec, "LBHNC")
    sharing = {f"model.layers.{20 + layer}.attn": tensors[caches.NAMES[layer]] for layer in (3, 0)}
    alone = pool_of(caches, tensors)
    assert alone == pool_of(caches, tensors | sharing)
    assert alone.num_layers == caches.NUM_LAYERS


def test_layers_in_allocations_of_their_own_are_found_wherever_they_lie(caches):
    spec = caches.SPECS["bf16"]
    apart = {name: caches.allocate(spec, "LBHNC", names=[name])[name] for name in caches.NAMES}
    pool = pool_of(caches, dict(reversed(apart.items())))
    starts = [
        run.address + i * run.layer_stride for run in pool.runs for i in range(run.num_layers)
    ]
    assert starts == [tensor.data_ptr() for tensor in apart.values()]


def test_a_latent_without_a_head_axis_is_one_head(caches):
    tensors = caches.allocate(caches.SPECS["mla"], "LBNHC")
    three_axes = {name: tensor.squeeze(1) for name, tensor in tensors.items()}
    expected, got = pool_of(caches, tensors, "mla"), pool_of(caches, three_axes, "mla")
    assert expected == replace(got, head_stride=expected.head_stride)  # of one head: never used


UNKNOWN = {
    "another number of heads": lambda tensor: tensor[:, :1],
    "pages that are no part of a block": lambda tensor: tensor[:, :, :5],
    "other bytes per token": lambda tensor: tensor[..., :8],
    "tokens innermost": lambda tensor: tensor.transpose(2, 3),
    "every other element": lambda tensor: tensor.repeat(1, 1, 1, 2)[..., ::2],
    "K and V in an axis of their own": lambda tensor: tensor.unflatten(3, (2, -1)),
    "two axes": lambda tensor: tensor.flatten(1),
}


@pytest.mark.parametrize("change", UNKNOWN.values(), ids=UNKNOWN)
def test_a_layout_that_is_not_the_declared_one_is_refused(caches, change):
    tensors = caches.allocate(caches.SPECS["bf16"], "LBHNC")
    changed = {name: change(tensor) for name, tensor in tensors.items()}
    expect_refusal(caches, changed, str(tuple(changed[caches.NAMES[0]].shape)))


@pytest.mark.parametrize("difference", ["fewer pages", "other strides"])
def test_layers_that_differ_are_refused(caches, difference):
    spec, last = caches.SPECS["bf16"], caches.NAMES[-1]
    tensors = caches.allocate(spec, "LBHNC")
    other = {
        "fewer pages": tensors[last][:-1],
        "other strides": caches.allocate(spec, "LBNHC", names=[last])[last],
    }
    expect_refusal(caches, tensors | {last: other[difference]}, str(other[difference].stride()))


def test_a_rank_with_other_layers_than_declared_does_not_start(caches):
    spec = caches.SPECS["bf16"]
    worker = caches.WorkerHalf(caches.deployment(spec), caches.Promises(), None)
    with pytest.raises(LayoutError, match="heads, layers, bytes"):
        worker.register(caches.allocate(spec, "LBHNC", names=caches.NAMES[:-1]))


def pool_of(caches, tensors, spec="bf16"):
    from flexkv_connectors.vllm.kv_caches import page_pool

    return page_pool(tensors, caches.declared(caches.SPECS[spec]))


def expect_refusal(caches, tensors, got):
    with pytest.raises(LayoutError) as refusal:
        pool_of(caches, tensors)
    sentence = str(refusal.value)
    assert got in sentence
    assert ". " not in sentence, "one sentence is enough"
    assert "\n" not in sentence
