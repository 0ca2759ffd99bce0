"""The contract of a block store as a test class: inherit it and say how to make a store.

class TestMyStore(BlockStoreContract):
    @pytest.fixture
    def case(self, tmp_path):
        return MyCase(tmp_path)
"""

import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from typing_extensions import override

from flexkv_core.block.types import BlockKey, JobId
from flexkv_core.block_store.block_store import BlockStore
from flexkv_core.block_store.blocks import Access, Blocks, JobResult
from flexkv_core.data.tiers.base import Tier, TierBlock
from flexkv_core.errors import LeaseError
from flexkv_core.plan import Status
from flexkv_core.testing.doubles import ManualClock, SlowTier

__all__ = ["BlockStoreCase", "BlockStoreContract", "ScriptedTier"]

_NUM_KEYS = 6
_BAD = 2
"""The key that fails where one does."""

_MANY = 1024
"""Two jobs of so many blocks are more than a store lets wait."""

_WAIT_S = 30.0

_OK, _MISS = Status.OK, Status.MISS


class ScriptedTier(SlowTier):
    """Holds calls back while `gate` is closed, and fails the blocks of chosen keys."""

    def __init__(self, inner: Tier) -> None:
        """Let everything pass."""
        super().__init__(inner, threading.Event())
        self.gate.set()
        self.faults: dict[BlockKey, Status] = {}

    def hold(self) -> None:
        """Hold back the calls that come from now on; those before must have ended."""
        self.gate.clear()
        while self.entered.acquire(blocking=False):
            pass

    @override
    def read(self, blocks: Sequence[TierBlock], deadline_s: float | None) -> list[Status]:
        return self._with_faults(blocks, super().read(blocks, deadline_s))

    @override
    def write(self, blocks: Sequence[TierBlock], deadline_s: float | None) -> list[Status]:
        return self._with_faults(blocks, super().write(blocks, deadline_s))

    def _with_faults(self, blocks: Sequence[TierBlock], statuses: list[Status]) -> list[Status]:
        pairs = zip(blocks, statuses, strict=True)
        return [self.faults.get(block.key, status) for block, status in pairs]


class BlockStoreCase(ABC):
    """An empty store over 16 pages, all of different content."""

    store: BlockStore
    access: Access
    tier: ScriptedTier
    """What the store's lanes call, each from one thread."""

    clock: ManualClock
    """Of the store, its lanes and its tier."""

    is_writer: bool
    """Whether the store writes; otherwise it follows another."""

    @abstractmethod
    def put(self, keys: Sequence[BlockKey], page_ids: Sequence[int]) -> None:
        """Store blocks with the content of pages, as the rank does that writes them."""

    @abstractmethod
    def page(self, page_id: int) -> bytes:
        """Return the content of a page."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything; the store may be closed already."""

    def pages(self, page_ids: Sequence[int]) -> list[bytes]:
        """Return the content of pages."""
        return [self.page(page_id) for page_id in page_ids]


class BlockStoreContract(ABC):
    """What every block store promises."""

    @pytest.fixture
    @abstractmethod
    def case(self) -> BlockStoreCase:
        """Make a new case."""

    @pytest.fixture
    def stored(self, case: BlockStoreCase) -> Iterator[list[bytes]]:
        """Store keys 0 to 5 from pages 0 to 5, whose content is returned."""
        content = case.pages(range(_NUM_KEYS))
        case.put(_KEYS, range(_NUM_KEYS))
        yield content
        case.tier.gate.set()
        case.close()

    def test_blocks_come_back_to_other_pages(
        self, case: BlockStoreCase, stored: list[bytes]
    ) -> None:
        """The places of a block decide nothing."""
        assert case.store.lookup(_KEYS) == [True] * _NUM_KEYS
        assert _load(case, _KEYS, _TARGETS) == [_OK] * _NUM_KEYS
        assert case.pages(_TARGETS) == stored

    def test_a_block_that_is_missing_is_a_miss_and_its_page_keeps_its_content(
        self, case: BlockStoreCase, stored: list[bytes]
    ) -> None:
        """So do those behind it in a chain."""
        keys = [_KEYS[0], _OTHER, *_KEYS[1:3]]
        is_alone = case.access is Access.SINGLE
        before = case.pages(_TARGETS)
        assert case.store.lookup(keys) == [True, False, is_alone, is_alone]
        statuses = _load(case, keys, _TARGETS[:4])
        assert statuses == [_OK, _MISS] + [_OK if is_alone else _MISS] * 2
        expected = [stored[0], before[1], *(stored[1:3] if is_alone else before[2:4]), *before[4:]]
        assert case.pages(_TARGETS) == expected

    def test_a_job_may_begin_behind_blocks_that_are_there(
        self, case: BlockStoreCase, stored: list[bytes]
    ) -> None:
        """An engine asks for what it does not have itself."""
        blocks = Blocks(_KEYS[4:], _TARGETS[:2], before=_KEYS[:4])
        assert case.store.lookup(_KEYS[4:], before=_KEYS[:4]) == [True, True]
        assert case.store.wait(case.store.submit_load(blocks)).statuses == [_OK, _OK]
        assert case.pages(_TARGETS[:2]) == stored[4:]

    def test_a_bad_block_fails_by_itself_or_with_those_behind_it(
        self, case: BlockStoreCase, stored: list[bytes]
    ) -> None:
        """What else was asked for is used."""
        case.tier.faults[_KEYS[_BAD]] = Status.CORRUPT
        statuses = _load(case, _KEYS, _TARGETS)
        if case.access is Access.CHAIN:
            assert statuses == [_OK] * _BAD + [Status.CORRUPT] * (_NUM_KEYS - _BAD)
        else:
            assert [at for at, status in enumerate(statuses) if status is not _OK] == [_BAD]
        good = [at for at, status in enumerate(statuses) if status is _OK]
        assert case.pages([_TARGETS[at] for at in good]) == [stored[at] for at in good]

    def test_every_job_is_reported_once(self, case: BlockStoreCase, stored: list[bytes]) -> None:
        """Good ones, bad ones, and those that have nothing to do."""
        del stored
        case.tier.faults[_KEYS[_BAD]] = Status.ERROR
        chains = [_KEYS, [_OTHER], _KEYS[:1], []]
        jobs = [case.store.submit_load(Blocks(keys, _TARGETS[: len(keys)])) for keys in chains]
        jobs.append(case.store.submit_save(Blocks(_KEYS, range(_NUM_KEYS))))
        sizes = dict(zip(jobs, [*map(len, chains), _NUM_KEYS], strict=True))
        results = _poll_all(case.store, jobs)
        assert {result.job_id: len(result.statuses) for result in results} == sizes
        assert case.store.poll() == []
        with pytest.raises(LeaseError):
            case.store.wait(jobs[0])

    def test_a_job_that_is_too_late_is_not_begun(
        self, case: BlockStoreCase, stored: list[bytes]
    ) -> None:
        """Its blocks are kept for the next one."""
        del stored
        before = case.pages(_TARGETS)
        job_id = case.store.submit_load(Blocks(_KEYS, _TARGETS), case.clock() - 1)
        assert case.store.wait(job_id).statuses == [Status.TIMEOUT] * _NUM_KEYS
        assert case.pages(_TARGETS) == before
        assert all(case.store.lookup(_KEYS))

    def test_an_answer_that_comes_after_the_report_changes_no_page(
        self, case: BlockStoreCase, stored: list[bytes]
    ) -> None:
        """The engine has given the page to somebody else by then."""
        del stored
        case.tier.hold()
        job_id = case.store.submit_load(Blocks(_KEYS, _TARGETS), case.clock() + 1)
        _await_call(case.tier)
        case.clock.advance(2)
        results = case.store.poll()
        at_report = case.pages(_TARGETS)
        case.tier.gate.set()
        if not results:  # it ends with the tier: then nothing can come later
            results = [case.store.wait(job_id)]
            at_report = case.pages(_TARGETS)
        assert [result.job_id for result in results] == [job_id]
        case.close()
        assert case.pages(_TARGETS) == at_report

    def test_a_cancelled_job_is_reported_and_what_had_not_begun_never_begins(
        self, case: BlockStoreCase, stored: list[bytes]
    ) -> None:
        """A request may be aborted at any time."""
        case.tier.hold()
        first = case.store.submit_load(Blocks(_KEYS[:1], _TARGETS[:1]))
        _await_call(case.tier)
        jobs = [first, *(_submit_one(case, at) for at in range(_NUM_KEYS))]
        for job_id in jobs[1:]:
            case.store.cancel(job_id)
        case.tier.gate.set()
        results = {result.job_id: result.statuses for result in _poll_all(case.store, jobs)}
        assert results[first] == [_OK]
        assert all(results[job_id] in ([_OK], [Status.TIMEOUT]) for job_id in jobs[1:])
        assert results[jobs[-1]] == [Status.TIMEOUT]
        assert case.page(_TARGETS[0]) == stored[0]

    def test_threads_that_wait_do_not_disturb_each_other(
        self, case: BlockStoreCase, stored: list[bytes]
    ) -> None:
        """Engines call from the scheduler and from threads that prefetch and back up."""
        saves = [[_key(100 * name + at) for at in range(3)] for name in range(1, 9)]
        with ThreadPoolExecutor(4) as threads:
            loaded = threads.map(lambda _: _load(case, _KEYS, _TARGETS), range(8))
            saved = threads.map(lambda keys: _save(case, keys, [6, 7, 8]), saves)
            found = threads.map(lambda _: case.store.lookup(_KEYS), range(8))
            assert [*loaded] == [[_OK] * _NUM_KEYS] * 8
            assert [*saved] == [[_OK] * 3] * 8
            assert [*found] == [[True] * _NUM_KEYS] * 8
        assert case.pages(_TARGETS) == stored

    def test_a_load_that_hangs_keeps_nobody_from_asking_and_polling(
        self, case: BlockStoreCase, stored: list[bytes]
    ) -> None:
        """A scheduler's step must not wait for a disk."""
        del stored
        case.tier.hold()
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(_load, case, _KEYS[:1], _TARGETS[:1])
            try:
                _await_call(case.tier)
                other = _submit_one(case, 1)
                assert case.store.poll() == []
                assert all(case.store.lookup(_KEYS))
                case.store.take_counts()
            finally:
                case.tier.gate.set()
            assert waiting.result(_WAIT_S) == [_OK]
        assert [result.statuses for result in _poll_all(case.store, [other])] == [[_OK]]

    def test_a_tier_that_fails_again_and_again_has_nothing(
        self, case: BlockStoreCase, stored: list[bytes]
    ) -> None:
        """Some engines ask for a hit again and again, for ever."""
        del stored
        for _ in range(3):
            case.tier.faults = dict.fromkeys(_KEYS, Status.ERROR)
            assert _load(case, _KEYS, _TARGETS) == [Status.ERROR] * _NUM_KEYS
            case.tier.faults = {}
            case.put(_KEYS, range(_NUM_KEYS))  # a store may forget what could not be read
        assert not any(case.store.lookup(_KEYS))
        case.clock.advance(60)
        assert all(case.store.lookup(_KEYS))
        assert _load(case, _KEYS, _TARGETS) == [_OK] * _NUM_KEYS

    def test_a_tier_that_does_not_answer_has_nothing(
        self, case: BlockStoreCase, stored: list[bytes]
    ) -> None:
        """A lane may keep a read that hangs: nobody is to count on the next one."""
        del stored
        case.tier.hold()
        jobs = [_submit_one(case, 0)]
        _await_call(case.tier)
        results: list[JobResult] = []
        for at in range(1, 4):
            case.clock.advance(60)
            results += case.store.poll()
            if any(case.store.lookup(_KEYS)):
                jobs.append(_submit_one(case, at))
        results += case.store.poll()
        assert not any(case.store.lookup(_KEYS))
        case.tier.gate.set()
        while len(results) < len(jobs):
            results += case.store.poll()
        case.clock.advance(60)
        assert all(case.store.lookup(_KEYS)), "it may be tried"

    def test_a_save_is_reported_key_by_key_and_only_the_writer_does_it(
        self, case: BlockStoreCase, stored: list[bytes]
    ) -> None:
        """To a rank that follows, all is stored: the writer is asked for the same blocks."""
        keys = [_key(200), _key(201)]
        if case.is_writer:
            case.tier.faults[keys[1]] = Status.ERROR
            assert _save(case, keys, [0, 1]) == [_OK, Status.ERROR]
            assert case.store.lookup(keys) == [True, False]
        else:
            assert _save(case, keys, [0, 1]) == [_OK, _OK]
            assert case.store.lookup(keys) == [False, False]
        assert case.pages([0, 1]) == stored[:2]

    def test_saves_beyond_a_bound_are_refused_at_once(
        self, case: BlockStoreCase, stored: list[bytes]
    ) -> None:
        """A slow disk must not take all of an engine's host memory."""
        del stored
        case.tier.hold()
        keys = [_key(1000 + at) for at in range(2 * _MANY)]
        page_ids = [at % _NUM_KEYS for at in range(_MANY)]
        first, second = (
            case.store.submit_save(Blocks(part, page_ids)) for part in (keys[:_MANY], keys[_MANY:])
        )
        early = {result.job_id: result.statuses for result in case.store.poll()}
        case.tier.gate.set()
        if case.is_writer:
            assert early == {second: [Status.BUSY] * _MANY}
            assert len(case.store.wait(first).statuses) == _MANY
        else:
            assert early.keys() == {first, second}


def _key(number: int) -> BlockKey:
    return BlockKey(number.to_bytes(4, "big") * 8)


_KEYS = [_key(number + 1) for number in range(_NUM_KEYS)]
_OTHER = _key(99)
_TARGETS = [15, 9, 14, 10, 13, 11]


def _load(case: BlockStoreCase, keys: Sequence[BlockKey], page_ids: Sequence[int]) -> list[Status]:
    return case.store.wait(case.store.submit_load(Blocks(keys, page_ids))).statuses


def _save(case: BlockStoreCase, keys: Sequence[BlockKey], page_ids: Sequence[int]) -> list[Status]:
    return case.store.wait(case.store.submit_save(Blocks(keys, page_ids))).statuses


def _submit_one(case: BlockStoreCase, at: int) -> JobId:
    """Begin to load one of the keys, behind those before it."""
    return case.store.submit_load(Blocks(_KEYS[at : at + 1], _TARGETS[at : at + 1], _KEYS[:at]))


def _await_call(tier: ScriptedTier) -> None:
    """Wait until a call has come since the tier was told to hold calls back."""
    assert tier.entered.acquire(timeout=_WAIT_S)


def _poll_all(store: BlockStore, jobs: Sequence[JobId]) -> list[JobResult]:
    """Poll until all jobs are reported, as often as it takes; none may be reported twice."""
    results = store.poll()
    while len(results) < len(jobs):
        results += store.poll()
    counts = Counter(result.job_id for result in results)
    assert max(counts.values()) == 1
    return results
