"""Models that keep more than KV, on SGLang's real controller for them and its real host pools."""

import pytest
import torch
from controller_rig import TOKENS
from sglang.srt.mem_cache.hicache_storage import PoolHitPolicy, PoolName, PoolTransfer
from sglang.srt.mem_cache.utils import get_storage_hash_str
from sglang_process import flexkv
from sidecar_rig import IndexerRig, SidecarRig, indexer, state, tensors_of, window
from storage_case import OurCase

from flexkv_connectors.sglang.sidecar_contract import SidecarCase, SidecarContract

PROMPT = list(range(8 * TOKENS))
KEYS = get_storage_hash_str(PROMPT, None, page_size=TOKENS)
POOLS = {
    PoolName.SWA: (SidecarRig, window),
    PoolName.MAMBA: (SidecarRig, state),
    PoolName.INDEXER: (IndexerRig, indexer),
}


class OurSidecarCase(SidecarCase):
    """Ours, over a directory."""

    def __init__(self, rig, name, directory):
        self.kv, self.name = OurCase(rig, directory), name

    def indices(self, page_ids):
        return self.kv.rig.sidecar_indices(self.name, page_ids)

    def page(self, page_id):
        return self.kv.rig.sidecar_page(self.name, page_id)


@pytest.fixture
def start(model, tmp_path):
    """Start controllers on one directory, one after the other."""
    rigs = []

    def start(*names, layout="page_first_direct", place=None, **options):
        for rig in rigs:
            rig.close()
        kind, _ = POOLS[names[0]]
        makers = {name: POOLS[name][1] for name in names}
        storage = flexkv(tmp_path, **options)
        rigs[:] = [kind(model("oracle"), layout, storage, sidecars=makers, **(place or {}))]
        rigs[0].fill(1)
        return rigs[0]

    yield start
    for rig in rigs:
        rig.close()


@pytest.mark.parametrize("layout", ["page_first", "page_first_direct"])
@pytest.mark.parametrize("name", POOLS)
class TestOurSidecars(SidecarContract):
    @pytest.fixture
    def case(self, start, name, layout, tmp_path):
        return OurSidecarCase(start(name, layout=layout), name, tmp_path)
