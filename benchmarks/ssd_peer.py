"""The SSD tier beside LMCache's disk backend: speed at 4 MiB, and what a restart and a flip do.

    python -m benchmarks.ssd_peer [--json FILE] [--rounds N] [--work FOLDER]

Both move the same 128 chunks of 4 MiB between memory and files of the same file system, 8 at a
time, in turns. LMCache is measured as it is by default (through the page cache, which is dropped
before reads; its writes end when the system has taken them) and with its option `use_odirect`.
Then each is opened again on what it has left, as after a restart; and one byte of every chunk is
changed on disk under one that runs: what it returns all the same is counted.

Needs LMCache 0.5.6 in this environment; without a GPU it installs by `pip install --no-deps` and
what its imports ask for.
"""

import argparse
import asyncio
import itertools
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np

from benchmarks import rows
from benchmarks.rows import Row
from benchmarks.ssd_lane import PAYLOAD_BYTES, Drive, flip_bytes
from flexkv_core.data.tiers.ssd.format import PAGE_BYTES, SLAB_SUFFIX, slot_bytes

try:
    import torch
    from lmcache.utils import CacheEngineKey
    from lmcache.v1.config import LMCacheEngineConfig
    from lmcache.v1.memory_management import MemoryObj
    from lmcache.v1.metadata import LMCacheMetadata
    from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend
    from lmcache.v1.storage_backend.local_disk_backend import LocalDiskBackend
except ModuleNotFoundError as error:
    sys.exit(f"ssd_peer: {error.name} is not in this environment; nothing was measured")

CHUNK_BYTES = 4 << 20
NUM_CHUNKS = PAYLOAD_BYTES // CHUNK_BYTES
KV_SHAPE = (32, 2, 256, 1, 128)
"""[layers, K and V, tokens, heads, head size] of a chunk in bfloat16."""

DEPTH = 8


class Store(Protocol):
    """What is compared."""

    def write_s(self) -> float:
        """Store all chunks under new keys; return the seconds."""

    def read_s(self) -> float:
        """Read all chunks, none of them from the page cache; return the seconds."""

    def flip(self) -> None:
        """Change one byte of every chunk on disk."""

    def count_served(self) -> int:
        """Return how many chunks a read gives out."""

    def count_found_after_restart(self) -> int:
        """Return how many chunks are known to another instance on the same files."""

    def close(self) -> None:
        """Give everything back."""


class FlexKvStore:
    """Our tier behind its lane."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tier"
        self._drive = Drive(self._folder, CHUNK_BYTES)

    def write_s(self) -> float:
        """See `Store`."""
        return self._drive.write(DEPTH)

    def read_s(self) -> float:
        """See `Store`."""
        return self._drive.read(DEPTH)

    def flip(self) -> None:
        """See `Store`."""
        for path in self._folder.rglob(f"*{SLAB_SUFFIX}"):
            offsets = range(2 * PAGE_BYTES, path.stat().st_size, slot_bytes(CHUNK_BYTES))
            flip_bytes(path, offsets)

    def count_served(self) -> int:
        """See `Store`."""
        return self._drive.count_readable()

    def count_found_after_restart(self) -> int:
        """See `Store`."""
        return self._drive.reopen()

    def close(self) -> None:
        """See `Store`."""
        self._drive.close()


class LmCacheStore:
    """LMCache's backend `local_disk`."""

    def __init__(self, folder: Path, *, use_odirect: bool) -> None:
        self._folder = folder / f"lmcache-{use_odirect}"
        self._use_odirect = use_odirect
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._disk = self._open()
        self._numbers = itertools.count()
        self._keys: list[CacheEngineKey] = []
        noise = np.random.default_rng(1).integers(0, 256, CHUNK_BYTES, np.uint8)
        self._chunk = self._allocate()
        np.frombuffer(self._chunk.byte_array, np.uint8)[:] = noise
        self.write_s()

    def write_s(self) -> float:
        """See `Store`."""
        self._disk.batched_remove(self._keys)
        self._keys = [_key(next(self._numbers)) for _ in range(NUM_CHUNKS)]
        done = threading.Semaphore(0)
        start = time.perf_counter()
        for key in self._keys:
            self._disk.submit_put_task(key, self._chunk, lambda _: done.release())
        for _ in self._keys:
            done.acquire()
        return time.perf_counter() - start

    def read_s(self) -> float:
        """See `Store`."""
        self._drop_page_cache()
        start = time.perf_counter()
        self._read()
        return time.perf_counter() - start

    def flip(self) -> None:
        """See `Store`."""
        for path in self._folder.glob("*.pt"):
            flip_bytes(path, [PAGE_BYTES])

    def count_served(self) -> int:
        """See `Store`."""
        self._drop_page_cache()
        return self._read()

    def count_found_after_restart(self) -> int:
        """See `Store`."""
        other = self._open()
        found = sum(other.contains(key) for key in self._keys)
        other.close()
        return found

    def close(self) -> None:
        """See `Store`."""
        self._disk.close()
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _open(self) -> LocalDiskBackend:
        config = LMCacheEngineConfig.from_defaults(
            chunk_size=256,
            local_cpu=False,
            max_local_cpu_size=2.0,
            local_disk=str(self._folder),
            max_local_disk_size=64.0,
            extra_config={"use_odirect": self._use_odirect, "disk_io_threads": DEPTH},
        )
        metadata = LMCacheMetadata("model", 1, 1, 0, 0, torch.bfloat16, KV_SHAPE)
        memory = LocalCPUBackend(config, metadata, "cpu")
        return LocalDiskBackend(config, self._loop, memory, "cpu", metadata=metadata)

    def _allocate(self) -> MemoryObj:
        layers, planes, tokens, heads, size = KV_SHAPE
        shape = torch.Size((planes, layers, tokens, heads * size))
        return self._disk.local_cpu_backend.allocate(shape, torch.bfloat16)

    def _read(self) -> int:
        """Read everything, `DEPTH` chunks at a time; return how many were given out."""
        served = 0
        for at in range(0, NUM_CHUNKS, DEPTH):
            chunks = self._disk.batched_get_blocking(self._keys[at : at + DEPTH])
            served += sum(chunk is not None for chunk in chunks)
            for chunk in filter(None, chunks):
                chunk.ref_count_down()
        return served

    def _drop_page_cache(self) -> None:
        for path in self._folder.glob("*.pt"):
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def _key(number: int) -> CacheEngineKey:
    return CacheEngineKey("model", 1, 0, number, torch.bfloat16)


def measure(work: Path, rounds: int) -> Iterator[Row]:
    """Yield a row for each store."""
    with tempfile.TemporaryDirectory(prefix="peer-", dir=work) as name:
        folder = Path(name)
        stores: dict[str, Store] = {
            "FlexKV": FlexKvStore(folder),
            "LMCache": LmCacheStore(folder, use_odirect=False),
            "LMCache, use_odirect": LmCacheStore(folder, use_odirect=True),
        }
        speeds: dict[tuple[str, str], list[float]] = {}
        for number in range(rounds + 1):
            for store_name, store in stores.items():
                print(f"round {number} of {rounds}: {store_name}", file=sys.stderr, flush=True)
                for operation, run in (("write", store.write_s), ("read", store.read_s)):
                    mb_s = PAYLOAD_BYTES / 1e6 / run()
                    speeds.setdefault((store_name, operation), []).append(mb_s)
        for store_name, store in stores.items():
            found = store.count_found_after_restart()
            store.flip()
            yield {
                "benchmark": "ssd_peer",
                "store": store_name,
                **rows.spread("write_mb_s", speeds[store_name, "write"][1:]),
                **rows.spread("read_mb_s", speeds[store_name, "read"][1:]),
                "chunks": NUM_CHUNKS,
                "found_after_restart": found,
                "served_after_a_flip_in_each": store.count_served(),
                "rounds": rounds,
            }
            store.close()


def main() -> None:
    """Measure, print the table, and write the rows where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="file to write one JSON object a row to")
    parser.add_argument("--work", type=Path, default=rows.ROOT / ".work", help="on the drive")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    around = rows.circumstances() | {"lmcache": version("lmcache")}
    measured = [row | around for row in measure(arguments.work.resolve(), arguments.rounds)]
    print(rows.render(measured))
    if arguments.json:
        rows.write(arguments.json, measured)


if __name__ == "__main__":
    main()
