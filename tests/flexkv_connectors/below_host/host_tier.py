"""An engine with a host tier: its ranks, and pools of three pages."""

import numpy as np

from flexkv_connectors.below_host.pool import CellPages, StoredPool
from flexkv_connectors.below_host.rank import StorageRank, parse_options
from flexkv_core.block.layout import BlockFormat, Column
from flexkv_core.block_store.blocks import Access, Blocks
from flexkv_core.data.tiers.memory import PageMemory, PagePiece
from flexkv_core.plan import Status
from flexkv_core.testing.geometry import make_pages

PAGES = 3
KEYS = [bytes([number + 1]) * 32 for number in range(PAGES)]


def rank(directory, *, options=(), **changes):
    given = {"ssd_cache_gb": 1, "ssd_cache_dir": str(directory), **dict(options)}
    cache = parse_options(given, "the engine has the host memory")
    values = {"quota_bytes": cache.ssd_cache_bytes, "num_replicas": 1, "is_follower": False}
    return StorageRank(cache=cache, engine_id="engine", **values | changes)


class HostPool:
    """Pages of random bytes, which are stored as cells or as they are."""

    def __init__(self, *, is_native=False, seed=1):
        self.memory, self.pages = make_pages("PLBNHC", P=2, L=2, B=PAGES, N=16, H=2, C=32)
        self.memory[:] = np.random.default_rng(seed).integers(0, 256, self.memory.size, np.uint8)
        fmt = BlockFormat(num_heads=2, num_layers=2, block_tokens=16, token_bytes=64, cell_heads=2)
        self.content = CellPages(self.pages, fmt)
        self.cell_bytes = fmt.cell_bytes
        if is_native:
            address, num_bytes = self.memory.ctypes.data, self.memory.size // PAGES
            self.content = PageMemory([PagePiece(address, num_bytes, num_bytes)], PAGES)
            self.cell_bytes = num_bytes

    def describe(self, namespace, name="kv", access=Access.CHAIN, **changes):
        values = {
            "name": name,
            "namespace": namespace,
            "columns": (Column(first_head=0, num_heads=2, first_layer=0, num_layers=2),),
            "cell_bytes": self.cell_bytes,
            "num_pages": PAGES,
            "access": access,
            "content": self.content,
            "is_replicated": access is Access.CHAIN,
        }
        return StoredPool(**values | changes)


def save(store, keys=KEYS):
    """Store pages; return which are stored."""
    return _wait(store, store.submit_save(Blocks(keys, range(len(keys)))))


def load(store, keys=KEYS):
    """Fill pages; return which are filled."""
    return _wait(store, store.submit_load(Blocks(keys, range(len(keys)))))


def _wait(store, job_id):
    return [status is Status.OK for status in store.wait(job_id).statuses]
