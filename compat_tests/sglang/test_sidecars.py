"""A model whose pages have parts beside their KV, on SGLang's real controller for such models."""

import pytest
from controller_rig import TOKENS, ControllerRig, place_of
from sglang.srt.mem_cache.hicache_storage import PoolName
from sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller import HybridCacheController
from sglang.srt.mem_cache.pool_host import HostPoolGroup, PoolEntry
from sglang.srt.runtime_context import get_parallel
from sglang_process import flexkv

from flexkv_core.errors import ConfigError


@pytest.fixture
def attach(model, tmp_path):
    """Attach our storage to a controller with pools of these names, the KV first."""
    options = flexkv(tmp_path)
    rig = ControllerRig(model("oracle"), "page_first", options)
    rig.controller.detach_storage_backend()

    def attach(*names):
        entries = [
            PoolEntry(name, rig.make_pool("page_first", 32), rig.device, int, name is PoolName.KV)
            for name in names
        ]
        with get_parallel().override(**place_of(0, 1)):
            controller = HybridCacheController(
                rig.controller.mem_pool_device_allocator,
                HostPoolGroup(entries),
                TOKENS,
                None,
                None,
                io_backend="direct",
            )
            controller.attach_storage_backend(
                "dynamic",
                prefetch_threshold=TOKENS,
                storage_backend_extra_config=rig.options,
                host_pools=entries,
            )
        controller.detach_storage_backend()

    return attach


def test_a_model_with_nothing_beside_its_kv_is_served(attach):
    attach(PoolName.KV)


@pytest.mark.parametrize("name", [PoolName.SWA, PoolName.MAMBA, PoolName.INDEXER, PoolName.DRAFT])
def test_a_model_with_parts_beside_its_kv_is_refused_in_one_sentence(attach, name):
    with pytest.raises(ConfigError, match=f"it keeps a pool {name} beside its KV") as caught:
        attach(PoolName.KV, name)
    assert "\n" not in str(caught.value)
