"""Time the control plane: match and plan, insert, evict, and the chain of keys before them.

Run from the root of the checkout:
`python -m benchmarks.control_plane [--json FILE] [--rounds N] [--tree BLOCKS ...]`.

A prompt of 8192 blocks is one of 128k tokens at 16 tokens a block, or of 512k at 64. The tree is
filled by sequences of 512 blocks, half of which branch off an earlier one at a random place; for
evictions by sequences of 32. Prompts share their first quarter with others, so that a full hit
crosses two nodes. A sample is the mean over eight prompts, of evictions one prompt.
"""

import argparse
import gc
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from benchmarks import rows
from benchmarks.rows import Row
from flexkv_core.block.keys import KeyChain
from flexkv_core.block.types import BlockKey, RequestId
from flexkv_core.control.index.radix import Refusal
from flexkv_core.control.lease import Lease, Reservation
from flexkv_core.control.manager import CacheManager, TierSpec
from flexkv_core.metrics import Counters
from flexkv_core.plan import EnginePages, Status, TransferPlan, TransferResult

PROMPT_BLOCKS = (16, 64, 128, 512, 2048, 8192)
EVICTED_BLOCKS = (64, 1024, 16384)
TREE_BLOCKS = (10_000, 100_000, 1_000_000)
PROMPT_TOKENS = (1024, 8192, 32_768, 131_072)
PROMPTS_A_ROUND = 8
PAGES = EnginePages(range(1))
REQUEST = RequestId("benchmark")
T = TypeVar("T")


class Cache:
    """A manager whose plans are carried out at once, and what fills it."""

    def __init__(self, capacity_blocks: int, policy: str = "lru") -> None:
        tier = TierSpec("host", capacity_blocks, policy)
        self.manager = CacheManager([tier], recorder=Counters())
        self._random = random.Random(1)

    def new_keys(self, num_blocks: int) -> list[BlockKey]:
        """Return keys that nobody has: the tree only ever compares them."""
        return [BlockKey(self._random.randbytes(32)) for _ in range(num_blocks)]

    def insert(self, keys: Sequence[BlockKey]) -> None:
        """Save a whole chain."""
        reservation = self.manager.reserve(REQUEST, keys)
        if isinstance(reservation, Reservation):
            self.end(self.manager.plan_put(reservation, PAGES))

    def end(self, plan: TransferPlan | None) -> None:
        """Report `plan` as carried out."""
        assert plan is not None
        result = TransferResult(
            job_id=plan.job_id, rank=0, status=Status.OK, num_blocks=plan.num_blocks
        )
        self.manager.complete(result)

    def match(self, keys: Sequence[BlockKey]) -> Lease:
        """Match a chain that is known to be there, for a request that has just come."""
        self.manager.note_use(keys)
        lease = self.manager.match(REQUEST, keys)
        assert lease is not None
        return lease

    def fill(self, num_blocks: int, sequence_blocks: int) -> None:
        """Insert sequences, half of them branches of others, until `num_blocks` are held."""
        sequences: list[list[BlockKey]] = []
        while (num_missing := num_blocks - self.manager.num_used_blocks()) > 0:
            num_shared = self._random.randrange(sequence_blocks) if len(sequences) % 2 else 0
            shared = self._random.choice(sequences)[:num_shared] if num_shared else []
            num_new = min(sequence_blocks - num_shared, num_missing)
            sequences.append(shared + self.new_keys(num_new))
            self.insert(sequences[-1])
        gc.collect()
        gc.freeze()


def timed(step: Callable[[list[T]], object], argument: list[T]) -> tuple[float, object]:
    """Return the microseconds that `step` takes, and what it returns."""
    start_ns = time.perf_counter_ns()
    outcome = step(argument)
    return (time.perf_counter_ns() - start_ns) / 1000, outcome


def measure(
    rounds: int,
    step: Callable[[list[BlockKey]], object],
    prompts: list[list[BlockKey]],
    undo: Callable[[list[BlockKey], object], None],
) -> list[float]:
    """Return the mean microseconds of `step` over `prompts`, for each round but the first."""
    means_us = []
    for _ in range(rounds + 1):
        times_us = []
        for prompt in prompts:
            time_us, outcome = timed(step, prompt)
            times_us.append(time_us)
            undo(prompt, outcome)
        means_us.append(statistics.mean(times_us))
    return means_us[1:]


def bench_tree(tree_blocks: int, rounds: int) -> Iterator[Row]:
    """Time full hits, misses and half-new inserts for all prompt lengths on one tree."""
    room = 2 * PROMPTS_A_ROUND * sum(PROMPT_BLOCKS)
    cache = Cache(tree_blocks + room)
    cache.fill(tree_blocks, 512 if tree_blocks > 10_000 else 128)
    for num_blocks in PROMPT_BLOCKS:
        head = cache.new_keys(num_blocks // 4)
        tail_blocks = num_blocks - len(head)
        prompts = [head + cache.new_keys(tail_blocks) for _ in range(PROMPTS_A_ROUND)]
        for prompt in prompts:
            cache.insert(prompt)
        for case, times_us in _time_prompts(cache, prompts, rounds):
            yield _row(case, tree_blocks, num_blocks, times_us)


def _time_prompts(
    cache: Cache, prompts: list[list[BlockKey]], rounds: int
) -> Iterator[tuple[str, list[float]]]:
    """Yield the times of all cases for `prompts`, which are in the cache."""
    manager, half = cache.manager, len(prompts[0]) // 2

    def match_and_plan(keys: list[BlockKey]) -> TransferPlan | None:
        lease = cache.match(keys)
        return manager.plan_get(lease, PAGES, first_block=0, num_blocks=lease.num_blocks)

    def reserve(keys: list[BlockKey]) -> Reservation | Refusal:
        return manager.reserve(REQUEST, keys)

    def end(_: list[BlockKey], outcome: object) -> None:
        assert isinstance(outcome, TransferPlan)
        cache.end(outcome)

    def drop_second_half(keys: list[BlockKey], outcome: object) -> None:
        if isinstance(outcome, Reservation):
            cache.end(manager.plan_put(outcome, PAGES))
        manager.drop_from(keys[: half + 1], tier="host")

    def miss(keys: list[BlockKey]) -> None:
        manager.note_use(keys)
        manager.match(REQUEST, keys)

    unknown = [cache.new_keys(half * 2) for _ in prompts]
    half_new = [prompt[:half] + cache.new_keys(half) for prompt in prompts]
    yield "match + plan", measure(rounds, match_and_plan, prompts, end)
    yield "miss", measure(rounds, miss, unknown, _nothing)
    yield "reserve half new", measure(rounds, reserve, half_new, drop_second_half)
    yield "insert half new", measure(rounds, cache.insert, half_new, drop_second_half)


def _nothing(_: list[BlockKey], __: object) -> None:
    """Undo nothing."""


def bench_eviction(tree_blocks: int, policy: str, rounds: int) -> Iterator[Row]:
    """Time inserts of unknown prompts into a full tier of sequences of 32 blocks."""
    cache = Cache(tree_blocks, policy)
    cache.fill(tree_blocks, 32)
    for num_blocks in EVICTED_BLOCKS:
        prompts = [cache.new_keys(num_blocks) for _ in range(rounds)]
        if num_blocks <= tree_blocks:
            times_us = [timed(cache.insert, prompt)[0] for prompt in prompts]
            yield _row(f"evict and insert, {policy}", tree_blocks, num_blocks, times_us)


def bench_keys(rounds: int) -> Iterator[Row]:
    """Time the keys of a prompt that nobody has seen, per prompt."""
    rng = random.Random(2)
    for num_tokens, block_tokens in itertools.product(PROMPT_TOKENS, (16, 64)):
        tokens = [rng.randrange(150_000) for _ in range(num_tokens)]
        chains = [KeyChain(block_tokens) for _ in range(rounds)]
        times_us = [timed(chain.advance, tokens)[0] for chain in chains]
        yield _row(f"keys, {block_tokens} tokens a block", 0, num_tokens // block_tokens, times_us)


def _row(case: str, tree_blocks: int, blocks: int, times_us: list[float]) -> Row:
    """Return the line for `times_us`, the samples of one case."""
    return {
        "benchmark": "control_plane",
        "tree_blocks": tree_blocks,
        "case": case,
        "blocks": blocks,
        **rows.spread("us", times_us),
        "rounds": len(times_us),
    }


def all_rows(trees: Sequence[int], rounds: int) -> Iterator[Row]:
    """Run everything."""
    for tree_blocks in trees:
        yield from bench_tree(tree_blocks, rounds)
    for tree_blocks, policy in itertools.product(trees, ("lru", "s3fifo")):
        yield from bench_eviction(tree_blocks, policy, rounds)
    yield from bench_keys(rounds)


def main() -> None:
    """Print the table, and write its rows as JSON lines where asked to."""
    parser = argparse.ArgumentParser(description="Time the control plane.")
    parser.add_argument("--json", type=Path, help="file to write one JSON object a row to")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tree", type=int, nargs="+", default=TREE_BLOCKS, help="blocks held")
    arguments = parser.parse_args()
    around, measured = rows.circumstances(), []
    for row in all_rows(arguments.tree, arguments.rounds):
        measured.append({**row, **around})
        fastest, slowest = row["us_min_max"]
        print(
            f"{row['case']:<26}{row['tree_blocks']:>10}{row['blocks']:>8} blocks"
            f"{row['us']:>12.1f} us ({fastest:.1f} - {slowest:.1f})",
            flush=True,
        )
    if arguments.json:
        rows.write(arguments.json, measured)


if __name__ == "__main__":
    main()
