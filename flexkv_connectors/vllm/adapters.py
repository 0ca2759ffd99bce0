"""Which content every LoRA had when vLLM loaded it.

A worker keeps adapters by number, evicts the least recently used one, and silently loads it again
from its path when a request needs it. Some loads are announced (`adapter_loads`), all others happen
after the first request of the adapter was seen here. So the workers hold the files that were there
when the adapter was announced or first seen, provided that these files have not changed since.
Once they have, the adapter is not cached any more, until a load in place is announced.

If files change between the last look here and a load later in the same step, blocks of the old
content may be offered to a request of that step; none is ever saved.
"""

import logging
import threading
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from flexkv_connectors.vllm.adapter_files import (
    AdapterFiles,
    find_files,
    find_only_snapshot,
    is_path,
)
from flexkv_core.identity.as_read import Judge
from flexkv_core.identity.hashing import FileHasher, yield_to_others

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

__all__ = ["Adapter", "Adapters"]

logger = logging.getLogger(__name__)

_MAX_ADAPTERS = 16384
"""About 2 KB each. None is evicted: it would not be known any more what its number stands for."""

_NOT_LOADED = "vLLM could not load it"
_NOT_FETCHED = "vLLM has not fetched it from the hub yet"
_TWO_IN_ONE = "its number has stood for two adapters"


@dataclass(slots=True, eq=False)
class Adapter:
    """One adapter as the workers hold it, until its number stands for another."""

    name: str
    path: str
    is_3d: bool
    """Whether vLLM was configured to read its experts as stored in three dimensions."""

    files: AdapterFiles | None = None
    digest: bytes | None = None
    """Stands for its content in block keys; None until its files have been read."""

    why_not: str = ""
    """Why nothing that is computed with it is cached, in one clause; empty if it is cached."""

    look: int = 0
    """Number of the look (`Adapters.look_again`) at which its files were last compared."""

    def is_asked_by(self, lora: "LoRARequest") -> bool:
        """Return whether `lora` stands for the same files, read in the same way."""
        return (self.path, self.is_3d) == (lora.lora_path, lora.is_3d_lora_weight)


class Adapters:
    """All adapters of one engine. Thread: the scheduler's, which is never kept waiting."""

    def __init__(
        self, settings: bytes, hub_cache: Path | None, judge: Judge, *, oldest_s: float = 0.0
    ) -> None:
        """Start without any.

        Args:
            settings: Digest of the engine's options that change what all adapters compute.
            hub_cache: Where vLLM keeps adapters of the hub; None if it does not use the hub.
            judge: Knows how old files are.
            oldest_s: Unannounced adapters may have been loaded since then, in seconds since the
                epoch; 0 if every load is announced or is for a request.
        """
        self._settings = settings
        self._hub_cache = hub_cache
        self._judge = judge
        self._oldest_s = oldest_s
        self._adapters: dict[int, Adapter] = {}
        self._contents: dict[str, AdapterFiles | None] = {}
        """The files that each name has stood for; None if its content has changed."""

        self._num_requests: Counter[int] = Counter()
        """Running requests by number: the workers may load their adapters at any time."""

        self._is_full = False
        self._look = 0
        self._reader = _Reader()

    @property
    def has_work(self) -> bool:
        """Whether files are being read."""
        return self._reader.is_busy

    def look_again(self) -> None:
        """Have files compared again when next asked for; one look a step serves all requests."""
        self._look += 1

    def begin(self, lora: "LoRARequest") -> Adapter:
        """Return the adapter of a request that is seen for the first time; `end` has to follow."""
        self.look_again()
        self._num_requests[lora.lora_int_id] += 1
        adapter = self._adapters.get(lora.lora_int_id)
        if adapter is None:
            return self._start(lora, is_announced=False)
        if not adapter.is_asked_by(lora):
            self._give_up(adapter, _TWO_IN_ONE)
        return adapter

    def holds(self, adapter: Adapter) -> bool:
        """Return whether the workers are certain to hold the files of `adapter`."""
        if not adapter.why_not and adapter.look != self._look:
            adapter.look = self._look
            if adapter.files is not None and adapter.files.have_changed():
                self._give_up(adapter, "its files have changed since vLLM loaded them")
        return not adapter.why_not

    def is_only_one(self, adapter: Adapter) -> bool:
        """Return whether the name of `adapter` has never stood for other files."""
        return self._contents.get(adapter.name) is not None

    def begin_load(self, lora: "LoRARequest") -> None:
        """Note that vLLM is about to load an adapter, unless it holds it already."""
        self.look_again()
        adapter = self._adapters.get(lora.lora_int_id)
        is_known = adapter is not None and adapter.is_asked_by(lora)
        if adapter is None or (lora.load_inplace and not (is_known and self.holds(adapter))):
            self._start(lora, is_announced=True)
        elif not is_known:
            self._give_up(adapter, _TWO_IN_ONE)

    def end_load(self, lora: "LoRARequest") -> None:
        """Note that the load which `begin_load` announced has succeeded."""
        adapter = self._adapters.get(lora.lora_int_id)
        if adapter is not None and adapter.why_not == _NOT_LOADED:
            adapter.why_not = "" if adapter.files is not None else _NOT_FETCHED
            self._note_fetched(adapter)

    def end(self, lora: "LoRARequest", adapter: Adapter, *, is_computed: bool) -> None:
        """Note that a request has ended, and whether anything was computed for it."""
        self._num_requests[lora.lora_int_id] -= 1
        if not self._num_requests[lora.lora_int_id]:
            del self._num_requests[lora.lora_int_id]
        if is_computed:
            self._note_fetched(adapter)

    def note_removal(self, number: int) -> None:
        """Note that the workers have removed an adapter; running requests may load it again."""
        if number in self._num_requests:
            self.doubt(number)
        else:
            self._adapters.pop(number, None)

    def doubt(self, number: int) -> None:
        """Note that it is not known what the workers hold under `number`."""
        if number in self._adapters:
            self._give_up(
                self._adapters[number], "it may have been loaded or removed without notice"
            )

    def _start(self, lora: "LoRARequest", *, is_announced: bool) -> Adapter:
        """Start to follow an adapter, in the place of any other with its number."""
        adapter = Adapter(lora.lora_name, lora.lora_path, lora.is_3d_lora_weight)
        before = self._adapters.pop(lora.lora_int_id, None)
        if before is not None:
            before.why_not = before.why_not or "another was loaded in its place"
        if self._has_no_room():
            adapter.why_not = "too many others are known"
            return adapter
        self._adapters[lora.lora_int_id] = adapter
        try:
            files = self._find(lora, is_new=is_announced or not self._oldest_s)
        except (OSError, ValueError) as error:
            self._give_up(adapter, f"it is not known what vLLM loads: {error}")
            return adapter
        adapter.files = files
        if is_announced:
            adapter.why_not = _NOT_LOADED
        elif files is None or not is_path(adapter.path):
            adapter.why_not = _NOT_FETCHED  # vLLM loads a newer one if the hub has it
        if files is not None and adapter.why_not != _NOT_FETCHED:
            self._take(adapter, files)
        return adapter

    def _has_no_room(self) -> bool:
        """Return whether no more adapters can be followed; that never changes back."""
        if not self._is_full and max(len(self._adapters), len(self._contents)) >= _MAX_ADAPTERS:
            self._is_full = True
            logger.warning("adapter.too_many: none beyond the first %d is cached", _MAX_ADAPTERS)
        return self._is_full

    def _find(self, lora: "LoRARequest", *, is_new: bool) -> AdapterFiles | None:
        """Return the files that vLLM would load now; None if it has to fetch them first.

        Args:
            lora: vLLM's description of the adapter.
            is_new: Whether it is certain that the workers have not loaded it yet.

        Raises:
            OSError: It is not known what the workers hold.
            ValueError: Its path holds a NUL or is not valid Unicode.
        """
        if getattr(lora, "tensorizer_config_dict", None):
            msg = "it comes from tensorizer"
            raise OSError(msg)
        files = find_files(lora.lora_path, self._hub_cache)
        for stamp in () if files is None else files.stamps:
            if not stamp.shows_changes:
                msg = f"the file system of {stamp.path} does not record when files change"
                raise OSError(msg)
            if not (is_new or self._judge.is_older(stamp, self._oldest_s)):
                msg = f"{stamp.path} may be younger than what is loaded already"
                raise OSError(msg)
        return files

    def _take(self, adapter: Adapter, files: AdapterFiles) -> None:
        """Take `files` for what the workers hold, and start to read them, too."""
        adapter.files = files
        if self._contents.setdefault(adapter.name, files) != files:
            self._contents[adapter.name] = None
        self._reader.read(adapter, self._settings)

    def _note_fetched(self, adapter: Adapter) -> None:
        """Note that the workers have loaded `adapter`, so its files have been fetched."""
        if adapter.why_not != _NOT_FETCHED or self._hub_cache is None:
            return
        try:
            files = adapter.files
            if files is None or files.have_changed():
                files = find_only_snapshot(adapter.path, self._hub_cache)
        except (OSError, ValueError) as error:
            self._give_up(adapter, f"it is not known what vLLM has fetched: {error}")
        else:
            adapter.why_not = ""
            self._take(adapter, files)

    def _give_up(self, adapter: Adapter, reason: str) -> None:
        """Stop caching an adapter; vLLM's own cache may hold KV of any content under its name."""
        self._contents[adapter.name] = None
        if adapter.why_not in ("", _NOT_LOADED, _NOT_FETCHED):
            logger.warning(
                "adapter.not_cached name=%s path=%s: %s", adapter.name, adapter.path, reason
            )
            adapter.why_not = reason


class _Reader:
    """Reads adapters one after the other, in a thread that gives way to the engine."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[tuple[Adapter, AdapterFiles, bytes]] = SimpleQueue()
        self._num_asked = 0
        self._num_read = 0

    @property
    def is_busy(self) -> bool:
        """Whether an adapter waits for its digest."""
        return self._num_read < self._num_asked

    def read(self, adapter: Adapter, settings: bytes) -> None:
        """Queue an adapter whose digest is to be computed."""
        assert adapter.files is not None, "the caller has found them"
        if not self._num_asked:
            threading.Thread(target=self._work, name="flexkv-adapters", daemon=True).start()
        self._num_asked += 1
        self._waiting.put((adapter, adapter.files, settings))

    def _work(self) -> None:
        yield_to_others()
        hasher = FileHasher(threading.Event(), lambda _num_bytes: None)
        while True:
            adapter, files, settings = self._waiting.get()
            try:
                content = files.digest(hasher)
                parts = (b"flexkv-adapter-v1", settings, bytes([adapter.is_3d]), content)
                adapter.digest = sha256(b"".join(parts)).digest()
                logger.info("adapter.known name=%s path=%s", adapter.name, adapter.path)
            except OSError as error:
                logger.warning(
                    "adapter.not_cached name=%s path=%s: %s", adapter.name, adapter.path, error
                )
            self._num_read += 1
