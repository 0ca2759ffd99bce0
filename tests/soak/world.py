"""One machine and one engine on it, which does random things while its system fails."""

import gc
import hashlib
import itertools
import logging
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from simulation import Killed, Simulation
from system_calls import CLEAR, HARMFUL, HARMLESS, SystemCalls

from flexkv_core.data.tiers.ssd.options import SsdOptions
from flexkv_core.errors import TierError
from flexkv_core.testing.namespaces import make_namespace

CELL_BYTES = 4096
RETRY_S = 61.0
"""Every tier is to be used again after this time: a minute, and the step after it."""

MAX_OBJECTS = 5000
"""Of Python, when nothing is under way; 3200 have been seen, after any number of operations."""

LOGGER = logging.getLogger("flexkv_core")
MAX_CHAIN = 12
CHAINS_KEPT = 24


def content_of(key, weights, rank, num_bytes):
    """Return the bytes of a block, which are those of no other block, rank or weights."""
    digest = hashlib.sha256(key + b"%d %d" % (weights, rank)).digest()
    first = int.from_bytes(digest[:7], "big")
    return np.arange(first, first + num_bytes // 8, dtype=np.uint64).tobytes()


def findable(manager, tier):
    """Return the keys of all blocks of a tier that can be found."""
    root = manager._index.root.entries[manager._tiers[tier].index]
    return sorted(key for entry in root.subtree() for key in entry.node.keys[: entry.num_ready])


class World:
    """What all kinds have in common; a kind says what its engine does."""

    VERBS: dict[str, float]
    """What may happen, and how often."""

    def __init__(self, seed: int, root: Path, monkeypatch) -> None:
        self.rng = random.Random(seed)
        self.root = root
        self.simulation = Simulation(self.rng)
        self.calls = SystemCalls(self.simulation, str(root), self.rng)
        self.simulation.install(monkeypatch)
        self.calls.install(monkeypatch)
        monkeypatch.setattr("flexkv_core.data.tiers.ssd.space._MIN_STEP_BYTES", 4 * 2 * CELL_BYTES)
        self.seen: Counter = Counter()
        self.is_named = self.flip()
        self.is_harmless = seed % 4 == 0
        """Nothing damages a block: none may turn out damaged."""

        self.num_weights = self.stored_weights = self.weights = 0
        self.num_probes = self.num_starts = 0
        self.chains: list[list[bytes]] = [[]]
        self.is_resetting = False
        """Whether the weights were being changed: then nobody knows what is stored."""

        self.to_delete: set[str] = set()
        """What the log has told the operator to delete before the next start."""

        self.engine = None
        self.operator = _Operator(self)

    # What a kind says.

    def open(self):
        """Return a new engine on what is on the disk.

        Raises:
            TierError: No directory can be used.
        """
        raise NotImplementedError

    def probe(self, engine) -> bool:
        """Store something new and find it again, with a system that works; False if it failed."""
        raise NotImplementedError

    def settle(self, engine) -> None:
        """Let all that is under way end."""
        raise NotImplementedError

    def check_idle(self, engine) -> None:
        """Nothing is under way: nothing may be held."""
        raise NotImplementedError

    # What may happen to all.

    def verbs(self, number: int) -> Iterator[str]:
        names, weights = [*self.VERBS], [*itertools.accumulate(self.VERBS.values())]
        for _ in range(number):
            yield self.rng.choices(names, cum_weights=weights)[0]

    def do(self, verb: str) -> None:
        if self.engine is None and verb not in ("change_weather", "calm", "wait"):
            self.start()
            return
        getattr(self, verb)()

    def start(self) -> None:
        self.simulation.begin_process()
        self.num_starts += 1
        with self.clear():
            self._delete()
        self.weights = self.stored_weights
        with self.undone():
            self.engine = self.open()

    def _delete(self) -> None:
        """Delete what the operator has to."""
        patterns = {"**/*"} if self.is_resetting and self.is_named else self.to_delete
        for pattern in patterns:
            for path in self.root.glob(pattern):
                if not path.is_dir():
                    path.unlink()
        self.is_resetting, self.to_delete = False, set()

    @contextmanager
    def undone(self):
        """Let the engine go on without a tier that no directory has room for."""
        try:
            yield
        except TierError:
            self.seen["no tier"] += 1
            self.forget_files()

    def restart(self) -> None:
        """End well, and begin again."""
        engine, self.engine = self.engine, None
        self.settle(engine)
        engine.close()
        del engine
        self.expect_no_files()
        self.seen["restart"] += 1
        self.start()

    def revive(self) -> None:
        """Do away with what was killed; the next thing that happens is a new start."""
        self.engine = None
        self.simulation.kill()
        self.forget_files()
        self.seen["kill"] += 1

    def forget_files(self) -> None:
        gc.collect()
        self.calls.close_all()

    def expect_no_files(self) -> None:
        gc.collect()
        left = self.simulation.tasks[1:]
        self.simulation.block(lambda: all(task.is_over for task in left), 1e5)
        assert not self.calls.open_files, f"left open: {self.calls.open_files}"
        assert self.simulation.tasks[1:] == [], "threads are left"

    def change_weather(self) -> None:
        weathers = HARMLESS if self.is_harmless else HARMLESS + HARMFUL
        self.calls.weather = CLEAR if self.flip() else self.rng.choice(weathers)

    def wait(self) -> None:
        self.simulation.now_s += self.rng.choice([0.001, 0.01, 0.1, 1.0, 7.0, 31.0])

    def grow_chain(self) -> None:
        chain = self.rng.choice(self.chains)
        if not self.rng.randrange(3):
            chain = chain[: self.rng.randrange(len(chain) + 1)]
            self.chains = [*self.chains[1 - CHAINS_KEPT :], chain]
        for _ in range(min(1 + self.rng.randrange(4), MAX_CHAIN - len(chain))):
            chain.append(self.new_key(chain[-1] if chain else b"", self.rng.randrange(3)))

    def calm(self) -> None:
        """Everything works again: after its retry time every tier is used, and nothing is held."""
        with self.clear():
            if self.engine is None:
                self.start()
            self.settle(self.engine)
            self.simulation.now_s += RETRY_S
            works = [self.probe(self.engine) for _ in range(2)]  # the first is the trial
            died = [it for it in self.simulation.died if "MemoryError" not in it]
            assert not died, "".join(died)
            assert works[1], "a tier has not come back"
            self.settle(self.engine)
            gc.collect()
            self.check_idle(self.engine)
            assert len(gc.get_objects()) < MAX_OBJECTS, "memory is lost"
        self.seen["calm"] += 1

    @contextmanager
    def clear(self):
        weather, self.calls.weather = self.calls.weather, CLEAR
        yield
        self.calls.weather = weather

    def new_weights(self) -> int:
        """Return what the engine has from now on; under a name, the next one has it, too."""
        self.num_weights += 1
        self.weights = self.num_weights
        if self.is_named:
            self.stored_weights = self.weights
        return self.weights

    def end(self) -> None:
        self.calls.weather = CLEAR
        self.calm()
        engine, self.engine = self.engine, None
        engine.close()
        del engine
        self.expect_no_files()

    def bury(self) -> None:
        """Leave nothing behind, however it ended."""
        self.engine = None
        self.simulation.kill()
        self.forget_files()
        self.calls.end()
        self.simulation.end()

    def count(self, counts: dict[str, float]) -> None:
        """Take in what a tier has counted."""
        num_corrupt = counts.get("ssd_corrupt_blocks", 0)
        assert not (num_corrupt and self.is_harmless), "a block is damaged that nothing has damaged"
        self.seen.update(counts)

    # Helpers.

    def flip(self) -> bool:
        return self.rng.random() < 0.5

    def new_key(self, parent: bytes, name: int) -> bytes:
        return hashlib.sha256(parent + b"%d" % name).digest()

    def fresh_chain(self, num_blocks: int) -> list[bytes]:
        self.num_probes += 1
        keys = [self.new_key(b"probe %d" % self.num_probes, 0)]
        while len(keys) < num_blocks:
            keys.append(self.new_key(keys[-1], 0))
        return keys

    def namespace(self, **changes):
        return make_namespace(weight_version="v1" if self.is_named else "", **changes)

    def options(self, quota_bytes: int, **changes) -> SsdOptions:
        return SsdOptions(
            directories=(self.root / "a", self.root / "b"),
            quota_bytes=quota_bytes,
            leftover_bytes=8 * quota_bytes,
            **changes,
        )


class _Operator(logging.Handler):
    """Reads the log, and does what it says."""

    NOT_RECORDED = "ssd.generation_not_recorded director"

    def __init__(self, world):
        super().__init__(logging.WARNING)
        self._world = world

    def __enter__(self):
        LOGGER.addHandler(self)
        LOGGER.propagate = False  # or pytest would keep every line of the log: "memory is lost"

    def __exit__(self, *_):
        LOGGER.propagate = True
        LOGGER.removeHandler(self)

    def emit(self, record):
        world, message = self._world, record.getMessage()
        if message.startswith(self.NOT_RECORDED):
            world.to_delete.add("*/.*.generation")
        elif message.startswith("ssd.not_deleted"):
            world.to_delete.add(str(record.args[0].relative_to(world.root)))


def soak(kind, seed, num_operations, root, monkeypatch, spoil=lambda _: None):
    """Let `num_operations` random things happen; fail with the number of the one that failed.

    Args:
        kind: The class of the world.
        seed: Decides everything: the same seed fails in the same way at the same operation.
        num_operations: Of `kind.VERBS`.
        root: An empty folder.
        monkeypatch: Undoes what is patched.
        spoil: Breaks the sources, to see whether that is noticed.
    """
    gc.collect()
    gc.freeze()  # a collection looks at this run's objects alone
    gc.disable()  # and comes where the run wants it
    spoil(monkeypatch)
    done = ["start"]
    world = kind(seed, root, monkeypatch)
    try:
        with world.operator:
            for verb in world.verbs(num_operations):
                done.append(verb)
                with suppress(Killed):
                    world.do(verb)
                if world.simulation.process.is_dead:
                    world.revive()
            done.append("end")
            world.end()
    except BaseException as error:
        msg = f"{kind.__name__}, seed {seed}, operation {len(done) - 1} ({done[-1]}): {error!r}"
        raise AssertionError(msg) from error
    finally:
        world.bury()
        gc.enable()
        gc.unfreeze()
    world.seen.update(done)
    return world
