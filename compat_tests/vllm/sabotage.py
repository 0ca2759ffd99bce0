"""FlexKV with copies that a test can break, and with insides that a test can look at.

Loaded by vLLM through `kv_connector_module_path`; everything that is not said here is the real
connector. Arguments and results of the added methods are JSON: they travel through the harness.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

import msgspec
from glass_connector import GlassConnector
from typing_extensions import override

from flexkv_connectors.session import worker
from flexkv_connectors.vllm.metadata import VllmOrders
from flexkv_core.data.transfer.cpu_lane import CpuLane
from flexkv_core.data.transfer.results import done, refused
from flexkv_core.plan import EnginePages, HostSlots, Status, TransferPlan, TransferResult

Fate = Literal["copy", "fail", "skip", "hold"]


class BreakableLane(CpuLane):
    """Copies as the real lane does, or as the test last said, which holds for the whole process.

    fail: copy some leading blocks of a load, nothing of a save, and report an error.
    skip: copy nothing and report success.
    hold: neither copy nor report before the fate is another one.
    """

    loads: Fate = "copy"
    saves: Fate = "copy"
    num_good_blocks = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held: list[TransferPlan] = []

    @override
    def submit_all(self, plans: Iterable[TransferPlan]) -> None:
        for plan in plans:
            match self._fate_of(plan):
                case "copy":
                    super().submit_all([plan])
                case "fail":
                    self._results.append(self._fail(plan))
                case "skip":
                    self._results.append(done(plan, self._rank, 0, 0.0))
                case "hold":
                    self._held.append(plan)

    @override
    def poll(self) -> list[TransferResult]:
        held, self._held = self._held, []
        self.submit_all(held)
        return super().poll()

    def _fate_of(self, plan: TransferPlan) -> Fate:
        return self.loads if isinstance(plan.target, EnginePages) else self.saves

    def _fail(self, plan: TransferPlan) -> TransferResult:
        failed = refused(plan, self._rank, Status.ERROR, "a test said so")
        num_blocks = min(self.num_good_blocks, plan.num_blocks - 1)
        if isinstance(plan.source, EnginePages) or not num_blocks:
            return failed
        super().submit_all([self._head_of(plan, num_blocks)])
        assert self._results.pop().status is Status.OK
        return msgspec.structs.replace(failed, num_blocks=num_blocks)

    def _head_of(self, plan: TransferPlan, num_blocks: int) -> TransferPlan:
        """Return the part of a load that fills its first blocks."""
        assert isinstance(plan.source, HostSlots)
        assert isinstance(plan.target, EnginePages)
        first_page = plan.target.first_page
        num_pages = num_blocks * self._limits.pages_per_block - first_page
        return msgspec.structs.replace(
            plan,
            source=HostSlots(plan.source.slots[: 8 * num_blocks]),
            target=EnginePages(plan.target.page_ids[:num_pages], first_page),
            num_blocks=num_blocks,
        )


worker.CpuLane = BreakableLane  # type: ignore[misc] ranks make their lane by this name


class SabotagedConnector(GlassConnector):
    """The connector under test. Each added method belongs to one role's instance."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._load_attempts: Counter[str] = Counter()

    @override
    def build_connector_meta(self, scheduler_output: Any) -> VllmOrders:
        orders = super().build_connector_meta(scheduler_output)
        self._load_attempts.update(load.request_id for load in orders.loads)
        return orders

    def break_copies(
        self, loads: Fate = "copy", saves: Fate = "copy", num_good_blocks: int = 0
    ) -> None:
        """Worker: decide what happens to copies from now on."""
        BreakableLane.loads, BreakableLane.saves = loads, saves
        BreakableLane.num_good_blocks = num_good_blocks

    def take_load_attempts(self) -> list[int]:
        """Scheduler: return how often each request was loaded since the last call."""
        attempts, self._load_attempts = self._load_attempts, Counter()
        return sorted(attempts.values())

    def audit(self) -> dict[str, Any]:
        """Scheduler: check the manager's invariants, and say what it holds."""
        manager = self._scheduler.session.manager
        assert manager is not None
        manager.check_integrity()
        return {
            "off": self._barrier.reason,
            "num_in_flight": manager.num_in_flight,
            "num_claims": len(manager._claims),
            "num_states": len(self._scheduler.session.states),
            "num_used_blocks": manager.num_used_blocks(),
            "num_free_blocks": manager.num_free_blocks(),
        }
