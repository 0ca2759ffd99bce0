"""Replay published traces: what a tier hits and writes, by its size and the rule of admission.

Run from the root of the checkout:
`python -m benchmarks.trace_replay [--json FILE] [--traces FOLDER] [--requests N]`.

Nothing is timed and no bytes move: the requests of a trace ask the real control plane one after
the other, each a full prompt; what a rule wants of it is written at once. Hits are the leading
blocks that are there. Rules: write everything, as a plain LRU tier does; write what was seen among
the last 4 x capacity blocks (second touch); `control.hierarchy.admission`. All evict by LRU.

The traces are those of Mooncake (FAST 2025, Apache-2.0), blocks of 512 tokens. They are not part
of this project: put them into `.work/traces`, or name their folder.
"""

import argparse
import json
import statistics
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Protocol

from benchmarks import rows
from benchmarks.rows import Row
from flexkv_core.block.types import BlockKey, RequestId
from flexkv_core.control.hierarchy.admission import Admission
from flexkv_core.control.lease import Reservation
from flexkv_core.control.manager import CacheManager, TierSpec
from flexkv_core.metrics import Counters
from flexkv_core.plan import EnginePages, Status, TransferResult

CAPACITY_BLOCKS = (1000, 3000, 5000, 10_000, 20_000, 30_000, 50_000)
FOLDER = rows.ROOT / ".work/traces"
TRACES = ("conversation", "synthetic")
SOURCE = "github.com/kvcache-ai/Mooncake, FAST25-release/traces/{}_trace.jsonl"
NUM_KEY_SETS = 5
"""`Admission` follows a sample of the keys, so what it does depends a little on them."""

PAGES = EnginePages(range(1))
REQUEST = RequestId("benchmark")
Chains = list[list[int]]


class Rule(Protocol):
    """What decides how much of a chain is written."""

    def touch(self, keys: Sequence[BlockKey], *, num_held: int, num_free: int) -> int:
        """Return how many leading blocks the tier should hold."""


class WriteAll:
    """Every block is written."""

    def touch(self, keys: Sequence[BlockKey], *, num_held: int, num_free: int) -> int:
        """Want all of `keys`."""
        del num_held, num_free
        return len(keys)


class SecondTouch:
    """A block is written if it is among the last 4 x capacity that were used."""

    def __init__(self, capacity_blocks: int) -> None:
        self._max_seen = 4 * capacity_blocks
        self._seen: OrderedDict[BlockKey, None] = OrderedDict()

    def touch(self, keys: Sequence[BlockKey], *, num_held: int, num_free: int) -> int:
        """Want what is held or was seen."""
        del num_free
        num_seen = next((i for i, key in enumerate(keys) if key not in self._seen), len(keys))
        for key in keys:
            self._seen[key] = None
            self._seen.move_to_end(key)
        while len(self._seen) > self._max_seen:
            self._seen.popitem(last=False)
        return max(num_held, num_seen)


class Traffic(NamedTuple):
    """What a tier did for a trace."""

    hit_blocks: int
    written_blocks: int


def replay(requests: Sequence[Sequence[BlockKey]], capacity_blocks: int, rule: Rule) -> Traffic:
    """Ask a tier of `capacity_blocks` for the chains of `requests`, one after the other."""
    tier = TierSpec("ssd", capacity_blocks, addressed_by="key")
    manager = CacheManager([tier], recorder=Counters())
    num_hits = num_written = 0
    for keys in requests:
        manager.note_use(keys)
        lease = manager.match(REQUEST, keys, tier="ssd")
        num_held = lease.num_blocks if lease else 0
        num_free = manager.num_free_blocks("ssd")
        num_wanted = rule.touch(keys, num_held=num_held, num_free=num_free)
        num_hits += num_held
        num_written += write(manager, keys[:num_wanted])
        if lease:
            manager.release(lease)
    return Traffic(num_hits, num_written)


def write(manager: CacheManager, keys: Sequence[BlockKey]) -> int:
    """Write what the tier lacks of `keys`; return how many blocks."""
    reservation = manager.reserve(REQUEST, keys, tier="ssd")
    if not isinstance(reservation, Reservation):
        return 0
    plan = manager.plan_put(reservation, PAGES)
    assert plan is not None
    num_blocks = plan.num_blocks
    manager.complete(
        TransferResult(job_id=plan.job_id, rank=0, status=Status.OK, num_blocks=num_blocks)
    )
    return num_blocks


def load(path: Path, max_requests: int | None) -> Chains:
    """Return the block ids of every request of a trace."""
    lines = path.read_text().splitlines()[:max_requests]
    return [json.loads(line)["hash_ids"] for line in lines]


def make_keys(chains: Chains, salt: int) -> list[list[BlockKey]]:
    """Return `chains` in keys: equal ids get equal keys."""
    numbers = {number for chain in chains for number in chain}
    keys = {number: BlockKey(sha256(b"%d %d" % (salt, number)).digest()) for number in numbers}
    return [[keys[number] for number in chain] for chain in chains]


def compare(trace: str, chains: Chains) -> Iterator[Row]:
    """Replay one trace under every rule, for every capacity."""
    key_sets = [make_keys(chains, salt) for salt in range(NUM_KEY_SETS)]
    num_asked = sum(map(len, chains))
    for capacity in CAPACITY_BLOCKS:
        done = {
            "write_all": [replay(key_sets[0], capacity, WriteAll())],
            "second_touch": [replay(key_sets[0], capacity, SecondTouch(capacity))],
            "admission": [replay(keys, capacity, Admission(capacity)) for keys in key_sets],
        }
        row: Row = {"benchmark": "trace_replay", "trace": trace, "capacity_blocks": capacity}
        for name, runs in done.items():
            hits = [100 * run.hit_blocks / num_asked for run in runs]
            row |= rows.spread(f"{name}_hit_percent", hits)
        for name, runs in done.items():
            row[f"{name}_written"] = statistics.median_low(run.written_blocks for run in runs)
        all_written = row["write_all_written"]
        shares = [100 * run.written_blocks / all_written for run in done["admission"]]
        yield row | rows.spread("written_percent", shares)


def all_rows(folder: Path, max_requests: int | None) -> Iterator[Row]:
    """Replay the traces that are there, and say which are not."""
    for trace in TRACES:
        path = folder / f"mooncake_{trace}.jsonl"
        if path.exists():
            yield from compare(trace, load(path, max_requests))
        else:
            print(f"missing: {path}, to be had as {SOURCE.format(trace)}", flush=True)


def main() -> None:
    """Print the table, and write its rows as JSON lines where asked to."""
    parser = argparse.ArgumentParser(description="Replay traces through the control plane.")
    parser.add_argument("--json", type=Path, help="file to write one JSON object a row to")
    parser.add_argument("--traces", type=Path, default=FOLDER, help="folder with the traces")
    parser.add_argument("--requests", type=int, help="replay only so many of each trace")
    arguments = parser.parse_args()
    around, measured = rows.circumstances(), []
    for row in all_rows(arguments.traces, arguments.requests):
        measured.append({**row, **around})
        print(
            f"{row['trace']:<14}{row['capacity_blocks']:>7} blocks, hits"
            f"{row['write_all_hit_percent']:>7}{row['second_touch_hit_percent']:>7}"
            f"{row['admission_hit_percent']:>7} %, written {row['write_all_written']:>8}"
            f"{row['second_touch_written']:>8}{row['admission_written']:>8}",
            flush=True,
        )
    if arguments.json:
        rows.write(arguments.json, measured)


if __name__ == "__main__":
    main()
