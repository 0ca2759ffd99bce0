"""Threads that run one at a time, switched as a seed decides: a run can be repeated exactly.

The sources see `threading` and `time` as usual. A thread gives way where it takes a lock, waits, or
calls the system; the clock moves when all wait, or when a test moves it. So a deadlock is seen at
once, and a wait of a minute takes no time.
"""

import math
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable

ONE_IN = 16
"""Of so many locks that are taken, one is an occasion for another thread to run."""


class Killed(BaseException):
    """The process has been killed: nothing it still does has an effect."""


class DeadlockError(AssertionError):
    """All threads wait for each other."""


class Process:
    """What lives and dies together."""

    is_dead = False


class Task:
    """One thread, or the test itself."""

    def __init__(self, simulation, name, process):
        self.simulation = simulation
        self.name = name
        self.process = process
        self.ready = None
        self.wake_s = math.inf
        self.is_over = False
        self.go = threading.Lock()
        self.go.acquire()

    def __repr__(self):
        return self.name

    def may_run(self, now_s):
        return self.ready is None or self.wake_s <= now_s or self.ready()

    def __enter__(self):
        self.go.acquire()

    def __exit__(self, _, error, __):
        """End; whatever was raised ends this thread alone, as it does without a simulation."""
        simulation = self.simulation
        if error is not None and not isinstance(error, Killed):
            simulation.died.append("".join(traceback.format_exception(error)[-4:]))
        while error is not None:  # what its frames hold is freed now, and not beside other threads
            traceback.clear_frames(error.__traceback__)
            error = error.__context__
        self.is_over = True
        simulation.tasks.remove(self)
        simulation.switch()
        return True


class Simulation:
    """The threads of the sources, and their clock."""

    def __init__(self, rng: random.Random) -> None:
        self.now_s = 1000.0
        self.process = Process()
        self.main = self.current = Task(self, "the test", self.process)
        self.tasks = [self.main]
        self.died: list[str] = []
        """Threads that an exception has ended."""

        self.threads: list[threading.Thread] = []
        self._rng = rng
        self._is_stuck = False

    @property
    def is_main(self) -> bool:
        """Whether it is the test itself that runs."""
        return self.current is self.main

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.block(lambda: False, seconds)

    def begin_process(self) -> None:
        self.process = self.main.process = Process()

    def kill(self) -> None:
        """Let all threads of the process end where they are."""
        self.process.is_dead, self._is_stuck = True, False
        self.main.process = None
        for task in self.tasks[1:]:
            task.wake_s = -math.inf
        self.block(lambda: len(self.tasks) == 1)

    def may_preempt(self) -> None:
        if self._rng.random() * ONE_IN < 1:
            self.preempt()

    def preempt(self) -> None:
        """Let another thread run, perhaps."""
        self.require_life()
        if len(self.tasks) > 1:
            self.switch()
            self.require_life()

    def block(self, ready: Callable[[], bool], timeout_s: float = math.inf) -> bool:
        """Wait until something is the case; return whether it is."""
        self.require_life()
        if ready():
            return True
        me = self.current
        me.ready, me.wake_s = ready, self.now_s + timeout_s
        self.switch()
        me.ready, me.wake_s = None, math.inf
        self.require_life()
        return ready()

    def switch(self) -> None:
        me, chosen = self.current, self._choose()
        if chosen is not me:
            self.current = chosen
            chosen.go.release()
            if not me.is_over:
                me.go.acquire()

    def require_life(self) -> None:
        if self._is_stuck and self.current is self.main:
            msg = f"all wait: {self.tasks}"
            raise DeadlockError(msg)
        process = self.current.process
        if process is not None and process.is_dead:
            raise Killed

    def _choose(self) -> Task:
        able = [task for task in self.tasks if task.may_run(self.now_s)]
        if able:
            return able[0] if len(able) == 1 else self._rng.choice(able)
        first = min(self.tasks, key=lambda task: task.wake_s)
        if first.wake_s == math.inf:
            self._is_stuck = True
            return self.main
        self.now_s = first.wake_s
        return first

    def install(self, monkeypatch) -> None:
        """Let all modules of the core that are loaded see these threads and this clock."""
        modules = [it for name, it in sys.modules.items() if name.startswith("flexkv_core.")]
        for name, real, made in (("threading", threading, _Threading), ("time", time, _Time)):
            for module in modules:
                if getattr(module, name, None) is real:
                    monkeypatch.setattr(module, name, made(self))

    def end(self) -> None:
        """Wait for the real threads, all of which have come to their end."""
        for thread in self.threads:
            thread.join()


class _Time:
    def __init__(self, simulation):
        self.monotonic = simulation.clock
        self.sleep = simulation.sleep

    def __getattr__(self, name):
        return getattr(time, name)


class _Threading:
    """The part of `threading` that the sources use."""

    def __init__(self, simulation):
        self._simulation = simulation

    def __getattr__(self, name):
        made = _KINDS.get(name)
        if made is None:
            return getattr(threading, name)
        return lambda *args, **options: made(self._simulation, *args, **options)


class _Lock:
    def __init__(self, simulation):
        self._simulation = simulation
        self._holder = None
        self._depth = 0

    def _is_free(self):
        return self._holder is None

    def acquire(self, blocking=True, timeout=-1):
        simulation = self._simulation
        if blocking:
            simulation.may_preempt()
            if not simulation.block(self._is_free, math.inf if timeout < 0 else timeout):
                return False
        elif self._holder is not None:
            return False
        self._holder, self._depth = simulation.current, self._depth + 1
        return True

    def release(self):
        self._depth -= 1
        if not self._depth:
            self._holder = None

    def __enter__(self):
        self.acquire()
        return self

    def __exit__(self, *_):
        self.release()


class _RLock(_Lock):
    def acquire(self, blocking=True, timeout=-1):
        if self._holder is self._simulation.current:
            self._depth += 1
            return True
        return super().acquire(blocking, timeout)


class _Condition:
    def __init__(self, simulation, lock=None):
        self._simulation = simulation
        self._lock = _RLock(simulation) if lock is None else lock
        self._waiting: list[list[bool]] = []
        self.acquire, self.release = self._lock.acquire, self._lock.release

    def __enter__(self):
        self._lock.acquire()
        return self

    def __exit__(self, *_):
        self._lock.release()

    def wait(self, timeout=None):
        called = [False]
        self._waiting.append(called)
        lock = self._lock
        depth, lock._depth, lock._holder = lock._depth, 0, None
        self._simulation.block(lambda: called[0], math.inf if timeout is None else timeout)
        lock.acquire()
        lock._depth = depth
        self._waiting = [other for other in self._waiting if other is not called]
        return called[0]

    def wait_for(self, predicate, timeout=None):
        end_s = math.inf if timeout is None else self._simulation.now_s + timeout
        while not (result := predicate()) and (left_s := end_s - self._simulation.now_s) > 0:
            self.wait(left_s)
        return result

    def notify(self, n=1):
        for called in self._waiting[:n]:
            called[0] = True
        del self._waiting[:n]

    def notify_all(self):
        self.notify(len(self._waiting))


class _Event:
    def __init__(self, simulation):
        self._simulation = simulation
        self._is_set = False

    def is_set(self):
        return self._is_set

    def set(self):
        self._is_set = True

    def clear(self):
        self._is_set = False

    def wait(self, timeout=None):
        return self._simulation.block(self.is_set, math.inf if timeout is None else timeout)


class _Thread:
    def __init__(self, simulation, *, target, name, args=(), daemon=None):
        self._simulation = simulation
        self._task = Task(simulation, name, simulation.current.process)
        self._body = [(target, args)]
        self._real = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self):
        simulation = self._simulation
        simulation.tasks.append(self._task)
        alive = [thread for thread in simulation.threads if thread.is_alive()]
        simulation.threads = [*alive, self._real]
        self._real.start()

    def is_alive(self):
        return not self._task.is_over

    def join(self, timeout=None):
        self._simulation.block(lambda: self._task.is_over, math.inf if timeout is None else timeout)

    def _run(self):
        with self._task:
            self._simulation.require_life()
            self._call(*self._body.pop())

    @staticmethod
    def _call(target, args):
        target(*args)


_KINDS = {
    "Condition": _Condition, "Event": _Event, "Lock": _Lock, "RLock": _RLock, "Thread": _Thread,
}  # fmt: skip
