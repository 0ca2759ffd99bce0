"""FlexKV below HiCache beside SGLang's own backend `file`: 128 pages a call.

    .venv-sglang/bin/python -m benchmarks.sglang_storage [--json FILE] [--rounds N] [--work FOLDER]

All stand behind SGLang's real controller and host pools, and are called as it calls them: `file`
through copies of pages, FlexKV with their places, once with `block_format` cells and once native.
They take turns within a round, each writes new pages and reads them again. `file` goes through the
page cache: its writes end when the system has them. On a drive FlexKV's are on it when they end
(O_DIRECT), so its reads never come from the page cache there, and `file` reads once from the page
cache and once, dropped, from the drive. In memory (a tmpfs) all read from the page cache. FlexKV
verifies all that it reads, `file` nothing. FlexKV replaces the pages of the round before, as a tier
that is full does; `file` has no limit here. torch has one thread, as its threads wait for each
other where cores are few, which only slows `file`.
"""

import argparse
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from benchmarks import rows
from benchmarks.rows import Row
from benchmarks.ssd_lane import fio_bytes_per_s

SGLANG_TESTS = rows.ROOT / "compat_tests/sglang"
sys.path[:0] = [str(SGLANG_TESTS), str(SGLANG_TESTS / "stand_ins")]

import torch  # noqa: E402 SGLang and all below it want the stand-ins
from controller_rig import ControllerRig, Geometry  # noqa: E402
from sglang.srt.managers.cache_controller import PrefetchOperation  # noqa: E402
from sglang.srt.mem_cache.hicache_storage import HiCacheStorageExtraInfo  # noqa: E402
from sglang_process import flexkv  # noqa: E402

NUM_PAGES = 128
MEMORY = Path("/dev/shm")
ROOM_BYTES = 3 << 30
"""For what eight rounds of `file` leave there."""

FIO_DEPTH = 8
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}
"""The shape of Llama 3.2 1B: 32 KiB a token."""


class Case(NamedTuple):
    """Where pages are kept, of which size, in which order in SGLang's memory."""

    place: str
    page_tokens: int
    layout: str


CASES = (
    Case("memory", 64, "page_first"),
    Case("memory", 64, "page_first_direct"),
    Case("memory", 64, "layer_first"),
    Case("memory", 16, "page_first"),
    Case("drive", 64, "page_first"),
    Case("drive", 16, "page_first"),
)


class Taken(NamedTuple):
    """What one call has cost."""

    wall_s: float
    cpu_s: float
    """Of all threads of this process: what other work on the machine changes least."""


NAMES = ("cells", "native", "file")


class Contender:
    """A storage backend behind a controller, whose host pool holds `NUM_PAGES` random pages."""

    def __init__(self, folder: Path, case: Case, name: str) -> None:
        self._folder = folder / name
        self._folder.mkdir()
        room_gb = 1.25 * NUM_PAGES * _page_bytes(case) / 2**30
        backend, options = "file", {"file_storage_path": str(self._folder)}
        if name != "file":
            backend = "dynamic"
            options = flexkv(
                self._folder,
                ssd_cache_gb=room_gb,
                block_format=name,
                weight_version="random",
                trust_weight_version=True,
            )
        heads, size = MODEL["num_key_value_heads"], MODEL["head_dim"]
        geometry = Geometry(
            MODEL["num_hidden_layers"], heads, size, torch.bfloat16, case.page_tokens
        )
        self._rig = ControllerRig(
            folder / "model",
            case.layout,
            options,
            backend=backend,
            num_pages=NUM_PAGES,
            geometry=geometry,
        )
        self._rig.fill(1)
        self._pages = self._rig.pool.kv_buffer.clone()
        self._indices = torch.arange(NUM_PAGES * case.page_tokens)
        self._operation = PrefetchOperation("benchmark", [])

    def set(self, keys: list[str]) -> Taken:
        """Store all pages under new keys."""
        begin = Taken(time.perf_counter(), time.process_time())
        is_stored = self._rig.controller.page_set_func(keys, self._indices, _extra())
        taken = _since(begin)
        assert is_stored
        return taken

    def get(self, keys: list[str]) -> Taken:
        """Load all pages."""
        self._rig.pool.kv_buffer.zero_()
        begin = Taken(time.perf_counter(), time.process_time())
        num_loaded = self._rig.controller.page_get_func(
            self._operation, keys, self._indices, _extra()
        )
        taken = _since(begin)
        assert num_loaded == NUM_PAGES
        assert torch.equal(self._rig.pool.kv_buffer, self._pages)
        return taken

    def drop_page_cache(self) -> None:
        """Let the next read come from the drive."""
        for path in self._folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def fio_gb_s(self, page_bytes: int) -> float:
        """Return what fio reads from the same file: places on a drive differ in speed."""
        slab = next(self._folder.rglob("*.slab"), None)
        if slab is None:
            return 0.0
        num_bytes = slab.stat().st_size // page_bytes * page_bytes
        return fio_bytes_per_s(slab, num_bytes, "read", page_bytes >> 10, FIO_DEPTH) / 1e9

    def close(self) -> None:
        """Give everything back."""
        self._rig.close()


def _since(begin: Taken) -> Taken:
    return Taken(time.perf_counter() - begin.wall_s, time.process_time() - begin.cpu_s)


def _extra() -> HiCacheStorageExtraInfo:
    return HiCacheStorageExtraInfo(prefix_keys=[])


def keys_of(number: int) -> list[str]:
    """Return the keys of a sequence that no other round has."""
    return [hashlib.sha256(f"{number} {page}".encode()).hexdigest() for page in range(NUM_PAGES)]


def play_round(contenders: Sequence[Contender], case: Case, number: int) -> dict[str, list[Taken]]:
    """Return what each operation has cost each."""
    keys = keys_of(number)
    taken = {
        "set": [contender.set(keys) for contender in contenders],
        "get": [contender.get(keys) for contender in contenders],
    }
    if case.place == "drive":
        for contender in contenders:
            contender.drop_page_cache()
        taken["get, cold"] = [contender.get(keys) for contender in contenders]
    return taken


def measure_case(case: Case, work: Path, rounds: int) -> Iterator[Row]:
    """Yield a row for each operation."""
    with tempfile.TemporaryDirectory(dir=MEMORY if case.place == "memory" else work) as name:
        folder = Path(name)
        (folder / "model").mkdir()
        (folder / "model/config.json").write_text(json.dumps(MODEL))
        contenders = [Contender(folder, case, name) for name in NAMES]
        played = []
        for number in range(rounds + 1):
            print(f"{case}, round {number} of {rounds}", flush=True)
            taken = play_round(contenders, case, number)
            is_drive = case.place == "drive"
            fio = [one.fio_gb_s(_page_bytes(case)) for one in contenders] if is_drive else []
            played.append((taken, fio))
        for contender in contenders:
            contender.close()
    for operation in played[0][0]:
        samples = [Sample(taken[operation], fio) for taken, fio in played[1:]]
        yield _row(case, operation, samples)


def _page_bytes(case: Case) -> int:
    heads, size = MODEL["num_key_value_heads"], MODEL["head_dim"]
    return case.page_tokens * MODEL["num_hidden_layers"] * heads * size * 2 * 2


class Sample(NamedTuple):
    """One operation of a round."""

    taken: Sequence[Taken]
    """In the order of `NAMES`."""

    fio_gb_s: Sequence[float]


def _row(case: Case, operation: str, samples: Sequence[Sample]) -> Row:
    gigabytes = NUM_PAGES * _page_bytes(case) / 1e9
    row: Row = {
        "benchmark": "sglang_storage",
        "place": case.place,
        "layout": case.layout,
        "page_kib": _page_bytes(case) >> 10,
        "operation": operation,
    }
    for at, name in enumerate(NAMES):
        speeds = [gigabytes / one.taken[at].wall_s for one in samples]
        row |= rows.spread(f"{name}_gb_s", speeds)
        row |= rows.spread(f"{name}_cpu_s_gb", (one.taken[at].cpu_s / gigabytes for one in samples))
        if name != "file":
            ratios = (one.taken[-1].wall_s / one.taken[at].wall_s for one in samples)
            row |= rows.spread(f"{name}_over_file", ratios)
        if name != "file" and operation == "get, cold":
            of_fio = (speed / one.fio_gb_s[at] for speed, one in zip(speeds, samples, strict=True))
            row |= rows.spread(f"{name}_of_fio", of_fio)
    return row | {"rounds": len(samples)}


def measure(work: Path, rounds: int) -> Iterator[Row]:
    """Yield the rows of all cases."""
    work.mkdir(parents=True, exist_ok=True)
    around = rows.circumstances() | {"sglang": version("sglang")}
    for case in CASES:
        for row in measure_case(case, work, rounds):
            yield row | around


def find_missing() -> str:
    """Say what this machine lacks, if it lacks anything."""
    if shutil.which("fio") is None:
        return "the program fio is missing"
    free_bytes = shutil.disk_usage(MEMORY).free
    if free_bytes < ROOM_BYTES:
        return f"{MEMORY} has {free_bytes >> 20} MiB free, {ROOM_BYTES >> 20} are needed"
    return ""


def main() -> None:
    """Measure, print the table, and write the rows where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="file to write one JSON object a row to")
    parser.add_argument("--work", type=Path, default=rows.ROOT / ".work", help="on the drive")
    arguments = parser.parse_args()
    if missing := find_missing():
        sys.exit(f"sglang_storage: {missing}; nothing was measured")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    measured = list(measure(arguments.work.resolve(), arguments.rounds))
    print(rows.render(measured))
    if arguments.json:
        rows.write(arguments.json, measured)


if __name__ == "__main__":
    main()
