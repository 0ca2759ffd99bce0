"""Identifies the checkpoints of an engine in the background."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from flexkv_core.errors import FlexKVError, TierError
from flexkv_core.identity.as_read import FoundFile, Judge, Mounts, Survey, survey, why_changed
from flexkv_core.identity.checkpoint import Checkpoint
from flexkv_core.identity.digest_cache import DigestCache
from flexkv_core.identity.hashing import Digests, FileHasher, digest_of_files, yield_to_others
from flexkv_core.identity.progress import Progress
from flexkv_core.identity.stamps import Stamp

__all__ = ["Identification"]

logger = logging.getLogger(__name__)

_SETTLED_S = 2.0
"""A file that was changed less than this before it is read may change again within one tick of its
file system's clock and keep its stamp, so its digest is not remembered."""

_RETRY_S = 30.0
"""How often a tier that cannot be used is tried again."""

_Surveys = dict[str, Survey]


class Identification:
    """Finds the identities of checkpoints, on a thread of its own if they are not remembered.

    An identity covers everything that an engine reads of a model, and is equal for two engines that
    read the same. If the files may have changed since the engine read them, there is no identity,
    and one warning says why.

    Thread: any.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, Checkpoint],
        directories: Sequence[Path],
        started_s: float,
        then: Callable[[Mapping[str, str]], None],
    ) -> None:
        """Begin. Call it once the engine has read its weights.

        Args:
            checkpoints: By their role for the engine, such as "model".
            directories: Digests are remembered in the first that can be written to.
            started_s: When the engine started, in wall-clock time (`env.engine_start_s`).
            then: Called with the identities by role: before this returns if everything is
                remembered, else on the thread. After a `TierError` it is called again later, on a
                thread, until it returns; any other `FlexKVError` is logged, and ends it.

        Cost: one stat per file.
        """
        self._checkpoints = checkpoints
        self._judge = Judge(started_s, Mounts.read())
        self._then = then
        self._digest_cache = DigestCache(directories)
        self._digests: dict[Stamp, Digests] = {}
        self._identities: Mapping[str, str] = {}
        self._off = ""
        """The tier that `then` could not use when it was called last."""

        self.is_unknown = False
        """Whether there will be no identity: it could not be found, or `then` failed."""

        self._stop = threading.Event()
        self._calling = threading.RLock()
        self._thread: threading.Thread | None = None
        found = self._attempt(self._survey)
        if found is not None and self._not_remembered(found):
            self._start(lambda: self._run(found))
        elif found is not None and not self._finish(found):
            self._start(self._retry)

    def tell_again(self, error: TierError) -> None:
        """Call `then` once more, as if it had raised `error` just now."""
        self._note_off(error)
        self._start(self._retry)

    def close(self) -> None:
        """Ask the thread to end. `then` is not called afterwards; if it is running, wait for it."""
        self._stop.set()
        with self._calling:
            pass

    def join(self) -> None:
        """Wait until the thread has ended, if there is one."""
        if self._thread is not None:
            self._thread.join()

    def _start(self, target: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=target, name="flexkv-identity", daemon=True)
        self._thread.start()

    def _run(self, before: _Surveys) -> None:
        """Have the files read, then call `then`.

        On two threads: whatever `then` starts would inherit the low priority of the reading one.
        """
        found: list[_Surveys | None] = []

        def read() -> None:
            yield_to_others()
            found.append(self._attempt(lambda: self._read(before)))

        reader = threading.Thread(target=read, name="flexkv-hashing", daemon=True)
        reader.start()
        reader.join()
        if not found:
            self.is_unknown = True  # the reader died; Python has printed its traceback
        for seen in filter(None, found):
            if not self._finish(seen):
                self._retry()

    def _attempt(self, step: Callable[[], _Surveys | str]) -> _Surveys | None:
        """Run a step; log its reason if it fails."""
        try:
            found = step()
        except OSError as error:
            found = _reason_of(error)
        if not isinstance(found, str):
            return found
        if not self._stop.is_set():
            self.is_unknown = True
            logger.warning(
                "identity.unknown of=%s: nothing of it outlives this process, because %s",
                ",".join(self._checkpoints),
                found,
            )
        return None

    def _survey(self) -> _Surveys | str:
        """Return the files found, or why they may not be what the engine read."""
        found: _Surveys = {}
        for role, checkpoint in self._checkpoints.items():
            seen = survey(checkpoint)
            if isinstance(seen, str):
                return seen
            found[role] = seen
        return self._why_not(found) or found

    def _why_not(self, found: _Surveys) -> str | None:
        reasons = (self._judge.why_not(seen, self._digests) for seen in found.values())
        return next(filter(None, reasons), None)

    def _not_remembered(self, found: _Surveys) -> list[FoundFile]:
        """Return the files whose content is not remembered."""
        files = {file.stamp: file for seen in found.values() for file in seen.files}
        for stamp in files:
            digests = self._digest_cache.get(stamp)
            if digests is not None:
                self._digests[stamp] = digests
        return [file for stamp, file in files.items() if stamp not in self._digests]

    def _read(self, before: _Surveys) -> _Surveys | str:
        """Read all that is not remembered, and check that it did not change meanwhile."""
        with self._digest_cache.hashing(self._stop) as is_alone:
            if not (is_alone or self._stop.is_set()):
                logger.warning("identity.hashed_twice: another process has not ended for long")
            if not self._stop.is_set():
                # Another process may have done it while this one waited.
                self._digest_cache.reload()
                self._hash(self._not_remembered(before))
        if self._stop.is_set():
            return "it was closed"
        after = self._survey()
        if isinstance(after, str):
            return after
        changes = (why_changed(seen, after[role]) for role, seen in before.items())
        reason = next(filter(None, changes), None)
        if reason is None and self._not_remembered(after):
            name = self._not_remembered(after)[0].name
            return f"{name} looks different every time: copy the model to another file system"
        return reason or after

    def _hash(self, files: Sequence[FoundFile]) -> None:
        """Hash files until one turns out to have changed; remember each as soon as it is done."""
        progress = Progress([file.stamp.size for file in files])
        hasher = FileHasher(self._stop, progress.add)
        for file in files:
            stamp, begin_s = file.stamp, time.time()
            digests = hasher.hash(stamp.path, for_git=file.is_named_by_git)
            if digests is None or Stamp.take(stamp.path) != stamp:
                return
            self._digests[stamp] = digests
            if not stamp.shows_changes:
                logger.info(
                    "identity.hashed_at_every_start path=%s: its file system keeps no times",
                    stamp.path,
                )
            elif self._judge.is_older(stamp, begin_s - _SETTLED_S):
                self._digest_cache.remember({stamp: digests})
        progress.end()

    def _finish(self, found: _Surveys) -> bool:
        """Report the identities, unless a file's content does not match its name.

        Returns:
            False if that has to be tried again.
        """
        if self._attempt(lambda: self._why_not(found) or found) is None:
            return True
        self._digest_cache.use(self._digests)
        self._identities = {
            role: self._identity(checkpoint, found[role])
            for role, checkpoint in self._checkpoints.items()
        }
        return self._tell()

    def _retry(self) -> None:
        while not self._stop.wait(_RETRY_S):
            if self._tell():
                return

    def _tell(self) -> bool:
        """Call `then`; return False if the tier that it opens cannot be used now."""
        with self._calling:
            if self._stop.is_set():
                return True
            is_useless = True
            try:
                self._then(self._identities)
                is_useless = False
            except TierError as error:
                is_useless = False
                self._note_off(error)
                return False
            except FlexKVError as error:
                logger.warning("identity.of_no_use: %s", error)
            finally:
                self.is_unknown = is_useless
            if self._off:
                logger.warning("tier.on tier=%s: it is used from now on", self._off)
                self._off = ""
            return True

    def _note_off(self, error: TierError) -> None:
        if not self._off:
            logger.warning(
                "tier.off tier=%s: %s; requests are served without it, and it is tried again every"
                " %.0f s",
                error.tier,
                error.reason,
                _RETRY_S,
            )
        self._off = error.tier

    def _identity(self, checkpoint: Checkpoint, found: Survey) -> str:
        if not found.files:
            # No file of it counts: the namespace also has the user's name for the weights.
            name = f"{checkpoint.model}@{checkpoint.revision or ''}"
            return f"named:{sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()}"
        digests = {file.name: self._digests[file.stamp] for file in found.files}
        return f"content:{digest_of_files(digests).hex()}"


def _reason_of(error: OSError) -> str:
    if error.strerror is None:
        return f"{error}: set weight_version"
    return f"{error.filename} cannot be read ({error.strerror}): set weight_version"
