"""Stands between the sources and the system, and lets calls on their files fail in every way."""

import errno
import fcntl
import mmap
import operator
import os
import random
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType, SimpleNamespace

from simulation import Killed, Simulation

from flexkv_core.data.tiers.ssd.format import LOG_SUFFIX

BY_FD = ["preadv", "pread", "pwritev", "posix_fallocate", "ftruncate", "fsync", "fstat"]
BY_FD += ["posix_fadvise"]
BY_PATH = ["unlink", "rename", "replace", "mkdir", "rmdir", "scandir", "listdir", "lstat", "stat"]
BY_PATH += ["statvfs"]
BY_EITHER = ["utime"]
MOVES = {"preadv", "pread", "pwritev"}
TAKES_MEMORY = MOVES | {"open", "create", "scandir", "mmap"}
MAKES_ROOM = {"posix_fallocate", "pwritev", "mkdir", "create"}

CODES = {
    "open": [errno.EIO, errno.EMFILE, errno.ENFILE, errno.EINTR, errno.EACCES],
    "create": [errno.EIO, errno.EMFILE, errno.ENOSPC, errno.EDQUOT, errno.EROFS],
    "flock": [errno.EWOULDBLOCK, errno.ENOLCK, errno.EINTR],
    "pwritev": [errno.EIO, errno.ENOSPC, errno.EROFS, errno.EINTR],
    "posix_fallocate": [errno.EIO, errno.ENOSPC, errno.EINTR],
    "mkdir": [errno.EIO, errno.ENOSPC, errno.EACCES],
    "fstat": [errno.EIO, errno.ESTALE],
    "scandir": [errno.EIO, errno.EMFILE],
    "mmap": [errno.ENOMEM],
}
MEMORY = "host memory"
ANY_CODE = [errno.EIO, errno.EINTR]


@dataclass(frozen=True)
class Weather:
    """Which calls fail how often, and how."""

    one_in: int = 0
    """No call fails if this is 0."""

    calls: frozenset = frozenset()
    """The only ones to fail; all if empty."""

    kinds: tuple = ("error",)
    code: int | None = None


CLEAR = Weather()
ALL_KINDS = ("error", "error", "late error", "short", "short", "flip", "lost", "delay")
HARMLESS = [
    CLEAR,
    Weather(1, frozenset({"preadv", "pread"}), code=errno.EIO),
    Weather(4, frozenset({"preadv", "pread"})),
    Weather(1, frozenset({"open", "create", "scandir"}), code=errno.EMFILE),
    Weather(2, frozenset({"flock"})),
    Weather(2, frozenset({"close", "fsync", "statvfs"})),
    Weather(3, frozenset({"preadv", "pread"}), ("short",)),
    Weather(3, frozenset(MOVES | {"fsync", "open"}), ("delay",)),
    Weather(3, frozenset(TAKES_MEMORY), ("memory",)),
]
"""No block that was stored is changed, nor one half written."""

HARMFUL = [
    # Where `fstat` fails, a reset empties slabs that it would delete, even while they are read.
    Weather(2, frozenset({"close", "fstat", "fsync", "statvfs"})),
    Weather(50, kinds=ALL_KINDS),
    Weather(8, kinds=ALL_KINDS),
    Weather(2, kinds=("error", "late error")),
    Weather(1, frozenset({"pwritev", "posix_fallocate"}), code=errno.EROFS),
    Weather(1, frozenset(MAKES_ROOM), code=errno.ENOSPC),
    Weather(3, frozenset(MOVES), ("short",)),
    Weather(4, frozenset({"preadv", "pwritev"}), ("flip", "lost")),
    Weather(4, frozenset({"preadv", "pwritev"}), ("flip", "lost")),
    Weather(200, kinds=("kill",)),
]


@dataclass
class SystemCalls:
    """Fails calls on files below `root`, as the weather says; knows which files are open."""

    simulation: Simulation
    root: str
    rng: random.Random
    weather: Weather = CLEAR
    open_files: dict[int, str] = field(default_factory=dict)
    failed: Counter = field(default_factory=Counter)
    _buried: set[int] = field(default_factory=set)
    _moving: list[tuple[int, int, int]] = field(default_factory=list)

    def install(self, monkeypatch) -> None:
        self._opened, self._close, self._fcntl = os.open, os.close, fcntl.fcntl
        self._memfd_create = os.memfd_create
        for name in BY_FD:
            self._patch(monkeypatch, os, name, self.open_files.get)
        for name in BY_PATH:
            self._patch(monkeypatch, os, name, self._own_path)
        for name in BY_EITHER:
            self._patch(monkeypatch, os, name, self._own)
        for name in ("flock", "fcntl"):
            self._patch(monkeypatch, fcntl, name, self.open_files.get)
        monkeypatch.setattr(os, "memfd_create", self._opens(os.memfd_create))
        monkeypatch.setattr(os, "open", self._wrap_open(os.open))
        monkeypatch.setattr(os, "close", self._wrap_close(os.close))
        # What differs from run to run: orders, and times by the machine's clock.
        monkeypatch.setattr(os, "scandir", self._wrap_scandir(os.scandir))
        path_of = operator.attrgetter("path")
        monkeypatch.setattr("flexkv_core.data.tiers.ssd.runs.id", path_of, raising=False)
        monkeypatch.setattr("flexkv_core.data.tiers.ssd.files.SlabFile.modified_s", 0.0)
        maps = SimpleNamespace(mmap=self._wrap("mmap", mmap.mmap, lambda _: "memory"))
        for module in ("files", "slab"):
            monkeypatch.setattr(f"flexkv_core.data.tiers.ssd.{module}.mmap", maps)

    @property
    def num_files(self) -> int:
        """Open files, apart from host memory."""
        return sum(path != MEMORY for path in self.open_files.values())

    def close_all(self) -> None:
        """Close the files of a process that was killed, as the system does.

        Their numbers stay taken: what is left of the process may still close them.
        """
        while self.open_files:  # a finalizer may close one meanwhile
            fd, _ = self.open_files.popitem()
            nothing = self._opened(os.devnull, os.O_RDONLY)
            os.dup2(nothing, fd)
            self._close(nothing)
            self._buried.add(fd)

    def end(self) -> None:
        for fd in self._buried:
            self._close(fd)
        self._buried.clear()

    def _patch(self, monkeypatch, module, name, path_of):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, self._wrap(name, original, path_of))

    def _own_path(self, path):
        text = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        return text if text.startswith(self.root) else None

    def _own(self, path):
        return self.open_files.get(path) if isinstance(path, int) else self._own_path(path)

    def _wrap(self, name, original, path_of):
        def call(*args, **options):
            path = path_of(args[0] if args else ".")
            if path is None:
                return original(*args, **options)
            return self._call(name, path, original, args, options)

        return call

    def _wrap_scandir(self, patched):
        @contextmanager
        def call(path="."):
            with patched(path) as entries:
                yield iter(sorted(entries, key=operator.attrgetter("name")))

        return lambda path=".": patched(path) if self._own_path(path) is None else call(path)

    def _wrap_open(self, original):
        def call(path, flags, *args, **options):
            if self._own_path(path) is None:
                return original(path, flags, *args, **options)
            name = "create" if flags & os.O_CREAT else "open"
            return self._call(name, path, self._opens(original), (path, flags, *args), options)

        return call

    def _opens(self, original):
        def opened(path, *args, **options):
            fd = original(path, *args, **options)
            self.open_files[fd] = MEMORY if original is self._memfd_create else os.fspath(path)
            return fd

        return opened

    def _wrap_close(self, original):
        def call(fd):
            if fd in self._buried or not (fd in self.open_files or self._is_finalizer()):
                self._buried.discard(fd)
                original(fd)
            elif fd not in self.open_files:
                return  # what is left of a run that has failed
            elif not self._is_dead():  # else it may be a finalizer's: the system closes the file
                self.simulation.may_preempt()
                del self.open_files[fd]
                original(fd)  # Linux closes it whatever it answers
                if self._picks("close") == "error" and not self._is_finalizer():
                    raise self._error("close")

        return call

    def _is_dead(self):
        process = self.simulation.current.process
        return process is not None and process.is_dead

    @staticmethod
    def _is_finalizer():
        """Return whether nobody closes a file but the end of the object that has it."""
        return sys._getframe(2).f_globals["__name__"] == "weakref"

    def _call(self, name, path, original, args, options=MappingProxyType({})):
        simulation = self.simulation
        if name in MOVES and path.endswith(".slab"):
            with self._moving_alone(name, args):
                simulation.preempt()
                return self._do_or_fail(name, path, original, args, options)
        simulation.require_life()
        return self._do_or_fail(name, path, original, args, options)

    @contextmanager
    def _moving_alone(self, name, args):
        """Note what is moved; what is being read or written may not be written over."""
        fd, buffers, offset = args
        end = offset + (buffers if name == "pread" else sum(map(len, buffers)))
        if name == "pwritev" and len(buffers) > 1:  # else it is an erasure
            for other, first, last in self._moving:
                assert other != fd or last <= offset or end <= first, "a slot in use is written"
        place = fd, offset, end
        self._moving.append(place)
        try:
            yield
        finally:
            self._moving.remove(place)

    def _do_or_fail(self, name, path, original, args, options):
        kind = self._picks(name, path)
        # A log lives in memory, which does not lie: followers need the start of it.
        is_new_log = name == "pwritev" and path.endswith(LOG_SUFFIX + ".new")
        if kind is None or (is_new_log and kind in {"flip", "lost"}):
            return self._do(name, original, args, options)
        self.failed[name] += 1
        faults = {
            "error": self._fail, "late error": self._late_error, "short": self._short,
            "flip": self._flip, "lost": self._lost, "delay": self._delay, "kill": self._kill,
            "memory": self._memory,
        }  # fmt: skip
        return faults[kind](name, original, args, options)

    @staticmethod
    def _do(name, original, args, options):
        # Only processes are killed here, not the machine: what was written is there.
        return None if name == "fsync" else original(*args, **options)

    def _picks(self, name, path=""):
        weather = self.weather
        if path == MEMORY:
            return None
        if not weather.one_in or (weather.calls and name not in weather.calls):
            return None
        if self.rng.random() * weather.one_in >= 1:
            return None
        kind = self.rng.choice(weather.kinds)
        if name not in MOVES:
            kind = {"short": "error", "flip": "error", "lost": "error"}.get(kind, kind)
        # On the engine's own thread it would reach the fault barrier, and caching would end.
        return None if kind == "memory" and self.simulation.is_main else kind

    def _error(self, name):
        code = self.weather.code or self.rng.choice(CODES.get(name, ANY_CODE))
        return OSError(code, os.strerror(code))

    def _fail(self, name, *_):
        raise self._error(name)

    def _memory(self, *_):
        raise MemoryError

    def _late_error(self, name, original, args, options):
        """Do what was asked for, and say that it failed."""
        result = self._do(name, original, args, options)
        if name in ("open", "create"):
            del self.open_files[result]
            self._close(result)
        self._close_iterator(name, result)
        raise self._error(name)

    @staticmethod
    def _close_iterator(name, result):
        if name == "scandir":
            result.close()

    def _delay(self, name, original, args, options):
        self.simulation.sleep(self.rng.choice([0.01, 0.3, 2.0, 20.0, 100.0]))
        return self._do(name, original, args, options)

    def _kill(self, name, original, args, options):
        if self.rng.random() < 0.5:
            if name == "pwritev":
                self._short(name, original, args, options)
            else:
                self._close_iterator(name, self._do(name, original, args, options))
        self.simulation.current.process.is_dead = True
        raise Killed

    def _short(self, name, original, args, options):
        """Move a part of what was asked for; direct I/O moves whole pages."""
        if name == "pread":
            fd, num_bytes, offset = args
            return original(fd, self.rng.randrange(num_bytes), offset)
        fd, buffers, offset = args
        is_direct = self._fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
        return original(fd, self._cut(buffers, 4096 if is_direct else 512), offset)

    def _cut(self, buffers, unit):
        """Return the first part of buffers."""
        num_bytes = sum(map(len, buffers))
        left = self.rng.randrange(num_bytes // unit + 1) * unit or num_bytes
        kept = []
        for buffer in buffers:
            if left <= 0:
                break
            kept.append(memoryview(buffer)[:left])
            left -= len(buffer)
        return kept

    def _flip(self, name, original, args, options):
        """Change a bit on the way."""
        if name == "pread":
            content = bytearray(original(*args))
            self._damage([memoryview(content)])
            return bytes(content)
        fd, buffers, offset = args
        if name == "preadv":
            num_bytes = original(fd, buffers, offset)
            self._damage(buffers)
            return num_bytes
        region = mmap.mmap(-1, max(1, sum(map(len, buffers))))  # aligned, as direct I/O wants it
        region[:] = b"".join(buffers) or b"\0"
        self._damage([memoryview(region)])
        return original(fd, [memoryview(region)[: sum(map(len, buffers))]], offset)

    def _damage(self, buffers):
        buffers = [memoryview(it) for it in buffers if len(it)]
        if not buffers:
            return  # nothing was moved
        buffer = self.rng.choice(buffers)
        buffer[self.rng.randrange(len(buffer))] ^= 1 << self.rng.randrange(8)

    def _lost(self, name, original, args, options):
        """Say that all was written, and write nothing."""
        if name == "pwritev":
            return sum(map(len, args[1]))
        return self._flip(name, original, args, options)
