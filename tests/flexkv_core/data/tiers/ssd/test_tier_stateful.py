"""Any order of writes, reads, deletions, resets, restarts, kills, against a set of keys."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from flexkv_core.plan import Status

OK, _, MISS, CORRUPT, TIMEOUT, ERROR, _ = Status
NUMBERS = st.lists(st.integers(0, 30), min_size=1, max_size=6, unique=True)
NUM_SLOTS = 12


def test_every_order_of_events(disk):
    class Events(RuleBasedStateMachine):
        """`stored` is what must be found; what a kill brings back is what was deleted before."""

        def __init__(self):
            super().__init__()
            self.path = Path(tempfile.mkdtemp(dir=disk.path.parent))
            self.stored = set()
            self.is_temporary = False
            self.rank = self.open()

        def open(self):
            return disk.open(
                directories=[self.path / "a", self.path / "b"],
                columns=disk.columns,
                quota_bytes=2 * (2 * 4096 + NUM_SLOTS * disk.slot_bytes),
            )

        @rule(numbers=NUMBERS)
        def write(self, numbers):
            statuses = self.rank.write(numbers)
            new = {n for n, status in zip(numbers, statuses, strict=True) if status is OK}
            assert new >= self.stored & set(numbers)
            assert set(statuses) <= {OK, ERROR}
            self.stored |= new
            assert len(self.stored) <= NUM_SLOTS
            assert new == set(numbers) or len(self.stored) == NUM_SLOTS

        @rule(numbers=NUMBERS)
        def read(self, numbers):
            expected = [OK if number in self.stored else MISS for number in numbers]
            assert self.rank.read(numbers) == expected

        @rule(numbers=NUMBERS)
        def delete(self, numbers):
            self.rank.tier.delete([disk.key(number) for number in numbers])
            self.stored -= set(numbers)

        @rule(keeps_name=st.booleans())
        def reset(self, keeps_name):
            self.rank.tier.begin_generation("g", keeps_name=keeps_name)
            self.is_temporary |= not keeps_name
            self.stored.clear()

        @rule()
        def restart(self):
            self.rank.close()
            self.rank = self.open()
            found = set(self.rank.recovered())
            assert self.is_temporary or found >= self.stored
            self.stored, self.is_temporary = found, False

        @invariant()
        def capacity_is_what_was_promised(self):
            assert self.rank.tier.capacity_blocks == NUM_SLOTS

        def teardown(self):
            self.rank.close()
            shutil.rmtree(self.path)

    Events.TestCase.settings = settings(max_examples=40, stateful_step_count=30)
    Events.TestCase("runTest").runTest()
