"""The probe at the start lets every layout of vLLM's pass, and none that is not what it seems."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from flexkv_core.errors import LayoutError

LAYOUTS = ("LBHNC", "LBNHC", "LHBNC", "BLHNC", "BLNHC", "BHLNC")


@pytest.fixture(scope="module")
def caches():
    import kv_cache_rig

    return kv_cache_rig


@pytest.fixture(params=LAYOUTS)
def cache(caches, request):
    """Return a cache's layers with a byte pattern in them, and the geometry that we read."""
    import torch

    from flexkv_connectors.vllm.kv_caches import layers_of, page_pool

    spec = square_spec()
    tensors = caches.allocate(spec, request.param)
    storage = tensors[caches.NAMES[0]].untyped_storage()
    storage.copy_(torch.arange(len(storage)).to(torch.uint8).untyped_storage())
    return layers_of(tensors), page_pool(tensors, caches.declared(spec))


def square_spec():
    """Return a cache with as many heads as tokens in a page: no shape tells a swap of the two."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    return FullAttentionSpec(block_size=16, num_kv_heads=16, head_size=8, dtype=torch.bfloat16)


def test_the_layout_that_is_there_passes_and_keeps_every_byte(cache):
    from flexkv_connectors.vllm.layout_probe import probe

    layers, pool = cache
    before = bytes(layers[0].untyped_storage())
    probe(layers, pool)
    assert bytes(layers[0].untyped_storage()) == before


def swapped_axes(pool):
    return replace(pool, head_stride=pool.token_stride, token_stride=pool.head_stride)


def closer_pages(pool):
    return replace(pool, page_stride=pool.token_stride)


def reversed_layers(pool):
    (run,) = pool.runs
    last = run.address + (run.num_layers - 1) * run.layer_stride
    return replace(pool, runs=(replace(run, address=last, layer_stride=-run.layer_stride),))


@pytest.mark.parametrize("swap", [swapped_axes, closer_pages, reversed_layers])
def test_a_swapped_layout_is_refused_and_keeps_every_byte(cache, swap):
    from flexkv_connectors.vllm.layout_probe import probe

    layers, pool = cache
    before = bytes(layers[0].untyped_storage())
    with pytest.raises(LayoutError, match="has other elements"):
        probe(layers, swap(pool))
    assert bytes(layers[0].untyped_storage()) == before


def test_a_worker_probes_before_it_opens_anything(caches, monkeypatch):
    from flexkv_connectors.vllm import worker

    spec = square_spec()
    real = worker.page_pool
    monkeypatch.setattr(worker, "page_pool", lambda *given: swapped_axes(real(*given)))
    half = object.__new__(worker.WorkerHalf)
    half._deployment = SimpleNamespace(page_shape=caches.declared(spec), page_order="plain")
    with pytest.raises(LayoutError, match="has other elements"):
        half.register(caches.allocate(spec, "LBHNC"))
