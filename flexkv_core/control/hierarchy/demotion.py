"""Copies blocks of host memory to a lower tier when they are used, not when they are evicted."""

from collections.abc import Sequence

from flexkv_core.block.types import BlockKey, RequestId
from flexkv_core.control.hierarchy.admission import Admission
from flexkv_core.control.hierarchy.health import Health
from flexkv_core.control.hierarchy.in_flight import CopiesInFlight, CopyInFlight
from flexkv_core.control.job import Completion
from flexkv_core.control.manager import CacheManager
from flexkv_core.metrics import Recorder
from flexkv_core.plan import Status, TransferPlan

__all__ = ["Demoter"]

_MAX_WAITING = 1024

_SILENCE_S = 60.0
"""A tier that an engine has not heard of for this long is stuck: the slowest usable disk writes a
plan in half the time."""


class Demoter:
    """Decides what a tier should hold, and copies it there as fast as the tier takes it.

    Blocks in flight are pinned in host memory, so they take at most a quarter of it; the rest
    waits, and is copied if it is still there by then. When too many chains wait, the oldest is
    given up. What a busy tier refuses waits again, and no more is given to it than it has taken. A
    tier that fails, or does not answer for a minute, gets only trial copies.

    Thread: scheduler thread only.
    """

    def __init__(
        self,
        manager: CacheManager,
        tier: str,
        *,
        capacity_blocks: int,
        block_bytes: int,
        host_blocks: int,
        recorder: Recorder,
    ) -> None:
        self._manager = manager
        self._tier = tier
        self._recorder = recorder
        self._admission = Admission(capacity_blocks)
        self._in_flight = CopiesInFlight(
            manager, "host", tier, block_bytes=block_bytes, max_blocks=max(1, host_blocks // 4)
        )
        self._health = Health(f"writing to tier {tier}", recorder.add)
        self._waiting: dict[RequestId, tuple[Sequence[BlockKey], int]] = {}
        """Chains to copy, oldest first, and how many leading blocks of each."""

        self._last_answer_s = 0.0
        """When the last copy ended, or none was in flight; as `CopiesInFlight.heard_s`."""

    @property
    def is_off(self) -> bool:
        """Whether the tier fails and gets only trial copies."""
        return self._health.is_off

    @property
    def has_work(self) -> bool:
        """Whether something waits to be copied."""
        return bool(self._waiting)

    def admit(self, keys: Sequence[BlockKey], num_touched: int, num_admitted: int) -> int:
        """Decide how many leading blocks of a request's chain the tier should hold.

        Args:
            keys: Its full blocks.
            num_touched: Length of `keys` in the last call for the same request, 0 in the first.
            num_admitted: What that call returned, 0 in the first: blocks that are on their way,
                if not there yet.
        """
        num_known = self._manager.lookup(keys, tier=self._tier).num_known
        num_held = max(num_known, num_admitted)
        num_wanted = self._admission.touch(
            keys,
            num_held=num_held,
            num_free=self._manager.num_free_blocks(self._tier),
            num_touched=num_touched,
        )
        self._recorder.add("admitted_blocks", num_wanted - num_held)
        self._recorder.add("declined_blocks", len(keys) - max(num_wanted, num_touched))
        return num_wanted

    def offer(self, request_id: RequestId, keys: Sequence[BlockKey], num_wanted: int) -> None:
        """Queue what host memory has and the tier lacks of the first `num_wanted` blocks."""
        num_wanted = min(num_wanted, self._manager.lookup(keys, tier="host").num_ready)
        if self._manager.lookup(keys, tier=self._tier).num_known < num_wanted:
            self._queue(request_id, keys, num_wanted)

    def take_plans(self, now_s: float) -> list[TransferPlan]:
        """Return plans for the copies that may begin now."""
        plans: list[TransferPlan] = []
        self._in_flight.listen(now_s)
        self._check_silence(now_s)
        for request_id, (keys, num_wanted) in tuple(self._waiting.items()):
            if not (self._in_flight.num_more and self._health.allows(now_s)):
                break
            started = self._in_flight.start(request_id, keys, num_wanted)
            if started:
                self._health.begin(now_s)
                plans += started
            elif self._in_flight.copies_for(request_id):
                continue  # what lies behind a part that was refused has to leave first
            if self._in_flight.num_more:
                self._give_up(request_id)  # nothing more of it can be copied for now
        if self._health.is_off:
            for request_id in tuple(self._waiting):
                self._give_up(request_id)
        return plans

    def conclude(self, completion: Completion, now_s: float) -> bool:
        """Learn from a copy that has ended; return False if it was not started here."""
        copy = self._in_flight.end(completion.job_id)
        if copy is None:
            return False
        self._health.note(completion.status, now_s)
        self._recorder.add("demoted_blocks", completion.num_published)
        if completion.status is Status.BUSY:
            self._in_flight.narrow()
            self._recorder.add("ssd_busy_blocks", completion.num_lost)
            self._offer_again(completion.request_id, copy)
            return True
        self._last_answer_s = self._in_flight.heard_s
        self._recorder.add("demotion_skipped_blocks", completion.num_lost)
        if completion.status is Status.OK:
            self._in_flight.widen()
        return True

    def clear(self) -> None:
        """Forget the chains that wait or are being copied: their bytes are no longer wanted."""
        self._waiting.clear()
        self._in_flight.forget_chains()

    def _check_silence(self, now_s: float) -> None:
        """Switch the tier off if it has taken copies and no longer answers."""
        heard_s = self._in_flight.heard_s
        if not self._in_flight.num_blocks:
            self._last_answer_s = heard_s
        elif heard_s > self._last_answer_s + _SILENCE_S:
            self._health.note_silence(now_s)

    def _queue(self, request_id: RequestId, keys: Sequence[BlockKey], num_wanted: int) -> None:
        self._waiting[request_id] = keys, num_wanted
        if len(self._waiting) > _MAX_WAITING:
            self._give_up(next(iter(self._waiting)))

    def _offer_again(self, request_id: RequestId, copy: CopyInFlight) -> None:
        """Queue what a busy tier has refused, and what followed it, unless a reset was made."""
        _, num_waiting = self._waiting.get(request_id, ((), 0))
        if copy.keys and num_waiting < copy.end_block:
            self._queue(request_id, copy.keys, copy.end_block)

    def _give_up(self, request_id: RequestId) -> None:
        keys, num_wanted = self._waiting.pop(request_id)
        num_held = self._manager.lookup(keys, tier=self._tier).num_known
        self._recorder.add("demotion_skipped_blocks", max(0, num_wanted - num_held))
