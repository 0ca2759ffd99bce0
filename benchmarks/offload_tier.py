"""FlexKV's tier below vLLM's own offloading, beside vLLM's tier `fs`: speed, look-ups, flips, room.

    python -m benchmarks.offload_tier [--json FILE] [--rounds N] [--work FOLDER]

Each tier stands below a real tiering manager of vLLM, which is called as vLLM's scheduler calls it
while nothing computes: eight requests at once, each with a job of several rows, and steps 1 ms
apart in which all that wait for rows ask for them again. The two take turns within a round; each
stores new rows, drops them from host memory, and loads them. Both write and read with O_DIRECT, so
nothing comes from the page cache. FlexKV verifies what it loads, and once its quota is full it
replaces the rows of the rounds before; `fs` has no limit. `busy` has a thread of pure Python beside
them.

In the end one byte of every row is changed on disk, and all are loaded once more: the rows that a
manager delivers although they are not what was stored are counted.
"""

import argparse
import hashlib
import itertools
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from typing_extensions import override

from benchmarks import rows
from benchmarks.rows import Row
from benchmarks.ssd_lane import busy_thread, flip_bytes
from demo.model import build_model
from flexkv_core.data.tiers.ssd.format import PAGE_BYTES, SLAB_SUFFIX, slot_bytes

VLLM_TESTS = rows.ROOT / "compat_tests/vllm"
sys.path[:0] = [str(VLLM_TESTS), str(VLLM_TESTS.parent)]

from identity_rig import engine_config  # noqa: E402 the line above makes it importable
from offload_rig import OffloadRig, translated  # noqa: E402 the same
from vllm.config import VllmConfig  # noqa: E402 the same
from vllm.utils.gc_utils import freeze_gc_heap  # noqa: E402 the same
from vllm.v1.kv_offload.base import (  # noqa: E402 the same
    LookupResult,
    OffloadKey,
    ReqContext,
    ScheduleEndContext,
    make_offload_key,
)
from vllm.v1.kv_offload.tiering.fs.io import probe_o_direct  # noqa: E402 the same

ROW_KIB = (128, 512, 2048, 4096)
PAGE_TOKENS = 16
PAGE_KIB = 128
"""What a page of the demo's model takes; a row is one or more."""

NUM_REQUESTS = 8
PAYLOAD_BYTES = 128 << 20
HOST_BYTES = PAYLOAD_BYTES + (32 << 20)
QUOTA_BYTES = 2 * PAYLOAD_BYTES

STEP_S = 0.001
"""What vLLM's engine sleeps in a step that computes nothing (0.32, `_process_engine_step`)."""

LOOKUP_STEP_S = 0.02
"""Enough for `fs` to have every answer in the second step."""

NAMES = ("flexkv", "fs")


class Taken(NamedTuple):
    """What one operation has cost."""

    wall_s: float
    cpu_s: float
    """Of all threads of this process."""

    @classmethod
    def since(cls, begin: "Taken") -> "Taken":
        """Return what has been taken since `begin`."""
        return cls(time.perf_counter() - begin.wall_s, time.process_time() - begin.cpu_s)


NOTHING = Taken(0.0, 0.0)


class Asked(NamedTuple):
    """The CPU time of a look-up, for each key: what else runs on the machine changes it least."""

    scheduler_us: float
    all_us: float
    """Of all threads of this process: `fs` looks into its folders on one of its own."""


THREADS = {"scheduler_us": "the scheduler's thread", "all_us": "all threads"}


class Request(NamedTuple):
    """One of vLLM's requests, and which rows of the payload are under its keys."""

    context: ReqContext
    keys: list[OffloadKey]
    part: slice


class FsRig(OffloadRig):
    """The same manager and host memory over vLLM's own tier, which is open at once."""

    @override
    def open(self) -> "FsRig":
        return self

    @override
    def translated(self) -> VllmConfig:
        config = translated(self.engine, uses_ssd=False)
        tier = {"type": "fs", "root_dir": str(self.engine.cache.ssd_directories[0])}
        config.kv_transfer_config.kv_connector_extra_config["secondary_tiers"] = [tier]
        return config


class Contender:
    """A tier below vLLM's manager, and what vLLM's scheduler has the manager do."""

    def __init__(self, rig: OffloadRig, folder: Path, payload: np.ndarray) -> None:
        self._rig = rig.open()
        self._manager = rig.manager
        self._folder = folder
        self._payload = payload
        self._names = map(str, itertools.count())

    def store(self, keys: Sequence[OffloadKey], *, is_busy: bool = False) -> Taken:
        """Store the payload under new keys, and forget it in host memory."""
        requests = self._begin(keys, NUM_REQUESTS)
        for request in requests:
            output = self._manager.prepare_store(request.keys, request.context)
            assert output.keys_to_store == request.keys
            self._rig.rows[output.store_spec.chunk_ids] = self._payload[request.part]
        with busy_thread(wanted=is_busy):
            begin = Taken.since(NOTHING)
            for request in requests:
                self._manager.complete_store(request.keys, request.context)
            while self._manager.has_pending_work():
                self._step()
            taken = Taken.since(begin)
        self._end(requests)
        return taken

    def load(self, keys: Sequence[OffloadKey], *, is_busy: bool = False) -> Taken:
        """Have the payload brought to host memory, and forget it there."""
        taken, num_right, num_wrong = self._load(keys, is_busy=is_busy)
        assert (num_right, num_wrong) == (len(keys), 0), f"{num_right} right, {num_wrong} wrong"
        return taken

    def count_wrong(self, keys: Sequence[OffloadKey]) -> int:
        """Return how many rows are delivered, none of which is what was stored."""
        _, num_right, num_wrong = self._load(keys, is_busy=False)
        assert not num_right, f"{num_right} rows were not changed on disk"
        return num_wrong

    def look_up(self, keys: Sequence[OffloadKey], answer: LookupResult) -> Asked:
        """Ask the tier for keys of one request, step by step, until it gives its answer."""
        requests = self._begin(keys, 1)
        context, waiting = requests[0].context, list(keys)
        ask, end_step = self._rig.tier.lookup, self._rig.tier.on_schedule_end
        scheduler_s, all_s = time.thread_time(), time.process_time()
        while waiting:
            waiting = [key for key in waiting if ask(key, context) is LookupResult.RETRY]
            end_step(ScheduleEndContext((), ()))
            time.sleep(LOOKUP_STEP_S)
        taken_s = time.thread_time() - scheduler_s, time.process_time() - all_s
        assert {ask(key, context) for key in keys} == {answer}
        self._end(requests)
        return Asked(*(1e6 * seconds / len(keys) for seconds in taken_s))

    def disk_mib(self) -> int:
        """Return what the files take."""
        files = [path for path in self._folder.rglob("*") if path.is_file()]
        return sum(file.stat().st_blocks * 512 for file in files) >> 20

    def flip(self) -> None:
        """Change one byte of every row on disk."""
        row_bytes = self._payload.shape[1]
        for file in self._folder.rglob("*.bin"):
            flip_bytes(file, [row_bytes // 2])
        for slab in self._folder.rglob(f"*{SLAB_SUFFIX}"):
            flip_bytes(slab, range(2 * PAGE_BYTES, slab.stat().st_size, slot_bytes(row_bytes)))

    def close(self) -> None:
        """Give everything back."""
        self._rig.close()

    def _load(self, keys: Sequence[OffloadKey], *, is_busy: bool) -> tuple[Taken, int, int]:
        """Return what it has cost, and how many rows came as they were stored, and otherwise."""
        waiting = requests = self._begin(keys, NUM_REQUESTS)
        with busy_thread(wanted=is_busy):
            begin = Taken.since(NOTHING)
            while waiting := [request for request in waiting if self._has_to_wait(request)]:
                self._step()
            taken = Taken.since(begin)
        is_right = [right for request in requests for right in self._compare(request)]
        self._end(requests)
        return taken, is_right.count(True), is_right.count(False)

    def _begin(self, keys: Sequence[OffloadKey], num_requests: int) -> list[Request]:
        step = len(keys) // num_requests
        parts = [slice(first, first + step) for first in range(0, len(keys), step)]
        return [
            Request(self._rig.begin(next(self._names)), list(keys[part]), part) for part in parts
        ]

    def _end(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._rig.end(request.context.req_id)
        self._rig.forget_rows()

    def _step(self) -> None:
        self._rig.step()
        time.sleep(STEP_S)

    def _has_to_wait(self, request: Request) -> bool:
        """Ask for all rows of a request, as vLLM does in each step until it has all answers."""
        answers = {self._manager.lookup(key, request.context) for key in request.keys}
        return bool(answers & {LookupResult.RETRY, LookupResult.HIT_PENDING})

    def _compare(self, request: Request) -> Iterator[bool]:
        """Yield for each row of a request that is there whether it is what was stored."""
        for key, stored in zip(request.keys, self._payload[request.part], strict=True):
            if self._manager.lookup(key, request.context) is LookupResult.HIT:
                spec = self._manager.prepare_load([key], request.context)
                yield np.array_equal(self._rig.rows[spec.chunk_ids[0]], stored)
                self._manager.complete_load([key], request.context)


class Pair:
    """Both tiers with rows of one size."""

    def __init__(self, config: VllmConfig, folder: Path, row_kib: int) -> None:
        self.num_rows = PAYLOAD_BYTES // (row_kib << 10)
        self._numbers = itertools.count()
        shape = self.num_rows, row_kib << 10
        payload = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
        options = {
            "cpu_cache_gb": HOST_BYTES / 2**30,
            "ssd_cache_gb": QUOTA_BYTES / 2**30,
            "block_tokens": row_kib // PAGE_KIB * PAGE_TOKENS,
            "promotion_timeout_s": 60,  # what is slow is to be seen as slow
        }
        self._tiers = [
            (name, Contender(kind(config, folder / name, **options), folder / name, payload))
            for name, kind in (("flexkv", OffloadRig), ("fs", FsRig))
        ]
        freeze_gc_heap()  # as vLLM's engine does once it has started

    def new_keys(self) -> list[OffloadKey]:
        """Return a key for each row of the payload."""
        number = next(self._numbers)
        names = [f"{number} {row}".encode() for row in range(self.num_rows)]
        return [make_offload_key(hashlib.sha256(name).digest(), 0) for name in names]

    def store_and_load(self, *, is_busy: bool) -> dict[str, dict[str, Taken]]:
        """Return what each operation on new rows has cost each tier."""
        keys = self.new_keys()
        self._tiers.reverse()
        return {
            "store": {name: tier.store(keys, is_busy=is_busy) for name, tier in self._tiers},
            "load": {name: tier.load(keys, is_busy=is_busy) for name, tier in self._tiers},
        }

    def look_up(self) -> dict[str, dict[str, Asked]]:
        """Return what a look-up costs with each tier, by its answer."""
        stored, unknown = self.new_keys(), self.new_keys()
        self._tiers.reverse()
        for _, tier in self._tiers:
            tier.store(stored)
        return {
            "hit": {name: tier.look_up(stored, LookupResult.HIT) for name, tier in self._tiers},
            "miss": {name: tier.look_up(unknown, LookupResult.MISS) for name, tier in self._tiers},
        }

    def flip(self) -> Row:
        """Return how many rows each delivers wrong once a byte of each was changed on disk."""
        keys = self.new_keys()
        row: Row = {"rows": self.num_rows}
        for name, tier in self._tiers:
            tier.store(keys)
            row[f"{name}_disk_mib"] = tier.disk_mib()
            tier.flip()
            row[f"{name}_wrong_rows"] = tier.count_wrong(keys)
        return row

    def close(self) -> None:
        """Give everything back."""
        for _, tier in self._tiers:
            tier.close()


def measure_moves(pair: Pair, rounds: int) -> Iterator[Row]:
    """Yield a row for each operation, alone and beside a busy thread."""
    for is_busy in (False, True):
        played = [pair.store_and_load(is_busy=is_busy) for _ in range(rounds + 1)][1:]
        for operation in played[0]:
            row: Row = {"operation": operation, "beside": "busy Python thread" if is_busy else ""}
            costs = [of_round[operation] for of_round in played]
            yield row | speeds(costs) | ({} if is_busy else cpu_times(costs))


def speeds(costs: Sequence[dict[str, Taken]]) -> Row:
    """Return how fast each tier was."""
    gigabytes = PAYLOAD_BYTES / 1e9
    row: Row = {}
    for name in NAMES:
        row |= rows.spread(f"{name}_gb_s", (gigabytes / taken[name].wall_s for taken in costs))
    ratios = (taken["fs"].wall_s / taken["flexkv"].wall_s for taken in costs)
    return row | rows.spread("flexkv_over_fs", ratios)


def cpu_times(costs: Sequence[dict[str, Taken]]) -> Row:
    """Return what each tier computed; a busy thread would count, too."""
    gigabytes = PAYLOAD_BYTES / 1e9
    row: Row = {}
    for name in NAMES:
        row |= rows.spread(f"{name}_cpu_s_gb", (taken[name].cpu_s / gigabytes for taken in costs))
    return row


def measure_lookups(pair: Pair, rounds: int) -> Iterator[Row]:
    """Yield a row for each answer and each way to count."""
    played = [pair.look_up() for _ in range(rounds + 1)][1:]
    for answer, field in itertools.product(played[0], Asked._fields):
        costs = [of_round[answer] for of_round in played]
        us = {name: [getattr(asked[name], field) for asked in costs] for name in NAMES}
        row: Row = {"answer": answer, "keys": pair.num_rows, "cpu_us_of": THREADS[field]}
        for name in NAMES:
            row |= rows.spread(f"{name}_us", us[name])
        ratios = (ours / theirs for ours, theirs in zip(us["flexkv"], us["fs"], strict=True))
        yield row | rows.spread("flexkv_over_fs", ratios)


def measure_size(config: VllmConfig, work: Path, row_kib: int, rounds: int) -> Iterator[Row]:
    """Yield all rows about rows of one size."""
    print(f"rows of {row_kib} KiB", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="offload-", dir=work) as name:
        pair = Pair(config, Path(name), row_kib)
        for row in measure_moves(pair, rounds):
            yield {"benchmark": "offload_tier", "row_kib": row_kib} | row
        if row_kib == min(ROW_KIB):
            for row in measure_lookups(pair, rounds):
                yield {"benchmark": "offload_tier_lookup"} | row
        quota = {"quota_mib": QUOTA_BYTES >> 20}
        yield {"benchmark": "offload_tier_flips", "row_kib": row_kib} | pair.flip() | quota
        pair.close()


def main() -> None:
    """Measure, print the tables, and write the rows where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="file to write one JSON object a row to")
    parser.add_argument("--work", type=Path, default=rows.ROOT / ".work", help="on the drive")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if not probe_o_direct(str(work)):
        sys.exit(f"offload_tier: {work} does not support O_DIRECT; nothing was measured")
    vllm = version(packages_distributions()["vllm"][0])
    around = rows.circumstances() | {"vllm": vllm, "rounds": arguments.rounds}
    logging.disable(logging.WARNING)
    config = engine_config(build_model(work, "demo"), block_size=PAGE_TOKENS)
    measured = [
        row | around
        for row_kib in ROW_KIB
        for row in measure_size(config, work, row_kib, arguments.rounds)
    ]
    print(rows.render(measured))
    if arguments.json:
        rows.write(arguments.json, measured)


if __name__ == "__main__":
    main()
