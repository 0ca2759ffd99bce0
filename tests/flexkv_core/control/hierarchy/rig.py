"""A manager of host memory and a tier below it, whose workers are the test."""

from hashlib import sha256

from flexkv_core.control.hierarchy.lower_tier import LowerTier
from flexkv_core.control.manager import CacheManager, TierSpec
from flexkv_core.metrics import Counters
from flexkv_core.plan import EnginePages, Status, StoredKey, TierReport, TransferResult

BLOCK_BYTES = 1 << 20
PLAN_BLOCKS = 32
"""Blocks of this size that are copied by one plan."""


def chain(name, num_blocks):
    """Return the keys of a chain; those of the same name share their beginning."""
    return [sha256(f"{name} {block}".encode()).digest() for block in range(num_blocks)]


class Rig:
    """Both tiers, empty, with all ranks reported."""

    def __init__(
        self, *, host_blocks=256, ssd_blocks=1024, timeout_s=10.0, owners=(0,), policy="lru"
    ):
        self.counters = Counters()
        specs = [
            TierSpec("host", host_blocks, policy),
            TierSpec("ssd", ssd_blocks, policy, addressed_by="key"),
        ]
        self.manager = CacheManager(specs, ranks=len(owners), owners=owners, recorder=self.counters)
        self.tier = LowerTier(
            self.manager,
            "ssd",
            owners=owners,
            block_bytes=BLOCK_BYTES,
            timeout_s=timeout_s,
            recorder=self.counters,
        )
        self.owners = owners
        self.ssd_blocks = ssd_blocks

    def recover(
        self,
        keys=(),
        *,
        first_block=0,
        rank=0,
        is_recovered=True,
        capacity_blocks=None,
        generation="",
    ):
        """Let a rank report what it has found of a chain."""
        pairs = [StoredKey(key, keys[at - 1] if at else None) for at, key in enumerate(keys)]
        report = TierReport(
            tier="ssd",
            rank=rank,
            capacity_blocks=self.ssd_blocks if capacity_blocks is None else capacity_blocks,
            recovered=pairs[first_block:],
            is_recovered=is_recovered,
            generation=generation,
        )
        self.tier.handle_report(report)

    def save(self, keys):
        """Let host memory hold a chain."""
        reservation = self.manager.reserve("saver", keys)
        plan = self.manager.plan_put(reservation, EnginePages(list(range(len(keys)))))
        self.end(plan)

    def put_on_ssd(self, keys):
        """Let the tier hold a chain that host memory lacks."""
        self.manager.restore(keys, tier="ssd")

    def end(self, plan, now_s=0.0, *, status=Status.OK, num_blocks=None, seconds=0.0):
        """Let every owner report on a plan."""
        for rank in self.owners:
            result = TransferResult(
                job_id=plan.job_id,
                rank=rank,
                status=status,
                num_blocks=plan.num_blocks if num_blocks is None else num_blocks,
                epoch=plan.epoch,
                seconds=seconds,
            )
            completion = self.manager.complete(result)
        if completion.kind.value == "copy":
            self.tier.conclude(completion, now_s)

    def num_ready(self, keys, tier="host"):
        return self.manager.lookup(keys, tier=tier).num_ready

    def take(self, name):
        """Return what a counter has counted since the last call for any."""
        return self.counters.drain().get(name, 0)
